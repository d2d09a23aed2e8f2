"""Where does each microsecond go, from a frame to a provisional signal?

Caveats first. Absolute figures are this machine's and move with whatever else runs on it; compare within one run. The
frames are an invented market's, so every run sees the same ones. The stages are timed apart and their sum set beside
the whole, so that what no stage accounts for shows. The socket is not in it: `websockets` costs about as much again.

    python benchmarks/tick.py [--trades 20000]
"""

import argparse
import json
import time
from collections.abc import Callable

from daemon import topics
from daemon.pipeline import Pipeline
from feeds.capture import AggTrade, agg_trade_frame
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import T, decimal_text
from feeds.events import Event, MarketTrade
from feeds.exchanges.binance import BinanceCodec
from feeds.market import CandleSpec, Market
from feeds.sequence import ExchangeClock, TradeSequence
from inference import artifact
from inference.engine import Model
from inference.signals import Rules

BEGIN_MS = 1_736_121_600_000
HISTORY_MS = 20 * 3_600_000
SPEC = CandleSpec.parse("1m")


def frames(count: int) -> tuple[list[bytes], list[bytes], Market]:
    """Return the frames of the history that warms the model up, those that are timed, and their market."""
    tape = synthetic_tape("BTCUSDT", seed=7, begin_ms=BEGIN_MS)
    market = Market(
        exchange="binance", symbol="BTC/USDT:USDT", native="BTCUSDT", price_decimals=tape.price_decimals,
        size_decimals=tape.size_decimals, listed_at_ns=BEGIN_MS * 1_000_000,
    )  # fmt: skip
    split = BEGIN_MS + HISTORY_MS
    rows = [*tape.trades(0, split), *tape.trades(split, split + 12 * 3_600_000)[:count]]
    texts = [
        agg_trade_frame(
            "BTCUSDT",
            AggTrade(
                int(row[T.ID]), decimal_text(int(row[T.PRICE]), tape.price_decimals),
                decimal_text(int(row[T.SIZE]), tape.size_decimals), int(row[T.FIRST]), int(row[T.LAST]),
                int(row[T.TIME]),
                bool(row[T.MAKER]),
            ),
        ).encode()
        for row in rows
    ]  # fmt: skip
    return texts[:-count], texts[-count:], market


def timed(label: str, what: Callable[[], object], times: int) -> tuple[str, float]:
    began = time.perf_counter()
    what()
    return label, (time.perf_counter() - began) / times * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trades", type=int, default=20_000)
    count = options.parse_args().trades
    history, live, market = frames(count)
    codec = BinanceCodec([market], {market.symbol: [SPEC]})
    pipeline = Pipeline(Model(artifact.load(artifact.resolve("default")), Rules()), base_topic="lstmd")
    one = pipeline.add(market, codec.traits)
    one.clock.set((BEGIN_MS + HISTORY_MS) * 1_000_000)
    one.settle_funding([], 1 << 62)
    line = one.add(SPEC, pipeline.model, has_kline=True, by_exchange=False)
    line.begin(newest_seq=SPEC.seq_at(BEGIN_MS * 1_000_000), stream_seq=None, journal=[])
    one.channels["1m"].closer.see(SPEC.open_of(BEGIN_MS * 1_000_000))
    for frame in history:
        pipeline.handle(codec.decode(frame, 0))  # type: ignore[arg-type]
    pipeline.take_work()
    events: list[list[Event]] = [codec.decode(frame, 0) for frame in live]
    trades = [event.trade for batch in events for event in batch if isinstance(event, MarketTrade)]
    sequence, clock = TradeSequence(), ExchangeClock()
    clock.set(trades[0].event_time_ns)
    forming = one.channels["1m"].closer.forming
    [json.loads(frame) for frame in live]
    stages = [
        timed("json.loads of the frame, for comparison", lambda: [json.loads(frame) for frame in live], count),
        timed("decode: frame to trade", lambda: [codec.decode(frame, 0) for frame in live], count),
        timed(
            "of the pipeline: order and time",
            lambda: [sequence.take(t) and clock.believes("t", t.event_time_ns) for t in trades],
            count,
        ),
        timed(
            "pipeline: trade to forming candle, closes and steps included",
            lambda: [pipeline.handle(batch) for batch in events],
            count,
        ),  # type: ignore[arg-type]
        timed("of peek: forming candle read", lambda: [forming() for _ in range(count)], count),
    ]
    pipeline.take_work()
    peeks = min(count, 4_000)

    def peek() -> None:
        for batch in events[-1:] * peeks:
            pipeline.handle(batch)  # type: ignore[arg-type]  # a duplicate: it only marks the market as moved
            pipeline.live()

    payload = pipeline.handle(events[-1]) or pipeline.live()[0][1]  # type: ignore[arg-type]
    stages += [
        timed("peek: features, model, decision, payload", peek, peeks),
        timed("payload to JSON", lambda: [topics.encode(payload) for _ in range(peeks)], peeks),
    ]
    base = stages[0][1]
    print(f"{count} trades; µs each, and as a multiple of json.loads in this run")
    for label, took in stages:
        print(f"{took:8.2f}  ×{took / base:5.2f}  {label}")


if __name__ == "__main__":
    main()
