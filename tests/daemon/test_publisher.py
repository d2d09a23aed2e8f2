"""The shipper against real brokers: in order whatever happens to the link, and every silence explained."""

import asyncio
import contextlib
import itertools
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from daemon.broker import free_port
from daemon.mqtt import MqttLink, Received, Will
from daemon.publisher import Publisher
from daemon.store import LineCommit, Message, OutboxRow, Store
from tests.daemon.brokers import Mosquitto, running, until
from tests.daemon.proxy import Proxy

WAIT_S = 60
STATUS = "lstmd/status"
STAMP = b'"boot_id":"boot"'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "lstmd.sqlite") as opened:
        yield opened


def publisher_for(url: str, store: Store, *, inflight_max: int = 20, timeout_s: float = 10.0) -> Publisher:
    link = MqttLink(
        url, client_id="lstmd", will=Will(STATUS, b"offline"), inflight_max=inflight_max, timeout_s=timeout_s
    )
    return Publisher(
        link,
        store,
        status_topic=STATUS,
        online=b"online",
        offline=b"offline",
        stamp=lambda: STAMP,
        inflight_max=inflight_max,
        rng=random.Random(0),
    )


def enqueue(store: Store, line: str, seqs: range) -> list[OutboxRow]:
    messages = [Message(s, f"lstmd/{line}/signal", s, b'{"seq":%d,"pad":"%0200d"}' % (s, 0), b"{}") for s in seqs]
    return store.commit([LineCommit(line, [], None, "m", messages)])


class Follower:
    """Everything that a subscriber of the broker itself has seen."""

    def __init__(self) -> None:
        self.seen: list[Received] = []

    async def read(self, messages: AsyncIterator[Received]) -> None:
        async for message in messages:
            self.seen.append(message)

    def seqs(self, topic: str) -> list[int]:
        return [json.loads(m.payload)["seq"] for m in self.seen if m.topic == topic]

    def firsts(self, topic: str) -> list[int]:
        return list(dict.fromkeys(self.seqs(topic)))

    def statuses(self) -> list[bytes]:
        return [m.payload for m in self.seen if m.topic == STATUS]


@contextlib.asynccontextmanager
async def following(url: str) -> AsyncIterator[Follower]:
    follower = Follower()
    async with MqttLink(url, client_id="follower").follow("lstmd/#") as messages:
        task = asyncio.create_task(follower.read(messages))
        try:
            yield follower
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def shipping(publisher: Publisher) -> AsyncIterator[asyncio.Event]:
    """Run a publisher; at the end stop it as the daemon does."""
    stop = asyncio.Event()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(publisher.run(stop))
        try:
            yield stop
        finally:
            stop.set()


async def retained(url: str) -> dict[str, bytes]:
    """Ask the broker what it keeps."""
    found: dict[str, bytes] = {}
    marker = "lstmd/marker"
    async with MqttLink(url, client_id="asker").follow("lstmd/#") as messages:
        async with MqttLink(url, client_id="marks").connect() as connection:
            await connection.publish(marker, b"")
        async for message in messages:
            if message.topic == marker:
                return found
            found[message.topic] = message.payload
    raise AssertionError


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_messages_arrive_in_order_and_the_topics_say_how_things_stand(
    kind: str, tmp_path: Path, store: Store
) -> None:
    async with running(kind, tmp_path) as broker, following(broker.url) as follower:
        publisher = publisher_for(broker.url, store)
        publisher.retain("lstmd/info", b"first")
        rows = enqueue(store, "a", range(1, 101))
        publisher.added(rows, {})
        async with shipping(publisher):
            await until(lambda: publisher.shipped == 100)
            publisher.added(enqueue(store, "b", range(7, 60)), {"lstmd/b/signal": 3600})
            publisher.retain("lstmd/info", b"second")
            publisher.volatile("lstmd/a/live", b'{"seq":0}')
            await until(lambda: publisher.shipped == 153 and publisher.connected)
        assert store.load().rows == 0
        kept = await retained(broker.url)
    assert follower.seqs("lstmd/a/signal") == list(range(1, 101))
    assert follower.seqs("lstmd/b/signal") == list(range(7, 60))
    assert follower.seqs("lstmd/a/live") == [0]
    assert follower.statuses() == [b"online", b"offline"]
    assert {json.loads(kept[f"lstmd/{line}/last"])["seq"] for line in "ab"} == {100, 59}
    assert (kept[STATUS], kept["lstmd/info"]) == (b"offline", b"second")
    assert not any(topic.endswith("/signal") for topic in kept)
    payload = next(m.payload for m in follower.seen if m.topic == "lstmd/a/signal")
    assert json.loads(payload)["context"] == {"boot_id": "boot"}


