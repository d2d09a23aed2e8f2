"""Taking markets up: to where the store left them, or to where their folds begin."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from structlog.typing import FilteringBoundLogger

from daemon.keeper import FUNDING_BEFORE_NS, MANY
from daemon.line import Line
from daemon.pipeline import MarketPipeline
from daemon.source import Source
from daemon.store import Store
from feeds.budget import AT_ONCE
from feeds.errors import RequestRefused
from feeds.events import FundingSettlement
from feeds.market import NS_PER_DAY, SEQ_PER_DAY

WAITS = "waits for its turn"
TOGETHER_NS = 30 * NS_PER_DAY
"""Settled funding of longer spans is asked for market by market: in a list of all it would be many pages."""


class Uptake:
    """The markets of a feed that are still to be taken up."""

    def __init__(
        self, source: Source, store: Store, log: FilteringBoundLogger, *, taken: Callable[[MarketPipeline], None]
    ) -> None:
        """Set up; `taken` is handed each market that is where it was left."""
        self.waiting: dict[str, tuple[MarketPipeline, str]] = {}
        """By symbol, in order, and why."""
        self._source, self._store, self._log, self._taken = source, store, log, taken

    def forget(self, symbol: str) -> None:
        """Let go of a market that waits, if it does."""
        self.waiting.pop(symbol, None)

    def expect(self, pipelines: Sequence[MarketPipeline]) -> None:
        """Let markets wait for `take`."""
        for pipeline in pipelines:
            self.waiting[pipeline.market.symbol] = pipeline, WAITS

    async def take(self, pipelines: Sequence[MarketPipeline], now_ns: int) -> list[MarketPipeline]:
        """Take up those that wait still, in order, a few at a time; return those whose history is refused."""
        together = await self._together(pipelines, now_ns)
        queue, refused = deque(pipeline for pipeline in pipelines if self._waits(pipeline)), list[MarketPipeline]()

        async def work() -> None:
            while queue:
                pipeline = queue.popleft()
                try:
                    await self._one(pipeline, now_ns, together)
                except RequestRefused as error:
                    self._log.error("history_refused", market=pipeline.market.symbol, reason=str(error))
                    if self._waits(pipeline):
                        self.waiting[pipeline.market.symbol] = pipeline, f"its history is refused: {error}"
                        refused.append(pipeline)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
        return refused

    async def _one(
        self, pipeline: MarketPipeline, now_ns: int, together: dict[str, list[FundingSettlement]] | None
    ) -> None:
        symbol, ask = pipeline.market.symbol, self._source.history.funding
        if together is None:
            start_ns = self._since_ns(pipeline, now_ns)
            settled = await self._source.insist(lambda: ask(pipeline.market, start_ns=start_ns))
        else:
            settled = together.get(pipeline.market.native, [])
        if not self._waits(pipeline):
            return  # it has gone, or become another, meanwhile
        pipeline.settle_funding(settled, now_ns)
        for channel in pipeline.channels.values():
            self._begin(channel.line, now_ns)
        starts_ns = [c.line.next_open_ns for c in pipeline.channels.values() if not c.has_kline]
        if starts_ns:
            pipeline.stitch_from(min(starts_ns))
        self.forget(symbol)
        self._taken(pipeline)
        await asyncio.sleep(0)  # a journal may have been folded: frames have waited

    def _waits(self, pipeline: MarketPipeline) -> bool:
        return self.waiting.get(pipeline.market.symbol, (None,))[0] is pipeline

    # ---- settled funding

    async def _together(
        self, pipelines: Sequence[MarketPipeline], now_ns: int
    ) -> dict[str, list[FundingSettlement]] | None:
        """Fetch the funding of many markets at once, where the exchange has that."""
        since_ns = min((self._since_ns(pipeline, now_ns) for pipeline in pipelines), default=now_ns)
        if len(pipelines) < MANY or now_ns - since_ns > TOGETHER_NS:
            return None
        return await self._source.insist(lambda: self._source.history.fundings(start_ns=since_ns))

    def _since_ns(self, pipeline: MarketPipeline, now_ns: int) -> int:
        earliest_ns = now_ns - NS_PER_DAY
        for line in (channel.line for channel in pipeline.channels.values()):
            if line.spec.by_time:
                first = line.first_needed(line.spec.seq_at(now_ns), self._store.stream_seq(line.name))
                earliest_ns = min(earliest_ns, first * line.spec.interval_ns)
        return earliest_ns - FUNDING_BEFORE_NS

    # ---- lines

    def _begin(self, line: Line, now_ns: int) -> None:
        stream_seq = self._store.stream_seq(line.name)
        snapshots = self._store.snapshots(line.name, line.model_key)
        if not line.spec.by_time:
            yesterday = now_ns // NS_PER_DAY - 1
            journal = self._store.journal(line.name, yesterday * SEQ_PER_DAY)
            line.begin_events(stream_seq=stream_seq, first_day=yesterday, journal=journal, snapshots=snapshots)
            return
        newest_seq = line.spec.seq_at(now_ns)
        line.begin(
            newest_seq=newest_seq,
            stream_seq=stream_seq,
            journal=self._store.journal(line.name, line.first_needed(newest_seq, stream_seq)),
            snapshots=snapshots,
        )
