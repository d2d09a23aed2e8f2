"""How much memory does the daemon take, and how much of it each market?

Caveats first. Each count of markets is a process of its own, which loads what the daemon loads (ccxt and the broker's
client too, torch never) and holds all that the daemon's parts keep of a market at work: codec, order, builder, ledger,
two folds as in the last third of an epoch, funding, the newest message, what is retained, and the newest candles; a
candle has closed in each and trades have come since. Sockets and REST answers under way are not in it, nor is SQLite's
file, which the kernel may cache. Candles are invented: they do not decide. A market's share is the growth of the
resident set from the first count to the last, so what the allocator keeps in reserve is in it.

    python -m benchmarks.memory [--markets 1 500 3000 10000]
"""

import argparse
import asyncio
import gc
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import structlog

from benchmarks.harness import faster, publish
from benchmarks.minute import SPEC, history, market
from config.schema import Config
from daemon import app, clock, topics
from daemon.committer import Committer
from daemon.health import Reporter
from daemon.line import Ordinal
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import Store
from feeds.events import Kline, MarketTrade, MarkPrice
from feeds.exchanges.binance import BinanceCodec
from feeds.market import Trade
from inference import artifact as artifacts
from inference.engine import Model
from inference.signals import Rules
from inference.stopwatch import Stopwatch

LIMIT_MB, LIMIT_KB = 250.0, 20.0
STATM = Path("/proc/self/statm")
PAGE_KB = 4


def resident_kb() -> int:
    """Read the resident set."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * PAGE_KB


def fresh(rows: list[Ordinal]) -> list[Ordinal]:
    """Copy candles to the last float, as a read of the journal would."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(rows), type=list[Ordinal])


def hold(count: int, folder: Path) -> dict[str, object]:
    """Hold `count` markets; return what the process takes, KB."""
    assert app.run is not None, "all that the daemon imports is imported"
    model = Model(artifacts.load(artifacts.resolve("default")), Rules())
    last = 28_000_000 // model.epoch * model.epoch + model.epoch - 100
    rows, state = history(model, last)
    config = Config(feeds=[{"exchange": "binance", "symbols": [market(0).symbol]}], store={"path": folder})
    store, metrics = Store(folder / "lstmd.sqlite"), Metrics()
    pipeline = Pipeline(model, base_topic="lstmd", watch=Stopwatch(clock.now_ns), journal=store.journal)
    publisher = Publisher(
        MqttLink("mqtt://127.0.0.1:9", client_id="x"), store, status_topic="s", online=b"", offline=b"", stamp=bytes,
        inflight_max=100, rng=clock.rng(0),
    )  # fmt: skip
    committer = Committer(config, pipeline, store, publisher, metrics)
    before_kb = resident_kb()
    markets = [market(number) for number in range(count)]
    codec = BinanceCodec(markets, {one.symbol: [SPEC] for one in markets})
    for one in markets:
        held = pipeline.add(one, BinanceCodec.traits)
        held.clock.set(last * SPEC.interval_ns)
        held.settle_funding([], 1 << 62)
        line = held.add(SPEC, model, has_kline=True, by_exchange=False)
        line.begin(newest_seq=last, stream_seq=last, journal=rows[:-32] + fresh(rows[-32:]), snapshots=[state])
    tell(pipeline, committer, publisher, last + 1)
    held_kb = resident_kb()
    store.close()
    return {"before_kb": before_kb, "held_kb": held_kb, "torch": "torch" in sys.modules, "streams": len(codec.streams)}


def tell(pipeline: Pipeline, committer: Committer, publisher: Publisher, seq: int) -> None:
    """Let each market say what it says around a close, and be told of."""
    end_ns = seq * SPEC.interval_ns
    for number, held in enumerate(pipeline.markets.values()):
        one = held.market
        price = 10_000 + number % 100
        known = held.channels["1m"].line._rows(seq - 1, seq - 1)[0].candle
        assert known is not None
        begin_ns = end_ns - SPEC.interval_ns
        candle = msgspec.structs.replace(known, seq=seq, open_time_ns=begin_ns, close_time_ns=end_ns)
        pipeline.handle([MarkPrice(one, end_ns - 10**9, 1, mark_price=100.0, index_price=100.01)])
        pipeline.handle([MarketTrade(one, Trade(1, price, 1000, end_ns - 10**8, 1, 1, True))])
        pipeline.handle([Kline(one, SPEC, end_ns, 1, candle), MarkPrice(one, end_ns, 1, mark_price=100.0)])
        pipeline.handle([MarketTrade(one, Trade(2, price + 1, 1000, end_ns + 1, 1, 1, False))])
        topic = topics.market_topic("lstmd", one, "availability")
        said = topics.Availability(exchange=one.exchange, symbol=one.symbol, state="online", reason="", since="2025")
        publisher.retain(topic, topics.encode(said))
        if number % 500 == 0:
            committer.flush()
    committer.flush()


async def child(count: int) -> None:
    """Print what `count` markets take, as JSON."""
    assert Reporter is not None
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(hold(count, Path(folder))))


def main() -> None:
    """Measure each number of markets in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markets", type=int, nargs="+", default=[1, 500, 3000, 10000])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        return asyncio.run(child(options.child))
    found, rows = {}, []
    for count in options.markets:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", str(count)]
        found[count] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert not found[count]["torch"], "torch is loaded"
        held_mb = found[count]["held_kb"] / 1024
        reach = 1.0 if count <= 500 else None
        rows.append(
            faster(f"memory.{count}", f"resident, {count} markets", held_mb, LIMIT_MB, "the limit", "MB", reach)
        )
    first, last = min(found), max(found)
    for count in [count for count in options.markets if count > first]:
        share_kb = (found[count]["held_kb"] - found[first]["held_kb"]) / (count - first)
        reach = 1.0 if count == last else None
        rows.append(
            faster(f"memory.market.{count}", f"a market, of {count}", share_kb, LIMIT_KB, "the limit", "KB", reach)
        )
    state = "9 members of 1×64: two folds of h and c are 9 KB, twice the features' state beside them"
    publish("memory", "Memory of the daemon, and of each market", [f"the shipped artifact: {state}", "no torch"], rows)
    return None


if __name__ == "__main__":
    main()
