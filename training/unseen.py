"""Candle files as an artifact may be judged on them: what it learnt from is left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.artifact import Artifact
from training import dataset
from training.dataset import CandlesError, Epochs, Series
from training.splits import Fold, Role


class Run(NamedTuple):
    """A contiguous run of candles."""

    series: Series
    folds: list[Fold] | None
    """Cuts of the artifact's own training where the run was part of it."""


def own_folds(artifact: Artifact) -> list[Fold]:
    """Return the cuts of the artifact's training, as its manifest has them."""
    return [Fold(**fold) for fold in artifact.manifest.report.get("folds", [])]


def learnt_until_ns(artifact: Artifact) -> int | None:
    """Return the end of all that taught, stopped or calibrated the artifact; None: its manifest does not say."""
    return max((fold.test_from_ns for fold in own_folds(artifact)), default=None)


def runs_of(artifact: Artifact, candles: Sequence[Path]) -> list[Run]:
    """Read the files whose spec the artifact serves.

    Raises:
        CandlesError: a file cannot be used, or none is of such a spec.

    """
    known = {entry.sha256 for entry in artifact.manifest.inputs}
    folds = own_folds(artifact) or None
    runs = [
        Run(series, folds if dataset.sha256_of(path) in known else None)
        for path in candles
        for series in dataset.read_series(path)
    ]
    kept = [run for run in runs if run.series.spec in artifact.manifest.signal_horizon]
    if not kept:
        raise not_served(artifact, [run.series for run in runs])
    return kept


def not_served(artifact: Artifact, series: Sequence[Series]) -> CandlesError:
    """Say that none of the candles is of a spec that the artifact serves."""
    served = ", ".join(artifact.manifest.signal_horizon)
    given = ", ".join(sorted({one.spec for one in series})) or "none"
    return CandlesError(f"{artifact.model_id} serves candles of {served}; given: {given}")


def epochs_of(artifact: Artifact, runs: Sequence[Run], *, since_ns: int) -> Epochs:
    """Fold runs into epochs as they are served.

    What closes after `since_ns` gets the role TEST, what lies before VALIDATE: forecasts that may calibrate. Of runs
    that made the artifact, rows that taught it get none, and rows that chose or calibrated it are VALIDATE.
    """
    manifest = artifact.manifest
    made = dataset.epochs_of(
        [run.series for run in runs], warmup=manifest.warmup, epoch=manifest.epoch, horizons=manifest.horizons,
        width=manifest.barrier_width, folds=None,
    )  # fmt: skip
    for n, index in enumerate(made.series):
        run, closed, role = runs[index], made.close_time_ns[n], made.role[n]
        if run.folds is not None:
            span_ns = max(manifest.horizons) * run.series.interval_ns
            role[:] = np.minimum(role, np.max([_judging(f, closed, span_ns) for f in run.folds], axis=0))
        role[(role == Role.TEST) & (closed <= since_ns)] = Role.VALIDATE
    return made


def _judging(fold: Fold, closed: NDArray[np.int64], label_span_ns: int) -> NDArray[np.int8]:
    roles = fold.roles(closed, label_span_ns=label_span_ns)
    roles[roles == Role.TRAIN] = Role.NONE
    return roles
