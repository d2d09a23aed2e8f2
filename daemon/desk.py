"""One configured feed at work: markets taken up from the store and the exchange's history, kept live and repaired.

The shell around `MarketPipeline`; what decides is there.
"""

import asyncio
import difflib
import fnmatch
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from config.load import ConfigError, Problem
from config.schema import Feed
from daemon import clock
from daemon.line import Line
from daemon.metrics import Metrics
from daemon.pipeline import MarketPipeline, Pipeline
from daemon.store import Store
from daemon.topics import AvailabilityState
from feeds.backoff import Backoff
from feeds.errors import RateLimited, RemoteError, RequestRefused
from feeds.events import Event, Kline, Malformed, MarketTrade, MarkPrice
from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec
from feeds.history import PAGE_ROWS, History, open_history
from feeds.market import NS_PER_DAY, SEQ_PER_DAY, CandleSpec, Market, Trade
from feeds.runner import FeedRunner
from feeds.stitch import Wants
from feeds.subscription import plan
from inference.engine import Phase

REPAIR_POLL_S = 0.1
"""How often holes are looked for; a hole of one candle must be seen twice, as the next event fills most of them."""
CLOCK_POLL_S = 5.0
"""How often the exchange's clock is asked while its websocket is away."""
REFUSED_PAUSE_S = 60.0
"""How long a market rests after the exchange refused a request of ours for it."""
SILENT_S = 60.0
"""A market without any event for this long is stale, whatever its connection says."""
HISTORY_CAP_S = 5.0
"""Longest pause between two tries to reach the exchange's history; the exchange's own word on limits goes before."""
FUNDING_BEFORE_NS = 2 * NS_PER_DAY
"""How much older than the fold the funding history begins: enough to know its interval."""
_T = TypeVar("_T")


class Wire:
    """One connection's markets: the sink of its `FeedRunner`."""

    def __init__(self, markets: list[MarketPipeline], desk: "Desk") -> None:
        self.markets = markets
        self.live = False
        """Whether all streams are confirmed."""
        self.reason = "connecting"
        """Why not."""
        self.losses = 0
        self._desk = desk

    def connected(self) -> None:
        """Note that all streams are confirmed."""
        self.live, self.reason = True, ""
        for market in self.markets:
            market.connected()
        self._desk.ask_clock_soon()

    def lost(self, reason: str) -> None:
        """Note the connection's loss."""
        self.live, self.reason = False, reason
        self.losses += 1
        for market in self.markets:
            market.lost()
        self._desk.count_loss()

    def events(self, events: list[Event]) -> None:
        """Pass a frame's events on."""
        self._desk.events(events)


