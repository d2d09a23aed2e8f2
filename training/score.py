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
    """Score barrier forecasts; `models` holds "prior", which the skills are measured against."""
    prior = models["prior"]
    assert prior.p_touch is not None
    assert prior.p_up is not None
    touched, up, day = outcome.touched, outcome.up, outcome.day
    base_touch, base_up = metrics.log_loss(prior.p_touch, touched), metrics.log_loss(prior.p_up[touched], up[touched])
    base = base_touch.copy()
    base[touched] += base_up
    keys = ("log_loss", "log_loss_skill_pct", "touch_skill_pct", "direction_skill_pct", "brier", "auc", "ece")
    result: dict[str, Any] = {key: {} for key in keys}
    for name, model in models.items():
        if model.p_touch is None or model.p_up is None:
            continue
        loss_touch = metrics.log_loss(model.p_touch, touched)
        loss_up = metrics.log_loss(model.p_up[touched], up[touched])
        loss = loss_touch.copy()
        loss[touched] += loss_up
        result["log_loss"][name] = float(loss.mean())
        result["brier"][name] = metrics.barrier_brier(model.p_touch, model.p_up, touched, up)
        if name == "prior":
            continue
        result["log_loss_skill_pct"][name] = plain(metrics.skill_interval(day, loss, base, seed=seed))
        result["touch_skill_pct"][name] = plain(metrics.skill_interval(day, loss_touch, base_touch, seed=seed))
        result["direction_skill_pct"][name] = plain(metrics.skill_interval(day[touched], loss_up, base_up, seed=seed))
        result["auc"][name] = {
            "touch": metrics.auc(model.p_touch, touched),
            "direction": metrics.auc(model.p_up[touched], up[touched]),
        }
        result["ece"][name] = {
            "touch": metrics.ece(model.p_touch, touched),
            "direction": metrics.ece(model.p_up[touched], up[touched]),
            "long": metrics.ece(model.p_touch * model.p_up, touched & up),
            "short": metrics.ece(model.p_touch * (1 - model.p_up), touched & ~up),
        }
    return result


def variances(models: Mapping[str, Forecast], outcome: Outcome, *, reference: str, seed: int = 0) -> dict[str, Any]:
    """Score forecasts of the log variance over the horizon; the error is also set against the `reference` model's."""
    scale = outcome.log_scale
    truth = outcome.log_ratio + scale
    squared = {name: (m.log_ratio + scale - truth) ** 2 for name, m in models.items() if m.log_ratio is not None}
    result: dict[str, Any] = {"variance_r2": {}, "variance_qlike": {}, "variance_mse_below_reference_pct": {}}
    for name, error in squared.items():
        model = models[name].log_ratio
        assert model is not None
        result["variance_r2"][name] = plain(_r_squared(outcome.day, error, truth, seed))
        result["variance_qlike"][name] = metrics.qlike(model, outcome.log_ratio)
        if name != reference and reference in squared:
            below = metrics.skill_interval(outcome.day, error, squared[reference], seed=seed)
            result["variance_mse_below_reference_pct"][name] = plain(below)
    result["variance_reference"] = reference
    return result


def _r_squared(day: NDArray[np.int64], error: Floats, truth: Floats, seed: int) -> Interval:
    centred = truth - truth.mean()  # keeps the variance from cancelling
    sums = np.column_stack((error, centred, centred**2, np.ones(len(truth))))
    return metrics.block_bootstrap(day, sums, lambda s: 1 - s[:, 0] / (s[:, 2] - s[:, 1] ** 2 / s[:, 3]), seed=seed)


Figure = dict[str, float | None]
"""An interval as JSON has it: value, lo, hi; what is not a number is null."""


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


def verdict(skill: Figure) -> str:
    """Say in words what an interval of a skill means."""
    low, high = skill["lo"], skill["hi"]
    if low is None or high is None:
        return "no edge shown: too few days for an interval"
    if low > 0:
        return "skill above the prior"
    return "worse than the prior" if high < 0 else "no edge: the interval covers zero"
