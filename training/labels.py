"""What the model is asked to foretell: pure functions of candles, computed for several horizons at once.

The label of a candle looks only at later candles of the same contiguous run, so a label never spans a hole in the data;
`valid` is false where the horizon runs past the end of the run. What came of a candle is told by `inference.outcomes`,
as it is for the daily revision.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import outcomes


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
    """log(realised variance over the horizon / (horizon · sigma²)), floored at `outcomes.LOG_RATIO_FLOOR`."""
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

    """
    judged = outcomes.judge(high, low, close, sigma, horizons=horizons, width=width)
    log_close, rows = np.log(close), np.arange(len(close))[:, None]
    ahead = np.minimum(rows + np.asarray(horizons), len(close) - 1)
    log_return = (log_close[ahead] - log_close[:, None]).astype(np.float32)
    return Labels(horizons, *judged, log_return)
