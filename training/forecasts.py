"""Forecasts of the artifact and the prior over epochs, as rows to be scored at each spec's signal horizon."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.artifact import Artifact, Calibration
from inference.lstm import Combined
from training import calibration
from training.dataset import Epochs, Series
from training.ensemble import forecast
from training.score import Forecast, Outcome
from training.splits import Role

Prior = dict[str, tuple[float, float]]
"""Per spec: share of rows with a touch, and of touched rows with the upper barrier, at the spec's signal horizon."""


class Rows(NamedTuple):
    """Rows to be scored: where they lie in the epochs, what happened, and whose they are."""

    at: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    """Epoch, candle within it, horizon."""
    outcome: Outcome
    run: NDArray[np.int32]
    """Index into the list of runs."""

    def part(self, keep: NDArray[np.bool_]) -> "Rows":
        """Return some rows."""
        epoch, candle, horizon = self.at
        return Rows((epoch[keep], candle[keep], horizon[keep]), self.outcome.part(keep), self.run[keep])


def rows_of(epochs: Epochs, runs: Sequence[Series], signal_horizon: Mapping[str, int], role: Role) -> Rows:
    """Collect the usable rows of a role, each at the signal horizon of its spec, in order of epochs and time."""
    horizons = epochs.labels.horizons
    k_of_run = np.array([horizons.index(signal_horizon[r.spec]) if r.spec in signal_horizon else -1 for r in runs])
    k = k_of_run[epochs.series][:, None]
    usable = epochs.usable(role)
    chosen = (k >= 0) & np.take_along_axis(usable, np.maximum(k, 0)[..., None], axis=2)[..., 0]
    n, t = np.nonzero(chosen)
    at = (n, t, k_of_run[epochs.series[n]])
    labels = epochs.labels
    outcome = Outcome(
        touched=labels.touched[at], up=labels.up[at], log_ratio=labels.log_ratio[at].astype(np.float64),
        sigma=epochs.sigma[n, t], horizon=np.array(horizons)[at[2]], close_time_ns=epochs.close_time_ns[n, t],
    )  # fmt: skip
    return Rows(at, outcome, epochs.series[n])


def prior_of(rows: Rows, runs: Sequence[Series]) -> Prior:
    """Measure the prior of each spec."""
    specs = np.array([run.spec for run in runs])[rows.run]
    shares = {}
    for spec in np.unique(specs):
        mine = rows.outcome.part(specs == spec)
        up = float(mine.up[mine.touched].mean()) if mine.touched.any() else 0.5
        shares[str(spec)] = (float(mine.touched.mean()), up)
    return shares


def prior_forecast(prior: Prior, rows: Rows, runs: Sequence[Series]) -> Forecast:
    """Forecast the shares of the past, whatever the candles."""
    shares = np.array([prior.get(run.spec, (0.5, 0.5)) for run in runs])[rows.run]
    return Forecast(p_touch=shares[:, 0], p_up=shares[:, 1], log_ratio=None)


def lstm_forecast(artifact: Artifact, epochs: Epochs, rows: Rows) -> Forecast:
    """Forecast what the daemon would have published: the ensemble, averaged and calibrated."""
    answers = forecast(artifact.weights, epochs.x, warmup=epochs.warmup)
    return calibrated(answers, artifact.manifest.calibration).at(rows)


class Calibrated(NamedTuple):
    """Calibrated answers over epochs, each [N, E, K]."""

    p_touch: NDArray[np.float64]
    p_up: NDArray[np.float64]
    log_ratio: NDArray[np.float64]

    def at(self, rows: Rows) -> Forecast:
        """Pick the rows."""
        return Forecast(self.p_touch[rows.at], self.p_up[rows.at], self.log_ratio[rows.at])


def calibrated(answers: Combined, lines: Sequence[Calibration]) -> Calibrated:
    """Apply a calibration as the live decision does; none leaves the answers as they are."""
    if not lines:
        return Calibrated(*answers)
    touch = np.array([(line.touch.a, line.touch.b) for line in lines])
    direction = np.array([(line.direction.a, line.direction.b) for line in lines])
    variance = np.array([(line.log_variance.a, line.log_variance.b) for line in lines])
    return Calibrated(
        calibration.logistic(touch[:, 0] * calibration.logit(answers.p_touch) + touch[:, 1]),
        calibration.logistic(direction[:, 0] * calibration.logit(answers.p_up) + direction[:, 1]),
        variance[:, 0] * answers.log_variance_ratio + variance[:, 1],
    )
