"""Which calibration is in force on which UTC day. Pure.

A candle is decided under the revision of the day in which it closes, and one that closes at midnight belongs to the day
that begins there. A fold reaches over days, so it needs the revision of each that it touches; it waits for what is not
known yet, and so does not depend on when that became known.
"""

import datetime as dt
import hashlib
from typing import Final

import msgspec

from feeds.market import NS_PER_DAY
from inference.artifact import Calibration

Lines = tuple[Calibration, ...]
"""Per horizon, in the manifest's order."""
_EPOCH: Final = dt.date(1970, 1, 1)


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """A calibration in force for one UTC day, and what it rests on, as `lstmd calibrate` writes it."""

    model: str
    day: dt.date
    days: int
    """Days looked back over."""
    days_found: int
    """Of them, days with forecasts that had matured; fewer leave it nearer to the artifact's own calibration."""
    series: tuple[str, ...]
    """Names of the candles it is pooled over."""
    observations: dict[str, tuple[int, ...]]
    """Effective observations per spec and horizon."""
    calibration: dict[str, Lines]
    """Per spec and horizon, in the manifest's order."""


class RevisionBook:
    """The revisions of one candle spec by day; a day's, once known, never changes."""

    def __init__(self, source: str) -> None:
        """Begin without any; `source` names what they are computed from, and so tells two books apart."""
        self.source = source
        self._days: dict[int, Lines] = {}

    def add(self, day: int, lines: Lines) -> None:
        """Put a day's revision in force."""
        assert day not in self._days, "a revision is dated and never changes"
        self._days[day] = lines

    def at(self, time_ns: int) -> Lines | None:
        """Return what is in force for a candle that closes at `time_ns`; None while it is not known."""
        return self._days.get(time_ns // NS_PER_DAY)

    def lacking(self, first: int, last: int) -> list[int]:
        """Return the days that are not known yet."""
        return [day for day in range(first, last + 1) if day not in self._days]


def source_of(model: str, exchange: str, spec: str, markets: tuple[str, ...]) -> str:
    """Name what revisions are computed from: model, and candles of a spec of some markets in any order."""
    return _digest((model, exchange, spec, sorted(markets)))


def policy_under(policy: str, lines: Lines) -> str:
    """Hash what decides a payload on a day: a market's policy, and the day's revision."""
    return _digest((policy, lines))


def day_of(date: dt.date) -> int:
    """Return the number of a UTC day, as `RevisionBook` counts them."""
    return (date - _EPOCH).days


def date_of(day: int) -> dt.date:
    """Return the date of a numbered UTC day."""
    return _EPOCH + dt.timedelta(days=day)


def _digest(parts: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(parts, order="deterministic"), digest_size=8).hexdigest()
