"""What became of forecasts: candles folded as they are served, what was said at each, and what came of it. Pure.

Training's labels and the daily revision's are these same functions. Answers are the live step's own, to the bit,
however many folds are advanced side by side. Whoever has the candles has the same observations.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feeds.market import Candle
from inference import features, lstm
from inference.artifact import Artifact
from inference.kernels.jit import jit
from inference.lstm import F32, F64, Combined, Weights
from inference.recalibrate import Past

LOG_RATIO_FLOOR: Final = -4.0
"""Lowest log variance ratio: an hour of empty minutes has none at all, and its logarithm would rule every mean."""
_SIGMA: Final = features.INDICATORS.index("sigma")
_LANES: Final = 16  # folds advanced side by side: more are no faster, and a call must not hold the interpreter long


class Outcomes(NamedTuple):
    """What came of n candles over K horizons; every array is [n, K] and meaningless where `valid` is false."""

    valid: NDArray[np.bool_]
    """Whether the horizon ends within the candles."""
    touched: NDArray[np.bool_]
    """Whether a barrier at close × exp(±width · sigma · √horizon) was touched."""
    up: NDArray[np.bool_]
    """Whether the upper one came first; meaningless where nothing was touched."""
    log_ratio: F32
    """log(realised variance over the horizon / (horizon · sigma²)), floored at `LOG_RATIO_FLOOR`."""


def judge(high: F64, low: F64, close: F64, sigma: F64, *, horizons: tuple[int, ...], width: float) -> Outcomes:
    """Judge each candle of one contiguous run by those after it.

    Args:
        high: highest price of each candle, [n].
        low: lowest price, [n].
        close: last price, [n].
        sigma: trailing standard deviation of one-candle log returns, known at the candle's close, [n].
        horizons: how many candles ahead, each.
        width: distance of the barriers in units of sigma · √horizon.

    A candle that reaches both barriers does not say which came first: it counts as touched on the side of its close.
    (Triple barrier: López de Prado, Advances in Financial Machine Learning, 3.4.)

    """
    steps = np.asarray(horizons, dtype=np.int64)
    touched, up = _barriers(high, low, close, sigma, steps, width)
    squared = np.cumsum(np.diff(np.log(close)) ** 2)
    cumulative = np.concatenate(([0.0, 0.0], squared))  # [i]: squared returns up to candle i-1
    n, rows = len(close), np.arange(len(close))[:, None]
    realised = cumulative[np.minimum(rows + steps, n - 1) + 1] - cumulative[rows + 1]
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.maximum(realised, 0.0) / (steps * sigma[:, None] ** 2))
    return Outcomes(rows + steps < n, touched, up, np.maximum(log_ratio, LOG_RATIO_FLOOR).astype(np.float32))


@jit
def _barriers(
    high: F64, low: F64, close: F64, sigma: F64, steps: NDArray[np.int64], width: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    n, k = len(close), len(steps)
    touched = np.zeros((n, k), dtype=np.bool_)
    up = np.zeros((n, k), dtype=np.bool_)
    for i in range(n):
        for j in range(k):
            distance = width * sigma[i] * np.sqrt(steps[j])
            top, bottom = close[i] * np.exp(distance), close[i] * np.exp(-distance)
            for t in range(i + 1, min(i + steps[j], n - 1) + 1):
                above, below = high[t] >= top, low[t] <= bottom
                if above or below:
                    touched[i, j] = True
                    up[i, j] = close[t] > close[i] if above and below else above
                    break
    return touched, up


def answer(weights: Weights, x: F32, *, warmup: int) -> Combined:
    """Step through whole folds of raw features [N, W+E, F] from the zero state; return the answers, each [N, E, K]."""
    folds, length = x.shape[:2]
    shape = (folds, length - warmup, weights.outputs // len(lstm.HEADS))
    found = Combined(np.empty(shape), np.empty(shape), np.empty(shape))
    for first in range(0, folds, _LANES):
        lanes = x[first : first + _LANES]
        h, c, y = weights.zeros(len(lanes)), weights.zeros(len(lanes)), weights.answers(len(lanes))
        for t in range(length):
            lstm.step(weights, np.ascontiguousarray(lanes[:, t]), h, c, y)
            if t >= warmup:
                for column, values in zip(found, lstm.combine(y), strict=True):
                    column[first : first + _LANES, t - warmup] = values
    return found


class Columns(NamedTuple):
    """Closed candles of one market and spec, ascending; each [n]."""

    close_time_ns: NDArray[np.int64]
    open: F64
    high: F64
    low: F64
    close: F64
    volume: F64

    @classmethod
    def of(cls, candles: Sequence[Candle]) -> "Columns":
        """Take candles apart."""
        figures = [[getattr(candle, name) for candle in candles] for name in cls._fields]
        return cls(np.array(figures[0], np.int64), *(np.array(column, np.float64) for column in figures[1:]))

    def rows(self, keep: slice) -> "Columns":
        """Return some rows."""
        return Columns._make(column[keep] for column in self)


def past(artifact: Artifact, candles: Columns, interval_ns: int) -> list[Past]:
    """Forecast over each epoch with its whole warm-up, as it would have been served; say what came, per horizon.

    A forecast's outcome must lie within contiguous candles, and so must its fold: what follows the first hole of a fold
    counts for nothing until the next one.
    """
    manifest = artifact.manifest
    parts = list(_folds(candles, interval_ns, manifest.warmup, manifest.epoch, max(manifest.horizons)))
    pasts: list[list[Past]] = [[] for _ in manifest.horizons]
    x = np.zeros((len(parts), manifest.warmup + manifest.epoch, features.N_FEATURES), np.float32)
    judged = [_judged(artifact, part, count, interval_ns, x[n]) for n, (part, count) in enumerate(parts)]
    answers = answer(artifact.weights, x, warmup=manifest.warmup)
    for n, (closed, outcome) in enumerate(judged):
        for k, found in enumerate(pasts):
            keep = outcome.valid[: len(closed), k]
            touch, up, ratio = (column[n, : len(closed), k][keep] for column in answers)
            touched, came_up = (column[: len(closed), k][keep] for column in (outcome.touched, outcome.up))
            realised = outcome.log_ratio[: len(closed), k][keep].astype(np.float64)
            found.append(Past(closed[keep], touch, up, ratio, touched, came_up, realised))
    return [Past.pooled(found) for found in pasts]


def _folds(candles: Columns, interval_ns: int, warmup: int, epoch: int, beyond: int) -> Iterator[tuple[Columns, int]]:
    """Yield each fold's contiguous candles from its start, up to `beyond` past its end, and how many are its own."""
    seqs = candles.close_time_ns // interval_ns
    edges = [*(np.flatnonzero(np.diff(seqs) != 1) + 1).tolist(), len(seqs)]
    numbers = range((int(seqs[0]) + warmup + epoch - 1) // epoch, int(seqs[-1]) // epoch + 1) if len(seqs) else ()
    for number in numbers:
        start = number * epoch - warmup
        first = int(np.searchsorted(seqs, start))
        if seqs[first] != start:
            continue
        end = edges[int(np.searchsorted(edges, first, side="right"))]
        own = min(warmup + epoch, end - first)
        if own > warmup:
            yield candles.rows(slice(first, min(first + own + beyond, end))), own


def _judged(
    artifact: Artifact, part: Columns, own: int, interval_ns: int, x: F32
) -> tuple[NDArray[np.int64], Outcomes]:
    """Fold features of the first `own` candles into x; judge those after the warm-up, whose close times come first."""
    manifest, mine = artifact.manifest, part.rows(slice(0, own))
    indicators = np.empty((own, features.N_INDICATORS))
    features.update_many(features.new_state(), *mine[1:], mine.close_time_ns, interval_ns, x[:own], indicators)
    sigma, later = indicators[manifest.warmup :, _SIGMA], part.rows(slice(manifest.warmup, None))
    padded = np.concatenate((sigma, np.full(len(later.close) - len(sigma), sigma[-1])))
    outcome = judge(
        later.high, later.low, later.close, padded, horizons=manifest.horizons, width=manifest.barrier_width
    )
    return mine.close_time_ns[manifest.warmup :], outcome
