"""What the benchmarks set beside us and the project itself does not depend on."""

import asyncio
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.loopback import BEGIN_MS, Meter, Plan, Told, market

FOLDER = Path(__file__).parents[1] / "build" / "peers"
"""An environment of its own: cryptofeed brings aiodns along, which would change how aiohttp resolves names here."""
CRYPTOFEED = "cryptofeed>=2.4,<3"


def lend_cryptofeed() -> None:
    """Make `import cryptofeed` work in this process; the first time it is installed, which takes a minute.

    It runs on the packages that are here already, so that all contestants share their interpreter and libraries.
    """
    packages = FOLDER / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if not (packages / "cryptofeed").exists():
        venv.create(FOLDER, with_pip=True)
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, CRYPTOFEED], check=True)
    sys.path.append(str(packages))


class Assembled(NamedTuple):
    """How the pipeline that people assemble today consumes."""

    port: int
    plan: Plan
    broker: tuple[str, int] | None = None
    """Where each prediction is published at QoS 1; None: it ends as bytes."""


WINDOW, INPUTS, LAYERS, HIDDEN = 64, 4, 2, 64


def consume(how: Assembled) -> Told:
    """Run `ccxt.pro` → window → torch over 64 steps → aiomqtt against the sender until all ticks are through."""
    return asyncio.run(_consume(how))


async def _consume(how: Assembled) -> Told:
    import ccxt.pro

    exchange = ccxt.pro.binanceusdm({"timeout_on_exit": 0, "newUpdates": True})
    for name, address in exchange.urls["api"]["ws"].items():
        if isinstance(address, str):
            exchange.urls["api"]["ws"][name] = f"ws://127.0.0.1:{how.port}/ws"
    exchange.set_markets([ccxt_market(exchange, 0)])
    try:
        if how.broker is None:
            return await _follow(exchange, how, None)
        import aiomqtt

        async with aiomqtt.Client(*how.broker, identifier="assembled") as client:
            return await _follow(exchange, how, client)
    finally:
        await exchange.close()


def ccxt_market(exchange: Any, number: int) -> Any:
    """Return what ccxt would have learnt of a market from the exchange's list."""
    ours = market(number)
    names = {"id": ours.native, "lowercaseId": ours.native.lower(), "symbol": ours.symbol}
    base = {"base": ours.symbol.partition("/")[0], "quote": "USDT", "settle": "USDT"}
    kind = {"type": "swap", "swap": True, "contract": True, "linear": True, "contractSize": 1, "spot": False}
    return exchange.safe_market_structure({**names, **base, **kind, "precision": {"amount": 1, "price": 0.0001}})


async def _follow(exchange: Any, how: Assembled, client: Any) -> Told:
    import numpy as np
    import orjson
    import torch

    torch.set_num_threads(1)  # more threads only wait for each other at this size
    torch.manual_seed(1)
    model, head = torch.nn.LSTM(INPUTS, HIDDEN, LAYERS), torch.nn.Linear(HIDDEN, 3)
    window, meter, symbol = np.zeros((WINDOW, 1, INPUTS), np.float32), Meter(how.plan.ticks // 5, how.plan.ticks), None
    symbol, last_price, last_ms = market(0).symbol, None, BEGIN_MS
    with torch.inference_mode():
        while not meter.done.is_set():
            for trade in await exchange.watch_trades(symbol, params={"name": "aggTrade"}):
                price, ms = trade["price"], trade["timestamp"]
                window[:-1] = window[1:]
                window[-1, 0] = (
                    price / (last_price or price) - 1.0, trade["amount"], trade["side"] == "buy", (ms - last_ms) / 1e3
                )  # fmt: skip
                last_price, last_ms = price, ms
                out, _ = model(torch.from_numpy(window))
                short, flat, long = torch.softmax(head(out[-1, 0]), -1).tolist()
                payload = orjson.dumps({"symbol": symbol, "time": ms, "price": price, "p": [short, flat, long]})
                if client is not None:
                    await client.publish(f"signals/{symbol}", payload, qos=1)
                meter.outputs += len(payload) > 0
                meter.tick()
    return meter.told
