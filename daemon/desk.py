"""One configured feed at work: its markets chosen, taken up from the store and the exchange's history, and listened to.

The shell around `MarketPipeline`; what decides is there. `Keeper` keeps the markets whole.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal

import structlog

from config.load import ConfigError, Problem
from config.schema import Feed
from daemon import clock, topics, universe
from daemon.calibrator import Calibrator
from daemon.keeper import FUNDING_BEFORE_NS, Keeper
from daemon.line import Line
from daemon.metrics import Metrics
from daemon.pipeline import MarketPipeline, Pipeline
from daemon.source import Budgets, Source
from daemon.store import Store
from daemon.topics import AvailabilityState
from daemon.universe import Change, Fate, NoSuchMarket
from feeds.budget import AT_ONCE
from feeds.errors import RequestRefused
from feeds.events import Event, Kline, Malformed, MarketTrade, MarkPrice
from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec
from feeds.history import open_history
from feeds.market import NS_PER_DAY, SEQ_PER_DAY, CandleSpec, Market
from feeds.runner import FeedRunner
from feeds.subscription import plan
from inference.engine import Phase

SILENT_S = 60.0
"""A market without any event for this long is stale, whatever its connection says."""
REFUSED = "refused: "
"""How the reason of a connection begins that the exchange will not serve."""
UNIVERSE_S = 3600.0
"""How often the exchange's list of contracts is looked at again."""
_STANDING: Mapping[Fate, AvailabilityState] = {Fate.HALTED: "halted", Fate.DELISTED: "delisted"}
"""Fates in which no signal can come."""


class Wire:
    """The connections of one group of markets: the sink of its `FeedRunner`."""

    def __init__(self, markets: list[MarketPipeline], desk: "Desk") -> None:
        self.markets = markets
        self.live = False
        """Whether all streams are confirmed."""
        self.reason = "connecting"
        """Why not."""
        self.losses = 0
        self.stop = asyncio.Event()
        self._desk = desk

    def connected(self) -> None:
        """Note that all streams are confirmed."""
        self.live, self.reason = True, ""
        for market in self.markets:
            market.connected()
        self._desk.connected()

    def lost(self, reason: str) -> None:
        """Note the connection's loss."""
        self.live, self.reason = False, reason
        self.losses += 1
        for market in self.markets:
            market.lost()
        self._desk.count_loss()

    def hindered(self, reason: str) -> None:
        """Note what stands in the way now."""
        self.reason = reason

    def rolled_over(self, lost: int) -> None:
        """Count a replaced connection and what came on neither."""
        self._desk.count_rollover(lost)

    def events(self, events: list[Event]) -> None:
        """Pass a frame's events on."""
        self._desk.events(events)


