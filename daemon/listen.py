"""Listen to one connection for a while: when it is confirmed, what comes first, and which candles its trades make.

The daemon's own path up to the closed candle: feed, `MarketPipeline`, `Closer`. Only the exchange's closed klines are
kept back from it, so that every candle is of trades alone and can be held against them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, cast

import structlog

from daemon import clock
from daemon.line import Cause, Line
from daemon.pipeline import Channel, MarketPipeline
from feeds.closing import Closer
from feeds.events import Event, Kline, Malformed, MarketEvent, MarketTrade, MarkPrice
from feeds.history import History
from feeds.kinds import Kind, Setting
from feeds.market import NS_PER_S, Candle, CandleSpec, Market
from feeds.traits import Traits

SILENCE_S = 15.0
"""So long a confirmed connection may be silent before it is given up as mute: mark prices come every few seconds."""
_SPARE_S = 10.0
"""What the evidence of a close may take, on top of the interval that was under way and a whole one."""
_POLL_S = 0.02
_SETTLE_POLL_S, _SETTLE_SPARE_S = 0.5, 5.0


class First(NamedTuple):
    """The first event of one kind."""

    after_s: float
    """Since the first attempt to connect."""
    age_s: float | None
    """How old it was by the exchange's clock; None where it has no time of its own."""


class _Kept:
    """Stands where the daemon has a `Line`: keeps the candles that are whole, and folds none."""

    next_seq = 0

    def __init__(self) -> None:
        self.candles: dict[int, Candle] = {}

    def offer(self, candle: Candle, _cause: Cause) -> None:
        self.candles[candle.seq] = candle


class Hearing:
    """What has been heard of one market."""

    def __init__(self, market: Market, spec: CandleSpec, traits: Traits, now_ns: int) -> None:
        """Set up to make candles of `spec`; `now_ns` is the exchange's time."""
        self.market, self.spec = market, spec
        self.first: dict[str, First] = {}
        """By kind: trade, mark price, kline."""
        self.official: dict[int, Candle] = {}
        """The exchange's own closed candles, as far as the stream calls them closed."""
        self._kept = _Kept()
        self.pipeline = MarketPipeline(market, traits, base_topic="")
        self.pipeline.clock.set(now_ns)
        closer = Closer(market, spec, traits, has_kline=True, by_exchange=False)
        self.pipeline.channels[spec.text] = Channel(closer, cast("Line", self._kept), has_kline=True)

    @property
    def own(self) -> dict[int, Candle]:
        """Candles of which every trade was seen."""
        return self._kept.candles

    def take(self, event: MarketEvent) -> None:
        """Take an event of this market."""
        if isinstance(event, Kline) and event.candle.closed:
            if event.spec == self.spec:
                self.official[event.candle.seq] = event.candle
        else:
            self.pipeline.handle(event)


