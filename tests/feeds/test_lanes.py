"""What a tap saw of a feed with cuts, overlaps and rollovers gives the very events that the feed gave."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
import structlog

from feeds.emulator import Emulator, tape_from
from feeds.emulator.dialects import DIALECTS
from feeds.events import Entry, Event, MarketTrade
from feeds.exchanges import CODECS
from feeds.history import open_history
from feeds.lanes import Lanes
from feeds.market import CandleSpec
from feeds.recording import Record
from feeds.runner import FeedRunner
from tests.feeds.emulators import BEGIN_MS, START_MS
from tests.feeds.test_transport import until

MINUTE = CandleSpec.parse("1m")


class Sink:
    def __init__(self) -> None:
        self.events_seen: list[Event] = []
        self.edges: list[tuple[str, int]] = []
        """Connected or lost, and after how many events."""
        self.rollovers = 0

    def connected(self) -> None:
        self.edges.append(("connected", len(self.events_seen)))

    def lost(self, reason: str) -> None:
        self.edges.append(("lost", len(self.events_seen)))

    def interrupted(self) -> None:
        self.edges.append(("interrupted", len(self.events_seen)))

    def rolled_over(self, lost: int) -> None:
        self.rollovers += 1

    def events(self, events: list[Event]) -> None:
        self.events_seen += events


def replayed(lanes: Lanes, records: list[Record]) -> Sink:
    sink, live = Sink(), False
    for record in records:
        interruptions = lanes.interruptions
        events = lanes.take(record.entry, record.lane, record.time_ns, record.payload)
        if events:
            sink.events(events)
        if lanes.interruptions > interruptions:
            sink.interrupted()
        if lanes.live is not live:
            live = lanes.live
            (sink.connected if live else lambda: sink.lost(""))()
    return sink


@pytest.mark.parametrize("exchange", sorted(DIALECTS.keys() & CODECS.keys()))
async def test_what_was_tapped_gives_what_the_feed_gave(exchange: str) -> None:
    native, kind = DIALECTS[exchange].natives[0], CODECS[exchange]
    tape = tape_from("synthetic", native, seed=3, begin_ns=BEGIN_MS * 1_000_000)
    emulator = Emulator({native: tape}, exchange=exchange, start_ns=START_MS * 1_000_000, speed=60)
    port = await emulator.start()
    history = open_history(exchange, f"http://127.0.0.1:{port}")
    (market,) = (await history.markets()).values()
    await history.aclose()

    class Brief(kind):  # type: ignore[valid-type,misc]
        lifetime_s = 1.0
        request_spacing_s = 0.0

    records: list[Record] = []
    sink, stop, times = Sink(), asyncio.Event(), iter(range(1, 1 << 40))

    def tap(entry: Entry, lane: int, time_ns: int, payload: bytes) -> None:
        records.append(Record(time_ns, 0, lane, entry, payload))

    def codec() -> Any:
        return Brief([market], {market.symbol: [MINUTE]})

    runner = FeedRunner(
        codec_factory=codec, url=codec().url(f"ws://127.0.0.1:{port}"), sink=sink, now_ns=lambda: next(times),
        rng=random.Random(1), log=structlog.get_logger(), tap=tap, copies=1,
    )  # fmt: skip
    task = asyncio.create_task(runner.run(stop))
    try:
        for _ in range(2):
            known = sink.rollovers
            await until(lambda: sink.rollovers > known and runner.state == "live")  # noqa: B023 (awaited here)
            await emulator.cut()
            await until(lambda: sink.edges[-1][0] == "lost")
        await until(lambda: sink.edges[-1][0] == "connected")
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await task
        await emulator.stop()
    again = replayed(Lanes(codec), records)
    assert again.events_seen == sink.events_seen
    # The feed says once that an outage began, and nothing when it is asked to stop.
    assert again.edges[: len(sink.edges)] == sink.edges
    assert sum(isinstance(event, MarketTrade) for event in sink.events_seen) > 10
    lanes = {record.lane for record in records if record.entry is Entry.CONFIRMED}
    assert len(lanes) >= 5


def test_what_was_never_opened_is_left_out() -> None:
    kind = CODECS["binance"]
    lanes = Lanes(lambda: kind([], {}))
    for entry in (Entry.FRAME, Entry.CONFIRMED, Entry.ENDED):
        assert lanes.take(entry, 1, 0, b"{}") == []
    assert not lanes.live
