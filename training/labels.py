"""What the model is asked to foretell: pure functions of candles, computed for several horizons at once.

The label of a candle looks only at later candles of the same contiguous run, so a label never spans a hole in the data;
`valid` is false where the horizon runs past the end of the run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

LOG_RATIO_FLOOR = -4.0
"""Lowest log variance ratio: an hour of empty minutes has none at all, and its logarithm would rule every mean."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of n candles over K horizons; every array is [n, K] and meaningless where `valid` is false."""

    horizons: tuple[int, ...]
    valid: NDArray[np.bool_]
    touched: NDArray[np.bool_]
    """Whether a barrier at close × exp(±width · sigma · √horizon) was touched."""
    up: NDArray[np.bool_]
    """Whether the upper one came first; meaningless where nothing was touched."""
    log_ratio: NDArray[np.float32]
    """log(realised variance over the horizon / (horizon · sigma²)), floored at `LOG_RATIO_FLOOR`."""
    log_return: NDArray[np.float32]
    """log(close after the horizon / close): its sign and its size are targets of the baselines and the costs."""

    def part(self, keep: Any) -> "Labels":
        """Return some rows."""
        arrays = (self.valid, self.touched, self.up, self.log_ratio, self.log_return)
        return Labels(self.horizons, *(a[keep] for a in arrays))

    def side(self) -> NDArray[np.int8]:
        """Return −1, 0 or 1 for the lower barrier, none, the upper one; [n, K]."""
        return np.where(self.touched, np.where(self.up, 1, -1), 0).astype(np.int8)


def label(
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    close: NDArray[np.float64],
    sigma: NDArray[np.float64],
    *,
    horizons: tuple[int, ...],
    width: float,
) -> Labels:
    """Label each candle of one contiguous run.

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
    log_close = np.log(close)
    cumulative = np.concatenate(
        ([0.0, 0.0], np.cumsum(np.diff(log_close) ** 2))
    )  # [i]: squared returns up to candle i-1
    n, rows = len(close), np.arange(len(close))[:, None]
    valid = rows + steps < n
    ahead = np.minimum(rows + steps, n - 1)
    realised = cumulative[ahead + 1] - cumulative[rows + 1]
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.maximum(realised, 0.0) / (steps * sigma[:, None] ** 2))
    return Labels(
        horizons=horizons,
        valid=valid,
        touched=touched,
        up=up,
        log_ratio=np.maximum(log_ratio, LOG_RATIO_FLOOR).astype(np.float32),
        log_return=(log_close[ahead] - log_close[:, None]).astype(np.float32),
    )


@njit(cache=True)
def _barriers(
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    close: NDArray[np.float64],
    sigma: NDArray[np.float64],
    steps: NDArray[np.int64],
    width: float,
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
