"""The daily revision of the calibration: candles of the days before, fetched after each midnight of the exchange.

The shell around `inference.outcomes` and `inference.recalibrate`. Lines wait until their day's revision is known;
forecasts that have been judged once are kept, so a new day asks for little more than the candles of the day before.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

import msgspec
import structlog

from daemon.line import VOID_SPACING_NS, Line
from daemon.source import Source
from daemon.store import Store
from feeds.budget import Priority
from feeds.errors import RequestRefused
from feeds.market import NS_PER_DAY, NS_PER_S, Candle, CandleSpec, Market
from inference import outcomes, recalibrate, revisions
from inference.artifact import Artifact
from inference.outcomes import Columns
from inference.recalibrate import DAYS, Past
from inference.revisions import Lines, RevisionBook

POLL_S: Final = 0.1
"""How often the exchange's time is looked at."""
REFUSED_PAUSE_S: Final = 60.0
"""How long to rest after the exchange refused a request."""
_MARGIN_NS: Final = NS_PER_S
"""Beyond the time that a row takes to be final: REST's clock may lag behind that of the events."""


class Pool:
    """The judged forecasts of one candle spec, pooled over the markets; per horizon."""

    def __init__(self, spec: CandleSpec, book: RevisionBook) -> None:
        self.spec, self.book = spec, book
        self.pasts: list[Past] = []
        self._from_ns = self._to_ns = 0
        """Of closes in this span, half-open, every forecast was judged that can be."""

    def since_ns(self, day: int) -> int:
        """Return where what is still to be judged begins, for a revision of `day`."""
        oldest_ns = (day - DAYS) * NS_PER_DAY
        return self._to_ns if self._from_ns <= oldest_ns <= self._to_ns else oldest_ns

    def take(self, parts: Sequence[list[Past]], *, day: int, since_ns: int, until_ns: int) -> None:
        """Put what was judged from `since_ns` on in the place of what is there; forget what `day` looks back beyond."""
        self._from_ns, self._to_ns = (day - DAYS) * NS_PER_DAY, until_ns
        closes = [past.close_time_ns for past in self.pasts]
        kept = [p.rows((t >= self._from_ns) & (t < since_ns)) for p, t in zip(self.pasts, closes, strict=True)]
        added = [[past.rows(past.close_time_ns >= since_ns) for past in some] for some in zip(*parts, strict=True)]
        self.pasts = [Past.pooled([*kept[k : k + 1], *some]) for k, some in enumerate(added)]


