"""Put forecasts right on candles the model was not fitted on: one line per head and horizon.

Probabilities are corrected on their logits, logit' = scale × logit + shift, by maximum likelihood; a direction that did
not help on validation gets scale 0, that is the prior. Log variances are corrected by least squares. Pure.
"""

import numpy as np
from numpy.typing import NDArray

from inference.lstm import Combined
from training.labels import Labels

Floats = NDArray[np.float64]
Line = tuple[float, float]
"""(scale, shift)."""
IDENTITY: Line = (1.0, 0.0)
SCALE_MAX = 2.0
"""A forecast is sharpened at most this much."""
ROWS_MIN = 200
"""Fewer rows than this teach nothing: the forecast stays as it is."""


def logit(p: Floats) -> Floats:
    """Return log(p / (1 − p)), finite at the ends."""
    clipped = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(clipped / (1 - clipped))


def logistic(x: Floats) -> Floats:
    """Return 1 / (1 + exp(−x))."""
    return 1.0 / (1.0 + np.exp(-np.clip(x, -40.0, 40.0)))


def fit_probability(p: Floats, outcome: NDArray[np.bool_], *, iterations: int = 50) -> Line:
    """Fit scale and shift of the logits by Newton's method (Platt scaling); the scale stays in [0, SCALE_MAX]."""
    if len(p) < ROWS_MIN or outcome.all() or not outcome.any():
        return IDENTITY
    x = logit(p)
    scale, shift = 1.0, 0.0
    for _ in range(iterations):
        q = logistic(scale * x + shift)
        error, spread = q - outcome, q * (1 - q)
        gradient = np.array([error @ x, error.sum()])
        a, b, d = spread @ (x * x), spread @ x, spread.sum()
        step = np.linalg.solve(np.array([[a, b], [b, d]]) + 1e-6 * len(x) * np.eye(2), gradient)
        scale, shift = scale - float(step[0]), shift - float(step[1])
        if np.abs(step).max() < 1e-10:
            break
    if 0.0 <= scale <= SCALE_MAX:
        return scale, shift
    scale = min(max(scale, 0.0), SCALE_MAX)
    return scale, _shift(scale * x, outcome)


def _shift(x: Floats, outcome: NDArray[np.bool_]) -> float:
    shift = 0.0
    for _ in range(50):
        q = logistic(x + shift)
        shift -= float((q - outcome).sum() / np.maximum((q * (1 - q)).sum(), 1e-9))
    return shift


def fit_line(forecast: Floats, target: Floats) -> Line:
    """Fit scale and shift by least squares; the scale stays in [0, SCALE_MAX]."""
    if len(forecast) < ROWS_MIN or forecast.std() < 1e-9:
        return IDENTITY
    scale = float(np.cov(forecast, target, bias=True)[0, 1] / forecast.var())
    scale = min(max(scale, 0.0), SCALE_MAX)
    return scale, float(target.mean() - scale * forecast.mean())


def fit(answers: Combined, labels: Labels, usable: NDArray[np.bool_]) -> list[tuple[Line, Line, Line]]:
    """Fit every head of every horizon on rows [n, K]; return [K][touch, direction, log variance]."""
    p_touch, p_up, log_ratio = answers
    lines = []
    for k in range(len(labels.horizons)):
        rows = usable[:, k]
        hit = rows & labels.touched[:, k]
        lines.append((
            fit_probability(p_touch[rows, k], labels.touched[rows, k]),
            fit_probability(p_up[hit, k], labels.up[hit, k]),
            fit_line(log_ratio[rows, k], labels.log_ratio[rows, k].astype(np.float64)),
        ))  # fmt: skip
    return lines
