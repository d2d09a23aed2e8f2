"""Score an artifact on candles beside baselines on the very same rows, and say what the figures mean."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feeds.market import NS_PER_DAY, NS_PER_S
from inference import artifact as artifacts
from inference import recalibrate
from inference.artifact import Artifact
from training import baselines, costs, dataset, ensemble, score, trading, unseen
from training import funding as settlements
from training.baselines import Linear
from training.dataset import CandlesError, Epochs, Series
from training.forecasts import Rows, calibrated, prior_forecast, prior_of, rows_of
from training.online import online_forecast
from training.score import Forecast, Outcome
from training.splits import Role, cut
from training.unseen import Run

VALIDATE_SHARE = 0.2
"""Last part of the candles given for the baselines: it stops and shrinks them."""
EARLIER_SHARE = 0.25
"""Of the time of candles given for the baselines: if more lies before the first scored candle, the rest is left out."""
REFERENCE = "har"
"""The variance baseline that others are set against."""


class Scored(NamedTuple):
    """What the report draws from, besides the figures."""

    result: dict[str, Any]
    models: dict[str, Forecast]
    outcome: Outcome
    trades: costs.Trades | None
    artifact: Artifact
    sample: NDArray[np.float32]
    """One epoch of raw features [W+E, F], to look at the gates with."""


def evaluate(
    candles: Sequence[Path],
    artifact: Path,
    *,
    train: Sequence[Path] | None = None,
    since: dt.date | None = None,
    funding: Sequence[Path] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score an artifact on candle files; see `assess` for the arguments and errors."""
    return assess(candles, artifact, train=train, since=since, funding=funding, seed=seed).result


def assess(
    candles: Sequence[Path],
    artifact: Path,
    *,
    train: Sequence[Path] | None = None,
    since: dt.date | None = None,
    funding: Sequence[Path] | None = None,
    seed: int = 0,
) -> Scored:
    """Score an artifact on candle files.

    A file that the artifact was made from is scored only where its recipe kept candles for testing. The model
    ``lstm_online`` is the same artifact under the calibration's daily revision; candles before `since` are its history.

    Args:
        candles: parquet files with open_time, open, high, low, close, volume, of specs the artifact serves.
        artifact: folder of the artifact.
        train: candles that the prior and the baselines are fitted on; without any, the prior, EWMA and HAR that the
            artifact brings along are used, and no others.
        since: score only what closes after this UTC day has begun.
        funding: parquet files with time and funding_rate, named after their market as the candles are; trades on a
            market whose settlements cover the scored span are charged.
        seed: of the bootstrap and the baselines.

    Raises:
        CandlesError: a file cannot be used, or nothing is left to score.
        ArtifactError: the artifact may not be used.
        ModuleNotFoundError: `train` is given and the extra ``evaluate`` is not installed.

    """
    loaded = artifacts.load(artifact)
    manifest, warnings = loaded.manifest, list[str]()
    runs = unseen.runs_of(loaded, candles)
    epochs = _epochs(loaded, runs, since)
    series = [run.series for run in runs]
    rows = rows_of(epochs, series, manifest.signal_horizon, Role.TEST)
    if not len(rows.outcome):
        raise CandlesError("no candle is left to score: each needs its warm-up before it and its horizon after it")
    if any(run.folds is not None for run in runs):
        warnings.append("some files made the artifact: only spans its recipe kept for testing are scored")
    strange = [run.series.span for run in runs if run.folds is None]
    own = unseen.own_folds(loaded)
    if any(start < fold.test_from_ns and fold.start_ns < end for fold in own for start, end in strange):
        warnings.append("the artifact learnt from other candles of the same time as some that are scored")
    models, more = _models(loaded, rows, epochs, series, train, seed)
    warnings += more
    result = _figures(loaded, models, rows, series, seed)
    result["online"] = _online(epochs, rows)
    settled = settlements.read(funding or [])
    trades, result["trading"] = trading.follow(loaded, models["lstm"], rows, epochs, series, settled, seed=seed)
    result["files"] = [{"name": path.name, "sha256": dataset.sha256_of(path)} for path in candles]
    result["warnings"] = warnings
    return Scored(result, models, rows.outcome, trades, loaded, epochs.x[-1])


def _epochs(artifact: Artifact, runs: Sequence[Run], since: dt.date | None) -> Epochs:
    """Fold what is scored, and the days before that `lstm_online` looks back over."""
    since_ns = (since - dt.date(1970, 1, 1)).days * NS_PER_DAY if since else 0
    made = unseen.epochs_of(artifact, runs, since_ns=since_ns)
    scored, history = made.role == Role.TEST, made.role == Role.VALIDATE
    if not scored.any():
        return made
    first_ns = int(made.close_time_ns[scored].min()) - (recalibrate.DAYS + 1) * NS_PER_DAY
    return made.part((scored | (history & (made.close_time_ns > first_ns))).any(axis=1))


