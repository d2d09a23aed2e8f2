"""Score forecasts of one horizon against what happened, next to the prior, with intervals over days. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeds.market import NS_PER_DAY
from training import metrics
from training.metrics import Interval

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
FLAT = 1e-9
"""Log variances that differ by no more than this are one and the same: nothing is there to be explained."""

Figure = dict[str, float | None]
"""An interval as JSON has it: value, lo, hi; what is not a number is null."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one model said of n candles; a part that a model does not speak of is None."""

    p_touch: Floats | None = None
    p_up: Floats | None = None
    log_ratio: Floats | None = None

    def part(self, keep: Mask) -> "Forecast":
        """Return some rows."""
        return Forecast(*(None if a is None else a[keep] for a in (self.p_touch, self.p_up, self.log_ratio)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened, and to which group each row belongs."""

    touched: Mask
    up: Mask
    log_ratio: Floats
    sigma: Floats
    horizon: NDArray[np.int64]
    close_time_ns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.touched)

    def part(self, keep: Mask) -> "Outcome":
        """Return some rows."""
        return Outcome(*(getattr(self, name)[keep] for name in self.__slots__))

    @property
    def log_scale(self) -> Floats:
        """log(horizon · sigma²): what turns a ratio into a variance."""
        return np.log(self.horizon * self.sigma**2)

    @property
    def day(self) -> NDArray[np.int64]:
        """UTC day of each row, the block of the bootstrap."""
        return self.close_time_ns // NS_PER_DAY


def barriers(models: Mapping[str, Forecast], outcome: Outcome, *, seed: int = 0) -> dict[str, Any]:
    """Score barrier forecasts; `models` holds "prior", which the skills are measured against.

    What cannot be told (a direction where nothing was touched, an order where all ended alike) is left out.
    """
    every, (base_touch, base_up) = np.ones(len(outcome), bool), _losses(models["prior"], outcome)
    keys = ("log_loss", "log_loss_skill_pct", "touch_skill_pct", "direction_skill_pct", "brier", "auc", "ece")
    result: dict[str, Any] = {key: {} for key in keys}
    for name, model in models.items():
        if model.p_touch is None or model.p_up is None:
            continue
        touch, up = _losses(model, outcome)
        result["log_loss"][name] = float((touch + up).mean())
        result["brier"][name] = metrics.barrier_brier(model.p_touch, model.p_up, outcome.touched, outcome.up)
        if name == "prior":
            continue
        pairs = (
            ("log_loss_skill_pct", every, touch + up, base_touch + base_up),
            ("touch_skill_pct", every, touch, base_touch),
            ("direction_skill_pct", outcome.touched, up, base_up),
        )
        for key, on, loss, base in pairs:
            result[key] |= _below(name, outcome.day[on], loss[on], base[on], seed)
        result["auc"][name], result["ece"][name] = _ranking(model, outcome), _calibration(model, outcome)
    return result


def beside(models: Mapping[str, Forecast], outcome: Outcome, *, subject: str, seed: int = 0) -> dict[str, Figure]:
    """Say by how many per cent the log loss of `subject` lies below each other model's, day by day on the same rows."""
    others = [name for name, model in models.items() if name not in (subject, "prior") and model.p_touch is not None]
    loss = {name: np.add(*_losses(models[name], outcome)) for name in (subject, *others)}
    found: dict[str, Figure] = {}
    for name in others:
        found |= _below(name, outcome.day, loss[subject], loss[name], seed)
    return found


def _below(name: str, day: NDArray[np.int64], loss: Floats, reference: Floats, seed: int) -> dict[str, Figure]:
    """Say by how many per cent a loss lies below the reference's; nothing where that is nil, or there is no row."""
    if not reference.any():
        return {}
    return {name: plain(metrics.skill_interval(day, loss, reference, seed=seed))}


def _losses(model: Forecast, outcome: Outcome) -> tuple[Floats, Floats]:
    """Return what each row loses by the touch and, where there was one, by its direction."""
    assert model.p_touch is not None
    assert model.p_up is not None
    touched = outcome.touched
    return metrics.log_loss(model.p_touch, touched), np.where(touched, metrics.log_loss(model.p_up, outcome.up), 0.0)


def _ranking(model: Forecast, outcome: Outcome) -> dict[str, float]:
    assert model.p_touch is not None
    assert model.p_up is not None
    hit = outcome.touched
    figures = {"touch": metrics.auc(model.p_touch, hit), "direction": metrics.auc(model.p_up[hit], outcome.up[hit])}
    return {name: figure for name, figure in figures.items() if np.isfinite(figure)}


def _calibration(model: Forecast, outcome: Outcome) -> dict[str, float]:
    p_touch, p_up, hit, up = model.p_touch, model.p_up, outcome.touched, outcome.up
    assert p_touch is not None
    assert p_up is not None
    figures = {"touch": metrics.ece(p_touch, hit)}
    if hit.any():
        figures["direction"] = metrics.ece(p_up[hit], up[hit])
    return figures | {
        "long": metrics.ece(p_touch * p_up, hit & up), "short": metrics.ece(p_touch * (1 - p_up), hit & ~up)
    }  # fmt: skip


def variances(models: Mapping[str, Forecast], outcome: Outcome, *, reference: str, seed: int = 0) -> dict[str, Any]:
    """Score forecasts of the log variance over the horizon; the error is also set against the `reference` model's."""
    scale = outcome.log_scale
    truth = outcome.log_ratio + scale
    squared = {name: (m.log_ratio + scale - truth) ** 2 for name, m in models.items() if m.log_ratio is not None}
    result: dict[str, Any] = {"variance_r2": {}, "variance_qlike": {}, "variance_mse_below_reference_pct": {}}
    for name, error in squared.items():
        model = models[name].log_ratio
        assert model is not None
        if np.ptp(truth) > FLAT:
            result["variance_r2"][name] = plain(_r_squared(outcome.day, error, truth, seed))
        result["variance_qlike"][name] = metrics.qlike(model, outcome.log_ratio)
        if name != reference and reference in squared:
            below = _below(name, outcome.day, error, squared[reference], seed)
            result["variance_mse_below_reference_pct"] |= below
    result["variance_reference"] = reference
    return result


def _r_squared(day: NDArray[np.int64], error: Floats, truth: Floats, seed: int) -> Interval:
    centred = truth - truth.mean()  # keeps the variance from cancelling
    sums = np.column_stack((error, centred, centred**2, np.ones(len(truth))))
    return metrics.block_bootstrap(day, sums, lambda s: 1 - s[:, 0] / (s[:, 2] - s[:, 1] ** 2 / s[:, 3]), seed=seed)


def plain(interval: Interval) -> Figure:
    """Return an interval as JSON has it."""
    figures = {"value": interval.value, "lo": interval.lo, "hi": interval.hi}
    return {name: figure if np.isfinite(figure) else None for name, figure in figures.items()}


def text(figure: Figure | None, digits: int = 2) -> str:
    """Write an interval for people."""
    if figure is None or figure["value"] is None:
        return "–"
    bounds = "too few days" if figure["lo"] is None else f"{figure['lo']:.{digits}f}, {figure['hi']:.{digits}f}"
    return f"{figure['value']:.{digits}f} [{bounds}]"


def covers_zero(figure: Figure | None) -> bool:
    """Tell whether there is an interval, and it holds zero: nothing is shown either way."""
    low, high = (None, None) if figure is None else (figure["lo"], figure["hi"])
    return low is not None and high is not None and low <= 0 <= high


def verdict(skill: Figure | None) -> str:
    """Say in words what an interval of a skill means; None is a skill that cannot be told."""
    if skill is None:
        return "no edge shown: all ended alike"
    low, high = skill["lo"], skill["hi"]
    if low is None or high is None:
        return "no edge shown: too few days for an interval"
    if low > 0:
        return "skill above the prior"
    return "worse than the prior" if high < 0 else "no edge: the interval covers zero"
