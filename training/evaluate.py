"""Score an artifact on candles beside baselines on the very same rows, and say what the figures mean."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feeds.market import NS_PER_DAY, NS_PER_S
from inference import artifact as artifacts
from inference import outcomes, recalibrate
from inference.artifact import Artifact, Manifest
from training import costs, dataset, score, trading, unseen, walk
from training import funding as settlements
from training.dataset import CandlesError, Epochs, Series
from training.forecasts import Rows, calibrated, rows_of
from training.online import online_forecast
from training.score import Forecast, Outcome
from training.splits import Role
from training.unseen import Run
from training.walk import Fold

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
    folds: int = 1,
    funding: Sequence[Path] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score an artifact on candle files; see `assess` for the arguments and errors."""
    return assess(candles, artifact, train=train, since=since, folds=folds, funding=funding, seed=seed).result


def assess(
    candles: Sequence[Path],
    artifact: Path,
    *,
    train: Sequence[Path] | None = None,
    since: dt.date | None = None,
    folds: int = 1,
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
        folds: cuts of the scored span, at each of which the baselines are fitted anew on what `train` has before it;
            with several, rows within the longest horizon after a cut are not scored, with one, candles of which hardly
            any lie before it all teach.
        funding: parquet files with time and funding_rate, named after their market as the candles are; trades on a
            market whose settlements cover the scored span are charged.
        seed: of the bootstrap and the baselines.

    Raises:
        CandlesError: a file cannot be used, or nothing is left to score.
        ArtifactError: the artifact may not be used.
        ModuleNotFoundError: `train` is given and the extra ``evaluate`` is not installed.

    """
    assert folds == 1 or train, "folds refit the baselines"
    loaded = artifacts.load(artifact)
    manifest, warnings = loaded.manifest, list[str]()
    runs = unseen.runs_of(loaded, candles)
    epochs = _epochs(loaded, runs, since)
    series = [run.series for run in runs]
    rows = _rows(epochs, runs, manifest)
    parts = walk.folds_of(rows, folds)
    if folds > 1:
        kept = walk.embargo(rows, parts, series, max(manifest.horizons))
        rows, parts = rows.part(kept), [fold.part(kept) for fold in parts if (fold.mine & kept).any()]
        if not parts:
            raise CandlesError("no candle is left to score after the embargo that follows each cut")
    if any(run.folds is not None for run in runs):
        warnings.append("some files made the artifact: only spans its recipe kept for testing are scored")
    strange = [run.series.span for run in runs if run.folds is None]
    own = unseen.own_folds(loaded)
    if any(start < fold.test_from_ns and fold.start_ns < end for fold in own for start, end in strange):
        warnings.append("the artifact learnt from other candles of the same time as some that are scored")
    answers = outcomes.answer(loaded.weights, epochs.x, warmup=epochs.warmup)
    models = {
        "lstm": calibrated(answers, manifest.calibration).at(rows),
        "lstm_online": online_forecast(loaded, answers, epochs, series, rows),
    }
    if train:
        others, more = _walked(walk.Teacher(loaded, train), parts, rows, epochs, series, seed)
        warnings += more
    else:
        others = walk.brought(loaded, rows, epochs, series)
    models |= others
    result = _figures(loaded, models, rows, series, seed)
    result["strict"] = _strict(loaded, models, rows.outcome, seed)
    if folds > 1:
        result["folds"] = [_fold(fold, models, rows.outcome, seed) for fold in parts]
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


def _rows(epochs: Epochs, runs: Sequence[Run], manifest: Manifest) -> Rows:
    rows = rows_of(epochs, [run.series for run in runs], manifest.signal_horizon, Role.TEST)
    if not len(rows.outcome):
        taught = ", and what taught the artifact is left out" if any(run.folds is not None for run in runs) else ""
        raise CandlesError(
            f"no candle is left to score: each needs its warm-up before it and its horizon after it{taught}"
        )
    return rows


def _walked(
    teacher: walk.Teacher, folds: Sequence[Fold], rows: Rows, epochs: Epochs, runs: Sequence[Series], seed: int
) -> tuple[dict[str, Forecast], list[str]]:
    """Fit the baselines at each cut; at a single one with hardly anything before it, on all there is."""
    alone = len(folds) == 1 and not teacher.has_enough_before(folds[0].until_ns)
    ends = [teacher.span[1]] if alone else [fold.until_ns for fold in folds]
    parts = [
        (fold, teacher.forecasts(end, rows.part(fold.mine), epochs, runs, seed))
        for fold, end in zip(folds, ends, strict=True)
    ]
    later = alone and teacher.span[1] > folds[0].until_ns
    return walk.joined(parts), ["the baselines learnt from candles later than the scored ones"] if later else []


def _fold(fold: Fold, models: dict[str, Forecast], outcome: Outcome, seed: int) -> dict[str, Any]:
    closed = outcome.close_time_ns[fold.mine]
    span = {"taught_until": _day(fold.until_ns), "from": _day(int(closed.min())), "to": _day(int(closed.max()))}
    return span | _group(models, outcome, fold.mine, seed)


def _strict(artifact: Artifact, models: dict[str, Forecast], outcome: Outcome, seed: int) -> dict[str, Any]:
    """Score the rows that lie after everything the artifact has learnt from, in whatever market."""
    until_ns = unseen.learnt_until_ns(artifact)
    if until_ns is None:
        return {
            "said": "the artifact does not say what it learnt from, so no candle is known to be later than all of it"
        }
    later = outcome.close_time_ns > until_ns
    share, day = float(later.mean()), _day(until_ns)
    found = {"learnt_until": day, "share": share, "rows": int(later.sum())}
    if not later.any():
        return found | {
            "said": f"none of the scored candles is later than all that the artifact learnt from, which ends {day}: "
            "this is no walk-forward of the artifact"
        }
    part = "all" if later.all() else f"{100 * share:.1f} %"
    said = f"{part} of the scored candles are later than all that the artifact learnt from, which ends {day}"
    return found | _group(models, outcome, later, seed) | {"said": said}


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
    result["lstm_loss_below_pct"] = score.beside(models, outcome, subject="lstm", seed=seed)
    result["verdict"] = {
        "barrier": score.verdict(result["log_loss_skill_pct"].get("lstm")),
        "direction": score.verdict(result["direction_skill_pct"].get("lstm")),
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
