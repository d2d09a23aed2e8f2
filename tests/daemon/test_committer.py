"""What is published was committed first; what cannot be committed ends the daemon."""

import asyncio
import functools
import itertools
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.schema import Config
from daemon import clock
from daemon.committer import Committer
from daemon.line import Ordinal, Snapshot
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import LineCommit, Store
from feeds.exchanges.binance import BinanceCodec
from inference.stopwatch import Stopwatch
from tests.daemon.brokers import until
from tests.daemon.lines import BEGIN, EPOCH, MARKET, MINUTE, MODEL, WARMUP, candle, live, new_line, offer_all


class Shell:
    """A pipeline with one line, its store, and a publisher without a broker."""

    def __init__(self, folder: Path, *, begin: bool = True, watch: Stopwatch | None = None, **store: Any) -> None:
        config = Config(
            feeds=[{"exchange": "binance", "symbols": [MARKET.symbol]}],
            store={"path": folder, **store},
        )
        self.store, self.metrics = Store(folder / "lstmd.sqlite"), Metrics()
        self.pipeline = Pipeline(MODEL, base_topic="lstmd", watch=watch)
        self.market = self.pipeline.add(MARKET, BinanceCodec.traits)
        self.market.settle_funding([], 1 << 62)
        self.line = self.market.add(MINUTE, MODEL, has_kline=True, by_exchange=False)
        link = MqttLink("mqtt://127.0.0.1:9", client_id="x")
        self.publisher = Publisher(
            link, self.store, status_topic="s", online=b"", offline=b"", stamp=bytes, inflight_max=10,
            rng=random.Random(0),
        )  # fmt: skip
        self.committer = Committer(config, self.pipeline, self.store, self.publisher, self.metrics)
        if begin:
            self.line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])

    def offer(self, upto: int) -> None:
        for seq in range(self.line.next_seq, upto):
            self.line.offer(candle(seq), live(seq))

    def count(self, name: str) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name
        )


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.store.close()


async def test_candles_state_and_messages_are_committed_together(shell: Shell) -> None:
    shell.offer(BEGIN + 5)
    shell.committer.flush()
    rows = shell.store.pending(0, 100)
    assert [row.seq for row in rows] == list(range(BEGIN + 1, BEGIN + 5))
    assert [row.seq for row in shell.store.journal(shell.line.name, 0)] == list(range(BEGIN - 8, BEGIN + 5))
    context = json.loads(rows[-1].context)
    assert context["latency_us"] > 0
    assert context["origin"] == "trades"
    assert shell.count("lstmd_signals_total") == 4
    shell.committer.flush()
    assert len(shell.store.pending(0, 100)) == 4


async def test_it_is_told_where_the_time_of_a_signal_went(tmp_path: Path) -> None:
    ticks = itertools.count(clock.now_ns(), 1000)
    shell = Shell(tmp_path, watch=Stopwatch(lambda: next(ticks)))
    shell.offer(BEGIN + 5)
    shell.committer.flush()
    context = json.loads(shell.store.pending(0, 100)[-1].context)
    stages_us = context["stages_us"]
    assert list(stages_us) == ["exchange", "decode", "candle", "features", "step", "decision"]
    assert (stages_us["features"], stages_us["step"]) == (1, 1)
    assert stages_us["decision"] > 0
    for stage in (*stages_us, "store"):
        assert shell.metrics.registry.get_sample_value("lstmd_stage_seconds_count", {"stage": stage}) == 4
    shell.store.close()


async def test_a_snapshot_is_taken_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    shell = Shell(tmp_path, snapshot_every=7)
    taken = set()
    for seq in range(BEGIN, BEGIN + 30):
        shell.offer(seq + 1)
        shell.committer.flush()
        taken |= {snapshot.seq for snapshot in shell.store.snapshots(shell.line.name, shell.line.model_key)}
    first, *steps = (b - a for a, b in itertools.pairwise(sorted(taken)))
    assert first <= 7, "the warm-up ends with one"
    assert steps in ([7] * 3, [7] * 4)
    shell.offer(BEGIN + 31)
    shell.committer.finish()
    newest, before = shell.store.snapshots(shell.line.name, shell.line.model_key)
    assert newest == Snapshot(BEGIN + 30, shell.line.engine.snapshot())
    assert before.seq == max(taken - {newest.seq})
    shell.store.close()


async def test_work_is_done_once_for_a_turn_of_the_loop(shell: Shell) -> None:
    task = asyncio.create_task(shell.committer.run())
    shell.offer(BEGIN + 5)
    shell.committer.moved()
    shell.committer.moved()
    async with asyncio.timeout(30):
        await until(lambda: shell.store.load().rows == 4)
    task.cancel()


async def test_what_cannot_be_committed_is_not_passed_over(shell: Shell) -> None:
    task = asyncio.create_task(shell.committer.run())
    shell.offer(BEGIN + 5)
    shell.store.close()
    shell.committer.moved()
    with pytest.raises(sqlite3.ProgrammingError):
        await asyncio.wait_for(task, 30)


async def test_the_outbox_is_kept_within_its_bounds(tmp_path: Path) -> None:
    shell = Shell(tmp_path, outbox_max_rows=100)
    for seq in range(BEGIN + 1, BEGIN + 161):
        shell.offer(seq + 1)
        shell.committer.flush()
        assert shell.store.load().rows <= 100
    first, *rest = [json.loads(row.identity) for row in shell.store.pending(0, 1000)]
    assert (first["kind"], first["from_seq"]) == ("gap", BEGIN + 1)
    assert [m["seq"] for m in rest] == list(range(first["to_seq"] + 1, BEGIN + 161))
    shell.store.close()


