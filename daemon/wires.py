"""The connections of a feed: which markets share one, and what they tell."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from daemon import clock
from daemon.pipeline import MarketPipeline
from feeds.events import Event, Kline, MarketTrade, MarkPrice
from feeds.kinds import Feed, Kind, Setting
from feeds.market import CandleSpec, Market


class Ear(Protocol):
    """Who is told what the connections tell."""

    def connected(self) -> None:
        """Note that all streams of a connection are confirmed."""

    def lost(self, reason: str) -> None:
        """Note the loss of a connection."""

    def hindered(self, reason: str) -> None:
        """Note what stands in the way of a connection."""

    def rolled_over(self, lost: int) -> None:
        """Note that a connection was replaced; `lost` trades came on neither."""

    def events(self, events: list[Event]) -> None:
        """Take the events of a frame."""


class Wire:
    """The connections of one group of markets: the sink of their `Feed`."""

    def __init__(self, pipelines: list[MarketPipeline], markets: list[Market], ear: Ear) -> None:
        """Set up; `markets` is the list that the feed reads each time it connects."""
        self.live = False
        """Whether all streams are confirmed."""
        self.reason = "connecting"
        """Why not."""
        self.losses = 0
        self.stop = asyncio.Event()
        self.feed: Feed
        self._pipelines = {pipeline.market.symbol: pipeline for pipeline in pipelines}
        self._markets, self._ear = markets, ear
        self._left: set[str] = set()

    def leave(self, symbol: str) -> None:
        """Carry a market no more, and the others without a break."""
        self._left.add(symbol)
        del self._pipelines[symbol]
        self._markets[:] = [market for market in self._markets if market.symbol != symbol]
        if self._markets:
            self.feed.renew()
        else:
            self.stop.set()

    def connected(self) -> None:
        """Note that all streams are confirmed."""
        self.live, self.reason = True, ""
        for pipeline in self._pipelines.values():
            pipeline.connected()
        self._ear.connected()

    def interrupted(self) -> None:
        """Note that trades may be missing."""
        self.losses += 1
        for pipeline in self._pipelines.values():
            pipeline.doubt()

    def lost(self, reason: str) -> None:
        """Note the connection's loss."""
        self.live, self.reason = False, reason
        self.losses += 1
        for pipeline in self._pipelines.values():
            pipeline.lost()
        self._ear.lost(reason)

    def hindered(self, reason: str) -> None:
        """Note what stands in the way now."""
        self.reason = reason
        self._ear.hindered(reason)

    def rolled_over(self, lost: int) -> None:
        """Count a replaced connection and what came on neither."""
        self._ear.rolled_over(lost)

    def events(self, events: list[Event]) -> None:
        """Pass a frame's events on, but for markets that have left and still come until the connection is replaced."""
        self._ear.events([event for event in events if self._concerns(event)] if self._left else events)

    def _concerns(self, event: Event) -> bool:
        return not (isinstance(event, MarketTrade | MarkPrice | Kline) and event.market.symbol in self._left)


class Wires:
    """All connections of a feed."""

    def __init__(
        self, kind: Kind, specs: Sequence[CandleSpec], ear: Ear, log: FilteringBoundLogger, *, copies: int
    ) -> None:
        """Set up; `copies` connections carry the same streams."""
        self._kind, self._specs, self._ear, self._log, self._copies = kind, specs, ear, log, copies
        self._wires: list[Wire] = []
        self._by_symbol: dict[str, Wire] = {}

    def connect(self, pipelines: Sequence[MarketPipeline], group: asyncio.TaskGroup) -> None:
        """Spread markets over as few new connections as the exchange's limits allow, and listen."""
        by_symbol = {pipeline.market.symbol: pipeline for pipeline in pipelines}
        for markets in self._kind.groups([pipeline.market for pipeline in pipelines], self._specs):
            wire = Wire([by_symbol[market.symbol] for market in markets], markets, self._ear)
            wire.feed = self._kind.feed(markets, self._specs, self._setting(wire))
            self._wires.append(wire)
            self._by_symbol.update((market.symbol, wire) for market in markets)
            group.create_task(wire.feed.run(wire.stop), name="feed")

    def _setting(self, wire: Wire) -> Setting:
        return Setting(
            sink=wire, now_ns=clock.now_ns, rng=clock.rng(), log=self._log, copies=self._copies, hindered=wire.hindered
        )

    def disconnect(self, symbol: str) -> None:
        """Listen to a market no more; its neighbours miss nothing."""
        if wire := self._by_symbol.pop(symbol, None):
            wire.leave(symbol)
            if wire.stop.is_set():
                self._wires.remove(wire)

    def stop(self) -> None:
        """End all connections politely."""
        for wire in self._wires:
            wire.stop.set()

    def of(self, symbol: str) -> Wire | None:
        """Return a market's connection."""
        return self._by_symbol.get(symbol)

    @property
    def live(self) -> bool:
        """Whether there are any, and every one has its streams confirmed."""
        return bool(self._wires) and all(wire.live for wire in self._wires)

    @property
    def reason(self) -> str | None:
        """What is in the way of the first that is not live; empty when all are, None when there are none."""
        return next((wire.reason for wire in self._wires if not wire.live), "" if self._wires else None)
