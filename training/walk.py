"""Baselines walked forward: refitted at each cut of the scored span on what lies before it, purged and embargoed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feeds.market import NS_PER_DAY
from inference.artifact import Artifact
from training import baselines, dataset, unseen
from training.baselines import Linear
from training.columns import moment
from training.dataset import CandlesError, Epochs, Series
from training.forecasts import Prior, Rows, prior_forecast, prior_of, rows_of
from training.score import Forecast
from training.splits import Role, cut

VALIDATE_SHARE = 0.2
"""Last part of the candles given for the baselines: it stops and shrinks them."""
EARLIER_SHARE = 0.25
"""Of the time of candles given for the baselines: if more lies before the first scored candle, the rest is left out."""


class Fold(NamedTuple):
    """A stretch of the scored span and the moment up to which its baselines learn."""

    until_ns: int
    mine: NDArray[np.bool_]
    """Which of the scored rows belong to it."""

    def part(self, keep: NDArray[np.bool_]) -> "Fold":
        """Return the same of some of the rows."""
        return Fold(self.until_ns, self.mine[keep])


def folds_of(rows: Rows, count: int) -> list[Fold]:
    """Cut the scored span at `count` moments, its first candle and UTC midnights; stretches without rows are left out.

    The model judged is one and the same in all of them.
    """
    day, first_ns = rows.outcome.day, int(rows.outcome.close_time_ns.min())
    edges = np.unique(np.linspace(day.min(), day.max() + 1, count + 1).astype(np.int64))
    starts = [first_ns, *(edges[1:-1] * NS_PER_DAY).tolist()]
    which = np.searchsorted(edges, day, side="right") - 1
    return [Fold(until, which == k) for k, until in enumerate(starts) if (which == k).any()]


def embargo(rows: Rows, folds: Sequence[Fold], runs: Sequence[Series], horizon: int) -> NDArray[np.bool_]:
    """Tell which rows close more than `horizon` candles after the cut before them; the others are not scored."""
    begun = np.empty(len(rows.outcome), dtype=np.int64)
    for fold in folds:
        begun[fold.mine] = fold.until_ns
    span_ns = horizon * np.array([run.interval_ns for run in runs])[rows.run]
    kept: NDArray[np.bool_] = rows.outcome.close_time_ns > begun + span_ns
    return kept


def brought(artifact: Artifact, rows: Rows, epochs: Epochs, runs: Sequence[Series]) -> dict[str, Forecast]:
    """Forecast by the prior, EWMA and HAR that the artifact brings along.

    Raises:
        CandlesError: it has no prior of a spec that is scored.

    """
    report = artifact.manifest.report
    prior = {spec: (shares["touch"], shares["up"]) for spec, shares in report.get("prior", {}).items()}
    return _simple(prior, msgspec.convert(report.get("linear", {}), dict[str, Linear]), rows, epochs, runs)


class Teacher:
    """Candles that the baselines learn from."""

    def __init__(self, artifact: Artifact, files: Sequence[Path]) -> None:
        """Read the candles.

        Raises:
            CandlesError: a file cannot be used, or none is of a spec that the artifact serves.

        """
        read = [run for path in files for run in dataset.read_series(path)]
        self._manifest = artifact.manifest
        self._runs = [run for run in read if run.spec in artifact.manifest.signal_horizon]
        if not self._runs:
            raise unseen.not_served(artifact, read)
        self.span = min(run.span[0] for run in self._runs), max(run.span[1] for run in self._runs)

    def has_enough_before(self, first_ns: int) -> bool:
        """Tell whether a fair part lies before the first scored candle, so that what follows it can be left out."""
        start, end = self.span
        return first_ns - start >= EARLIER_SHARE * (end - start)

    def forecasts(
        self, until_ns: int, rows: Rows, epochs: Epochs, runs: Sequence[Series], seed: int
    ) -> dict[str, Forecast]:
        """Fit all baselines on what closed by `until_ns`, labels included, and forecast rows.

        Raises:
            CandlesError: too little closed by then, or nothing of a spec that is scored.
            ModuleNotFoundError: the extra ``evaluate`` is not installed.

        """
        ends = [int(np.searchsorted(run.close_time_ns, until_ns, "right")) for run in self._runs]
        before = [run.rows(slice(0, end)) for run, end in zip(self._runs, ends, strict=True) if end]
        if not before:
            raise CandlesError(f"no candle to fit the baselines on closed before {moment(until_ns)}")
        taught = self._epochs(before, until_ns)
        train, validate = (
            rows_of(taught, before, self._manifest.signal_horizon, r) for r in (Role.TRAIN, Role.VALIDATE)
        )
        if not len(train.outcome) or not len(validate.outcome):
            raise CandlesError(f"too few candles to fit the baselines on closed before {moment(until_ns)}")
        simple = _simple(prior_of(train, before), baselines.fit_linear(train, taught, before), rows, epochs, runs)
        return simple | baselines.learnt_forecasts((train, taught), (validate, taught), (rows, epochs), seed)

    def _epochs(self, before: Sequence[Series], until_ns: int) -> Epochs:
        span = (self.span[0], min(self.span[1], until_ns))
        return dataset.epochs_of(
            before, warmup=self._manifest.warmup, epoch=self._manifest.epoch, horizons=self._manifest.horizons,
            width=self._manifest.barrier_width, folds=[cut(span, validate_from=1 - VALIDATE_SHARE, test_from=1.0)],
        )  # fmt: skip


def _simple(
    prior: Prior, linear: dict[str, Linear], rows: Rows, epochs: Epochs, runs: Sequence[Series]
) -> dict[str, Forecast]:
    specs = {runs[index].spec for index in np.unique(rows.run)}
    if missing := specs - set(prior):
        raise CandlesError(f"no prior is known for {', '.join(sorted(missing))}: give candles to fit it on")
    models = {"prior": prior_forecast(prior, rows, runs)}
    return models | (baselines.linear_forecasts(linear, rows, epochs, runs) if specs <= set(linear) else {})


def joined(parts: Sequence[tuple[Fold, Mapping[str, Forecast]]]) -> dict[str, Forecast]:
    """Put forecasts of the folds in the order of the rows."""
    order = np.argsort(np.concatenate([np.flatnonzero(fold.mine) for fold, _ in parts]))

    def whole(name: str, field: str) -> NDArray[np.float64] | None:
        columns = [getattr(said[name], field) for _, said in parts]
        return None if columns[0] is None else np.concatenate(columns)[order]

    return {name: Forecast(*(whole(name, field) for field in Forecast.__slots__)) for name in parts[0][1]}