class Desk:
    """A feed of the configuration: one exchange, its markets and candle specs."""

    def __init__(
        self, number: int, feed: Feed, pipeline: Pipeline, store: Store, metrics: Metrics, moved: Callable[[], None]
    ) -> None:
        """Set up; `moved` is called when the pipeline may have work to commit."""
        self.number, self.feed, self.exchange = number, feed, feed.exchange
        self.specs = [CandleSpec.parse(text) for text in feed.candles]
        self.markets: list[MarketPipeline] = []
        self.settled = asyncio.Event()
        """Set once the markets are taken up, or it is known that this must wait for the exchange."""
        self._obstacle = "starting"
        self.reconnects = 0
        self._wires: list[Wire] = []
        self._pipeline, self._store, self._metrics, self._moved = pipeline, store, metrics, moved
        self._codec = CODECS[feed.exchange]
        self._history: History = open_history(feed.exchange, feed.rest_url)
        self._log = structlog.get_logger().bind(exchange=feed.exchange)
        self._backoff = Backoff(clock.rng(), cap_s=HISTORY_CAP_S)
        self._unreachable = False
        self._single_holes: dict[str, int] = {}
        self._rests_until_s: dict[str, float] = {}
        self._clock_asked_s = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Take up every market, then listen and repair until cancelled; `stop` closes the connection politely.

        Raises:
            ConfigError: a symbol that the exchange does not have.

        """
        try:
            await self._take_up()
            async with asyncio.TaskGroup() as group:
                for wire in self._wires:
                    group.create_task(self._runner(wire).run(stop), name=f"feed {self.exchange}")
                group.create_task(self._keep_whole(stop), name=f"repair {self.exchange}")
        finally:
            await self._history.aclose()

    def _runner(self, wire: Wire) -> FeedRunner:
        markets = [m.market for m in wire.markets]
        return FeedRunner(
            codec_factory=lambda: self._new_codec(markets),
            url=self._new_codec(markets).url(self.feed.ws_url),
            sink=wire,
            now_ns=clock.now_ns,
            rng=clock.rng(),
            log=self._log,
        )

    def _new_codec(self, markets: list[Market]) -> Codec:
        return self._codec(markets, {market.symbol: self.specs for market in markets})

    def _wire_up(self) -> None:
        """Spread the markets over as few connections as the exchange's limit on streams allows, with head-room."""
        by_symbol = {m.market.symbol: m for m in self.markets}
        sizes = {symbol: len(self._new_codec([m.market]).streams) for symbol, m in by_symbol.items()}
        groups = plan(sizes, max_streams=self._codec.max_streams)
        self._wires = [Wire([by_symbol[symbol] for symbol in group], self) for group in groups]

    # ---- taking up

    async def _take_up(self) -> None:
        markets = await self._insist(self._history.markets)
        now_ns = await self._insist(self._history.time_ns)
        for market in self._choose(markets):
            if (market.exchange, market.symbol) in self._pipeline.markets:
                key = f"feeds[{self.number}].symbols"
                raise ConfigError(
                    [Problem(key, f"{market.symbol} is in another feed of {self.exchange} already", None)]
                )
            pipeline = self._pipeline.add(market)
            pipeline.clock.set(now_ns)
            lines = [
                pipeline.add(
                    spec,
                    self._pipeline.model,
                    grace_ns=self._codec.grace_ns,
                    has_kline=self._codec.has_kline(spec),
                    by_exchange=self.feed.close == "exchange",
                )
                for spec in self.specs
            ]
            await self._begin(pipeline, lines, now_ns)
            self.markets.append(pipeline)
        self._log.info("markets_taken_up", markets=len(self.markets), candles=self.feed.candles)
        self._wire_up()
        self._moved()
        self.settled.set()

    def _choose(self, markets: dict[str, Market]) -> list[Market]:
        chosen: dict[str, Market] = {}
        for at, wanted in enumerate(self.feed.symbols):
            pattern = "*" if wanted == "all" else wanted
            found = [wanted] if wanted in markets else fnmatch.filter(markets, pattern)
            if not found:
                near = difflib.get_close_matches(wanted, markets, n=1)
                key = f"feeds[{self.number}].symbols[{at}]"
                raise ConfigError([Problem(key, f"{self.exchange} trades no {wanted}", near[0] if near else None)])
            chosen.update((symbol, markets[symbol]) for symbol in found)
        return list(chosen.values())

    async def _begin(self, pipeline: MarketPipeline, lines: list[Line], now_ns: int) -> None:
        """Bring one market's lines to where the store left them, or to where their folds begin."""
        earliest_ns = now_ns - NS_PER_DAY
        for line in lines:
            if line.spec.by_time:
                first = line.first_needed(line.spec.seq_at(now_ns), self._store.stream_seq(line.name))
                earliest_ns = min(earliest_ns, first * line.spec.interval_ns)
        start_ns = earliest_ns - FUNDING_BEFORE_NS
        settled = await self._insist(lambda: self._history.funding(pipeline.market, start_ns=start_ns))
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

    # ---- what the wires tell

    def ask_clock_soon(self) -> None:
        """Ask the exchange's clock in the next round: it has moved on while a connection was away."""
        self._clock_asked_s = 0.0

    def count_loss(self) -> None:
        """Count the loss of a connection."""
        self.reconnects += 1
        self._metrics.gaps_total.labels(self.exchange).inc()

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

    # ---- repair

    async def _insist(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until the exchange answers; say once that it does not, and once that it does again."""
        while True:
            began_s = clock.monotonic_s()
            try:
                answer = await ask()
            except RemoteError as error:
                if not self._unreachable:
                    self._log.warning("history_unreachable", reason=str(error))
                    self._unreachable, self._obstacle = True, f"history unreachable: {error}"
                    self.settled.set()
                wait_s = self._backoff.delay_s(live_s=0.0, since_attempt_s=clock.monotonic_s() - began_s)
                await asyncio.sleep(max(wait_s, error.retry_after_s if isinstance(error, RateLimited) else 0.0))
            else:
                if self._unreachable:
                    self._log.info("history_restored")
                    self._unreachable, self._obstacle = False, "starting"
                    self._backoff = Backoff(clock.rng(), cap_s=HISTORY_CAP_S)
                return answer

    async def _keep_whole(self, stop: asyncio.Event) -> None:
        """Fill holes, bring funding up to date, and keep the exchange's time while its websocket is away."""
        while not stop.is_set():
            disputed = any(market.clock.disputed for market in self.markets)
            if disputed or not self._clock_asked_s or not self.live:
                await self._ask_clock()
            for market in self.markets:
                if self._rests_until_s.get(market.market.symbol, 0.0) > clock.monotonic_s():
                    continue
                try:
                    await self._repair(market)
                except RequestRefused as error:
                    self._log.error("history_refused", market=market.market.symbol, reason=str(error))
                    self._rests_until_s[market.market.symbol] = clock.monotonic_s() + REFUSED_PAUSE_S
            try:
                await asyncio.wait_for(stop.wait(), REPAIR_POLL_S)
            except TimeoutError:
                continue

    async def _ask_clock(self) -> None:
        if clock.monotonic_s() - self._clock_asked_s < CLOCK_POLL_S:
            return
        self._clock_asked_s = clock.monotonic_s()
        now_ns = await self._insist(self._history.time_ns)
        for market in self.markets:
            market.clock.set(now_ns)

    async def _repair(self, market: MarketPipeline) -> None:
        now_ns = market.clock.now_ns
        if market.funding.asked_at_ns < market.funding.due_ns(now_ns):
            start_ns = (market.funding.newest_ns or now_ns - FUNDING_BEFORE_NS) + 1
            settled = await self._insist(lambda: self._history.funding(market.market, start_ns=start_ns))
            market.settle_funding(settled, now_ns)
            self._moved()
        if market.stitch and market.stitch.wants:
            await self._fetch_trades(market)
        for channel in market.channels.values():
            if channel.has_kline:
                await self._fetch_candles(market, channel.line)

    async def _fetch_candles(self, market: MarketPipeline, line: Line) -> None:
        hole = line.missing(market.clock.now_ns - self._history.settle_ns)
        if hole is None:
            self._single_holes.pop(line.name, None)
            return
        if hole[0] == hole[1] and self._single_holes.get(line.name) != hole[0]:
            self._single_holes[line.name] = hole[0]
            return
        was_ready = line.engine.phase is Phase.READY
        asked_ns = market.clock.now_ns
        interval_ns = line.spec.interval_ns
        span = {"start_ns": (hole[0] - 1) * interval_ns, "end_ns": hole[1] * interval_ns}
        candles = await self._insist(lambda: self._history.candles(market.market, line.spec, **span))
        line.backfill(candles, hole, asked_ns, by_hand=was_ready)
        if was_ready and candles:
            self._metrics.repairs_total.labels(self.exchange).inc()
            self._log.info("hole_filled", market=line.market.symbol, candles=line.spec.text, rows=len(candles))
        self._moved()

    async def _fetch_trades(self, market: MarketPipeline) -> None:
        """Fetch pages until one is not full; the next round goes on from there."""
        assert market.stitch is not None
        while wants := market.stitch.wants:
            wire = self._wire_of(market)
            losses = wire.losses if wire and wire.live else None
            page = await self._page(market.market, wants)
            # A page joins the live trades only if they were received without a break from before it was asked for.
            unbroken = wire is not None and wire.live and wire.losses == losses
            market.fill(page, at_end=unbroken and len(page) < PAGE_ROWS)
            self._moved()
            if len(page) < PAGE_ROWS:
                return

    async def _page(self, market: Market, wants: Wants) -> list[Trade]:
        """Fetch what a stitch wants; at its beginning also the trade before, whose price empty intervals carry on."""
        if wants.from_id is not None:
            return await self._insist(lambda: self._history.trades(market, from_id=wants.from_id))
        page = await self._insist(lambda: self._history.trades(market, start_ns=wants.start_ns))
        if not page:
            return await self._insist(lambda: self._history.trades(market))
        return await self._insist(lambda: self._history.trades(market, from_id=max(0, page[0].id - 1)))

    # ---- how things stand

    @property
    def live(self) -> bool:
        """Whether every connection has its streams confirmed."""
        return bool(self._wires) and all(wire.live for wire in self._wires)

    @property
    def reason(self) -> str:
        """Why not; empty when live."""
        return next((wire.reason for wire in self._wires if not wire.live), "" if self._wires else self._obstacle)

    def _wire_of(self, market: MarketPipeline) -> Wire | None:
        return next((wire for wire in self._wires if market in wire.markets), None)

    @property
    def awaited(self) -> list[Market]:
        """Markets that the configuration names and that are not taken up yet; only their names are known."""
        taken = {pipeline.market.symbol for pipeline in self.markets}
        named = [s for s in self.feed.symbols if s != "all" and not set("*?[") & set(s) and s not in taken]
        return [Market(exchange=self.exchange, symbol=s, native="", price_decimals=0, size_decimals=0) for s in named]

    def availability(self, market: MarketPipeline) -> tuple[AvailabilityState, str]:
        """Say whether a market's signals can be relied on, and why not."""
        wire = self._wire_of(market)
        if wire is None or not wire.live:
            return "stale", wire.reason if wire else self._obstacle
        lines = [channel.line for channel in market.channels.values()]
        final_ns = market.clock.now_ns - self._history.settle_ns
        for line in lines:
            if line.engine.phase is not Phase.READY:
                return "warming", f"{line.spec}: {line.engine.folded} of {line.engine.model.warmup + 1} candles"
            if line.waits_for_funding:
                return "tainted", f"{line.spec}: settled funding is not known"
            if line.spec.by_time and (hole := line.missing(final_ns - line.spec.interval_ns)):
                return "tainted", f"{line.spec}: {hole[1] - hole[0] + 1} candles missing"
        if market.stitch and market.stitch.wants:
            return "tainted", "trades are being fetched"
        if clock.now_ns() - market.last_event_ns > SILENT_S * 1e9:
            return "stale", f"no event for {SILENT_S:.0f} s"
        return "online", ""
