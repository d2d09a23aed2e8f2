"""How many candles a second go through the pipeline when a week is replayed, without sockets?

python -m benchmarks.replay [--candles 5000] [--rounds 5]
"""

import argparse
import statistics
import time
from pathlib import Path

from benchmarks import harness, models
from daemon import topics
from daemon.pipeline import Pipeline
from feeds.capture import read_candles
from feeds.events import Kline
from feeds.exchanges.binance import BinanceCodec
from feeds.market import Candle, CandleSpec, Market, Origin
from inference.engine import Model

QUESTION = "How many candles a second go through the pipeline when a week is replayed?"
CAVEATS = [
    (
        "real one-minute candles (Binance BTCUSDT, 2025-05), one market, one core, as the exchange's closed "
        "klines: time and order checked, folded one by one, decided, each signal encoded as it is published; "
        "nothing is read from or written to disk"
    ),
    ("every candle is folded as live does it, and in the last 256 of an epoch's 720 twice; the warm-up is left out"),
    "a week is 10,080 candles: --candles 10337 for all of it",
]
CANDLES = Path(__file__).parents[2] / "shared" / "data" / "ohlcv" / "binance_um" / "BTCUSDT_1m_2025-05_2025-06.parquet"
SPEC = CandleSpec.parse("1m")
WARM = 257
WANTED = 200_000.0


def klines(count: int) -> list[Kline]:
    columns = read_candles(CANDLES)
    market = market_listed(int(columns.open_time_ns[0]))
    found = []
    for opened, o, h, l, c, v in zip(*(column[:count].tolist() for column in columns), strict=True):
        closed = opened + SPEC.interval_ns
        candle = Candle(
            seq=closed // SPEC.interval_ns, open_time_ns=opened, close_time_ns=closed, open=o, high=h, low=l, close=c,
            volume=v, trades=1, closed=True, origin=Origin.EXCHANGE,
        )  # fmt: skip
        found.append(Kline(market, SPEC, closed, closed, candle))
    return found


def market_listed(at_ns: int) -> Market:
    return Market(
        exchange="binance", symbol="BTC/USDT:USDT", native="BTCUSDT", price_decimals=2, size_decimals=3,
        listed_at_ns=at_ns,
    )  # fmt: skip


def replay(model: Model, events: list[Kline]) -> float:
    """Fold all events from the market's listing on; return the seconds a candle after the warm-up took."""
    pipeline, market = Pipeline(model, base_topic="lstmd"), events[0].market
    one = pipeline.add(market, BinanceCodec.traits)
    one.clock.set(events[0].candle.open_time_ns)
    one.settle_funding([], 1 << 62)
    line = one.add(SPEC, model, has_kline=True, by_exchange=False)
    line.begin(newest_seq=events[0].candle.seq, stream_seq=None, journal=[])
    for event in events[:WARM]:
        pipeline.handle([event])
    pipeline.take_work()
    signals, began_s = 0, time.perf_counter()
    for event in events[WARM:]:
        pipeline.handle([event])
        for _, work in pipeline.take_work():
            for draft in work.drafts:
                signals += draft.kind == "signal"
                topics.with_context(draft.identity, topics.encode(draft.context))
    took_s = time.perf_counter() - began_s
    assert signals == len(events) - WARM
    return took_s / signals


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--candles", type=int, default=5_000)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    events = klines(chosen.candles)
    sizes = {size: models.of(size) for size in ("1x32", "2x64", models.SHIPPED)}
    rounds = [{size: replay(model, events) for size, model in sizes.items()} for _ in range(chosen.rounds)]
    harness.publish("replay", QUESTION, CAVEATS, [
        harness.more(
            f"replay.{size}", f"replayed candles, model {size}", 1.0 / statistics.median(r[size] for r in rounds),
            WANTED, "wanted", "/s", 1.0,
        )
        for size in sizes
    ])  # fmt: skip


if __name__ == "__main__":
    main()
