"""Keep a feed's markets whole: fill holes, bring funding up to date, compare candles with the exchange's own."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from daemon import clock
from daemon.auditor import Auditor
from daemon.line import Line
from daemon.metrics import Metrics
from daemon.pipeline import MarketPipeline
from daemon.source import Source
from feeds.budget import AT_ONCE, Priority
from feeds.errors import RequestRefused
from feeds.history import PAGE_ROWS
from feeds.market import NS_PER_DAY, Market, Trade
from feeds.stitch import Wants
from inference.engine import Phase

REPAIR_POLL_S = 0.1
"""How often holes are looked for; a hole of one candle must be seen twice, as the next event fills most of them."""
REPAIR_POLL_PER_MARKET_S = 0.0005
"""Looking costs some microseconds a market, so with many it is done less often."""
AWAY_POLL_S = 5.0
"""How often a market's trades and the exchange's clock are asked for while its websocket is away."""
REFUSED_PAUSE_S = 60.0
"""How long a market rests after the exchange refused a request of ours for it."""
MANY = 20
"""From so many markets on, settled funding is asked for in one list where the exchange has one."""
UNFILLED_PAUSE_S, UNFILLED_CAP_S = 0.5, 15.0
"""How long to leave a hole alone that an answer has not made smaller, doubled each time: the market may be halted."""
WARMING_MAX = 2 * AT_ONCE
"""Markets whose warm-up is fetched or folded at the same time; what is fetched sooner would only lie in memory."""
FOLD_ROWS = 256
"""Candles folded in one turn of the event loop, some 20 ms: frames do not wait for a whole warm-up."""
FUNDING_BEFORE_NS = 2 * NS_PER_DAY
"""How much older than the fold the funding history begins: enough to know its interval."""


class _Unfilled(NamedTuple):
    """A hole for which the exchange had nothing."""

    seq: int
    pause_s: float
    until_s: float


class Keeper:
    """Looks after the markets of one feed."""

    def __init__(
        self,
        source: Source,
        metrics: Metrics,
        log: FilteringBoundLogger,
        *,
        exchange: str,
        unbroken: Callable[[MarketPipeline], int | None],
        moved: Callable[[], None],
    ) -> None:
        """Set up; `unbroken` numbers the span of a market's connection without a loss, None while it is away."""
        self._source, self._metrics, self._log, self._exchange = source, metrics, log, exchange
        self._unbroken, self._moved = unbroken, moved
        self._history = source.history
        self._single_holes: dict[str, int] = {}
        self._unfilled: dict[str, _Unfilled] = {}
        self._rests_until_s: dict[str, float] = {}
        self._busy: set[str] = set()
        self._auditor = Auditor(source, moved=moved)
        self._clock_asked_s = 0.0
        self._caught_up_s: dict[str, float] = {}
        """When all the trades that the exchange had of a market were fetched, while its websocket was away."""
        self._warming, self._folding = asyncio.Semaphore(WARMING_MAX), asyncio.Lock()
        self._apart = False
        """Whether the exchange serves settled funding market by market only."""
        self._together: set[str] = set()
        """Markets for which it is being asked for in one list."""

    def ask_clock_soon(self) -> None:
        """Ask the exchange's clock in the next round: it has moved on while a connection was away."""
        self._clock_asked_s = 0.0

    async def run(self, markets: Sequence[MarketPipeline], live: Callable[[], bool], stop: asyncio.Event) -> None:
        """Look after `markets`, whichever they are at the time, until `stop`; several at once."""
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                if any(market.clock.disputed for market in markets) or not self._clock_asked_s or not live():
                    await self._ask_clock(markets)
                due = [market for market in markets if self._funding_due(market)]
                if len(due) >= MANY and not self._apart:
                    self._together.update(market.market.symbol for market in due)
                    group.create_task(self._fetch_fundings(due), name=f"funding {self._exchange}")
                for market in markets:
                    symbol = market.market.symbol
                    rests = self._rests_until_s.get(symbol, 0.0) > clock.monotonic_s()
                    if symbol not in self._busy and not rests and self._wanting(market):
                        self._busy.add(symbol)
                        group.create_task(self._look_after(market), name=f"repair {symbol}")
                # No `wait_for`: up to Python 3.11 it swallows a cancellation that comes together with `stop`.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(REPAIR_POLL_S, REPAIR_POLL_PER_MARKET_S * len(markets))):
                        await stop.wait()

    async def _ask_clock(self, markets: Sequence[MarketPipeline]) -> None:
        if clock.monotonic_s() - self._clock_asked_s < AWAY_POLL_S:
            return
        self._clock_asked_s = clock.monotonic_s()
        try:
            now_ns = await self._source.insist(self._history.time_ns, Priority.REPAIR)
        except RequestRefused as error:
            self._log.error("clock_refused", reason=str(error))
            return
        for market in markets:
            market.clock.set(now_ns)

    def _wanting(self, market: MarketPipeline) -> bool:
        """Tell whether the exchange is to be asked for something; no request is made here."""
        if self._funding_due(market) or self._wants_trades(market):
            return True
        channels = [channel for channel in market.channels.values() if channel.has_kline]
        holes = [self._hole(market, channel.line) for channel in channels]  # each is to be seen, for the second look
        return any(holes) or any(self._auditor.due(market, channel) for channel in channels)

    async def _look_after(self, market: MarketPipeline) -> None:
        try:
            if self._funding_due(market):
                await self._fetch_funding(market)
            if self._wants_trades(market):
                await self._fetch_trades(market)
            for channel in market.channels.values():
                if channel.has_kline:
                    await self._fetch_candles(market, channel.line)
                    await self._auditor.audit(market, channel)
        except RequestRefused as error:
            self._log.error("history_refused", market=market.market.symbol, reason=str(error))
            self._rests_until_s[market.market.symbol] = clock.monotonic_s() + REFUSED_PAUSE_S
        finally:
            self._busy.discard(market.market.symbol)

    # ---- funding

    def _funding_due(self, market: MarketPipeline) -> bool:
        is_due = market.funding.asked_at_ns < market.funding.due_ns(market.clock.now_ns)
        return is_due and market.market.symbol not in self._together

    async def _fetch_funding(self, market: MarketPipeline) -> None:
        now_ns = market.clock.now_ns
        start_ns = (market.funding.newest_ns or now_ns - FUNDING_BEFORE_NS) + 1
        ask = self._history.funding
        settled = await self._source.insist(lambda: ask(market.market, start_ns=start_ns), Priority.REPAIR)
        market.settle_funding(settled, now_ns)
        self._moved()

    async def _fetch_fundings(self, markets: list[MarketPipeline]) -> None:
        """Fetch the settled funding of many markets at once: it is due for all of them at the same time."""
        asked_ns = [market.clock.now_ns for market in markets]
        start_ns = min(market.funding.newest_ns or market.clock.now_ns - FUNDING_BEFORE_NS for market in markets) + 1
        settled = await self._source.insist(lambda: self._history.fundings(start_ns=start_ns), Priority.REPAIR)
        self._apart = settled is None
        self._together.difference_update(market.market.symbol for market in markets)
        for market, now_ns in zip(markets, asked_ns, strict=True):
            if settled is not None:
                market.settle_funding(settled.get(market.market.native, []), now_ns)
        self._moved()

    # ---- candles

    def _hole(self, market: MarketPipeline, line: Line) -> tuple[int, int] | None:
        """Return the hole to fill; one of a single candle only when it is seen a second time."""
        hole = line.missing(market.clock.now_ns - self._history.settle_ns)
        if hole is None:
            self._single_holes.pop(line.name, None)
        elif hole[0] == hole[1] and self._single_holes.get(line.name) != hole[0]:
            self._single_holes[line.name] = hole[0]
            return None
        unfilled = self._unfilled.get(line.name)
        rests = hole and unfilled and unfilled.seq == hole[0] and clock.monotonic_s() < unfilled.until_s
        return None if rests else hole

    def _note_unfilled(self, line: Line, seq: int) -> None:
        """Leave the hole that begins at `seq` alone for a while if the answer brought nothing."""
        before = self._unfilled.pop(line.name, None)
        if line.missing(seq * line.spec.interval_ns):
            pause_s = min(2 * before.pause_s, UNFILLED_CAP_S) if before and before.seq == seq else UNFILLED_PAUSE_S
            self._unfilled[line.name] = _Unfilled(seq, pause_s, clock.monotonic_s() + pause_s)

    async def _fetch_candles(self, market: MarketPipeline, line: Line) -> None:
        was_ready = line.engine.phase is Phase.READY
        async with contextlib.nullcontext() if was_ready else self._warming:
            if hole := self._hole(market, line):
                await self._fill(market, line, hole, was_ready=was_ready)

    async def _fill(self, market: MarketPipeline, line: Line, hole: tuple[int, int], *, was_ready: bool) -> None:
        asked_ns = market.clock.now_ns
        interval_ns = line.spec.interval_ns
        span = {"start_ns": (hole[0] - 1) * interval_ns, "end_ns": hole[1] * interval_ns}
        candles = await self._source.insist(
            lambda: self._history.candles(market.market, line.spec, **span),
            Priority.REPAIR if was_ready else Priority.WARM_UP,
        )
        async with self._folding:
            first = hole[0]
            for at in range(0, max(1, len(candles)), FOLD_ROWS):
                rows = candles[at : at + FOLD_ROWS]
                last = rows[-1].seq if rows else hole[1]
                line.backfill(rows, (first, last), asked_ns, by_hand=was_ready)
                first = last + 1
                await asyncio.sleep(0)
        self._note_unfilled(line, hole[0])
        if was_ready and candles:
            self._metrics.repairs_total.labels(self._exchange).inc()
            self._log.info("hole_filled", market=line.market.symbol, candles=line.spec.text, rows=len(candles))
        self._moved()

    # ---- trades

    def _wants_trades(self, market: MarketPipeline) -> bool:
        """Tell whether a stitch is to be gone on with: what is fetched can join nothing while the websocket is away."""
        if market.stitch is None or market.stitch.wants is None:
            return False
        waits_s = clock.monotonic_s() - self._caught_up_s.get(market.market.symbol, 0.0)
        return waits_s >= AWAY_POLL_S or self._unbroken(market) is not None

    async def _fetch_trades(self, market: MarketPipeline) -> None:
        """Fetch pages until one is not full; the next round goes on from there."""
        assert market.stitch is not None
        while wants := market.stitch.wants:
            before = self._unbroken(market)
            page = await self._page(market.market, wants)
            # A page joins the live trades only if they were received without a break from before it was asked for.
            unbroken = before is not None and self._unbroken(market) == before
            market.fill(page, at_end=unbroken and len(page) < PAGE_ROWS)
            self._moved()
            if len(page) < PAGE_ROWS:
                self._caught_up_s[market.market.symbol] = clock.monotonic_s()
                return

    async def _page(self, market: Market, wants: Wants) -> list[Trade]:
        """Fetch what a stitch wants; at its beginning also the trade before, whose price empty intervals carry on."""
        if wants.from_id is not None:
            return await self._trades(market, None, wants.from_id)
        page = await self._trades(market, wants.start_ns, None)
        return await self._trades(market, None, max(0, page[0].id - 1) if page else None)

    async def _trades(self, market: Market, start_ns: int | None, from_id: int | None) -> list[Trade]:
        ask = self._history.trades
        return await self._source.insist(lambda: ask(market, start_ns=start_ns, from_id=from_id), Priority.REPAIR)
