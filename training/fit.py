"""From candle files to an artifact: members, calibration, parity, report card.

The same recipe, candles and machine give the same content hash: nothing here reads a clock, every draw is seeded, torch
is held to its deterministic algorithms, and the manifest names files without their folders.
"""

import dataclasses
import datetime as dt
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from inference import artifact as artifacts
from inference import features
from inference.artifact import PARITY_CANDLES_MIN, Affine, Artifact, Calibration, Manifest, TrainingInput, TrainingRange
from inference.lstm import Combined, Weights
from training import baselines, calibration, dataset, ensemble, kept, parity, score
from training.dataset import CandlesError, Epochs, Series
from training.forecasts import Prior, lstm_forecast, prior_forecast, prior_of, rows_of
from training.member import Material, Member
from training.model import Normaliser
from training.recipe import Recipe
from training.splits import Fold, Role

RANGE_QUANTILES = (0.0005, 0.9995)
MEMBERS_FOLDER = ".members"
DEVICES = ("cpu", "cuda", "auto")


class DeviceError(ValueError):
    """There is no such device to train on."""


class Summary(NamedTuple):
    """What training made."""

    folder: Path
    model_id: str
    report: dict[str, Any]
    """The report card, as in the manifest."""
    artifact: Artifact
    """What was written. Whether it may be served is for `inference.artifact.load` to say, by its parity."""


def device_of(name: str) -> torch.device:
    """Return the device that `cpu`, `cuda` or `auto` means; `auto` is CUDA where there is one.

    Raises:
        DeviceError: there is no such device here.

    """
    if name not in DEVICES:
        raise DeviceError(f"{name!r} is not one of {', '.join(DEVICES)}")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise DeviceError("torch finds no CUDA device")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def train(
    candles: Sequence[Path], out: Path, recipe: Recipe, *, device: str = "cpu", progress: bool = False
) -> Summary:
    """Fit an artifact on candle files and write it to `out`.

    A member that is done is kept in `out/.members` until the artifact is written; a run that was broken off goes on
    there.

    Args:
        candles: parquet files with open_time, open, high, low, close, volume.
        out: folder of the artifact; made if missing.
        recipe: everything else that decides the result.
        device: `cpu`, `cuda` or `auto`; only the CPU gives the same artifact each time.
        progress: show a bar on the terminal.

    Raises:
        CandlesError: a file cannot be used, or the candles leave nothing to train on or to validate with.
        DeviceError: there is no such device.

    """
    chosen = device_of(device)
    _settle(recipe, chosen)
    inputs = [(path, dataset.sha256_of(path)) for path in sorted(candles, key=lambda p: p.name)]
    runs = dataset.load([path for path, _ in inputs], also=recipe.resample)
    if (longest := max(map(len, runs))) < PARITY_CANDLES_MIN:
        raise CandlesError(f"{PARITY_CANDLES_MIN} candles in a row are needed to measure parity; the most is {longest}")
    epochs = epochs_of(runs, recipe)
    train_rows = epochs.usable(Role.TRAIN).any(axis=-1)
    if not train_rows.any() or not epochs.usable(Role.VALIDATE).any():
        raise CandlesError("the candles leave no rows to train on or none to validate with; give longer files")
    rows = epochs.x[:, epochs.warmup :][train_rows]
    normaliser = Normaliser.fit(rows, clip=recipe.clip)
    folder, identity = out / MEMBERS_FOLDER, _identity(recipe, inputs, chosen)
    material = _material(epochs, runs, recipe, normaliser).to(chosen)
    members = kept.fit_members(recipe, material, folder, identity, progress=progress)
    del material
    weights = ensemble.pack(members, recipe, normaliser)
    lines = _calibrate(weights, epochs)
    if recipe.refit:
        both = _material(epochs_of(runs, recipe, refit=True), runs, recipe, normaliser, refit=True).to(chosen)
        members = kept.fit_members(recipe, both, folder, f"{identity}-refit", like=members, progress=progress)
        weights = ensemble.pack(members, recipe, normaliser)
    manifest = Manifest(
        name=recipe.name,
        created=_created(runs),
        sizes=artifacts.sizes_of(weights),
        specs=tuple(sorted(recipe.signal_horizon)),
        warmup=recipe.warmup,
        epoch=recipe.epoch,
        horizons=recipe.horizons,
        signal_horizon=recipe.signal_horizon,
        barrier_width=recipe.barrier_width,
        calibration=lines,
        range=_range(rows),
        parity=parity.measure(weights, runs, warmup=recipe.warmup, epoch=recipe.epoch),
        inputs=tuple(
            TrainingInput(name=path.name, sha256=digest, candles=sum(len(r) for r in dataset.read_series(path)))
            for path, digest in inputs
        ),
        recipe=msgspec.to_builtins(recipe),
    )
    report = report_card(Artifact(weights, manifest), epochs, runs, recipe, members)
    sealed = artifacts.seal(weights, msgspec.structs.replace(manifest, report=report))
    artifacts.save(sealed, out)
    for file in folder.glob("*"):
        file.unlink()
    folder.rmdir()
    return Summary(out, sealed.model_id, report, sealed)


