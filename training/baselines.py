"""What the LSTM has to beat: EWMA and HAR with a season for variance, logistic regression and boosting for barriers.

All are fitted on training rows only. EWMA and HAR are linear, a few numbers a spec, so an artifact carries its own; the
others need the optional packages of the extra ``evaluate`` and candles to be fitted on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from training import calibration
from training.dataset import Epochs, Series
from training.forecasts import Rows
from training.score import Forecast

Floats = NDArray[np.float64]
HAR_SPANS = (1, 5, 15, 60, 240, 1440)
"""Candles looked back over, as in Corsi's heterogeneous autoregression (2009) with spans for minutes."""
SEASON_BINS = 48
"""Half hours of the UTC day."""
EWMA_DECAYS = (0.9, 0.94, 0.97, 0.985, 0.993)
VARIANCE_FLOOR = 1e-10
"""Of a mean squared one-candle return: the square of sigma's own floor."""
ROWS_MAX = 400_000
"""Fitting rows of the slow baselines are thinned to this many."""
MODELS_NEED = "lightgbm and scikit-learn are not installed; install the extra: pip install 'lstmd[evaluate]'"


class Linear(msgspec.Struct, frozen=True):
    """Fitted EWMA and HAR of one spec at its signal horizon."""

    har: tuple[float, ...]
    """Coefficients of the log mean squares over HAR_SPANS, then one level a SEASON_BINS bin."""
    ewma_decay: float
    ewma: tuple[float, float]
    """Shift and scale of the log."""


class Trailing(NamedTuple):
    """What EWMA and HAR see of each row."""

    har: Floats
    """[n, len(HAR_SPANS)] log mean squared returns."""
    season: NDArray[np.int64]
    ewma: Floats
    """[n, len(EWMA_DECAYS)] log averaged squared returns."""


def trailing(rows: Rows, epochs: Epochs, runs: Sequence[Series]) -> Trailing:
    """Look back from each row over its whole run; the baselines are not bound to the epochs."""
    n = len(rows.outcome)
    har, ewma = np.empty((n, len(HAR_SPANS))), np.empty((n, len(EWMA_DECAYS)))
    at = epochs.row[rows.at[0], rows.at[1]]
    for index in np.unique(rows.run):
        mine = rows.run == index
        squares = np.diff(np.log(runs[index].close), prepend=np.log(runs[index].close[0])) ** 2
        total = np.concatenate(([0.0], np.cumsum(squares)))
        last = at[mine] + 1
        for j, span in enumerate(HAR_SPANS):
            first = np.maximum(last - span, 0)
            har[mine, j] = (total[last] - total[first]) / (last - first)
        for j, decay in enumerate(EWMA_DECAYS):
            ewma[mine, j] = _ewma(squares, decay)[at[mine]]
    closed = rows.outcome.close_time_ns // 10**9
    season = (closed % 86_400) * SEASON_BINS // 86_400
    return Trailing(np.log(np.maximum(har, VARIANCE_FLOOR)), season, np.log(np.maximum(ewma, VARIANCE_FLOOR)))


@njit(cache=True)
def _ewma(squares: Floats, decay: float) -> Floats:
    out = np.empty(len(squares))
    mean = squares[: min(len(squares), 60)].mean()
    for i in range(len(squares)):
        mean = decay * mean + (1.0 - decay) * squares[i]
        out[i] = mean
    return out


def fit_linear(rows: Rows, epochs: Epochs, runs: Sequence[Series]) -> dict[str, Linear]:
    """Fit EWMA and HAR of each spec by least squares on the log variance per candle."""
    seen = trailing(rows, epochs, runs)
    specs = np.array([run.spec for run in runs])[rows.run]
    target = rows.outcome.log_ratio + 2.0 * np.log(rows.outcome.sigma)
    fitted = {}
    for spec in np.unique(specs):
        mine = specs == spec
        design = np.column_stack((seen.har[mine], np.eye(SEASON_BINS)[seen.season[mine]]))
        gram = design.T @ design + 1e-6 * len(design) * np.eye(design.shape[1])
        har = np.linalg.solve(gram, design.T @ target[mine])
        fits = [_line(seen.ewma[mine, j], target[mine]) for j in range(len(EWMA_DECAYS))]
        best = min(range(len(fits)), key=lambda j: fits[j][0])
        fitted[str(spec)] = Linear(tuple(har.tolist()), EWMA_DECAYS[best], fits[best][1])
    return fitted


def _line(x: Floats, y: Floats) -> tuple[float, tuple[float, float]]:
    scale = float(np.cov(x, y, bias=True)[0, 1] / max(x.var(), 1e-12))
    shift = float(y.mean() - scale * x.mean())
    return float(np.mean((y - shift - scale * x) ** 2)), (shift, scale)


