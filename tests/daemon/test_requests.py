"""Questions over MQTT are answered, whatever is in them; none ends the daemon."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from config.schema import Config
from daemon.health import Reporter
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.reload import Reloader
from daemon.requests import BURST, Allowance, Requests
from daemon.store import LineCommit, Message, Store
from feeds.exchanges.binance import BinanceCodec
from feeds.market import SEQ_PER_DAY
from tests.daemon.brokers import running, until
from tests.daemon.daemons import Follower, following
from tests.daemon.lines import BEGIN, MARKET, MINUTE, MODEL, offer_all
from tests.daemon.test_line import DAY, EVENT_MODEL, HUNDRED, run_events
from tests.daemon.test_publisher import enqueue

WAIT_S = 60


class Asker:
    """Asks and waits for the answer."""

    def __init__(self, url: str, follower: Follower) -> None:
        self._url, self.follower = url, follower

    async def ask(self, command: str, payload: bytes) -> dict[str, Any]:
        answer = f"lstmd/response/{command}"
        self.follower.newest.pop(answer, None)
        async with MqttLink(self._url, client_id="asker").connect() as connection:
            while answer not in self.follower.newest:  # nobody can see from when on it listens
                await connection.publish(f"lstmd/request/{command}", payload)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(until(lambda: answer in self.follower.newest), 5)
        return self.follower.newest[answer]


@contextlib.asynccontextmanager
async def asking(tmp_path: Path, pipeline: Pipeline | None = None) -> AsyncIterator[Asker]:
    config = Config(feeds=[{"exchange": "binance", "symbols": ["BTC/USDT:USDT"]}])
    with Store(tmp_path / "lstmd.sqlite") as store:
        enqueue(store, "a", range(1, 31))
        pipeline = pipeline or Pipeline(MODEL, base_topic="lstmd")
        for line, work in pipeline.take_work():
            fresh = [Message(d.seq, d.topic, d.time_ns, d.identity, b"{}") for d in work.drafts[-20:]]
            store.commit([LineCommit(line.name, work.rows, None, "m", fresh)])
        async with running("embedded", tmp_path) as broker:
            link = MqttLink(broker.url, client_id="lstmd")
            publisher = Publisher(
                link, store, status_topic="lstmd/s", online=b"{}", offline=b"{}", stamp=lambda: b'"boot_id":"b"',
                inflight_max=20, rng=random.Random(0),
            )  # fmt: skip
            reporter = Reporter(config, MODEL, [], store, publisher, Metrics(), "b")
            reloader = Reloader(config, lambda: config)
            requests = Requests(link, publisher, store, reporter, reloader, pipeline)
            stop = asyncio.Event()
            async with (
                asyncio.timeout(WAIT_S),
                following(broker.url, "lstmd/response/#", "lstmd/a/#", "lstmd/binance/#") as follower,
                asyncio.TaskGroup() as group,
            ):
                group.create_task(publisher.run(stop))
                answering = group.create_task(requests.run())
                await until(lambda: len(follower.of("lstmd/a/signal")) == 30)
                yield Asker(broker.url, follower)
                assert not answering.done()
                answering.cancel()
                stop.set()


async def test_status_says_what_runs_and_how(tmp_path: Path) -> None:
    async with asking(tmp_path) as asker:
        answer = await asker.ask("status", b'{"transaction":"x1"}')
        assert (answer["transaction"], answer["ok"], answer["error"]) == ("x1", True, None)
        assert answer["data"]["info"]["model"] == MODEL.id
        assert answer["data"]["health"]["outbox_depth"] == 0
        assert (await asker.ask("status", b""))["ok"]


async def test_what_was_missed_is_sent_again_and_marked(tmp_path: Path) -> None:
    async with asking(tmp_path) as asker:
        answer = await asker.ask("replay", b'{"transaction":7,"topic":"lstmd/a/signal","from_seq":20}')
        assert answer["transaction"] == 7
        assert answer["data"] == {"messages": 11, "recomputed": 0, "first_seq": 20, "last_seq": 30}
        again = [json.loads(payload) for payload in asker.follower.of("lstmd/a/signal")[30:]]
        assert [p["seq"] for p in again] == list(range(20, 31))
        assert all(p["context"] == {"boot_id": "b", "replayed": True} for p in again)
        answer = await asker.ask("replay", b'{"topic":"lstmd/nobody/signal","from_seq":0}')
        assert answer["data"] == {"messages": 0, "recomputed": 0, "first_seq": None, "last_seq": None}


async def test_what_is_no_longer_kept_is_made_again(tmp_path: Path) -> None:
    """Of a line's sixty messages the last twenty are in the store; its journal holds them all."""
    pipeline = Pipeline(MODEL, base_topic="lstmd")
    market = pipeline.add(MARKET, BinanceCodec.traits)
    market.settle_funding([], 1 << 62)
    line = market.add(MINUTE, MODEL, has_kline=True, by_exchange=False)
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    offer_all(line, range(line.next_seq, BEGIN + 61))
    told = {draft.seq: json.loads(draft.identity) for draft in line._work.drafts}
    async with asking(tmp_path, pipeline) as asker:
        await until(lambda: asker.follower.count() == 20)
        done = len(asker.follower.of(line.topic))
        answer = await asker.ask("replay", json.dumps({"topic": line.topic, "from_seq": BEGIN + 11}).encode())
        assert answer["data"] == {
            "messages": 50, "recomputed": 30, "first_seq": BEGIN + 11, "last_seq": BEGIN + 60
        }  # fmt: skip
        await until(lambda: asker.follower.count() == 50)
        again = [json.loads(payload) for payload in asker.follower.of(line.topic)[done:]]
        assert all(message.pop("context")["replayed"] for message in again)
        assert again == [told[seq] for seq in range(BEGIN + 11, BEGIN + 61)]
        answer = await asker.ask("replay", json.dumps({"topic": line.topic, "from_seq": 0}).encode())
        assert answer["data"]["first_seq"] == BEGIN, "from there on the journal knows"


