"""What funding a position opened at a candle's close would pay within the horizon, from settled rates only.

Pure. The exchange's *predicted* rate moves every second and is not in any history, so it never decides a durable
signal; the last settled rate, published before the candle closed, does.
"""

import bisect

_HOUR_NS = 3_600_000_000_000
_DEFAULT_INTERVAL_NS = 8 * _HOUR_NS


class FundingBook:
    """Settled funding of one market, oldest first."""

    KNOWN_AFTER_NS = 60_000_000_000
    """A settlement counts from this long after it took place, so that everyone has had the time to read it."""

    def __init__(self) -> None:
        self._times_ns: list[int] = []
        self._rates: list[float] = []
        self.asked_at_ns = 0
        """The exchange's time at which the book was last brought up to date."""

    @property
    def newest_ns(self) -> int:
        """Time of the newest settlement; 0 where there is none."""
        return self._times_ns[-1] if self._times_ns else 0

    def extend(self, settlements: list[tuple[int, float]], *, asked_at_ns: int) -> None:
        """Add settlements ``(time_ns, rate)``, oldest first; those already known are passed over.

        Exchanges settle on whole hours and stamp some ms beside them, not always the same ones.
        """
        for time_ns, rate in settlements:
            hour_ns = (time_ns + _HOUR_NS // 2) // _HOUR_NS * _HOUR_NS
            if hour_ns > self.newest_ns:
                self._times_ns.append(hour_ns)
                self._rates.append(rate)
        self.asked_at_ns = max(self.asked_at_ns, asked_at_ns)

    def reaches(self, close_ns: int) -> bool:
        """Tell whether the book goes back far enough to judge a candle that closed then.

        Two settlements before it say what is paid and how often. An empty book is that of a market that pays none.
        """
        return not self._times_ns or bisect.bisect_right(self._times_ns, close_ns - self.KNOWN_AFTER_NS) > 1

    def due_ns(self, close_ns: int) -> int:
        """Say from when on the book must have been asked to judge a candle that closes at `close_ns`."""
        known_ns = close_ns - self.KNOWN_AFTER_NS
        return known_ns - known_ns % _HOUR_NS + self.KNOWN_AFTER_NS

    def charge(self, close_ns: int, horizon_ns: int) -> float | None:
        """Return what a long pays from the close to the horizon, as a fraction of its value.

        0.0 where nothing is settled yet, or falls due. None: it may, and the book is older than `due_ns`; ask the
        exchange, then ask again. So the answer does not depend on when the book was asked: an interval may have changed
        since, but settlements stay on whole hours.
        """
        if (close_ns + horizon_ns) // _HOUR_NS == close_ns // _HOUR_NS:
            return 0.0
        if self.asked_at_ns < self.due_ns(close_ns):
            return None
        known = bisect.bisect_right(self._times_ns, close_ns - self.KNOWN_AFTER_NS)
        if known == 0:
            return 0.0
        last_ns = self._times_ns[known - 1]
        interval_ns = last_ns - self._times_ns[known - 2] if known > 1 else _DEFAULT_INTERVAL_NS
        payments = (close_ns + horizon_ns - last_ns) // interval_ns - (close_ns - last_ns) // interval_ns
        return payments * self._rates[known - 1] + 0.0
