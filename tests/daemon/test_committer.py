"""What is published was committed first; what cannot be committed ends the daemon."""

import asyncio
import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.schema import Config
from daemon.committer import Committer
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import Store
from feeds.exchanges.binance import BinanceCodec
from tests.daemon.brokers import until
from tests.daemon.lines import BEGIN, MARKET, MINUTE, MODEL, candle, live


class Shell:
    """A pipeline with one line, its store, and a publisher without a broker."""

    def __init__(self, folder: Path, **store: Any) -> None:
        config = Config(
            feeds=[{"exchange": "binance", "symbols": [MARKET.symbol]}],
            store={"path": folder, **store},
        )
        self.store, self.metrics = Store(folder / "lstmd.sqlite"), Metrics()
        self.pipeline = Pipeline(MODEL, base_topic="lstmd")
        self.market = self.pipeline.add(MARKET, BinanceCodec.traits)
        self.market.settle_funding([], 1 << 62)
        self.line = self.market.add(MINUTE, MODEL, has_kline=True, by_exchange=False)
        link = MqttLink("mqtt://127.0.0.1:9", client_id="x")
        self.publisher = Publisher(
            link, self.store, status_topic="s", online=b"", offline=b"", stamp=bytes, inflight_max=10,
            rng=random.Random(0),
        )  # fmt: skip
        self.committer = Committer(config, self.pipeline, self.store, self.publisher, self.metrics)
        self.line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[], snapshot=None)

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
    assert shell.store.snapshot(shell.line.name, shell.line.model_key) == shell.line.engine.snapshot()
    context = json.loads(rows[-1].context)
    assert context["latency_us"] > 0
    assert context["origin"] == "trades"
    assert shell.count("lstmd_signals_total") == 4
    shell.committer.flush()
    assert len(shell.store.pending(0, 100)) == 4


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


async def test_the_journal_is_pruned(tmp_path: Path) -> None:
    shell = Shell(tmp_path, journal_keep=2000)
    for upto in range(BEGIN + 100, BEGIN + 2700, 100):
        shell.offer(upto)
        shell.committer.flush()
        shell.store.acknowledge([row.row for row in shell.store.pending(0, 1000)])
    kept = shell.store.journal(shell.line.name, 0)
    assert 2000 <= len(kept) < 2000 + 256 + 100
    assert kept[-1].seq == shell.line.next_seq - 1
    shell.store.close()
