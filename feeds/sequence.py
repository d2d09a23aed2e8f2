"""Which trade comes next: duplicates, gaps and order by the exchange's trade ids, and whose time to believe.

Pure. One `TradeSequence` per market, one `ExchangeClock` per market.
"""

import heapq
from collections import OrderedDict
from enum import StrEnum
from itertools import count

from feeds.market import NS_PER_S, Trade
from feeds.traits import Identity, Traits


class Verdict(StrEnum):
    """What a trade is to the sequence."""

    __hash__ = str.__hash__  # an enum's own is slow, and every trade is counted under its verdict

    NEXT = "next"
    """It follows the newest trade directly, or is the first."""
    GAP = "gap"
    """Trades before it are missing."""
    DUPLICATE = "duplicate"
    """It has been seen; drop it."""
    PAST = "past"
    """Its id is new but its time lies before trades already taken; drop it."""


NEXT, GAP = Verdict.NEXT, Verdict.GAP
"""For the hot path: looking a member of an enum up takes as long as judging a trade."""


class TradeSequence:
    """Follow contiguous trade ids.

    A rejected trade (`DUPLICATE`, `PAST`) does not move the sequence. Nothing but what follows tells a trade with a
    false id or time from a real one: real trades may be rejected until the time it claims has passed, but the first
    one accepted after it is a `GAP`, so that whatever was rejected is fetched again.
    """

    PAST_TOLERANCE_NS = NS_PER_S
    """Executions inside one matching burst may carry times a few ms out of order; more than this is another matter."""

    def __init__(self) -> None:
        self.last_id: int | None = None
        self.last_time_ns = 0

    def take(self, trade: Trade) -> Verdict:
        """Judge `trade` and, unless it is rejected, make it the newest."""
        if trade.id - 1 == self.last_id and trade.event_time_ns >= self.last_time_ns:  # as nearly all are
            self.last_id, self.last_time_ns = trade.id, trade.event_time_ns
            return NEXT
        verdict = self.judge(trade)
        if verdict is Verdict.NEXT or verdict is Verdict.GAP:
            self.trust(trade)
        return verdict

    def trust(self, trade: Trade) -> None:
        """Make `trade` the newest, whatever was thought before."""
        self.last_id = trade.id
        self.last_time_ns = max(self.last_time_ns, trade.event_time_ns)

    def judge(self, trade: Trade) -> Verdict:
        """Say what `trade` is to the sequence, and leave it as it is."""
        if self.last_id is None:
            return Verdict.NEXT
        if trade.id <= self.last_id:
            # An id that runs backwards while time runs on means that the newest id was bogus, or that the exchange has
            # numbered afresh. Either way trades may be missing.
            return Verdict.GAP if trade.event_time_ns > self.last_time_ns else Verdict.DUPLICATE
        if trade.event_time_ns < self.last_time_ns - self.PAST_TOLERANCE_NS:
            return Verdict.PAST
        return Verdict.NEXT if trade.id == self.last_id + 1 else Verdict.GAP


class TradeIdentities:
    """Tell repetitions among trades that are not numbered. What is missing shows in nothing but a lost connection.

    A trade whose id is 0 has none and is never a repetition.
    """

    REMEMBERED = 5_000
    """Ids kept, half a MB a market; no exchange replays nearly as many."""

    def __init__(self, disorder_ns: int = 0) -> None:
        self._tolerance_ns = max(TradeSequence.PAST_TOLERANCE_NS, disorder_ns)
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._last_time_ns = 0

    def take(self, trade: Trade) -> Verdict:
        """Judge `trade`; unless it is rejected it counts as seen."""
        if trade.id in self._seen:
            return Verdict.DUPLICATE
        if trade.event_time_ns < self._last_time_ns - self._tolerance_ns:
            return Verdict.PAST
        self._last_time_ns = max(self._last_time_ns, trade.event_time_ns)
        if trade.id:
            self._seen[trade.id] = None
            if len(self._seen) > self.REMEMBERED:
                self._seen.popitem(last=False)
        return Verdict.NEXT


def sequence_of(traits: Traits) -> TradeSequence | TradeIdentities:
    """Make what judges the trades of an exchange."""
    return TradeSequence() if traits.identity is Identity.NUMBERED else TradeIdentities(traits.disorder_ns)


class Reorder:
    """Put trades that arrive out of order of time into it again, by holding each back for `disorder_ns`."""

    def __init__(self, disorder_ns: int) -> None:
        self._disorder_ns = disorder_ns
        self._held: list[tuple[int, int, Trade]] = []
        self._arrivals = count()

    def add(self, trade: Trade) -> list[Trade]:
        """Take a trade; return those that nothing can precede any more, in order of time, then of arrival."""
        if not self._disorder_ns:
            return [trade]
        heapq.heappush(self._held, (trade.event_time_ns, next(self._arrivals), trade))
        return self.until(trade.event_time_ns)

    def until(self, time_ns: int) -> list[Trade]:
        """Return the trades that nothing can precede once the exchange's events have reached `time_ns`."""
        due = []
        while self._held and self._held[0][0] <= time_ns - self._disorder_ns:
            due.append(heapq.heappop(self._held)[2])
        return due

    def clear(self) -> None:
        """Forget everything held: the connection is lost."""
        self._held.clear()


class ExchangeClock:
    """The exchange's time as its events tell it, for one market.

    A source alone may move the time by at most `JUMP_NS`; a larger jump counts once a second source agrees. So a single
    wrong timestamp closes no candle.
    """

    JUMP_NS = 60 * NS_PER_S

    def __init__(self) -> None:
        self.now_ns = 0
        self._claims: dict[str, int] = {}

    def set(self, time_ns: int) -> None:
        """Take the time of the exchange's own clock endpoint, forward only; it settles every dispute."""
        self.now_ns = max(self.now_ns, time_ns)
        self._claims.clear()

    @property
    def disputed(self) -> bool:
        """Whether a jump waits for a second source."""
        return bool(self._claims)

    def believes(self, source: str, time_ns: int) -> bool:
        """Tell whether an event of `source` at `time_ns` is plausible, and move the clock if so."""
        now_ns = self.now_ns
        if time_ns <= now_ns + self.JUMP_NS:
            if time_ns > now_ns:
                self.now_ns = time_ns
            if self._claims:
                self._claims.pop(source, None)  # it has taken its claim back
            return True
        self._claims[source] = time_ns
        if any(s != source and abs(claim - time_ns) <= self.JUMP_NS for s, claim in self._claims.items()):
            self._claims.clear()
            self.now_ns = time_ns
            return True
        return False