class Calibrator:
    """Computes the revisions of a feed's candle specs, day after day."""

    def __init__(
        self,
        *,
        artifact: Artifact,
        markets: Sequence[Market],
        specs: Sequence[CandleSpec],
        source: Source,
        store: Store,
        now_ns: Callable[[], int],
        revised: Callable[[], None],
    ) -> None:
        """Take up what the store has; `now_ns` gives the exchange's time, `revised` is called for each new revision."""
        self.refused = ""
        """What the exchange finds wrong with a request of ours; empty while it does not."""
        self._artifact, self._markets, self._source, self._store = artifact, markets, source, store
        self._now_ns, self._revised = now_ns, revised
        exchange, symbols = markets[0].exchange, tuple(market.symbol for market in markets)
        self._log = structlog.get_logger().bind(exchange=exchange)
        self._pools: dict[str, Pool] = {}
        for spec in specs:
            book = RevisionBook(revisions.source_of(artifact.model_id, exchange, spec.text, symbols))
            for day, stored in store.revisions(book.source).items():
                book.add(day, msgspec.json.decode(stored, type=Lines))
            self._pools[spec.text] = Pool(spec, book)

    def book(self, spec: CandleSpec) -> RevisionBook:
        """Return the revisions of a spec's candles."""
        return self._pools[spec.text].book

    async def run(self, lines: Callable[[], Iterable[Line]]) -> NoReturn:
        """Compute what the lines, whichever they are at the time, need of each day that has begun, until cancelled."""
        while True:
            today = (self._now_ns() - self._source.history.settle_ns - _MARGIN_NS) // NS_PER_DAY
            first = dict.fromkeys(self._pools, today + 1)
            for line in lines():
                day = line.next_seq * line.spec.interval_ns // NS_PER_DAY
                first[line.spec.text] = min(day, first[line.spec.text])
            for text, pool in self._pools.items():
                if days := pool.book.lacking(first[text], today):
                    await self._try(pool, days)
            await asyncio.sleep(POLL_S)

    async def _try(self, pool: Pool, days: list[int]) -> None:
        try:
            await self._revise(pool, days)
            self.refused = ""
        except RequestRefused as error:
            self.refused = str(error)
            self._log.error("calibration_refused", candles=pool.spec.text, reason=self.refused)
            await asyncio.sleep(REFUSED_PAUSE_S)

    async def _revise(self, pool: Pool, days: list[int]) -> None:
        await self._look_back(pool, days)
        manifest, interval_ns = self._artifact.manifest, pool.spec.interval_ns
        for day in days:
            lines, observed = await asyncio.to_thread(
                recalibrate.revise_all, manifest, pool.pasts, day * NS_PER_DAY, interval_ns
            )
            kept = self._store.keep_revision(pool.book.source, day, msgspec.json.encode(lines))
            pool.book.add(day, msgspec.json.decode(kept, type=Lines))
            self._say(pool, day, observed)
            self._revised()

    def _say(self, pool: Pool, day: int, observed: Sequence[int]) -> None:
        manifest = self._artifact.manifest
        k = manifest.horizons.index(manifest.signal_horizon[pool.spec.text])
        lines = pool.book.at(day * NS_PER_DAY)
        assert lines is not None
        figures = {head: [line.a, line.b] for head, line in msgspec.structs.asdict(lines[k]).items()}
        self._log.info(
            "calibration_revised",
            day=str(revisions.date_of(day)),
            candles=pool.spec.text,
            markets=len(self._markets),
            observations=observed[k],
            **figures,
        )

    async def _look_back(self, pool: Pool, days: list[int]) -> None:
        """Fetch and judge what the revisions of `days` rest on and is not known yet."""
        manifest, interval_ns = self._artifact.manifest, pool.spec.interval_ns
        since_ns, until_ns = pool.since_ns(days[0]), days[-1] * NS_PER_DAY
        first = since_ns // interval_ns // manifest.epoch * manifest.epoch - manifest.warmup
        parts = []
        for market in self._markets:
            candles = await self._candles(market, pool.spec, first, until_ns // interval_ns)
            parts.append(await asyncio.to_thread(self._judge, candles, interval_ns))
        # The newest forecasts had not matured by the last midnight: they are judged with the next day's candles.
        known_ns = until_ns - max(manifest.horizons) * interval_ns
        pool.take(parts, day=days[0], since_ns=since_ns, until_ns=known_ns)

    def _judge(self, candles: list[Candle], interval_ns: int) -> list[Past]:
        return outcomes.past(self._artifact, Columns.of(candles), interval_ns)

    async def _candles(self, market: Market, spec: CandleSpec, first: int, last: int) -> list[Candle]:
        """Fetch the candles from ordinal `first` to `last`; what two reads some time apart lack does not exist."""
        listed_ns = market.listed_at_ns
        first = first if listed_ns is None else max(first, spec.seq_at(listed_ns) + 1)
        span = {"start_ns": (first - 1) * spec.interval_ns, "end_ns": last * spec.interval_ns}
        ask = self._source.history.candles
        candles = await self._source.insist(lambda: ask(market, spec, **span), Priority.REPAIR)
        if len(candles) <= last - first:
            await self._until(self._now_ns() + VOID_SPACING_NS)
            candles = await self._source.insist(lambda: ask(market, spec, **span), Priority.REPAIR)
        return candles

    async def _until(self, time_ns: int) -> None:
        """Wait for the exchange's time."""
        while True:
            if self._now_ns() >= time_ns:
                return
            await asyncio.sleep(POLL_S)
