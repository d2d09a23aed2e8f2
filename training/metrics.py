"""Scores of probabilities and of variance forecasts, and how sure one may be of them. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EPS = 1e-7
BLOCKS_MIN = 5
"""Fewer blocks than this bound nothing."""


def log_loss(p: Floats, outcome: NDArray[np.bool_]) -> Floats:
    """Return −log of the probability given to what happened, per row, in nats."""
    given: Floats = np.clip(np.where(outcome, p, 1.0 - p), EPS, 1.0)
    return -np.log(given)


def barrier_log_loss(p_touch: Floats, p_up: Floats, touched: NDArray[np.bool_], up: NDArray[np.bool_]) -> Floats:
    """Return the three-class log loss per row from its two factors: touch, and direction given a touch."""
    return log_loss(p_touch, touched) + np.where(touched, log_loss(p_up, up), 0.0)


def barrier_brier(p_touch: Floats, p_up: Floats, touched: NDArray[np.bool_], up: NDArray[np.bool_]) -> float:
    """Return the three-class Brier score (sum over classes, mean over rows; 0 best, 2 worst)."""
    long, short = p_touch * p_up, p_touch * (1 - p_up)
    return float(np.mean((long - (touched & up)) ** 2 + (short - (touched & ~up)) ** 2 + (1 - p_touch - ~touched) ** 2))


def skill_pct(loss: Floats, reference: Floats) -> float:
    """Return by how many per cent the mean loss lies below the reference's."""
    return float(100.0 * (1.0 - loss.mean() / reference.mean()))


def auc(score: Floats, outcome: NDArray[np.bool_]) -> float:
    """Return the chance that a random positive outranks a random negative (ties half); NaN without both."""
    positives = int(outcome.sum())
    negatives = len(outcome) - positives
    if not positives or not negatives:
        return float("nan")
    values, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse] if len(values) else np.zeros(0)
    return float((rank[outcome].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True, slots=True)
class Bin:
    """One point of a reliability diagram."""

    count: int
    predicted: float
    observed: float


def reliability(p: Floats, outcome: NDArray[np.bool_], *, bins: int = 15) -> list[Bin]:
    """Group rows into bins of equal count by predicted probability."""
    order = np.argsort(p, kind="stable")
    groups = [g for g in np.array_split(order, bins) if len(g)]
    return [Bin(len(g), float(p[g].mean()), float(outcome[g].mean())) for g in groups]


def ece(p: Floats, outcome: NDArray[np.bool_], *, bins: int = 15) -> float:
    """Return the expected calibration error: mean |predicted − observed| over equal-count bins."""
    points = reliability(p, outcome, bins=bins)
    return sum(b.count * abs(b.predicted - b.observed) for b in points) / max(1, len(p))


def qlike(log_forecast: Floats, log_realised: Floats) -> float:
    """Return mean(r − log r − 1), r = realised / forecast variance (Patton 2011, robust to noisy realisations)."""
    d = log_realised - log_forecast
    return float(np.mean(np.exp(d) - d - 1.0))


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the bounds of its 95 % bootstrap interval; NaN where there are too few blocks to tell."""

    value: float
    lo: float
    hi: float


def block_bootstrap(
    blocks: NDArray[np.int64], sums: Floats, statistic: Callable[[Floats], Floats], *, draws: int = 1000, seed: int = 0
) -> Interval:
    """Bound a statistic of sums by drawing whole blocks with replacement.

    Args:
        blocks: the block of each row (its UTC day: rows of one day, of every market, stand or fall together), [n].
        sums: what is summed over the drawn rows, [n, m].
        statistic: turns summed rows [draws, m] into the figure [draws].
        draws: number of resamples.
        seed: of the generator; the same seed gives the same interval.

    """
    _, index = np.unique(blocks, return_inverse=True)
    per_block = np.zeros((int(index.max()) + 1, sums.shape[1]))
    np.add.at(per_block, index, sums)
    value = float(statistic(per_block.sum(axis=0, keepdims=True))[0])
    if len(per_block) < BLOCKS_MIN:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(per_block), np.full(len(per_block), 1.0 / len(per_block)), size=draws)
    drawn = statistic(weights.astype(np.float64) @ per_block)
    lo, hi = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, float(lo), float(hi))


def skill_interval(blocks: NDArray[np.int64], loss: Floats, reference: Floats, *, seed: int = 0) -> Interval:
    """Return the skill in per cent against the reference with its interval over blocks."""
    return block_bootstrap(
        blocks, np.column_stack((loss, reference)), lambda s: 100.0 * (1.0 - s[:, 0] / s[:, 1]), seed=seed
    )
