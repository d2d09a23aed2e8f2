"""What does durability cost: a commit, a market's bytes on the disk, and a start after a crash?

Caveats first. Absolute figures are this machine's disk; compare within one run. Beside each commit stands the least
that any store could do: the same bytes appended to a file and synced, in turn with it, so that a disturbance meets
both. A flush is what the daemon writes in one turn of its loop: of each line one candle, one message, and one time in
64 the state after it, spread over the lines; `every` writes the state with each candle. Candles are invented and all
markets share them: neither decides the time. For the start the store holds a fold in the middle of an epoch for each
market; what the exchange is asked for meanwhile is not counted.

    python benchmarks/store.py [--markets 1000] [--rounds 300] [--folder DIR]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from daemon import topics
from daemon.line import Cause, Line, LineWork, Ordinal, Snapshot
from daemon.outbox import Limits
from daemon.store import LineCommit, Message, Store
from daemon.topics import Context
from feeds.market import Candle, CandleSpec, Market, Origin
from inference import artifact as artifacts
from inference.engine import MarketEngine, Model
from inference.funding import FundingBook
from inference.signals import Rules

SPEC = CandleSpec.parse("1m")
SNAPSHOT_EVERY = 64
MODEL = Model(artifacts.load(artifacts.resolve("default")), Rules())
BEGIN = 28_000_000 // MODEL.epoch * MODEL.epoch


def market(number: int) -> Market:
    symbol = f"COIN{number:04d}/USDT:USDT"
    return Market(exchange="binance", symbol=symbol, native=f"C{number}", price_decimals=2, size_decimals=3)


def new_line(number: int) -> Line:
    funding = FundingBook()
    funding.extend([], asked_at_ns=1 << 62)
    chosen = market(number)
    engine = MarketEngine(MODEL, chosen, SPEC)
    return Line(base_topic="lstmd", market=chosen, spec=SPEC, engine=engine, funding=funding, context=Context)


def candles(first: int, count: int) -> Iterator[Candle]:
    closes = 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 1e-3, count + 1)))
    for at, seq in enumerate(range(first, first + count)):
        opened, closed = float(closes[at]), float(closes[at + 1])
        yield Candle(
            seq=seq, open_time_ns=(seq - 1) * SPEC.interval_ns, close_time_ns=seq * SPEC.interval_ns, open=opened,
            high=max(opened, closed) + 0.1, low=min(opened, closed) - 0.1, close=closed, volume=12.345, trades=321,
            closed=True, origin=Origin.TRADES,
        )  # fmt: skip


def folded(count: int) -> tuple[LineWork, dict[int, Snapshot]]:
    """Fold candles from an epoch's warm-up on; return what a line tells of them, and its state after each."""
    line, states = new_line(0), {}
    line.begin(newest_seq=BEGIN, stream_seq=BEGIN - 1, journal=[])
    for candle in candles(line.next_seq, count):
        line.offer(candle, Cause(1, 2))
        states[candle.seq] = Snapshot(candle.seq, line.engine.snapshot())
    return line.take_work(), states


