"""One configured feed at work: its markets chosen, taken up from the store and the exchange's history, and listened to.

The shell around `MarketPipeline`; what decides is there. `Keeper` keeps the markets whole.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import structlog

from config.load import ConfigError, Problem
from config.schema import Feed
from daemon import clock, topics, universe
from daemon.calibrator import Calibrator
from daemon.keeper import REFUSED_PAUSE_S, Keeper
from daemon.line import Line
from daemon.metrics import Metrics
from daemon.pipeline import MarketPipeline, Pipeline
from daemon.source import Budgets, Source
from daemon.store import Store
from daemon.topics import AvailabilityState
from daemon.universe import Change, Fate, NoSuchMarket
from daemon.uptake import Uptake
from daemon.wires import Wires
from feeds.budget import Priority
from feeds.errors import RequestRefused
from feeds.events import Event, Malformed, MarketEvent
from feeds.history import open_history
from feeds.kinds import kind_of
from feeds.market import CandleSpec, Market
from inference.engine import Phase

SILENT_S = 60.0
"""A market without any event for this long is stale, whatever its connection says."""
REFUSED = "refused: "
"""How the reason of a connection begins that the exchange will not serve."""
UNIVERSE_S = 3600.0
"""How often the exchange's list of contracts is looked at again."""
LOOK_PAUSE_S = 60.0
"""How soon after that at the earliest, where a connection was refused: a contract of it may be gone."""
_STANDING: Mapping[Fate, AvailabilityState] = {
    Fate.HALTED: "halted", Fate.DELISTED: "delisted", Fate.CHANGED: "changed", Fate.INCOMPARABLE: "changed",
}  # fmt: skip
"""Fates in which no signal can come."""
_LASTING = (Fate.DELISTED, Fate.INCOMPARABLE)
"""Fates in which a market is let go of."""


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
        self._fates: dict[str, Change] = {}
        self._look_soon = asyncio.Event()
        self._calibrator: Calibrator | None = None
        self._pipeline, self._store, self._metrics, self._moved = pipeline, store, metrics, moved
        self._log = structlog.get_logger().bind(exchange=feed.exchange)
        budget = (budgets or Budgets(store)).of(feed.exchange, feed.rest_url)
        proxy = feed.proxy.get_secret_value() if feed.proxy else None
        self._kind = kind_of(feed.exchange, ws_url=feed.ws_url, rest_url=feed.rest_url, proxy=proxy)
        self._wires = Wires(self._kind, self.specs, self, self._log, copies=2 if feed.redundant else 1)
        self._history = open_history(feed.exchange, feed.rest_url, budget, proxy)
        self._source = Source(self._history, self._log, hindered=self.settled.set)
        self._uptake = Uptake(self._source, store, self._log, taken=self._taken)
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
                group.create_task(self._hang_up(stop), name=f"stop {self.exchange}")
                if self._calibrator:
                    revising = self._calibrator.run(lambda: (c.line for m in self.markets for c in m.channels.values()))
                    group.create_task(revising, name=f"calibrate {self.exchange}")
                self._admit(taken, now_ns, group)
                group.create_task(self._keeper.run(self.markets, lambda: self.live, stop), name=f"keep {self.exchange}")
                group.create_task(self._look_again(group), name=f"universe {self.exchange}")
        finally:
            await self._history.aclose()

    async def _hang_up(self, stop: asyncio.Event) -> None:
        """Close the connections politely when we are asked to end."""
        await stop.wait()
        self._wires.stop()

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
        pipeline = self._pipeline.add(market, self._kind.traits)
        pipeline.clock.set(now_ns)
        if not market.trading:
            self._fates[market.symbol] = Change(Fate.HALTED, market, universe.HALTED)
        for spec in self.specs:
            pipeline.add(
                spec,
                self._pipeline.model,
                has_kline=self._kind.has_kline(spec),
                by_exchange=self.feed.close == "exchange",
                revisions=self._calibrator.book(spec) if self._calibrator else None,
            )
        return pipeline

    def _admit(self, pipelines: list[MarketPipeline], now_ns: int, group: asyncio.TaskGroup) -> None:
        """Listen to markets and take them up."""
        self._wires.connect(pipelines, group)
        self._uptake.expect(pipelines)
        group.create_task(self._take_up(pipelines, now_ns), name=f"take up {self.exchange}")

    async def _take_up(self, pipelines: list[MarketPipeline], now_ns: int) -> None:
        """Take markets up; those whose history the exchange refuses, again and again."""
        while True:
            pipelines = await self._uptake.take(pipelines, now_ns)
            self._log.info("markets_taken_up", markets=len(self.markets), candles=self.feed.candles)
            self.settled.set()
            if not pipelines:
                return
            await asyncio.sleep(REFUSED_PAUSE_S)

    def _taken(self, pipeline: MarketPipeline) -> None:
        """Go on with a market that is where it was left."""
        fate = self._fates.get(pipeline.market.symbol)
        if fate and fate.fate is Fate.CHANGED:
            del self._fates[pipeline.market.symbol]
        self.markets.append(pipeline)
        self._moved()

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
        """Look at the exchange's contracts again and again, and follow what has changed."""
        while True:
            # No `wait_for`: up to Python 3.11 it may swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNIVERSE_S):
                    await self._look_soon.wait()
            self._look_soon.clear()
            try:
                await self.look(group)
            except RequestRefused as error:
                self._log.error("universe_refused", reason=str(error))
            await asyncio.sleep(min(LOOK_PAUSE_S, UNIVERSE_S))

    async def look(self, group: asyncio.TaskGroup) -> None:
        """Look at the exchange's contracts, and follow what has changed."""
        now = await self._source.insist(self._history.markets, Priority.REPAIR)
        now_ns = await self._source.insist(self._history.time_ns, Priority.REPAIR)
        self._moved()
        await asyncio.sleep(0)  # what has been decided for a market is committed before it is let go of
        waiting = [pipeline.market for pipeline, _ in self._uptake.waiting.values()]
        lost = [fate.market for fate in self._fates.values() if fate.fate is Fate.INCOMPARABLE]
        known = [m.market for m in self.markets] + waiting + lost
        found = {change.market.symbol: change for change in universe.changes(known, now, self.feed.symbols)}
        for symbol in [symbol for symbol, fate in self._fates.items() if fate.fate is Fate.HALTED]:
            if symbol not in found:
                self._log.info("market_resumed", market=symbol)
                del self._fates[symbol]
        if fresh := [change.market for change in found.values() if self._follow(change)]:
            self._admit([self._add(market, now_ns) for market in fresh], now_ns, group)

    def _follow(self, change: Change) -> bool:
        """Follow a change; tell whether its market is to be taken up."""
        symbol, known = change.market.symbol, self._fates.get(change.market.symbol)
        is_elsewhere = change.fate is Fate.LISTED and (self.exchange, symbol) in self._pipeline.markets
        if is_elsewhere or (known and (known.fate, known.reason) == (change.fate, change.reason)):
            return False
        self._log.warning("market_" + change.fate, market=symbol, reason=change.reason)
        self._fates[symbol] = change
        if change.fate in (Fate.CHANGED, *_LASTING):
            self._drop(symbol)
        if change.fate is Fate.LISTED:
            del self._fates[symbol]
        return change.fate in (Fate.LISTED, Fate.CHANGED)

    def _drop(self, symbol: str) -> None:
        """Let go of a market."""
        self._wires.disconnect(symbol)
        self._uptake.forget(symbol)
        self.markets[:] = [m for m in self.markets if m.market.symbol != symbol]
        self._pipeline.remove(self.exchange, symbol)

    # ---- what the wires tell

    def connected(self) -> None:
        """Have the exchange's clock asked: it has moved on while a connection was away."""
        self._keeper.ask_clock_soon()

    def lost(self, reason: str) -> None:
        """Count the loss of a connection."""
        self.reconnects += 1
        self._metrics.gaps_total.labels(self.exchange).inc()
        self.hindered(reason)

    def hindered(self, reason: str) -> None:
        """Look at the exchange's contracts where it refuses a stream: one that is gone takes its neighbours along."""
        if reason.startswith((REFUSED, "not subscribed")) and not reason.startswith(REFUSED + "HTTP"):
            self._look_soon.set()

    def rolled_over(self, lost: int) -> None:
        """Count a connection that was replaced, and the trades that came neither on it nor on the next."""
        self._metrics.rollovers_total.labels(self.exchange).inc()
        self._metrics.rollover_lost_trades_total.labels(self.exchange).inc(lost)

    def events(self, events: list[Event]) -> None:
        """Pass market events on and count the rest."""
        known: list[MarketEvent] = []
        for event in events:
            if isinstance(event, MarketEvent):
                known.append(event)
            elif isinstance(event, Malformed):
                self._metrics.malformed_total.labels(self.exchange, event.kind).inc()
        self._pipeline.handle(known)
        self._moved()

    # ---- how things stand

    @property
    def live(self) -> bool:
        """Whether every connection has its streams confirmed."""
        return self._wires.live

    @property
    def reason(self) -> str:
        """Why not; empty when live."""
        said = self._wires.reason
        return self._source.obstacle or "starting" if said is None else said

    @property
    def waiting(self) -> int:
        """How many markets are still to be taken up or warmed up."""
        lines = ((channel.line for channel in market.channels.values()) for market in self.markets)
        return len(self._uptake.waiting) + sum(any(line.engine.phase is not Phase.READY for line in of) for of in lines)

    def _unbroken(self, market: MarketPipeline) -> int | None:
        wire = self._wires.of(market.market.symbol)
        return wire.losses if wire and wire.live else None

    def standings(self) -> Iterator[tuple[Market, AvailabilityState, str]]:
        """Say of every market that is known whether its signals can be relied on, and why not."""
        for pipeline in [*self.markets, *(pipeline for pipeline, _ in self._uptake.waiting.values())]:
            yield pipeline.market, *self.availability(pipeline)
        for fate in self._fates.values():
            if fate.fate in _LASTING:
                yield fate.market, _STANDING[fate.fate], fate.reason
        for market in self._awaited():
            yield market, "stale", self.reason

    def _awaited(self) -> list[Market]:
        """Return markets that the configuration names while nothing but their names is known."""
        known = {*(m.market.symbol for m in self.markets), *self._uptake.waiting, *self._fates}
        named = [s for s in self.feed.symbols if not universe.is_pattern(s) and s not in known]
        return [Market(exchange=self.exchange, symbol=s, native="", price_decimals=0, size_decimals=0) for s in named]

    def availability(self, market: MarketPipeline) -> tuple[AvailabilityState, str]:
        """Say whether a market's signals can be relied on, and why not."""
        symbol = market.market.symbol
        fate = self._fates.get(symbol)
        if fate and fate.fate in _STANDING:
            return _STANDING[fate.fate], fate.reason
        if self._source.forbidden:
            return "refused", self._source.obstacle
        wire = self._wires.of(symbol)
        if wire is None or not wire.live:
            reason = wire.reason if wire else self.reason
            return ("refused" if reason.startswith(REFUSED) else "stale"), reason
        if symbol in self._uptake.waiting:
            return "warming", self._uptake.waiting[symbol][1]
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