class Listener:
    """The connection of one group of markets: runs it, and is the sink of its feed."""

    def __init__(
        self, kind: Kind, markets: Sequence[Market], specs: Sequence[CandleSpec], audited: CandleSpec, *, ahead_ns: int
    ) -> None:
        """Set up to listen as the daemon does, and to make candles of `audited`.

        `ahead_ns`: how far the exchange's clock is ahead of ours.
        """
        self._kind, self._markets, self._specs = kind, list(markets), list(specs)
        self._interval_s, self._ahead_ns = audited.interval_ns / NS_PER_S, ahead_ns
        now_ns = clock.now_ns() + ahead_ns
        self.hearings = {market.symbol: Hearing(market, audited, kind.traits, now_ns) for market in markets}
        self.kinds = ("trade", "mark price", *(["kline"] if any(map(kind.has_kline, specs)) else []))
        """What each market is to be heard of."""
        self.confirmed_after_s: float | None = None
        """From the first attempt to the confirmation of everything asked for; None: that has not come."""
        self.heard_s = 0.0
        """For how long it was listened to since."""
        self.reason = ""
        """Why a connection was lost, the first time."""
        self.losses = 0
        self.malformed: Counter[str] = Counter()
        """Frames not understood, by what is said of them."""
        self.mute = False
        """Whether nothing came any more, though everything is confirmed."""
        self._began_s = self._confirmed_s = self._newest_s = 0.0

    # ---- the sink

    def connected(self) -> None:
        """Note that all streams are confirmed."""
        if self.confirmed_after_s is None:
            self._confirmed_s = clock.monotonic_s()
            self.confirmed_after_s = self._confirmed_s - self._began_s
        for hearing in self.hearings.values():
            hearing.pipeline.connected()

    def lost(self, reason: str) -> None:
        """Note the connection's loss."""
        self.losses += 1
        self.reason = self.reason or reason
        for hearing in self.hearings.values():
            hearing.pipeline.lost()

    def interrupted(self) -> None:
        """Note that trades may be missing."""
        for hearing in self.hearings.values():
            hearing.pipeline.doubt()

    def rolled_over(self, lost: int) -> None:
        """Pass over it: nobody listens for as long."""

    def events(self, events: list[Event]) -> None:
        """Take a frame's events."""
        self._newest_s = clock.monotonic_s()
        for event in events:
            if isinstance(event, Malformed):
                self.malformed[f"{event.kind}: {event.detail}"] += 1
            elif isinstance(event, MarketTrade | MarkPrice | Kline):
                hearing = self.hearings[event.market.symbol]
                self._note(hearing, event)
                hearing.take(event)

    def _note(self, hearing: Hearing, event: MarketEvent) -> None:
        kind = "trade" if isinstance(event, MarketTrade) else "kline" if isinstance(event, Kline) else "mark price"
        if kind in hearing.first:
            return
        at = event.trade if isinstance(event, MarketTrade) else event
        is_timeless = isinstance(event, Kline) and event.event_time_ns <= event.candle.open_time_ns
        age_s = (at.receive_time_ns + self._ahead_ns - at.event_time_ns) / NS_PER_S
        hearing.first[kind] = First(clock.monotonic_s() - self._began_s, None if is_timeless else age_s)

    # ---- the listening

    async def run(
        self, *, patience_s: float, listen_s: float | None, progress: Callable[[float, float, int], None]
    ) -> None:
        """Listen for so long; None: until every market has closed a whole candle, or should have.

        Ends early where the streams are not confirmed within `patience_s`, or nothing comes on them any more.
        `progress` is told the seconds heard, how many they will be at most, and how many markets have closed a candle.
        """
        stop = asyncio.Event()
        log = structlog.get_logger().bind(exchange=self._markets[0].exchange)
        setting = Setting(sink=self, now_ns=clock.now_ns, rng=clock.rng(), log=log)
        feed = self._kind.feed(self._markets, self._specs, setting)
        limit_s = 2 * self._interval_s + _SPARE_S if listen_s is None else listen_s
        self._began_s = clock.monotonic_s()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(feed.run(stop), name=f"listen {self._markets[0].exchange}")
            while not running.done():
                await asyncio.sleep(_POLL_S)
                if self.confirmed_after_s is None:
                    if self.losses or clock.monotonic_s() - self._began_s > patience_s:
                        break
                elif self._over(limit_s, early=listen_s is None):
                    break
                progress(self.heard_s, limit_s, sum(bool(hearing.own) for hearing in self.hearings.values()))
            stop.set()

    def _over(self, limit_s: float, *, early: bool) -> bool:
        now_s, hearings = clock.monotonic_s(), self.hearings.values()
        self.heard_s = now_s - self._confirmed_s
        self.mute = now_s - max(self._confirmed_s, self._newest_s) >= SILENCE_S
        if all(len(hearing.first) == len(self.kinds) for hearing in hearings):
            is_enough = self.heard_s >= limit_s or (early and all(hearing.own for hearing in hearings))
        else:
            is_enough = self.heard_s >= max(SILENCE_S, limit_s)
        return is_enough or self.mute


async def settled(hearings: Collection[Hearing], history: History) -> None:
    """Wait until the exchange's rows of all candles of ours are final.

    Raises:
        FeedError: its clock cannot be had.

    """
    newest_ns = max((candle.close_time_ns for hearing in hearings for candle in hearing.own.values()), default=0)
    until_s = clock.monotonic_s() + history.settle_ns / NS_PER_S + _SETTLE_SPARE_S
    final_ns = newest_ns + history.settle_ns
    while await history.time_ns() < final_ns and clock.monotonic_s() < until_s:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(_SETTLE_POLL_S)


async def rows(hearing: Hearing, history: History) -> dict[int, Candle]:
    """Return the exchange's final rows over the span of our candles.

    Raises:
        FeedError: they cannot be had.

    """
    step_ns = hearing.spec.interval_ns
    start_ns, end_ns = (min(hearing.own) - 1) * step_ns, max(hearing.own) * step_ns
    found = await history.candles(hearing.market, hearing.spec, start_ns=start_ns, end_ns=end_ns)
    return {candle.seq: candle for candle in found}