async def test_a_link_that_dies_in_mid_window_costs_no_message_and_no_order(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.publisher.RETRY_CAP_S", 0.2)
    rng = random.Random(0)
    async with (
        running("mosquitto", tmp_path) as broker,
        following(broker.url) as follower,
        Proxy(broker.port) as proxy,
    ):
        publisher = publisher_for(proxy.url, store)
        publisher.retain("lstmd/info", b"here")
        async with shipping(publisher):
            for batch in range(8):
                begin = 1 + 40 * batch
                proxy.budget = rng.randrange(500, 12_000)
                rows = [row for line in "ab" for row in enqueue(store, line, range(begin, begin + 40))]
                publisher.added(rows, {})
                await until(lambda: store.load().rows == 0)
                if proxy.budget is not None:
                    proxy.cut()
        assert publisher.reconnects >= 4
        kept = await retained(broker.url)
    for line in "ab":
        assert follower.firsts(f"lstmd/{line}/signal") == list(range(1, 321))
        assert json.loads(kept[f"lstmd/{line}/last"])["seq"] == 320
        seqs = follower.seqs(f"lstmd/{line}/signal")
        repeats = sum(after <= before for before, after in itertools.pairwise(seqs))
        assert repeats <= publisher.reconnects, "what is repeated is repeated from the first unacknowledged on"
    assert publisher.shipped == 640
    assert follower.statuses()[-1] == b"offline"


async def test_no_more_than_a_window_is_on_its_way(tmp_path: Path, store: Store) -> None:
    async with (
        running("mosquitto", tmp_path) as broker,
        following(broker.url) as follower,
        Proxy(broker.port) as proxy,
    ):
        publisher = publisher_for(proxy.url, store, inflight_max=5)
        async with shipping(publisher):
            await until(lambda: follower.statuses() == [b"online"])
            proxy.hold_answers(True)
            rows = enqueue(store, "a", range(1, 41))
            publisher.added(rows, {})
            await until(lambda: len(follower.seqs("lstmd/a/signal")) == 5)
            publisher.volatile("lstmd/a/live", b'{"seq":0}')
            await until(lambda: follower.seqs("lstmd/a/live") == [0])
            assert follower.seqs("lstmd/a/signal") == [1, 2, 3, 4, 5]
            assert publisher.sent_to == rows[4].row
            proxy.hold_answers(False)
            await until(lambda: publisher.shipped == 40)
    assert follower.seqs("lstmd/a/signal") == list(range(1, 41))


async def test_acknowledgements_outlive_the_process(tmp_path: Path) -> None:
    async with running("embedded", tmp_path) as broker, following(broker.url) as follower:
        for life in range(2):
            with Store(tmp_path / "lstmd.sqlite") as store:
                publisher = publisher_for(broker.url, store)
                enqueue(store, "a", range(1 + 10 * life, 11 + 10 * life))
                async with shipping(publisher):
                    await until(lambda: store.load().rows == 0)
    assert follower.seqs("lstmd/a/signal") == list(range(1, 21))


async def test_without_a_broker_nothing_is_lost_but_what_is_worth_nothing_later(tmp_path: Path, store: Store) -> None:
    port = free_port()
    publisher = publisher_for(f"mqtt://127.0.0.1:{port}", store)
    publisher.added(enqueue(store, "a", range(1, 4)), {})
    publisher.volatile("lstmd/a/live", b"gone")
    async with shipping(publisher):
        await until(lambda: publisher.reconnects >= 2)
        assert not publisher.connected
    assert store.load().rows == 3


async def test_a_long_outbox_does_not_keep_us_from_saying_goodbye(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.publisher.DRAIN_S", 0.5)
    async with running("mosquitto", tmp_path) as broker, following(broker.url) as follower:
        publisher = publisher_for(broker.url, store, inflight_max=1)
        async with shipping(publisher) as stop:
            await until(lambda: follower.statuses() == [b"online"])
            publisher.added(enqueue(store, "a", range(1, 20_001)), {})
            stop.set()
        await until(lambda: follower.statuses()[-1] == b"offline")
        kept = await retained(broker.url)
    assert kept[STATUS] == b"offline"
    left = store.load().rows
    assert 0 < left < 20_000
    assert len(follower.firsts("lstmd/a/signal")) >= 20_000 - left


@pytest.mark.parametrize("given_up", [False, True])
async def test_a_broker_that_acknowledges_nothing_hears_our_goodbye_all_the_same(
    given_up: bool, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has our DISCONNECT, and so keeps the last will to itself; whether the window was full or the patience over."""
    monkeypatch.setattr("daemon.publisher.DRAIN_S", 0.3)
    monkeypatch.setattr("daemon.publisher.GOODBYE_S", 0.3)
    async with (
        asyncio.timeout(WAIT_S),
        running("mosquitto", tmp_path) as broker,
        following(broker.url) as follower,
        Proxy(broker.port) as proxy,
    ):
        publisher = publisher_for(proxy.url, store, inflight_max=5, timeout_s=0.5 if given_up else 10.0)
        async with shipping(publisher):
            await until(lambda: follower.statuses() == [b"online"])
            proxy.hold_answers(True)
            publisher.added(enqueue(store, "a", range(1, 41)), {})
            await until(lambda: len(follower.seqs("lstmd/a/signal")) == 5)
            if given_up:
                await until(lambda: publisher.reconnects > 0)
        await until(lambda: follower.statuses() == [b"online", b"offline"])
    assert store.load().rows == 40


async def test_a_message_is_sent_again_on_request_with_the_same_identity(tmp_path: Path, store: Store) -> None:
    async with running("embedded", tmp_path) as broker, following(broker.url) as follower:
        publisher = publisher_for(broker.url, store)
        (row,) = enqueue(store, "a", range(5, 6))
        publisher.added([row], {})
        async with shipping(publisher):
            await until(lambda: publisher.shipped == 1)
            publisher.again(row)
            await until(lambda: len(follower.seqs("lstmd/a/signal")) == 2)
    first, second = (json.loads(m.payload) for m in follower.seen if m.topic == "lstmd/a/signal")
    assert first.pop("context") == {"boot_id": "boot"}
    assert second.pop("context") == {"boot_id": "boot", "replayed": True}
    assert first == second


async def test_the_last_signal_goes_when_it_is_no_longer_valid(tmp_path: Path, store: Store) -> None:
    async with running("mosquitto", tmp_path) as broker:
        publisher = publisher_for(broker.url, store)
        async with shipping(publisher):
            await until(lambda: publisher.connected)
            publisher.added(enqueue(store, "a", range(1, 2)), {"lstmd/a/signal": 2})
            publisher.added(enqueue(store, "b", range(1, 2)), {"lstmd/b/signal": 3600})
            await until(lambda: publisher.shipped == 2)
            async with asyncio.timeout(30):
                while "lstmd/a/last" in (kept := await retained(broker.url)):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)  # the broker tells nobody
    assert "lstmd/b/last" in kept


async def test_a_disk_that_fails_leaves_a_status_that_says_so(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours ends the shipper; whoever leaves politely has no last will, so it says offline itself."""

    def acknowledge(_rows: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store, "acknowledge", acknowledge)
    async with asyncio.timeout(WAIT_S), running("embedded", tmp_path) as broker, following(broker.url) as follower:
        publisher = publisher_for(broker.url, store)
        publisher.added(enqueue(store, "a", range(3)), {})
        with pytest.raises(sqlite3.OperationalError):
            await publisher.run(asyncio.Event())
        await until(lambda: follower.statuses() == [b"online", b"offline"])


async def test_what_the_broker_refuses_is_said_and_kept_and_holds_nothing_else_up(tmp_path: Path, store: Store) -> None:
    rights = tmp_path / "rights"
    rights.write_text("topic read #\ntopic write lstmd/status\ntopic write lstmd/a/#\n")
    broker = Mosquitto(tmp_path, settings=f"allow_anonymous true\nacl_file {rights}")
    await broker.start()
    try:
        async with following(broker.url) as follower:
            publisher = publisher_for(broker.url, store)
            publisher.added(enqueue(store, "b", range(1, 4)) + enqueue(store, "a", range(1, 11)), {})
            with structlog.testing.capture_logs() as logs:
                async with shipping(publisher):
                    await until(lambda: publisher.shipped == 10)
                    await until(lambda: any(log["event"] == "message_refused" for log in logs))
    finally:
        await broker.stop()
    assert follower.seqs("lstmd/a/signal") == list(range(1, 11))
    assert [row.topic for row in store.pending(0, 100)] == ["lstmd/b/signal"] * 3
    (said,) = (log for log in logs if log["event"] == "message_refused")
    assert (said["topic"], said["reason"]) == ("lstmd/b/signal", "MQTT reason 0x87")
