"""Look for the future in the features, in two independent ways; and plant a leak to show that both ways would find one.

1. Truncation: a feature of candle t must be the same whether later candles exist or not.
2. Shift: a model fitted to labels of other days must have no skill, and too much skill betrays the future.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training import labels
from training.dataset import SIGMA, CandlesError, Series, fold_features, read_series

Features = NDArray[np.float32]
Compute = Callable[[Series], tuple[Features, NDArray[np.float64]]]
CANDLES = 6_000
CUTS = 40
HORIZON = 15
SHIFT = 1_440
"""Candles by which labels are moved: a day of minutes, so that the season stays and the moment goes."""
SUSPICIOUS_PCT = 20.0
"""Direction log-loss skill on unseen candles that no honest model of these markets comes near."""


class Leaks(NamedTuple):
    """What the two looks found."""

    truncation_differs: int
    """Of `CUTS` candles, how many had other features when the future was cut off."""
    skill_pct: float
    """Direction skill of a linear model on later candles."""
    shifted_skill_pct: float
    """The same with labels of another day."""

    @property
    def found(self) -> bool:
        """Whether the features know the future."""
        return self.truncation_differs > 0 or self.skill_pct > SUSPICIOUS_PCT or self.shifted_skill_pct > 1.0


class Survey(NamedTuple):
    """Both looks at one file, with its own features and with a leak planted in them."""

    name: str
    real: Leaks
    planted: Leaks

    @property
    def sound(self) -> bool:
        """Whether the features are clean and the looks would have found a leak."""
        return self.planted.found and not self.real.found


def survey(candles: Sequence[Path]) -> Iterator[Survey]:
    """Look for leaks in the longest run of each file.

    Raises:
        CandlesError: a file cannot be used, or is too short.

    """
    for path in candles:
        run = max(read_series(path), key=len)
        yield Survey(path.name, check(run), check(run, planted))


def check(run: Series, compute: Compute = fold_features, *, seed: int = 0) -> Leaks:
    """Look for leaks in what `compute` makes of a run of at least `CANDLES` candles.

    Raises:
        CandlesError: the run is too short.

    """
    if len(run) < CANDLES:
        raise CandlesError(f"{run.name}: {CANDLES} candles in a row are needed to look for leaks; there are {len(run)}")
    run = run.rows(slice(0, CANDLES))
    x, raw = compute(run)
    made = labels.label(run.high, run.low, run.close, raw[:, SIGMA], horizons=(HORIZON,), width=1.0)
    rising = made.log_return[:, 0] > 0
    usable = np.flatnonzero(made.valid[:, 0])[256:]
    return Leaks(
        truncation_differs=_truncation(run, x, compute, seed),
        skill_pct=_skill(x[usable], rising[usable]),
        shifted_skill_pct=_skill(x[usable][:-SHIFT], rising[usable][SHIFT:]),
    )


def planted(run: Series) -> tuple[Features, NDArray[np.float64]]:
    """Compute the features with a leak: the first one becomes the return over the horizon to come."""
    x, raw = fold_features(run)
    ahead = np.minimum(np.arange(len(run)) + HORIZON, len(run) - 1)
    x[:, 0] = np.log(run.close[ahead] / run.close) / raw[:, SIGMA]
    return x, raw


def _truncation(run: Series, x: Features, compute: Compute, seed: int) -> int:
    cuts = np.random.default_rng(seed).integers(300, len(run) - HORIZON, CUTS)
    return sum(not np.array_equal(compute(run.rows(slice(0, cut)))[0][-1], x[cut - 1]) for cut in cuts)


def _skill(x: Features, outcome: NDArray[np.bool_]) -> float:
    """Fit a ridge regression on the first part, score its probability on the last third with an embargo between."""
    edge = 2 * len(x) // 3
    train, test = slice(0, edge - HORIZON), slice(edge, None)
    mean, std = x[train].mean(axis=0), np.maximum(x[train].std(axis=0), 1e-6)
    z = np.clip((x - mean) / std, -5, 5)
    base = outcome[train].mean()
    gram = z[train].T @ z[train] + len(z) * np.eye(z.shape[1])
    weights = np.linalg.solve(gram, z[train].T @ (outcome[train] - base))
    p = np.clip(base + z[test] @ weights, 0.02, 0.98)
    truth = outcome[test]
    loss = -np.log(np.where(truth, p, 1 - p)).mean()
    reference = -np.log(np.where(truth, base, 1 - base)).mean()
    return float(100 * (1 - loss / reference))