class Desk:
    """A feed of the configuration: one exchange, its markets and candle specs."""

    def __init__(
        self,
        number: int,
        feed: Feed,
        pipeline: Pipeline,
        store: Store,
        metrics: Metrics,
        moved: Callable[[], None],
        budgets: Budgets | None = None,
    ) -> None:
        """Set up; `moved` is called when the pipeline may have work to commit, `budgets` is shared by all feeds."""
        self.number, self.feed, self.exchange = number, feed, feed.exchange
        self.specs = [CandleSpec.parse(text) for text in feed.candles]
        self.markets: list[MarketPipeline] = []
        self.settled = asyncio.Event()
        """Set once the markets are taken up, or it is known that this must wait for the exchange."""
        self.reconnects = 0
        self.waiting = 0
        """Markets still to be taken up."""
        self._wires: list[Wire] = []
        self._fates: dict[str, Change] = {}
        self._calibrator: Calibrator | None = None
        self._pipeline, self._store, self._metrics, self._moved = pipeline, store, metrics, moved
        self._codec = CODECS[feed.exchange]
        self._log = structlog.get_logger().bind(exchange=feed.exchange)
        budget = (budgets or Budgets(store)).of(feed.exchange, feed.rest_url)
        self._proxy = feed.proxy.get_secret_value() if feed.proxy else None
        self._history = open_history(feed.exchange, feed.rest_url, budget, self._proxy)
        self._source = Source(self._history, self._log, hindered=self.settled.set)
        self._keeper = Keeper(
            self._source, metrics, self._log, exchange=self.exchange, unbroken=self._unbroken, moved=moved
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Listen to every market, take up what was left and repair, until cancelled; `stop` ends politely.

        Raises:
            ConfigError: a symbol that the exchange does not have.

        """
        try:
            markets = await self._source.insist(self._history.markets)
            now_ns = await self._source.insist(self._history.time_ns)
            if self.feed.calibrate_on:
                self._calibrator = self._new_calibrator(self._choose(markets, "calibrate_on"))
            taken = [self._add(market, now_ns) for market in self._choose(markets, "symbols")]
            async with asyncio.TaskGroup() as group:
                self._wire_up(taken, group)
                group.create_task(self._hang_up(stop), name=f"stop {self.exchange}")
                if self._calibrator:
                    revising = self._calibrator.run(lambda: (c.line for m in self.markets for c in m.channels.values()))
                    group.create_task(revising, name=f"calibrate {self.exchange}")
                await self._take_up(taken, now_ns)
                group.create_task(self._keeper.run(self.markets, lambda: self.live, stop), name=f"keep {self.exchange}")
                group.create_task(self._look_again(group), name=f"universe {self.exchange}")
        finally:
            await self._history.aclose()

    async def _hang_up(self, stop: asyncio.Event) -> None:
        """Close the connections politely when we are asked to end."""
        await stop.wait()
        for wire in self._wires:
            wire.stop.set()

    # ---- connections

    def _wire_up(self, markets: list[MarketPipeline], group: asyncio.TaskGroup) -> None:
        """Spread markets over as few connections as the exchange's limits allow, with head-room, and listen."""
        families: dict[str, dict[str, int]] = {}
        by_symbol = {m.market.symbol: m for m in markets}
        for symbol, m in by_symbol.items():
            families.setdefault(self._codec.family(m.market), {})[symbol] = self._new_codec([m.market]).load
        for loads in families.values():
            for symbols in plan(loads, capacity=self._codec.capacity):
                wire = Wire([by_symbol[symbol] for symbol in symbols], self)
                self._wires.append(wire)
                group.create_task(self._runner(wire).run(wire.stop), name=f"feed {self.exchange}")

    def _runner(self, wire: Wire) -> FeedRunner:
        markets = [m.market for m in wire.markets]
        return FeedRunner(
            codec_factory=lambda: self._new_codec(markets),
            url=self._new_codec(markets).url(self.feed.ws_url),
            sink=wire,
            now_ns=clock.now_ns,
            rng=clock.rng(),
            log=self._log,
            copies=2 if self.feed.redundant else 1,
            proxy=self._proxy,
            hindered=wire.hindered,
        )

    def _new_codec(self, markets: list[Market]) -> Codec:
        return self._codec(markets, {market.symbol: self.specs for market in markets})

    # ---- taking up

    def _choose(self, markets: dict[str, Market], key: Literal["symbols", "calibrate_on"]) -> list[Market]:
        """Return the markets that a list of the feed names, each once."""
        try:
            return universe.choose(markets, getattr(self.feed, key))
        except NoSuchMarket as error:
            said = f"{self.exchange} trades no {error}"
            raise ConfigError([Problem(f"feeds[{self.number}].{key}[{error.at}]", said, error.nearest)]) from None

    def _add(self, market: Market, now_ns: int) -> MarketPipeline:
        """Set up a market, so that its events have somewhere to go."""
        if (market.exchange, market.symbol) in self._pipeline.markets:
            key = f"feeds[{self.number}].symbols"
            raise ConfigError([Problem(key, f"{market.symbol} is in another feed of {self.exchange} already", None)])
        pipeline = self._pipeline.add(market, self._codec.traits)
        pipeline.clock.set(now_ns)
        for spec in self.specs:
            pipeline.add(
                spec,
                self._pipeline.model,
                has_kline=self._codec.has_kline(spec),
                by_exchange=self.feed.close == "exchange",
                revisions=self._calibrator.book(spec) if self._calibrator else None,
            )
        return pipeline

    async def _take_up(self, pipelines: list[MarketPipeline], now_ns: int) -> None:
        """Bring the markets' lines to where they were left, in the configured order, a few at a time."""
        self.waiting += len(pipelines)
        queue = iter(pipelines)

        async def take() -> None:
            for pipeline in queue:
                await self._begin(pipeline, [channel.line for channel in pipeline.channels.values()], now_ns)
                self.waiting -= 1
                self.markets.append(pipeline)
                self._moved()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(take())
        self._log.info("markets_taken_up", markets=len(self.markets), candles=self.feed.candles)
        self.settled.set()

    async def _begin(self, pipeline: MarketPipeline, lines: list[Line], now_ns: int) -> None:
        """Bring one market's lines to where the store left them, or to where their folds begin."""
        earliest_ns = now_ns - NS_PER_DAY
        for line in lines:
            if line.spec.by_time:
                first = line.first_needed(line.spec.seq_at(now_ns), self._store.stream_seq(line.name))
                earliest_ns = min(earliest_ns, first * line.spec.interval_ns)
        start_ns = earliest_ns - FUNDING_BEFORE_NS
        settled = await self._source.insist(lambda: self._history.funding(pipeline.market, start_ns=start_ns))
        pipeline.settle_funding(settled, now_ns)
        for line in lines:
            self._begin_line(line, now_ns)
        self._begin_stitch(pipeline)

    def _begin_line(self, line: Line, now_ns: int) -> None:
        stream_seq = self._store.stream_seq(line.name)
        snapshot = self._store.snapshot(line.name, line.model_key)
        if not line.spec.by_time:
            yesterday = now_ns // NS_PER_DAY - 1
            journal = self._store.journal(line.name, yesterday * SEQ_PER_DAY)
            line.begin_events(stream_seq=stream_seq, first_day=yesterday, journal=journal, snapshot=snapshot)
            return
        newest_seq = line.spec.seq_at(now_ns)
        line.begin(
            newest_seq=newest_seq,
            stream_seq=stream_seq,
            journal=self._store.journal(line.name, line.first_needed(newest_seq, stream_seq)),
            snapshot=snapshot,
        )

    def _begin_stitch(self, pipeline: MarketPipeline) -> None:
        starts_ns = [c.line.next_open_ns for c in pipeline.channels.values() if not c.has_kline]
        if starts_ns:
            pipeline.stitch_from(min(starts_ns))

    def _uncalibrated(self, line: Line) -> str:
        """Say which day's calibration a line waits for, and what is in the way."""
        assert self._calibrator is not None
        day, obstacle = topics.rfc3339(line.next_seq * line.spec.interval_ns)[:10], self._source.obstacle
        reason = self._calibrator.refused or obstacle
        return f"{line.spec}: the calibration of {day} is not known yet{reason and '; ' + reason}"

    def _new_calibrator(self, markets: list[Market]) -> Calibrator:
        return Calibrator(
            artifact=self._pipeline.model.artifact,
            markets=markets,
            specs=self.specs,
            source=self._source,
            store=self._store,
            now_ns=lambda: max((m.clock.now_ns for m in self.markets), default=0),
            revised=self._revised,
        )

    def _revised(self) -> None:
        """Go on with what waited for a day's calibration."""
        for market in self.markets:
            market.go_on()
        self._moved()

    # ---- the universe

    async def _look_again(self, group: asyncio.TaskGroup) -> None:
        """Look at the exchange's contracts again and again, and take up what has changed."""
        while True:
            await asyncio.sleep(UNIVERSE_S)
            try:
                await self.look(group)
            except RequestRefused as error:
                self._log.error("universe_refused", reason=str(error))

    async def look(self, group: asyncio.TaskGroup) -> None:
        """Look at the exchange's contracts, and take up what has changed."""
        now = await self._source.insist(self._history.markets)
        now_ns = await self._source.insist(self._history.time_ns)
        taken = [m.market for m in self.markets]
        fresh: list[Market] = []
        for change in universe.changes(taken, now, self.feed.symbols):
            if self._fates.get(change.market.symbol) == change:
                continue
            self._log.warning("market_" + change.fate, market=change.market.symbol, reason=change.reason)
            self._fates[change.market.symbol] = change
            if change.fate in (Fate.LISTED, Fate.CHANGED):
                fresh.append(change.market)
        if not fresh:
            return
        for market in fresh:
            self._drop(market.symbol, group)
        added = [self._add(market, now_ns) for market in fresh]
        self._wire_up(added, group)
        await self._take_up(added, now_ns)

    def _drop(self, symbol: str, group: asyncio.TaskGroup) -> None:
        """Let go of a market that is to be taken up anew; its neighbours on the connection get another."""
        wire = next((w for w in self._wires if symbol in {m.market.symbol for m in w.markets}), None)
        if wire is None:
            return
        wire.stop.set()
        self._wires.remove(wire)
        stays = [m for m in wire.markets if m.market.symbol != symbol]
        for pipeline in stays:
            pipeline.lost()
        if stays:
            self._wire_up(stays, group)
        self.markets[:] = [m for m in self.markets if m.market.symbol != symbol]
        self._pipeline.remove(self.exchange, symbol)

    # ---- what the wires tell

    def connected(self) -> None:
        """Have the exchange's clock asked: it has moved on while a connection was away."""
        self._keeper.ask_clock_soon()

    def count_loss(self) -> None:
        """Count the loss of a connection."""
        self.reconnects += 1
        self._metrics.gaps_total.labels(self.exchange).inc()

    def count_rollover(self, lost: int) -> None:
        """Count a connection that was replaced, and the trades that came neither on it nor on the next."""
        self._metrics.rollovers_total.labels(self.exchange).inc()
        self._metrics.rollover_lost_trades_total.labels(self.exchange).inc(lost)

    def events(self, events: list[Event]) -> None:
        """Pass market events on and count the rest."""
        known: list[MarketTrade | MarkPrice | Kline] = []
        for event in events:
            if isinstance(event, MarketTrade | MarkPrice | Kline):
                known.append(event)
            elif isinstance(event, Malformed):
                self._metrics.malformed_total.labels(self.exchange, event.kind).inc()
        self._pipeline.handle(known)
        self._moved()

    # ---- how things stand

    @property
    def live(self) -> bool:
        """Whether every connection has its streams confirmed."""
        return bool(self._wires) and all(wire.live for wire in self._wires)

    @property
    def reason(self) -> str:
        """Why not; empty when live."""
        obstacle = self._source.obstacle or "starting"
        return next((wire.reason for wire in self._wires if not wire.live), "" if self._wires else obstacle)

    def _wire_of(self, market: MarketPipeline) -> Wire | None:
        return next((wire for wire in self._wires if market in wire.markets), None)

    def _unbroken(self, market: MarketPipeline) -> int | None:
        wire = self._wire_of(market)
        return wire.losses if wire and wire.live else None

    @property
    def awaited(self) -> list[Market]:
        """Markets that the configuration names and that are not taken up yet; only their names are known."""
        taken = {pipeline.market.symbol for pipeline in self.markets}
        named = [s for s in self.feed.symbols if not universe.is_pattern(s) and s not in taken]
        return [Market(exchange=self.exchange, symbol=s, native="", price_decimals=0, size_decimals=0) for s in named]

    def availability(self, market: MarketPipeline) -> tuple[AvailabilityState, str]:
        """Say whether a market's signals can be relied on, and why not."""
        fate = self._fates.get(market.market.symbol)
        if fate and fate.fate in _STANDING:
            return _STANDING[fate.fate], fate.reason
        if self._source.forbidden:
            return "refused", self._source.obstacle
        wire = self._wire_of(market)
        if wire is None or not wire.live:
            reason = wire.reason if wire else self.reason
            return ("refused" if reason.startswith(REFUSED) else "stale"), reason
        lines = [channel.line for channel in market.channels.values()]
        final_ns = market.clock.now_ns - self._history.settle_ns
        for line in lines:
            if line.waits_for_calibration:
                return ("tainted" if line.engine.phase is Phase.READY else "warming"), self._uncalibrated(line)
            if line.engine.phase is not Phase.READY:
                folded, needed = line.engine.folded, line.engine.model.warmup + 1
                said = f"{folded} of {needed} candles" if folded < needed else "the guards begin at 00:00 UTC"
                return "warming", f"{line.spec}: {said}"
            if line.waits_for_funding:
                return "tainted", f"{line.spec}: settled funding is not known"
            if line.spec.by_time and (hole := line.missing(final_ns - line.spec.interval_ns)):
                return "tainted", f"{line.spec}: {hole[1] - hole[0] + 1} candles missing"
        if market.stitch and market.stitch.wants:
            return "tainted", "trades are being fetched"
        if clock.now_ns() - market.last_event_ns > SILENT_S * 1e9:
            return "stale", f"no event for {SILENT_S:.0f} s"
        return "online", ""