WORK, STATES = folded(MODEL.warmup + MODEL.epoch // 2 + SNAPSHOT_EVERY // 2)
CONTEXT = topics.encode(Context(event_time=topics.rfc3339(1), late=False, latency_us=321, origin="trades"))


SENT = Limits.of(hours=720, rows=1_000_000, size_bytes=500_000_000)


def flush(names: list[str], turn: int, every: int) -> list[LineCommit]:
    """One candle of each line, with its message."""
    row, draft = WORK.rows[-1], WORK.drafts[-1]
    seq = BEGIN + 10_000 + turn
    fresh = Ordinal(seq, msgspec.structs.replace(row.candle, seq=seq) if row.candle else None)
    message = Message(seq, draft.topic, draft.time_ns, draft.identity, CONTEXT)
    state = Snapshot(seq, STATES[row.seq].state)
    return [
        LineCommit(name, [fresh], state if (seq + at) % every == 0 else None, "m", [message])
        for at, name in enumerate(names)
    ]


def size_of(commits: list[LineCommit]) -> int:
    states = sum(len(commit.snapshot.state) for commit in commits if commit.snapshot)
    return states + len(commits) * (100 + len(WORK.drafts[-1].identity) + len(CONTEXT))


def commits(folder: Path, lines: int, every: int, rounds: int) -> None:
    names = [new_line(number).name for number in range(lines)]
    ours, bare = list[float](), list[float]()
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Store(folder / f"commit-{lines}-{every}.sqlite") as store:
        for turn in range(rounds):
            work = flush(names, turn, every)
            began_s = time.perf_counter()
            rows = store.commit(work, sent=SENT, now_ns=WORK.drafts[-1].time_ns)
            ours.append(time.perf_counter() - began_s)
            payload = os.urandom(size_of(work))
            began_s = time.perf_counter()
            os.write(descriptor, payload)
            os.fsync(descriptor)
            bare.append(time.perf_counter() - began_s)
            store.acknowledge([row.row for row in rows])
    os.close(descriptor)
    told = " ".join(
        f"{name} {1e3 * mine:7.2f} ms (× {mine / least:4.1f})"
        for name, mine, least in (
            ("p50", statistics.median(ours), statistics.median(bare)),
            ("p99", np.quantile(ours, 0.99), np.quantile(bare, 0.99)),
        )
    )
    kind = "every" if every == 1 else f"1 in {every}"
    print(f"  {lines:4d} lines, state {kind:7s} {told}   {size_of(work) / lines / 1024:5.1f} kB a line")


def bytes_of(folder: Path, lines: int = 20, count: int = 3000) -> None:
    """Fill stores as the daemon would, a candle of each line at a time."""
    sizes = {}
    names = [new_line(number).name for number in range(lines)]
    for kind in ("journal", "messages"):
        path = folder / f"{kind}.sqlite"
        with Store(path) as store:
            for turn in range(0, count, 10):
                work = [c for at in range(10) for c in flush(names, turn + at, 1 << 40)]
                store.commit([msgspec.structs.replace(c, messages=[]) if kind == "journal" else c for c in work])
        sizes[kind] = path.stat().st_size / lines / count
    message, state = sizes["messages"] - sizes["journal"], len(STATES[WORK.rows[-1].seq].state)
    print(f"  candle {sizes['journal']:6.0f} B   message {message:6.0f} B   state {state:6d} B, two kept")
    print(f"  10,000 candles and states of a market {(1e4 * sizes['journal'] + 2 * state) / 1e6:.2f} MB")


def fill(path: Path, markets: int) -> None:
    newest, before = WORK.rows[-1].seq - SNAPSHOT_EVERY // 2, WORK.rows[-1].seq - SNAPSHOT_EVERY - SNAPSHOT_EVERY // 2
    with Store(path) as store:
        for number in range(markets):
            line, last = new_line(number), WORK.drafts[-1]
            message = Message(last.seq, line.topic, last.time_ns, last.identity, CONTEXT)
            early = [row for row in WORK.rows if row.seq <= before]
            late = [row for row in WORK.rows if row.seq > newest]
            middle = WORK.rows[len(early) : len(WORK.rows) - len(late)]
            store.commit(
                [
                    LineCommit(line.name, early, STATES[before], line.model_key, []),
                    LineCommit(line.name, middle, STATES[newest], line.model_key, []),
                    LineCommit(line.name, late, None, line.model_key, [message]),
                ]
            )


def start(path: Path, markets: int, *, with_snapshots: bool) -> float:
    """Take up every line; return the milliseconds that one took."""
    began_s = time.perf_counter()
    with Store(path) as store:
        opened_s = time.perf_counter() - began_s
        for number in range(markets):
            line = new_line(number)
            stream_seq = store.stream_seq(line.name)
            assert stream_seq is not None
            line.begin(
                newest_seq=stream_seq,
                stream_seq=stream_seq,
                journal=store.journal(line.name, line.first_needed(stream_seq, stream_seq)),
                snapshots=store.snapshots(line.name, line.model_key) if with_snapshots else [],
            )
            assert line.next_seq == stream_seq + 1
        took_s = time.perf_counter() - began_s
    each_ms = 1e3 * (took_s - opened_s) / markets
    kind = "from snapshots" if with_snapshots else "from the journal alone"
    print(f"  {markets:4d} markets {kind}: {took_s:.2f} s", end="")
    print(f" ({opened_s:.2f} s to open and check the file, {each_ms:.2f} ms a market)")
    return each_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markets", type=int, default=1000, help="markets that a start takes up")
    parser.add_argument("--rounds", type=int, default=300, help="commits of each kind")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write; it decides which disk is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print("a commit, and how many times the bare write and sync of its bytes")
        for lines, every, rounds in ((1, SNAPSHOT_EVERY, 1), (500, SNAPSHOT_EVERY, 3), (500, 1, 10)):
            commits(folder, lines, every, max(20, options.rounds // rounds))
        print("\nbytes in the file")
        bytes_of(folder)
        print(f"\na start after a crash: {len(WORK.rows)} candles a market, {SNAPSHOT_EVERY // 2} since the snapshot")
        fill(folder / "start.sqlite", options.markets)
        from_snapshots_ms = start(folder / "start.sqlite", options.markets, with_snapshots=True)
        alone_ms = start(folder / "start.sqlite", max(1, options.markets // 20), with_snapshots=False)
        print(f"  a market from the journal alone: × {alone_ms / from_snapshots_ms:.1f}")


if __name__ == "__main__":
    main()
