"""When silence means that something is dead, and when only that nothing happens. Pure; monotonic seconds are arguments.

Three things are told apart:

- a dead connection: nothing at all comes for far longer than was usual on it;
- a dead stream of known pace (the mark price of a market) while others flow;
- a dead trade stream: the exchange's own kline of the market says again and again that it trades, and no trade comes.
  A market whose kline stands still too is quiet, however long.
"""

import math
from collections.abc import Collection

from feeds.market import Candle

FLOOR_S = 5.0
"""Silence shorter than this never means anything: networks and exchanges stall for a few seconds."""
USUAL_FACTOR = 8.0
"""How much longer than usual a silence must be."""
CONTRADICTIONS = 3
"""Klines that must tell of unseen trades before their stream counts as dead."""


class Pace:
    """The usual distance of a stream's messages: mean and deviation, smoothed as TCP does it (RFC 6298)."""

    __slots__ = ("_deviation_s", "_mean_s", "last_s")

    def __init__(self, now_s: float, usual_s: float) -> None:
        """Begin at `now_s`; `usual_s` is believed until more is known."""
        self.last_s = now_s
        self._mean_s, self._deviation_s = usual_s, 0.0

    def heard(self, now_s: float) -> None:
        """Note a message."""
        gap_s = now_s - self.last_s
        self._deviation_s += 0.25 * (abs(gap_s - self._mean_s) - self._deviation_s)
        self._mean_s += 0.125 * (gap_s - self._mean_s)
        self.last_s = now_s

    def overdue_at_s(self, limit_s: float) -> float:
        """Return when the silence since the last message becomes one that means something; `limit_s` at the latest."""
        usual_s = self._mean_s + 4.0 * self._deviation_s
        return self.last_s + min(limit_s, max(FLOOR_S, USUAL_FACTOR * usual_s))


class Watch:
    """What one live connection is heard to say."""

    def __init__(
        self, now_s: float, keys: Collection[str], *, silence_s: float, pace_s: float, kline_lag_s: float
    ) -> None:
        """Begin at `now_s` to wait for each of `keys` (markets).

        `silence_s` and `pace_s` bound what may be learnt; a kline's newest trade may be `kline_lag_s` older than it.
        """
        self._silence_s, self._pace_s, self._kline_lag_s = silence_s, pace_s, kline_lag_s
        self._any = Pace(now_s, silence_s / USUAL_FACTOR)
        self._marks = {key: Pace(now_s, pace_s / USUAL_FACTOR) for key in keys}
        self._traded_s: dict[str, float] = {}
        self._klines: dict[str, tuple[int, float]] = {}
        self._contradictions: dict[str, int] = {}

    def data(self, now_s: float) -> None:
        """Note that anything came."""
        self._any.heard(now_s)

    def mark(self, key: str, now_s: float) -> None:
        """Note a mark price."""
        pace = self._marks.get(key)
        if pace:
            pace.heard(now_s)
        else:
            self._marks[key] = Pace(now_s, self._pace_s / USUAL_FACTOR)

    def trade(self, key: str, now_s: float) -> None:
        """Note a trade."""
        self._traded_s[key] = now_s
        if self._contradictions:
            self._contradictions.pop(key, None)

    def kline(self, key: str, spec: str, candle: Candle, now_s: float) -> None:
        """Note the exchange's own kline, forming or closed."""
        name = f"{key} {spec}"
        before, figures = self._klines.get(name), (candle.seq, candle.volume)
        self._klines[name] = figures
        moved = before is not None and candle.volume > (before[1] if before[0] == candle.seq else 0.0)
        if moved and now_s - self._traded_s.setdefault(key, now_s) > self._kline_lag_s:
            self._contradictions[key] = self._contradictions.get(key, 0) + 1

    def overdue_at_s(self) -> float:
        """Return when to look at `dead` again if nothing happens before."""
        marks_s = min((pace.overdue_at_s(self._pace_s) for pace in self._marks.values()), default=math.inf)
        return min(self._any.overdue_at_s(self._silence_s), marks_s)

    def dead(self, now_s: float) -> str:
        """Say in words what is dead; empty while all is well."""
        if now_s >= self._any.overdue_at_s(self._silence_s):
            return f"no market data for {now_s - self._any.last_s:.0f} s"
        if mute := self.mute(now_s):
            return f"no mark price while others flow: {names(mute)}"
        if deaf := sorted(key for key, n in self._contradictions.items() if n >= CONTRADICTIONS):
            return f"no trades while klines tell of them: {names(deaf)}"
        return ""

    def mute(self, now_s: float) -> list[str]:
        """Name the keys whose mark price is overdue."""
        return sorted(key for key, pace in self._marks.items() if now_s >= pace.overdue_at_s(self._pace_s))


def names(keys: Collection[str]) -> str:
    """Join names for a log line, ten at most."""
    shown = list(keys)[:10]
    return ", ".join(shown) + (f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else "")