async def test_hours_are_the_exchanges(tmp_path: Path) -> None:
    shell = Shell(tmp_path, outbox_max_hours=1)
    shell.offer(BEGIN + 11)
    shell.market.clock.set((BEGIN + 10) * MINUTE.interval_ns)
    shell.committer.flush()
    assert shell.store.load().rows == 10
    shell.market.clock.set((BEGIN + 70) * MINUTE.interval_ns)
    shell.offer(BEGIN + 12)
    shell.committer.flush()
    kinds = [json.loads(row.identity)["kind"] for row in shell.store.pending(0, 100)]
    assert kinds == ["gap"]
    shell.store.close()


async def test_journal_and_delivered_messages_are_kept_within_their_bounds(tmp_path: Path) -> None:
    shell = Shell(tmp_path, journal_keep=2000, sent_max_rows=500)
    for upto in range(BEGIN + 100, BEGIN + 2700, 100):
        shell.offer(upto)
        shell.committer.flush()
        shell.store.acknowledge([row.row for row in shell.store.pending(0, 1000)])
    kept = shell.store.journal(shell.line.name, 0)
    assert 2000 <= len(kept) < 2000 + 256 + 100
    assert kept[-1].seq == shell.line.next_seq - 1
    assert 500 <= len(shell.store.sent(shell.line.topic, 0, 9999)) <= 600
    shell.store.close()


async def test_candles_go_by_age_and_bytes_but_for_those_of_a_start(tmp_path: Path) -> None:
    floor = 2 * EPOCH + WARMUP
    for bounds in ({"journal_max_days": 0.01}, {"journal_max_bytes": 1_000_000}):
        shell = Shell(tmp_path / next(iter(bounds)), **bounds)
        for upto in range(BEGIN + 1000, BEGIN + 12_001, 1000):
            shell.market.clock.set(upto * MINUTE.interval_ns)
            shell.offer(upto)
            shell.committer.flush()
        kept = len(shell.store.journal(shell.line.name, 0))
        assert kept == floor if "journal_max_days" in bounds else 8000 < kept < 9400, bounds
        shell.store.close()


async def test_lines_that_are_no_more_are_forgotten(tmp_path: Path) -> None:
    shell = Shell(tmp_path, journal_max_days=2)
    old = LineCommit("old|X/Y:Y|1m", [Ordinal(BEGIN - 1, candle(BEGIN - 1))], Snapshot(BEGIN - 1, b"x"), "m", [])
    shell.store.commit([old])
    for day in range(4):
        upto = BEGIN + 5 + 1440 * day
        shell.market.clock.set(upto * MINUTE.interval_ns)
        shell.offer(upto)
        shell.committer.flush()
        assert len(shell.store.journal(old.line, 0)) == (day < 2)
    shell.store.close()


# ---- a crash

END = BEGIN + 3 * EPOCH


def told(store: Store) -> dict[int, bytes]:
    return {row.seq: row.identity for row in store.pending(0, 10_000)}


@functools.cache
def undisturbed() -> tuple[dict[int, bytes], bytes]:
    """Return the messages and the last state of a line that never stopped."""
    line = new_line()
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    offer_all(line, range(line.next_seq, END))
    return {draft.seq: draft.identity for draft in line.take_work().drafts}, line.engine.snapshot()


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.integers(1, 25),
    st.sampled_from([0, 0, 1, 7, 700, 4000, 9000]),
    st.integers(0, 2),
)
@settings(max_examples=40, deadline=None)
async def test_a_crash_at_any_commit_does_not_show(
    tmp_path_factory: pytest.TempPathFactory, turns: list[int], every: int, torn: int, damaged: int
) -> None:
    """What the disk holds when it comes is all there is; its last bytes may be missing, and snapshots be damaged."""
    folder = tmp_path_factory.mktemp("crash")
    (folder / "again").mkdir()
    shell = Shell(folder, snapshot_every=every)
    for turn in turns:
        shell.offer(min(shell.line.next_seq + turn, END))
        shell.committer.flush()
    for name in ("lstmd.sqlite", "lstmd.sqlite-wal"):
        shutil.copy(folder / name, folder / "again" / name)
    shell.store.close()
    log = folder / "again" / "lstmd.sqlite-wal"
    os.truncate(log, max(0, log.stat().st_size - torn))
    with sqlite3.connect(folder / "again" / "lstmd.sqlite") as db:
        newest = "SELECT seq FROM snapshot ORDER BY seq DESC LIMIT ?"
        db.execute(f"UPDATE snapshot SET state='x' || state WHERE seq IN ({newest})", (damaged,))
    db.close()
    again = Shell(folder / "again", begin=False, snapshot_every=every)
    line, store = again.line, again.store
    stream_seq = store.stream_seq(line.name)
    if not torn:
        assert line.name in store._db.execute("SELECT line FROM journal").fetchone()
        assert stream_seq == (shell.line.next_seq - 1 if shell.line.next_seq > BEGIN + 1 else None)
    newest_seq = max(BEGIN + 1, stream_seq or 0)
    line.begin(
        newest_seq=newest_seq,
        stream_seq=stream_seq,
        journal=store.journal(line.name, line.first_needed(newest_seq, stream_seq)),
        snapshots=store.snapshots(line.name, line.model_key),
    )
    if stream_seq is not None:
        assert line.next_seq == stream_seq + 1, "nothing is to be fetched but what came meanwhile"
    again.offer(END)
    again.committer.finish()
    messages, state = undisturbed()
    assert told(store) == messages
    assert store.snapshots(line.name, line.model_key)[0] == Snapshot(END - 1, state)
    store.close()
