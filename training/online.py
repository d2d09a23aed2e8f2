"""The daily revision of an artifact's calibration over candle files: computed for a day, or applied day by day."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from feeds.market import NS_PER_DAY
from inference import artifact as artifacts
from inference import outcomes, recalibrate, revisions
from inference.artifact import Artifact
from inference.lstm import Combined
from inference.recalibrate import Past
from inference.revisions import Revision
from training import unseen
from training.dataset import CandlesError, Epochs, Series
from training.forecasts import Rows, calibrated
from training.score import Forecast
from training.splits import Role
from training.unseen import Run


def calibrate(candles: Sequence[Path], artifact: Path, day: dt.date) -> Revision:
    """Compute the revision that is in force on a UTC day from candles that closed before it.

    Raises:
        CandlesError: a file cannot be used, or no forecast of the days before had matured.
        ArtifactError: the artifact may not be used.

    """
    loaded = artifacts.load(artifact)
    manifest, day_ns = loaded.manifest, revisions.day_of(day) * NS_PER_DAY
    fold = manifest.warmup + manifest.epoch
    runs = [run for run in (_recent(run, day_ns, fold) for run in unseen.runs_of(loaded, candles)) if len(run.series)]
    if not runs:
        raise CandlesError(f"no candle closed in the {recalibrate.DAYS} days before {day}")
    epochs = unseen.epochs_of(loaded, runs, since_ns=day_ns)
    answers = outcomes.answer(loaded.weights, epochs.x, warmup=epochs.warmup)
    calibration, observed, days = {}, {}, set[int]()
    for spec in sorted({run.series.spec for run in runs}):
        mine, interval_ns = _of_spec(epochs, [run.series for run in runs], spec)
        pasts = [past_of(answers, epochs, mine, k) for k in range(len(manifest.horizons))]
        calibration[spec], observed[spec] = recalibrate.revise_all(manifest, pasts, day_ns, interval_ns)
        for past, horizon in zip(pasts, manifest.horizons, strict=True):
            matured = past.before(day_ns, horizon_ns=horizon * interval_ns)
            days |= set((matured.close_time_ns // NS_PER_DAY).tolist())
    if not days:
        raise CandlesError(
            f"no forecast of the {recalibrate.DAYS} days before {day} had matured, or all taught the model"
        )
    return Revision(
        model=loaded.model_id, day=day, days=recalibrate.DAYS, days_found=len(days),
        series=tuple(sorted({f"{run.series.name} {run.series.spec}" for run in runs})),
        observations=observed, calibration=calibration,
    )  # fmt: skip


def online_forecast(
    artifact: Artifact, answers: Combined, epochs: Epochs, runs: Sequence[Series], rows: Rows
) -> Forecast:
    """Forecast rows at their signal horizon, each UTC day under the revision that was in force on it.

    Args:
        artifact: gives the calibration that is revised.
        answers: of the live step over `epochs` (`outcomes.answer`), before any calibration.
        epochs: with roles VALIDATE and TEST, both of which become history once they have matured.
        runs: what the epochs belong to; those of one spec are pooled.
        rows: what to forecast.

    """
    forecast = Forecast(*(np.empty(len(rows.outcome)) for _ in range(3)))
    columns = (forecast.p_touch, forecast.p_up, forecast.log_ratio)
    specs = np.array([run.spec for run in runs])[rows.run]
    for spec in np.unique(specs):
        horizon = artifact.manifest.signal_horizon[str(spec)]
        k = artifact.manifest.horizons.index(horizon)
        mine, interval_ns = _of_spec(epochs, runs, str(spec))
        past, own = past_of(answers, epochs, mine, k), recalibrate.own_lines(artifact.manifest)[k]
        for day in np.unique(rows.outcome.day[specs == spec]):
            before = past.before(int(day) * NS_PER_DAY, horizon_ns=horizon * interval_ns)
            line = recalibrate.revise(own, before, horizon_ns=horizon * interval_ns)
            today = (specs == spec) & (rows.outcome.day == day)
            at = tuple(index[today] for index in rows.at[:2])
            revised = calibrated(Combined(*(answer[at][:, k : k + 1] for answer in answers)), [line])
            for column, values in zip(columns, revised, strict=True):
                assert column is not None
                column[today] = values[:, 0]
    return forecast


def past_of(answers: Combined, epochs: Epochs, mine: NDArray[np.bool_], k: int) -> Past:
    """Collect raw forecasts of the `k`-th horizon over the epochs in `mine`, [N], with what came of them."""
    usable = epochs.usable(Role.VALIDATE)[..., k] | epochs.usable(Role.TEST)[..., k]
    at = np.nonzero(usable & mine[:, None])
    labels = epochs.labels
    p_touch, p_up, log_ratio = (answer[at][:, k] for answer in answers)
    touched, up = (array[at][:, k] for array in (labels.touched, labels.up))
    realised = labels.log_ratio[at][:, k].astype(np.float64)
    return Past(epochs.close_time_ns[at], p_touch, p_up, log_ratio, touched, up, realised)


def _recent(run: Run, day_ns: int, fold: int) -> Run:
    """Keep what closed before the day and within the days looked back over, and one fold before it."""
    closed = run.series.close_time_ns
    first, end = np.searchsorted(closed, (day_ns - recalibrate.DAYS * NS_PER_DAY, day_ns + 1))
    keep = slice(max(0, int(first) - fold), int(end)) if first < end else slice(0, 0)
    return Run(run.series.rows(keep), run.folds)


def _of_spec(epochs: Epochs, runs: Sequence[Series], spec: str) -> tuple[NDArray[np.bool_], int]:
    """Tell which epochs are of a spec, and its interval in ns."""
    mine = np.array([run.spec == spec for run in runs])[epochs.series]
    return mine, next(run.interval_ns for run in runs if run.spec == spec)
