"""Compare candles of our own making with the exchange's, where no stream has confirmed them."""

from collections.abc import Callable
from typing import NamedTuple

from daemon import clock
from daemon.line import VOID_SPACING_NS
from daemon.pipeline import Channel, MarketPipeline
from daemon.source import Source
from feeds.budget import Priority
from feeds.history import PAGE_ROWS
from inference.engine import Phase

STARTED_ROWS = 60
"""So many of the newest candles are compared at a start where a stream confirms them: it is not known which it did."""
LACKING_PAUSE_S = 0.5
"""How long to wait where the exchange's answer ends before the newest candle of ours."""


class _Lacking(NamedTuple):
    """An answer that ended too early."""

    since_ns: int
    """The exchange's time of the first."""
    until_s: float


class Auditor:
    """Sees to it that each candle of our own making is compared once."""

    def __init__(self, source: Source, *, moved: Callable[[], None]) -> None:
        """Set up; `moved` is called when there may be work to commit."""
        self._source, self._moved = source, moved
        self._audited: dict[str, int] = {}
        """By line, up to which ordinal all is compared."""
        self._lacking: dict[str, _Lacking] = {}

    def due(self, market: MarketPipeline, channel: Channel) -> tuple[int, int] | None:
        """Return the ordinals, first and last, of which the exchange's rows can be asked for by now.

        Where its stream says "closed", that is waited for first.
        """
        line, patience_ns = channel.line, market.traits.kline_patience_ns
        if not line.next_seq or line.engine.phase is not Phase.READY:
            return None
        if line.name not in self._audited:
            first = line.first_own()
            self._audited[line.name] = (max(first, line.next_seq - STARTED_ROWS) if patience_ns else first) - 1
        lacking = self._lacking.get(line.name)
        if lacking and clock.monotonic_s() < lacking.until_s:
            return None
        final = line.spec.seq_at(market.clock.now_ns - max(self._source.history.settle_ns, patience_ns))
        first, last = self._audited[line.name] + 1, min(line.next_seq - 1, final)
        while first <= last and (first in channel.confirmed or not line.is_own(first)):
            first += 1
        self._audited[line.name] = first - 1
        return (max(first, last - PAGE_ROWS + 1), last) if first <= last else None

    async def audit(self, market: MarketPipeline, channel: Channel) -> None:
        """Fetch what is due and compare it.

        Raises:
            RequestRefused: the exchange finds the request itself wrong.

        """
        span = self.due(market, channel)
        if span is None:
            return
        spec, asked_ns = channel.line.spec, market.clock.now_ns
        official = await self._source.insist(
            lambda: self._source.history.candles(
                market.market, spec, start_ns=(span[0] - 1) * spec.interval_ns, end_ns=span[1] * spec.interval_ns
            ),
            Priority.AUDIT,
        )
        for candle in official:
            market.audit(channel, candle)
        self._note(channel.line.name, span, max((c.seq for c in official), default=span[0] - 1), asked_ns)
        self._moved()

    def _note(self, name: str, span: tuple[int, int], newest: int, asked_ns: int) -> None:
        """Go on behind the newest row; where the last ones do not come for long, the exchange has none."""
        since_ns = self._lacking.pop(name, _Lacking(asked_ns, 0.0)).since_ns
        if newest < span[1] and asked_ns - since_ns < VOID_SPACING_NS:
            self._lacking[name] = _Lacking(since_ns, clock.monotonic_s() + LACKING_PAUSE_S)
            self._audited[name] = newest
        else:
            self._audited[name] = span[1]
