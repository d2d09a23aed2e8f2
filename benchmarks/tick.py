"""What does a tick cost from the socket to the provisional signal's bytes, beside the pipeline assembled today?

python -m benchmarks.tick [--ticks 1500] [--rounds 1]
"""

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import harness, models, peers
from benchmarks.loopback import Meter, Ours, Plan, Told, apart, consume, exchange

QUESTION = "What does a tick cost from the socket to the provisional signal's bytes?"
CAVEATS = [
    (
        "recorded trades, re-timed to 500 a second, from another process over a loopback websocket; CPU time of "
        "the consumer's process, a tick, after a fifth of them; each contestant in a process of its own, in turns"
    ),
    (
        "the peer: ccxt.pro watch_trades, a window of 64 trades of 4 figures, torch LSTM 2×64 on one thread, "
        "orjson, aiomqtt; ours: websocket, decoder, order, candle, 44 features, model, decision, JSON, store of "
        "closed candles"
    ),
    (
        "at 500 a second each tick wakes a process that slept: 'a bare reader' does that alone, a blocking recv "
        "and nothing more, so its cost is the floor for whoever reads a socket, and the peer over it the most that"
        " any ratio can be"
    ),
    "with the throttle off every tick is to have its signal; how many had one is checked and stated below 95 %",
    "published: each signal at QoS 1 to a mosquitto on loopback; 'as bytes' stops before the broker",
]
RATE = 500.0


@contextlib.contextmanager
def mosquitto() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        conf.write_text(f"listener {port} 127.0.0.1\n{user}allow_anonymous true\nset_tcp_nodelay true\n")
        path = f"{os.environ['PATH']}:/usr/sbin"
        with subprocess.Popen(
            ["mosquitto", "-c", str(conf)], env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL
        ) as process:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            try:
                yield "127.0.0.1", port
            finally:
                process.terminate()


def read(port: int, plan: Plan) -> Told:
    """Read the socket and do nothing else, blocking."""
    meter = Meter(plan.ticks // 5, plan.ticks)
    with socket.create_connection(("127.0.0.1", port)) as reader:
        reader.sendall(
            b"GET /market/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b"101" in reader.recv(4096)
        body = b'{"method":"SUBSCRIBE","params":["x"],"id":1}'
        reader.sendall(bytes([0x81, 0x80 | len(body)]) + bytes(4) + body)
        assert b"result" in reader.recv(4096)

        async def take() -> None:
            while not meter.done.is_set():
                meter.tick(reader.recv(1 << 16).count(b'"e":"aggTrade"'))

        asyncio.run(take())
    return meter.told


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ticks", type=int, default=1_500)
    options.add_argument("--rounds", type=int, default=1)
    chosen = options.parse_args()
    plan = Plan(chosen.ticks, 1, RATE, paced=True)
    with mosquitto() as broker:
        url = f"mqtt://{broker[0]}:{broker[1]}"
        cases: dict[str, Callable[[int], tuple[object, ...]]] = {
            "peer": lambda port: (peers.consume, peers.Assembled(port, plan)),
            "2x64": lambda port: (consume, Ours(port, plan, "2x64", 0)),
            "shipped": lambda port: (consume, Ours(port, plan, models.SHIPPED, 0)),
            "throttled": lambda port: (consume, Ours(port, plan, models.SHIPPED, 250)),
            "reader": lambda port: (read, port, plan),
            "peer, published": lambda port: (peers.consume, peers.Assembled(port, plan, broker)),
            "2x64, published": lambda port: (consume, Ours(port, plan, "2x64", 0, url)),
            "shipped, published": lambda port: (consume, Ours(port, plan, models.SHIPPED, 0, url)),
        }
        told: dict[str, list[Told]] = {name: [] for name in cases}
        for _ in range(chosen.rounds):
            for name, case in cases.items():
                with exchange(plan) as port:
                    told[name].append(apart(*case(port)))  # type: ignore[arg-type]
    us = {name: statistics.median(t.cpu_s / t.ticks for t in of) * 1e6 for name, of in told.items()}
    share = {name: min(t.outputs / t.ticks for t in of) for name, of in told.items()}
    caveats = [*CAVEATS, *(
        f"{name}: {share[name]:.0%} of ticks had a signal of their own"
        for name in cases if name not in ("throttled", "reader") and share[name] < 0.95
    )]  # fmt: skip

    def row(name: str, peer: str, what: str, reach: float | None = None) -> harness.Row:
        beside = {"peer": "ccxt.pro, torch", "peer, published": "ccxt.pro, torch, aiomqtt"}[peer]
        key = f"tick.{name.replace(', ', '_')}"
        return harness.faster(key, what, us[name], us[peer], beside, "µs", reach)

    harness.publish("tick", QUESTION, caveats, [
        row("2x64", "peer", "tick → signal as bytes, model 2x64", 40.0),
        row("shipped", "peer", "tick → signal as bytes, shipped model"),
        row("throttled", "peer", "shipped model, a signal every 250 ms"),
        row("reader", "peer", "a bare reader of the socket: no more can be reached"),
        row("2x64, published", "peer, published", "tick → signal published, model 2x64", 10.0),
        row("shipped, published", "peer, published", "tick → signal published, shipped model"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
