"""A network of your own as an artifact: checked, copied into the served form, and measured against yours."""

import copy
import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from feeds.market import NS_PER_S
from inference import artifact as artifacts
from inference.artifact import (
    PARITY_CANDLES_MIN,
    PARITY_MAX_ABS,
    Artifact,
    Calibration,
    DecisionDefaults,
    Manifest,
    Parity,
    TrainingInput,
    TrainingRange,
)
from inference.features import N_FEATURES
from inference.kernels import reference
from inference.lstm import F32, HEADS
from training import dataset, forecasts, parity
from training.dataset import CandlesError, Epochs, Series
from training.fit import RANGE_QUANTILES
from training.splits import Fold, Role, eras


class ModelError(ValueError):
    """The network cannot be served; the text says why."""


def from_torch(
    lstm: nn.LSTM,
    heads: nn.Linear,
    *,
    name: str,
    mean: ArrayLike,
    inv_std: ArrayLike,
    clip: float,
    horizons: tuple[int, ...],
    signal_horizon: Mapping[str, int],
    candles: Sequence[Path],
    warmup: int = 256,
    epoch: int = 720,
    barrier_width: float = 1.0,
    calibration: tuple[Calibration, ...] = (),
    decision: DecisionDefaults | None = None,
) -> Artifact:
    """Make an artifact of a trained LSTM; `inference.artifact.save` writes it.

    The network is not changed. It is served in float32, on the processor, without dropout.

    Args:
        lstm: one direction, with biases, any number of layers, over `inference.features.FEATURES` in their order;
            `batch_first` or not.
        heads: from the last layer's hidden state to the outputs `inference.lstm.HEADS` of the first horizon, then of
            the next: what `training.labels` calls touched, up (both as logits) and log_ratio.
        name: lower-case letters, digits, ``_``, ``.`` and ``-``.
        mean: [F], taken off each raw feature.
        inv_std: [F], what the rest is multiplied by; 0 silences a feature.
        clip: bound of a normalised feature on either side.
        horizons: candles ahead, in the order of the heads.
        signal_horizon: candle specs the artifact serves, and the horizon that decides for each.
        candles: the files it was trained on. They are where parity and the bounds of features are measured, and
            `lstmd evaluate` will not take them for a test. A file of shorter candles also stands for longer specs.
        warmup: candles folded before an epoch.
        epoch: candles of an epoch; state was reset at its multiples, as `training.dataset.epochs_of` does.
        barrier_width: of the labels, in sigma × √horizon.
        calibration: one per horizon, measured on candles that did not train; none leaves the answers as they are.
        decision: costs and thresholds, where the shipped ones will not do.

    Raises:
        ModelError: the network has a part that the daemon cannot serve, or sizes that do not fit.
        CandlesError: a file cannot be used, or there are too few candles in a row to measure parity.

    """
    mean, inv_std = np.asarray(mean, np.float32), np.asarray(inv_std, np.float32)
    for complaint in _complaints(lstm, heads, mean, inv_std, horizons, signal_horizon):
        raise ModelError(complaint)
    lstm, heads = copy.deepcopy(lstm).cpu().eval(), copy.deepcopy(heads).cpu().eval()
    try:
        weights = reference.from_torch([(lstm, heads)], mean=mean, inv_std=inv_std, clip=clip)
    except ValueError as error:
        raise ModelError(str(error)) from error
    runs = [run for run in dataset.load(candles, also=tuple(signal_horizon)) if run.spec in signal_horizon]
    if (longest := max(map(len, runs), default=0)) < PARITY_CANDLES_MIN:
        raise CandlesError(f"{PARITY_CANDLES_MIN} candles in a row are needed to measure parity; the most is {longest}")
    taught = [Fold(start, end, end, end) for start, end in eras([run.span for run in runs])]
    epochs = dataset.epochs_of(
        runs, warmup=warmup, epoch=epoch, horizons=horizons, width=barrier_width, folds=taught
    )  # fmt: skip
    prior = forecasts.prior_of(forecasts.rows_of(epochs, runs, signal_horizon, Role.TRAIN), runs)
    manifest = Manifest(
        name=name,
        created=_newest(runs),
        sizes=artifacts.sizes_of(weights),
        specs=tuple(sorted(signal_horizon)),
        warmup=warmup,
        epoch=epoch,
        horizons=horizons,
        signal_horizon=dict(signal_horizon),
        barrier_width=barrier_width,
        calibration=calibration,
        decision=decision or DecisionDefaults(),
        range=_range(epochs),
        parity=_parity(parity.measure(weights, runs, warmup=warmup, epoch=epoch, models=[(lstm, heads)])),
        inputs=tuple(_inputs(candles)),
        report={
            "folds": [dataclasses.asdict(fold) for fold in taught],
            "prior": {spec: {"touch": touch, "up": up} for spec, (touch, up) in prior.items()},
            "note": "brought from elsewhere: all its candles count as training",
        },
    )
    return artifacts.seal(weights, manifest)


def _complaints(
    lstm: nn.LSTM, heads: nn.Linear, mean: F32, inv_std: F32, horizons: tuple[int, ...], specs: Mapping[str, int]
) -> Iterator[str]:
    """Say what is wrong, most telling first."""
    if lstm.bidirectional:
        yield "the LSTM is bidirectional; a state that is carried forward knows nothing of later candles"
    if lstm.proj_size:
        yield f"the LSTM projects its hidden state (proj_size={lstm.proj_size}); the step does not"
    if not lstm.bias or heads.bias is None:
        yield "LSTM and heads need biases (bias=True); zeros will do"
    if lstm.input_size != N_FEATURES:
        yield f"the LSTM takes {lstm.input_size} inputs; there are {N_FEATURES} features (inference.features.FEATURES)"
    if heads.in_features != lstm.hidden_size:
        yield f"the heads take {heads.in_features} inputs; the hidden state has {lstm.hidden_size}"
    if heads.out_features != len(HEADS) * len(horizons):
        yield f"{heads.out_features} outputs; {len(HEADS)} for each of {len(horizons)} horizons are needed: {HEADS}"
    if not mean.shape == inv_std.shape == (N_FEATURES,):
        yield f"mean and inv_std have shapes {mean.shape} and {inv_std.shape}, expected ({N_FEATURES},)"
    for spec, horizon in specs.items():
        if horizon not in horizons:
            yield f"signal_horizon of {spec} is {horizon}, not one of the horizons {horizons}"


def _parity(found: Parity) -> Parity:
    """Let through what agrees with the network itself."""
    worst = max(found.step_vs_torch_max_abs, found.h_max_abs, found.c_max_scaled)
    if not worst <= PARITY_MAX_ABS:
        raise ModelError(f"the served step differs from the network by {worst:.2g}; at most {PARITY_MAX_ABS:g} will do")
    return found


def _range(epochs: Epochs) -> TrainingRange:
    rows = epochs.x[:, epochs.warmup :][epochs.row >= 0]
    low, high = np.quantile(rows, RANGE_QUANTILES, axis=0)
    return TrainingRange(low=tuple(low.astype(float).tolist()), high=tuple(high.astype(float).tolist()))


def _newest(runs: Sequence[Series]) -> str:
    moment = dt.datetime.fromtimestamp(max(run.span[1] for run in runs) // NS_PER_S, tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _inputs(candles: Sequence[Path]) -> Iterator[TrainingInput]:
    for path in sorted(candles, key=lambda p: p.name):
        count = sum(map(len, dataset.read_series(path)))
        yield TrainingInput(name=path.name, sha256=dataset.sha256_of(path), candles=count)
