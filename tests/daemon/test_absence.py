"""Several markets, and a daemon or a broker that is away for long: what is told afterwards, and at what price."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from daemon.mqtt import MqttLink
from feeds.emulator import Emulator
from feeds.emulator.dialects.binance_rest import USED_HEADER, WEIGHT_MAX
from feeds.emulator.synthetic import synthetic_tape
from inference.artifact import save
from tests.daemon.brokers import Mosquitto
from tests.daemon.daemons import Daemon, config_text, until
from tests.daemon.lines import EPOCH, small_artifact
from tests.daemon.proxy import Proxy
from tests.daemon.tapes import APE

WAIT_S = 120
MARKETS = 5
BEGIN_MS, HOUR_MS = 1_736_121_600_000, 3_600_000
WEEK_MS = 7 * 24 * HOUR_MS


class Streams:
    """What a subscriber who drops duplicates has of each market."""

    def __init__(self) -> None:
        self.of: dict[str, list[dict[str, Any]]] = {}

    async def read(self, url: str, ready: asyncio.Event) -> None:
        async with MqttLink(url, client_id="reads").follow("lstmd/+/+/+/signal") as messages:
            ready.set()
            async for message in messages:
                payload, stream = json.loads(message.payload), self.of.setdefault(message.topic, [])
                if payload["seq"] not in {known["seq"] for known in stream}:
                    stream.append(payload)

    def newest(self) -> int:
        """Return the newest ordinal that every market has told of."""
        return min(stream[-1]["seq"] for stream in self.of.values()) if len(self.of) == MARKETS else 0


@asynccontextmanager
async def reading(folder: Path) -> AsyncIterator[tuple[Mosquitto, Streams]]:
    broker, streams, ready = Mosquitto(folder), Streams(), asyncio.Event()
    await broker.start()
    try:
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            task = group.create_task(streams.read(broker.url, ready))
            await ready.wait()
            yield broker, streams
            task.cancel()
    finally:
        await broker.stop()


@asynccontextmanager
async def at_work(folder: Path, url: str, *, at_ms: int, speed: float) -> AsyncIterator[tuple[Daemon, Emulator]]:
    """Run exchange and daemon; end the daemon politely."""
    natives = [f"C{number}USDT" for number in range(MARKETS)]
    tapes = {native: synthetic_tape(native, seed=1, begin_ms=BEGIN_MS) for native in natives}
    emulator = Emulator(tapes, start_ns=at_ms * 1_000_000, speed=speed)
    port = await emulator.start()
    text = config_text(folder, mqtt=url, port=port, artifact=folder / "artifact").replace(APE.symbol, "*/USDT:USDT")
    try:
        async with Daemon(folder, text) as daemon:
            yield daemon, emulator
            assert await daemon.end() == 0, daemon.log.read_text()[-3000:]
    finally:
        await emulator.stop()


async def test_after_a_week_one_epoch_is_made_up_for_and_the_rest_is_one_message(tmp_path: Path) -> None:
    save(small_artifact("1m"), tmp_path / "artifact")
    async with reading(tmp_path) as (broker, streams):
        async with at_work(tmp_path, broker.url, at_ms=BEGIN_MS + HOUR_MS, speed=120) as (daemon, _):
            await until(lambda: streams.newest() > 0, daemon)
        await asyncio.sleep(0.2)  # the last messages are on their way
        known = {topic: len(stream) for topic, stream in streams.of.items()}
        back_ms = BEGIN_MS + HOUR_MS + WEEK_MS
        async with at_work(tmp_path, broker.url, at_ms=back_ms, speed=1) as (daemon, emulator):
            await until(lambda: streams.newest() >= back_ms // 60_000, daemon)
            asked, weight = emulator.venue.requests, int(emulator.venue.headers[USED_HEADER])
    assert asked["klines"] <= 2 * MARKETS, "two epochs and a warm-up at most, whatever the absence"
    assert weight <= WEIGHT_MAX * MARKETS / 100, "so that five hundred markets are ready within minutes"
    for topic, stream in streams.of.items():
        before, (gap, *late) = stream[: known[topic]], stream[known[topic] :]
        assert [m["seq"] for m in before] == list(range(before[0]["seq"], before[-1]["seq"] + 1))
        assert (gap["kind"], gap["reasons"]) == ("gap", ["absent_too_long"])
        assert (gap["from_seq"], gap["to_seq"]) == (before[-1]["seq"] + 1, back_ms // 60_000 - EPOCH)
        assert [(m["kind"], m["seq"]) for m in late] == [("signal", gap["seq"] + n + 1) for n in range(len(late))]
        assert all(m["context"].get("late") for m in late[: EPOCH - 1]), "the newest may have closed meanwhile"


async def test_while_the_broker_is_away_signals_are_decided_and_later_told_in_order(tmp_path: Path) -> None:
    """At 500 a minute and more; that they were decided in time is what each of them says itself."""
    save(small_artifact("1m"), tmp_path / "artifact")
    at_ms = BEGIN_MS + HOUR_MS
    async with (
        reading(tmp_path) as (broker, streams),
        Proxy(broker.port) as proxy,
        at_work(tmp_path, proxy.url, at_ms=at_ms, speed=240) as (daemon, emulator),
    ):
        await until(lambda: streams.newest() > 0, daemon)
        proxy.refuses = True
        proxy.cut()
        left, begun_ns = streams.newest(), emulator.now_ns()
        await until(lambda: emulator.now_ns() > begun_ns + 20 * 60 * 10**9, daemon)
        back = emulator.now_ns() // 60_000_000_000
        proxy.refuses = False
        await until(lambda: streams.newest() > back, daemon)
    for stream in streams.of.values():
        assert [m["seq"] for m in stream] == list(range(stream[0]["seq"], stream[-1]["seq"] + 1))
        meanwhile = [m["context"] for m in stream if left + 1 < m["seq"] < back - 1]
        assert len(meanwhile) >= 15
        punctual = [context for context in meanwhile if not context.get("late")]
        assert len(punctual) >= 0.9 * len(meanwhile), "they waited for the broker, and not to be decided"
        assert max(context["latency_us"] for context in punctual) < 5_000_000