def linear_forecasts(
    fitted: dict[str, Linear], rows: Rows, epochs: Epochs, runs: Sequence[Series]
) -> dict[str, Forecast]:
    """Forecast the log variance ratio by EWMA and by HAR; a spec without a fit gets the plain averages."""
    seen = trailing(rows, epochs, runs)
    specs = np.array([run.spec for run in runs])[rows.run]
    har, ewma = np.empty(len(specs)), np.empty(len(specs))
    for spec in np.unique(specs):
        mine = specs == spec
        fit = fitted[str(spec)]
        coefficients = np.array(fit.har)
        har[mine] = seen.har[mine] @ coefficients[: len(HAR_SPANS)] + coefficients[len(HAR_SPANS) :][seen.season[mine]]
        shift, scale = fit.ewma
        ewma[mine] = shift + scale * seen.ewma[mine, EWMA_DECAYS.index(fit.ewma_decay)]
    scale_of_sigma = 2.0 * np.log(rows.outcome.sigma)
    return {"har": Forecast(log_ratio=har - scale_of_sigma), "ewma": Forecast(log_ratio=ewma - scale_of_sigma)}


def learnt_forecasts(
    train: tuple[Rows, Epochs], validate: tuple[Rows, Epochs], test: tuple[Rows, Epochs], seed: int
) -> dict[str, Forecast]:
    """Fit logistic regression and LightGBM on the daemon's own features and forecast the test rows.

    ``lightgbm_shrunk`` is LightGBM with its direction put on one line by maximum likelihood on the validation rows;
    both stop boosting by the validation loss.

    Raises:
        ModuleNotFoundError: the extra ``evaluate`` is not installed.

    """
    try:
        import lightgbm
        import sklearn.linear_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MODELS_NEED) from error
    keep = slice(None, None, max(1, len(train[0].outcome) // ROWS_MAX + 1))
    x, xv, xt = _design(*train)[keep], _design(*validate), _design(*test)
    y, v = train[0].outcome, validate[0].outcome
    touched, up, log_ratio = y.touched[keep], y.up[keep], y.log_ratio[keep]
    mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)

    def linear(rows: NDArray[np.bool_], outcome: NDArray[np.bool_]) -> Floats:
        if not _varied(outcome[rows]):
            return np.full(len(xt), _level(outcome[rows]))
        model = sklearn.linear_model.LogisticRegression(C=1.0, max_iter=200)
        model.fit((x[rows] - mean) / std, outcome[rows])
        chance: Floats = model.predict_proba((xt - mean) / std)[:, 1]
        return chance

    def boosted(
        kind: str, rows: NDArray[np.bool_], outcome: Any, held: NDArray[np.bool_], truth: Any
    ) -> tuple[Floats, Floats]:
        settings = {
            "objective": kind, "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 200, "lambda_l2": 5.0,
            "feature_fraction": 0.7, "bagging_fraction": 0.7, "bagging_freq": 1, "num_threads": 1, "verbose": -1,
            "seed": seed, "deterministic": True, "force_row_wise": True,
        }  # fmt: skip
        if not _varied(outcome[rows]) or not held.any():
            return np.full(int(held.sum()), _level(outcome[rows])), np.full(len(xt), _level(outcome[rows]))
        data = lightgbm.Dataset(x[rows], outcome[rows])
        check = lightgbm.Dataset(xv[held], truth[held], reference=data)
        stop = lightgbm.early_stopping(30, verbose=False)
        model = lightgbm.train(settings, data, num_boost_round=400, valid_sets=[check], callbacks=[stop])
        return np.asarray(model.predict(xv[held])), np.asarray(model.predict(xt))

    every, all_v = np.ones(len(x), bool), np.ones(len(xv), bool)
    _, p_touch = boosted("binary", every, touched, all_v, v.touched)
    held_up, p_up = boosted("binary", touched, up, v.touched, v.up)
    _, ratio = boosted("regression", every, log_ratio, all_v, v.log_ratio)
    scale, shift = calibration.fit_probability(held_up, v.up[v.touched])
    shrunk = calibration.logistic(scale * calibration.logit(p_up) + shift)
    return {
        "logistic": Forecast(linear(every, touched), linear(touched, up)),
        "lightgbm": Forecast(p_touch, p_up, ratio),
        "lightgbm_shrunk": Forecast(p_touch, shrunk, ratio),
    }


def _varied(outcome: NDArray[Any]) -> bool:
    """Tell whether there is anything to learn: one class, or nothing at all, teaches no model."""
    return bool(len(outcome)) and bool((outcome != outcome[0]).any())


def _level(outcome: NDArray[Any]) -> float:
    return float(outcome.mean()) if len(outcome) else 0.5


def _design(rows: Rows, epochs: Epochs) -> NDArray[np.float32]:
    return epochs.x[rows.at[0], rows.at[1] + epochs.warmup]