def epochs_of(runs: Sequence[Series], recipe: Recipe, *, refit: bool = False) -> Epochs:
    """Fold runs into epochs with the recipe's labels and cuts; in a refit what validated teaches too."""
    return dataset.epochs_of(
        runs, warmup=recipe.warmup, epoch=recipe.epoch, horizons=recipe.horizons,
        width=recipe.barrier_width, folds=_folds(runs, recipe, refit=refit),
    )  # fmt: skip


def _folds(runs: Sequence[Series], recipe: Recipe, *, refit: bool) -> list[Fold]:
    return [fold.joined() if refit else fold for fold in recipe.folds([run.span for run in runs])]


def _material(
    epochs: Epochs, runs: Sequence[Series], recipe: Recipe, normaliser: Normaliser, *, refit: bool = False
) -> Material:
    turned = epochs_of([dataset.mirrored(run) for run in runs], recipe, refit=refit) if recipe.mirror else None
    return Material.of(epochs, normaliser, turned)


def report_card(
    artifact: Artifact, epochs: Epochs, runs: Sequence[Series], recipe: Recipe, members: Sequence[Member]
) -> dict[str, Any]:
    """Score the artifact on the rows kept for it, at each spec's signal horizon, over all and per file."""
    horizon = artifact.manifest.signal_horizon
    taught = rows_of(epochs, runs, horizon, Role.TRAIN)
    prior = prior_of(taught, runs)
    card: dict[str, Any] = {
        "folds": [dataclasses.asdict(fold) for fold in _folds(runs, recipe, refit=recipe.refit)],
        "linear": msgspec.to_builtins(baselines.fit_linear(taught, epochs, runs)),
        "prior": {spec: {"touch": touch, "up": up} for spec, (touch, up) in prior.items()},
        "rows": {role.name.lower(): int((epochs.role == role).sum()) for role in Role if role is not Role.NONE},
        "passes": [member.passes for member in members],
        "note": "test: skill in per cent of the class prior's log loss, on candles that taught and chose nothing; "
        "intervals are 95 %, from resampling whole UTC days",
    }
    keep = (epochs.role == Role.TEST).any(axis=1)
    if keep.any():
        card["test"] = _test_card(artifact, epochs.part(keep), runs, prior)
    rounded: dict[str, Any] = _rounded(card)
    return rounded


def _test_card(artifact: Artifact, epochs: Epochs, runs: Sequence[Series], prior: Prior) -> dict[str, Any]:
    rows = rows_of(epochs, runs, artifact.manifest.signal_horizon, Role.TEST)
    models = {"prior": prior_forecast(prior, rows, runs), "lstm": lstm_forecast(artifact, epochs, rows)}
    names = np.array([f"{run.name} {run.spec}" for run in runs])[rows.run]
    card = {}
    for name in ("all", *np.unique(names)):
        mine = np.ones(len(names), bool) if name == "all" else names == name
        outcome, parts = rows.outcome.part(mine), {m: f.part(mine) for m, f in models.items()}
        scored = score.barriers(parts, outcome) | score.variances(parts, outcome, reference="none")
        keys = ("log_loss_skill_pct", "touch_skill_pct", "direction_skill_pct", "auc", "ece", "variance_r2")
        card[str(name)] = {"rows": int(mine.sum()), "days": len(np.unique(outcome.day))} | {
            k: scored[k]["lstm"] for k in keys if "lstm" in scored[k]
        }
    return card


def _settle(recipe: Recipe, device: torch.device) -> None:
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(device.type == "cpu")  # CUDA's LSTM has none, and torch would refuse to run


def _identity(recipe: Recipe, inputs: Sequence[tuple[Path, str]], device: torch.device) -> str:
    """Name what members depend on, so that a later run continues only its own."""
    what = (
        msgspec.to_builtins(recipe),
        [digest for _, digest in inputs],
        features.FEATURES_VERSION,
        str(torch.__version__),
        device.type,
    )
    return hashlib.sha256(msgspec.json.encode(what, order="deterministic")).hexdigest()[:16]


def _calibrate(weights: Weights, epochs: Epochs) -> tuple[Calibration, ...]:
    keep = (epochs.role == Role.VALIDATE).any(axis=1)
    part = epochs.part(keep)
    usable = part.usable(Role.VALIDATE)
    flat = usable.any(axis=-1)
    answers = Combined(*(a[flat] for a in ensemble.forecast(weights, part.x, warmup=part.warmup)))
    lines = calibration.fit(answers, part.labels.part(flat), usable[flat])
    return tuple(
        Calibration(**{head: Affine(a=line[0], b=line[1]) for head, line in zip(_HEADS, group, strict=True)})
        for group in lines
    )


_HEADS = ("touch", "direction", "log_variance")


def _range(rows: np.ndarray) -> TrainingRange:
    low, high = np.quantile(rows, RANGE_QUANTILES, axis=0)
    return TrainingRange(low=tuple(low.astype(float).tolist()), high=tuple(high.astype(float).tolist()))


def _created(runs: Sequence[Series]) -> str:
    newest = max(run.span[1] for run in runs)
    moment = dt.datetime.fromtimestamp(newest // 10**9, tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _rounded(value: Any) -> Any:
    """Round figures to six digits, for people; what is not a number becomes null."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
