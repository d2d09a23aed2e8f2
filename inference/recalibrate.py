"""A dated revision of an artifact's calibration, fitted on what became of its forecasts in the days before.

Pure: the same labels give the same revision, wherever it is computed. Only labels that had matured by the day's
midnight count, so the revision in force on a day knows nothing of it. Each line is fitted as a correction of the
artifact's own, by maximum a posteriori: a normal prior of deviation `DEVIATION` holds it there, and what weighs against
the prior is not rows but observations, that is distinct stretches of time one horizon long. Labels that overlap, and
markets that move together, repeat each other. With little history the artifact's own calibration stays in force.

Touch gets scale and shift, log variance a shift, direction a scale only: a shift of the direction would run after the
drift of the last days, and on validation it made the loss worse almost everywhere.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feeds.market import NS_PER_DAY
from inference.artifact import Affine, Calibration, Manifest
from inference.lstm import F64

DAYS: Final = 7
"""K: days looked back over, and so the start-up cost; this and the next were chosen on the validation spans."""
DEVIATION: Final = 0.4
"""Of the prior of scale − 1 and of shift: how far a season may reasonably lie from the artifact's own calibration."""
_ITERATIONS: Final = 60
_STEP_MAX: Final = 0.25  # far from its minimum Newton's method may overshoot
_DIGITS: Final = 6  # other CPU families may sum differently in the last bits; the revision must not show it

Mask = NDArray[np.bool_]


class Past(NamedTuple):
    """Forecasts of one candle spec over one horizon, pooled over markets, with what came of them; each [n]."""

    close_time_ns: NDArray[np.int64]
    p_touch: F64
    """As the members' average said, before any calibration; so are the next two."""
    p_up: F64
    log_variance_ratio: F64
    touched: Mask
    up: Mask
    """Meaningless where nothing was touched."""
    realised: F64
    """The log variance ratio that came."""

    def before(self, day_ns: int, *, horizon_ns: int, days: int = DAYS) -> "Past":
        """Keep what closed within the `days` before midnight `day_ns` and had matured by then."""
        closed = self.close_time_ns
        return self.rows((closed >= day_ns - days * NS_PER_DAY) & (closed + horizon_ns <= day_ns))

    def rows(self, keep: Mask | NDArray[np.int64]) -> "Past":
        """Return some rows, or all in another order."""
        return Past._make(column[keep] for column in self)

    @classmethod
    def pooled(cls, parts: Sequence["Past"]) -> "Past":
        """Join the rows of several; none are no rows."""
        if not parts:
            nothing, never = np.empty(0), np.empty(0, np.bool_)
            return cls(np.empty(0, np.int64), nothing, nothing, nothing, never, never, nothing)
        return cls._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


def observations(close_time_ns: NDArray[np.int64], horizon_ns: int) -> int:
    """Count the stretches of one horizon in which forecasts were made, whatever their number and markets."""
    return len(np.unique(close_time_ns // horizon_ns))


def revise(own: Calibration, past: Past, *, horizon_ns: int, deviation: float = DEVIATION) -> Calibration:
    """Revise one horizon's calibration by what `Past.before` left; nothing left returns `own`.

    The order of rows does not show in the last bit either: they are put in one order before anything is summed.
    """
    past = past.rows(np.lexsort(past[::-1]))
    hit = past.touched
    n, n_hit = (observations(past.close_time_ns[rows], horizon_ns) for rows in (slice(None), hit))
    return Calibration(
        touch=_probability(own.touch, past.p_touch, past.touched, n, deviation),
        direction=_probability(own.direction, past.p_up[hit], past.up[hit], n_hit, deviation, shifted=False),
        log_variance=_offset(own.log_variance, past.log_variance_ratio, past.realised, n, deviation),
    )


def revise_all(
    manifest: Manifest, pasts: Sequence[Past], day_ns: int, interval_ns: int
) -> tuple[tuple[Calibration, ...], tuple[int, ...]]:
    """Revise each horizon's calibration for the UTC day from `day_ns`; return it with the observations it rests on.

    `pasts`: per horizon, of candles of one spec `interval_ns` apart. What had not matured by then is left out here.
    """
    lines, counts = [], []
    for own, horizon, past in zip(own_lines(manifest), manifest.horizons, pasts, strict=True):
        horizon_ns = horizon * interval_ns
        before = past.before(day_ns, horizon_ns=horizon_ns)
        lines.append(revise(own, before, horizon_ns=horizon_ns))
        counts.append(observations(before.close_time_ns, horizon_ns))
    return tuple(lines), tuple(counts)


def own_lines(manifest: Manifest) -> tuple[Calibration, ...]:
    """Return the artifact's own calibration, per horizon."""
    return manifest.calibration or (Calibration(),) * len(manifest.horizons)


def _probability(own: Affine, p: F64, outcome: Mask, n: int, deviation: float, *, shifted: bool = True) -> Affine:
    """Correct the artifact's own logit z to scale · z + shift, by Newton's method on the posterior."""
    if not n:
        return own
    clipped = np.clip(p, 1e-9, 1.0 - 1e-9)
    z = own.a * np.log(clipped / (1.0 - clipped)) + own.b
    prior, weight = 1.0 / deviation**2, n / len(z)
    scale, shift = 1.0, 0.0
    for _ in range(_ITERATIONS):
        q = 1.0 / (1.0 + np.exp(-np.clip(scale * z + shift, -40.0, 40.0)))
        error, spread = weight * (q - outcome), weight * q * (1.0 - q)
        g, h = float((error * z).sum()) + prior * (scale - 1.0), float(error.sum()) + prior * shift
        a, b, d = float((spread * z * z).sum()) + prior, float((spread * z).sum()), float(spread.sum()) + prior
        determinant = a * d - b * b
        step = ((d * g - b * h) / determinant, (a * h - b * g) / determinant) if shifted else (g / a, 0.0)
        step = (min(max(step[0], -_STEP_MAX), _STEP_MAX), min(max(step[1], -_STEP_MAX), _STEP_MAX))
        scale, shift = scale - step[0], shift - step[1]
        if max(map(abs, step)) < 1e-9:
            break
    scale = max(scale, 0.0)
    return Affine(a=round(scale * own.a, _DIGITS), b=round(scale * own.b + shift, _DIGITS))


def _offset(own: Affine, forecast: F64, realised: F64, n: int, deviation: float) -> Affine:
    """Shift the log variance by its mean error, shrunk by how well that is known."""
    if not n:
        return own
    error = realised - (own.a * forecast + own.b)
    known = n / (n + float(error.var()) / deviation**2)
    return Affine(a=own.a, b=round(own.b + known * float(error.mean()), _DIGITS))