async def test_event_candles_are_made_again_a_day_at_a_time(tmp_path: Path) -> None:
    """Of three days the last twenty messages are in the store."""
    pipeline = Pipeline(EVENT_MODEL, base_topic="lstmd")
    market = pipeline.add(MARKET, BinanceCodec.traits)
    market.settle_funding([], 1 << 62)
    line = market.add(HUNDRED, EVENT_MODEL, has_kline=False, by_exchange=False)
    line.begin_events(stream_seq=None, first_day=DAY)
    run_events(line, {DAY: 30, DAY + 1: 12, DAY + 2: 25})
    told = {draft.seq: json.loads(draft.identity) for draft in line._work.drafts}
    first, second = (DAY + 1) * SEQ_PER_DAY, (DAY + 2) * SEQ_PER_DAY
    async with asking(tmp_path, pipeline) as asker:
        await until(lambda: asker.follower.count("100t") == 20)
        done = len(asker.follower.of(line.topic))
        answers = [
            await asker.ask("replay", json.dumps({"topic": line.topic, "from_seq": seq}).encode())
            for seq in (first, first + 13, second + 6)
        ]
        assert [answer["data"] for answer in answers] == [
            {"messages": 13, "recomputed": 13, "first_seq": first, "last_seq": first + 12},
            {"messages": 26, "recomputed": 6, "first_seq": second, "last_seq": second + 25},
            {"messages": 20, "recomputed": 0, "first_seq": second + 6, "last_seq": second + 25},
        ]
        await until(lambda: len(asker.follower.of(line.topic)) == done + 59)
        again = [json.loads(payload) for payload in asker.follower.of(line.topic)[done:]]
        assert all(message.pop("context")["replayed"] for message in again)
        assert again == [told[seq] for seq in (*sorted(told), *sorted(told)[-20:])]


async def test_the_log_level_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking(tmp_path) as asker:
        before = structlog.get_config()["wrapper_class"]
        try:
            assert (await asker.ask("log_level", b'{"level":"warning"}'))["data"] == {"level": "warning"}
            assert structlog.get_config()["wrapper_class"] is not before
        finally:
            structlog.configure(wrapper_class=before)
        assert "needs level" in (await asker.ask("log_level", b'{"level":"loud"}'))["error"]


async def test_the_configuration_is_read_again(tmp_path: Path) -> None:
    async with asking(tmp_path) as asker:
        answer = await asker.ask("reload", b"")
        assert (answer["ok"], answer["data"]) == (True, {"applied": [], "needs_restart": []})


async def test_nonsense_is_answered_and_survived(tmp_path: Path) -> None:
    async with asking(tmp_path) as asker:
        nonsense = [
            b"{", b"[]", b"null", b'"\xff"', b'{"topic":"\xff"}', b"\x00", b"[" * 3000, b'{"x":' * 800, b"x" * 100_000,
            b'{"from_seq":1180591620717411303424,"topic":"t"}', b'{"from_seq":-1,"topic":"t"}', b'{"topic":"t"}',
            b'{"transaction":1.5}', b'{"transaction":{}}',
        ]  # fmt: skip
        for payload in nonsense:
            answer = await asker.ask("replay", payload)
            assert not answer["ok"]
            assert answer["error"]
        assert (
            "known: log_level, reload, replay, status" in (await asker.ask("no_such", b'{"transaction":"y"}'))["error"]
        )
        huge = await asker.ask("status", b'{"transaction":1180591620717411303424}')
        assert huge["transaction"] == 1180591620717411303424


def test_requests_beyond_the_allowance_wait_for_their_second() -> None:
    allowance = Allowance(per_s=5.0, burst=BURST, now_s=100.0)
    assert [allowance.take(100.0) for _ in range(BURST + 1)] == [True] * BURST + [False]
    assert [allowance.take(101.0) for _ in range(6)] == [True] * 5 + [False]
    assert [allowance.take(1_000.0) for _ in range(BURST + 1)] == [True] * BURST + [False]
