"""What does a trade cost from its frame to the forming candle, beside cryptofeed's and ccxt.pro's own handlers?

python -m benchmarks.frames [--trades 10000] [--rounds 7]
"""

import argparse
import asyncio
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness, peers
from daemon.listen import Hearing
from feeds.capture import agg_trade_frame, read_agg_trades
from feeds.exchanges.binance import BinanceCodec
from feeds.market import NS_PER_MS, CandleSpec, Market
from feeds.sequence import Verdict

QUESTION = "What does a trade cost from its frame to the forming candle?"
CAVEATS = [
    (
        "real trades of Binance (APEUSDT, 2024-10-18, from 00:00) in envelopes of the exchange's shape; no socket "
        "anywhere"
    ),
    (
        "ours decodes, checks time and order, and builds one-minute candles; cryptofeed makes a Trade and calls an"
        " empty callback; ccxt.pro parses the trade into its cache while nobody waits for it"
    ),
    "each gets what its own transport hands it: bytes for us, text for the others; ccxt with orjson",
]
TRADES = Path(__file__).parents[2] / "shared" / "data" / "trades" / "binance_um_APEUSDT-aggTrades-2024-10-18.zip"
MARKET = Market(exchange="binance", symbol="APE/USDT:USDT", native="APEUSDT", price_decimals=4, size_decimals=1)
SPEC = CandleSpec.parse("1m")


def ours(frames: list[bytes], first_ns: int) -> Callable[[], object]:
    codec = BinanceCodec([MARKET], {MARKET.symbol: [SPEC]})

    def run() -> None:
        pipeline = Hearing(MARKET, SPEC, codec.traits, first_ns).pipeline
        pipeline.connected()
        for frame in frames:
            for event in codec.decode(frame, 0):
                pipeline.handle(event)  # type: ignore[arg-type]
        assert pipeline.counts[Verdict.NEXT] == len(frames)

    return run


def cryptofeed(frames: list[str]) -> Callable[[], object]:
    peers.lend_cryptofeed()
    from cryptofeed.defines import TRADES as CHANNEL
    from cryptofeed.exchanges import BinanceFutures
    from cryptofeed.symbols import Symbols

    Symbols.set(BinanceFutures.id, {"APE-USDT-PERP": "APEUSDT"}, {"instrument_type": {}})
    taken = 0

    async def take(_trade: Any, _receipt: float) -> None:
        nonlocal taken
        taken += 1

    feed = BinanceFutures(symbols=["APE-USDT-PERP"], channels=[CHANNEL], callbacks={CHANNEL: take})

    async def run() -> None:
        for frame in frames:
            await feed.message_handler(frame, None, 0.0)

    def whole() -> None:
        nonlocal taken
        taken = 0
        asyncio.run(run())
        assert taken == len(frames)

    return whole


def ccxt_pro(frames: list[str]) -> Callable[[], object]:
    import ccxt.pro

    async def make() -> tuple[Any, Any]:
        exchange = ccxt.pro.binanceusdm({"timeout_on_exit": 0})
        names = {"id": "APEUSDT", "symbol": MARKET.symbol, "base": "APE", "quote": "USDT", "settle": "USDT"}
        kind = {"type": "swap", "swap": True, "contract": True, "linear": True, "contractSize": 1, "spot": False}
        market = exchange.safe_market_structure({**names, **kind, "precision": {"amount": 1, "price": 0.0001}})
        exchange.set_markets([market])
        client = exchange.client("wss://fstream.binance.com/market/stream")
        await exchange.close()
        return exchange, client

    exchange, client = asyncio.run(make())

    def run() -> None:
        exchange.trades.clear()
        for frame in frames:
            client.handle_text_or_binary_message(frame)
        assert int(exchange.trades[MARKET.symbol][-1]["id"]) == last

    last = int(frames[-1].split('"a":')[1].split(",")[0])
    return run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trades", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=7)
    chosen = options.parse_args()
    trades = [row for row, _ in zip(read_agg_trades(TRADES), range(chosen.trades), strict=False)]
    texts = [agg_trade_frame("APEUSDT", row) for row in trades]
    tasks = {
        "ours": (ours([text.encode() for text in texts], trades[0].time_ms * NS_PER_MS), 1),
        "cryptofeed": (cryptofeed(texts), 1),
        "ccxt.pro": (ccxt_pro(texts), 1),
    }
    taken = harness.turns(tasks, chosen.rounds)
    us = {name: statistics.median(values) / len(texts) * 1e6 for name, values in taken.items()}
    what = "aggTrade frame → forming candle"
    harness.publish("frames", QUESTION, CAVEATS, [
        harness.faster("frames.cryptofeed", what, us["ours"], us["cryptofeed"], "cryptofeed's handler", "µs", 1.0),
        harness.faster("frames.ccxt_pro", what, us["ours"], us["ccxt.pro"], "ccxt.pro's handler", "µs", 30.0),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
