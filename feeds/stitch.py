"""Hand trades over without a break: fetch what was missed, then go on with what came meanwhile.

For candles that the exchange has no klines of (sub-minute and event candles), a missed trade can only be repaired by
that trade. While a gap is open, live trades wait in a bounded buffer; the caller asks the exchange for pages from
`wants`.

Pure. One `Stitch` per market.
"""

from collections import deque

import msgspec

from feeds.market import Trade
from feeds.sequence import TradeSequence, Verdict

BUFFER_MAX = 200_000
"""Live trades that wait while a gap is filled; past it they are let go and fetched like the rest."""


class Wants(msgspec.Struct, frozen=True):
    """The next page to fetch: from an id, or from a time where no id is known yet."""

    from_id: int | None
    start_ns: int | None


class Stitch:
    """One market's trades in unbroken order."""

    def __init__(self, start_ns: int) -> None:
        """Begin with the first trade at or after `start_ns`."""
        self._beginning = Wants(None, start_ns)
        self.wants: Wants | None = self._beginning
        self._sequence = TradeSequence()
        self._buffer: deque[Trade] = deque()

    def trade(self, trade: Trade) -> list[Trade]:
        """Take a live trade; return the trades that are next in order."""
        if self.wants is not None:
            self._wait(trade)
            return []
        verdict = self._sequence.judge(trade)
        if verdict is Verdict.GAP or self._sequence.last_id is None:  # only history tells whether a trade is the first
            self._reopen()
            self._buffer.appendleft(trade)
        elif verdict is Verdict.NEXT:
            self._sequence.trust(trade)
            return [trade]
        return []

    def doubt(self) -> None:
        """Declare the connection lost: what follows the newest trade is to be fetched."""
        self._buffer.clear()
        self._reopen()

    def fill(self, page: list[Trade], *, at_end: bool) -> list[Trade]:
        """Take a fetched page; return the trades that are next in order, live ones included once they join.

        The exchange's history counts as it is: only its ids are looked at. `at_end`: the exchange had nothing newer,
        and live trades are being received.
        """
        out = []
        for trade in page:
            if self._sequence.last_id is None or trade.id > self._sequence.last_id:
                self._sequence.trust(trade)
                out.append(trade)
        self._reopen()
        last_id = self._sequence.last_id
        joined = last_id is not None and self._buffer[0].id <= last_id + 1 if self._buffer else at_end
        if joined:
            self.wants = None
        while self._buffer and self.wants is None:
            out += self.trade(self._buffer.popleft())
        return out

    def _wait(self, trade: Trade) -> None:
        # Live trades come in order. Where one does not, those before it are not to be believed, and would never join.
        if len(self._buffer) >= BUFFER_MAX or (self._buffer and trade.id <= self._buffer[-1].id):
            self._buffer.clear()
        self._buffer.append(trade)

    def _reopen(self) -> None:
        last_id = self._sequence.last_id
        self.wants = self._beginning if last_id is None else Wants(last_id + 1, None)