def _online(epochs: Epochs, rows: Rows) -> dict[str, Any]:
    """Say how much history the first scored day's revision had."""
    first_day = int(rows.outcome.day.min())
    history = np.unique(epochs.close_time_ns[epochs.role == Role.VALIDATE] // NS_PER_DAY)
    found = int(((history >= first_day - recalibrate.DAYS) & (history < first_day)).sum())
    return {"days": recalibrate.DAYS, "days_before_the_first": found}


def _models(
    artifact: Artifact, rows: Rows, epochs: Epochs, runs: Sequence[Series], train: Sequence[Path] | None, seed: int
) -> tuple[dict[str, Forecast], list[str]]:
    warnings = []
    answers = ensemble.forecast(artifact.weights, epochs.x, warmup=epochs.warmup)
    models = {
        "lstm": calibrated(answers, artifact.manifest.calibration).at(rows),
        "lstm_online": online_forecast(artifact, answers, epochs, runs, rows),
    }
    if train:
        first = int(rows.outcome.close_time_ns.min())
        taught, learning = _teaching(artifact, train, first)
        if (learning.close_time_ns[learning.role == Role.TRAIN] >= first).any():
            warnings.append("the baselines learnt from candles later than the scored ones")
        roles = (Role.TRAIN, Role.VALIDATE)
        pairs = [(rows_of(learning, taught, artifact.manifest.signal_horizon, role), learning) for role in roles]
        prior, linear = prior_of(pairs[0][0], taught), baselines.fit_linear(*pairs[0], taught)
        models |= baselines.learnt_forecasts(pairs[0], pairs[1], (rows, epochs), seed)
    else:
        brought = artifact.manifest.report
        prior = {spec: (shares["touch"], shares["up"]) for spec, shares in brought.get("prior", {}).items()}
        linear = msgspec.convert(brought.get("linear", {}), dict[str, Linear])
    missing = {run.spec for run in runs} - set(prior)
    if missing:
        raise CandlesError(f"no prior is known for {', '.join(sorted(missing))}: give candles to fit it on")
    models["prior"] = prior_forecast(prior, rows, runs)
    if {run.spec for run in runs} <= set(linear):
        models |= baselines.linear_forecasts(linear, rows, epochs, runs)
    return models, warnings


def _teaching(artifact: Artifact, train: Sequence[Path], first_ns: int) -> tuple[list[Series], Epochs]:
    """Fold the baselines' candles; where a fair part lies before the first scored one, only that part teaches."""
    manifest = artifact.manifest
    runs = [run for path in train for run in dataset.read_series(path) if run.spec in manifest.signal_horizon]
    if not runs:
        raise CandlesError("none of the candles to fit the baselines on is of a spec that the artifact serves")
    start, end = min(run.span[0] for run in runs), max(run.span[1] for run in runs)
    enough = first_ns - start >= EARLIER_SHARE * (end - start)
    span = (start, min(end, first_ns) if enough else end)
    folds = [cut(span, validate_from=1 - VALIDATE_SHARE, test_from=1.0)]
    epochs = dataset.epochs_of(
        runs, warmup=manifest.warmup, epoch=manifest.epoch, horizons=manifest.horizons,
        width=manifest.barrier_width, folds=folds,
    )  # fmt: skip
    return runs, epochs


def _figures(
    artifact: Artifact, models: dict[str, Forecast], rows: Rows, runs: Sequence[Series], seed: int
) -> dict[str, Any]:
    outcome = rows.outcome
    result: dict[str, Any] = {
        "model": artifact.model_id,
        "rows": len(outcome),
        "days": len(np.unique(outcome.day)),
        "from": _day(int(outcome.close_time_ns.min())),
        "to": _day(int(outcome.close_time_ns.max())),
        "touch_share": float(outcome.touched.mean()),
    }
    result |= _scores(models, outcome, seed)
    result["verdict"] = {
        "barrier": score.verdict(result["log_loss_skill_pct"]["lstm"]),
        "direction": score.verdict(result["direction_skill_pct"]["lstm"]),
    }
    names = np.array([f"{run.name} {run.spec}" for run in runs])[rows.run]
    month = outcome.close_time_ns.astype("datetime64[ns]").astype("datetime64[M]").astype(str)
    specs = np.array([run.spec for run in runs])[rows.run]
    for key, groups in (("by_market", names), ("by_month", month), ("by_spec", specs)):
        result[key] = {str(g): _group(models, outcome, groups == g, seed) for g in np.unique(groups)}
    return result


def _scores(models: dict[str, Forecast], outcome: Outcome, seed: int) -> dict[str, Any]:
    return score.barriers(models, outcome, seed=seed) | score.variances(models, outcome, reference=REFERENCE, seed=seed)


def _group(models: dict[str, Forecast], outcome: Outcome, mine: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    part = outcome.part(mine)
    scored = _scores({name: model.part(mine) for name, model in models.items()}, part, seed)
    keys = ("log_loss_skill_pct", "touch_skill_pct", "direction_skill_pct", "variance_r2")
    return {"rows": len(part), "days": len(np.unique(part.day))} | {key: scored[key] for key in keys}


def _day(time_ns: int) -> str:
    return dt.datetime.fromtimestamp(time_ns // NS_PER_S, tz=dt.UTC).strftime("%Y-%m-%d")
