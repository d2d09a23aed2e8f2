"""How far the live path is from training, measured on real candles over folds as the daemon serves them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from inference import features, lstm
from inference.artifact import Parity
from inference.kernels import reference
from training.dataset import Series, fold_features

CANDLES = 10_240
"""Compared on each run, at least, where it is that long."""
RUNS = 6
"""Compared runs: from the one with most candles without a trade to the one with fewest."""
CHUNK = 16
"""Candles that torch takes in one call, after which its whole state is seen."""
Item = TypeVar("Item")


def measure(
    weights: lstm.Weights,
    runs: Sequence[Series],
    *,
    warmup: int = 256,
    epoch: int = 720,
    models: reference.Models | None = None,
) -> Parity:
    """Step through whole folds of `warmup + epoch` candles, each from the zero state, beside `torch.nn.LSTM`.

    Outputs and the last layer's h are compared at every candle, h and c of every layer after each `CHUNK`; features
    folded one candle at a time are compared with features folded at once.

    Args:
        weights: what is served.
        runs: contiguous candles; the folds lie at the places where the live state starts.
        warmup: candles folded before an epoch.
        epoch: candles of an epoch.
        models: what the weights were made from, one LSTM and head a member; none measures against the same weights in
            torch.

    """
    folds = [_folds(run, warmup, epoch) for run in runs]
    wanted = -(-CANDLES // (warmup + epoch))
    long_enough = [found for found in folds if len(found) >= wanted] or [found for found in folds if found]
    chosen = [
        _spread(found, wanted, _idle)
        for found in _spread(long_enough, RUNS, lambda found: float(np.mean([_idle(fold) for fold in found])))
    ]
    models = reference.to_torch(weights) if models is None else models
    worst, streamed = np.zeros(3), 0.0
    for some in chosen:
        x = np.stack([fold_features(fold)[0] for fold in some], axis=1)
        worst = np.maximum(worst, _network(weights, models, x))
        streamed = max(streamed, *(_streamed(fold, x[:, i]) for i, fold in enumerate(some)))
    y, h, c = worst.tolist()
    return Parity(
        candles=sum(len(fold) for some in chosen for fold in some), runs=len(chosen), step_vs_torch_max_abs=y,
        h_max_abs=h, c_max_scaled=c, features_max_abs=streamed,
    )  # fmt: skip


def _folds(run: Series, warmup: int, epoch: int) -> list[Series]:
    """Cut a run where the live state starts: `warmup` candles before each whole epoch."""
    first_seq = int(run.close_time_ns[0]) // run.interval_ns
    start = -(-(first_seq + warmup) // epoch) * epoch - first_seq
    return [run.rows(slice(at - warmup, at + epoch)) for at in range(start, len(run) - epoch + 1, epoch)]


def _idle(run: Series) -> float:
    return float((run.volume == 0).mean())


def _spread(items: Sequence[Item], count: int, key: Callable[[Item], float]) -> list[Item]:
    """Take `count` items, evenly from the greatest key to the least."""
    ordered = sorted(items, key=key, reverse=True)
    return [ordered[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _network(weights: lstm.Weights, models: reference.Models, x: NDArray[np.float32]) -> tuple[float, float, float]:
    """Compare folds [T, B, F] of raw features; return the greatest differences of y, h and c, c over max(1, |c|)."""
    h, c = weights.zeros(x.shape[1]), weights.zeros(x.shape[1])
    before: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(models)
    worst_y = worst_h = worst_c = 0.0
    for begin in range(0, len(x), CHUNK):
        part = x[begin : begin + CHUNK]
        outputs, hidden = _served(weights, part, h, c)
        scaled = torch.from_numpy(reference.normalise(weights, part))
        for m, (rnn, head) in enumerate(models):
            inputs = scaled.to(head.weight.dtype)
            with torch.no_grad():
                shown, state = rnn(inputs.swapaxes(0, 1) if rnn.batch_first else inputs, before[m])
                shown = shown.swapaxes(0, 1) if rnn.batch_first else shown
                worst_y = max(worst_y, _gap(outputs[:, :, m], head(shown)).max())
            before[m] = state
            last_h, last_c = (kept[:, m].swapaxes(0, 1) for kept in (h, c))
            worst_h = max(worst_h, _gap(hidden[:, :, m], shown).max(), _gap(last_h, state[0]).max())
            size = np.maximum(1.0, np.abs(state[1].double().numpy()))
            worst_c = max(worst_c, (_gap(last_c, state[1]) / size).max())
    return float(worst_y), float(worst_h), float(worst_c)


def _served(
    weights: lstm.Weights, x: NDArray[np.float32], h: NDArray[np.float32], c: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Step folds [T, B, F] as the daemon does, h and c in place; return outputs and the last layer's h per candle."""
    y = weights.answers(x.shape[1])
    outputs, hidden = [], []
    for row in x:
        lstm.step(weights, row, h, c, y)
        outputs.append(y.copy())
        hidden.append(h[:, :, -1].copy())
    return np.stack(outputs), np.stack(hidden)


def _gap(served: NDArray[np.float32], expected: torch.Tensor) -> NDArray[np.float64]:
    gap: NDArray[np.float64] = np.abs(served.astype(np.float64) - expected.double().numpy())
    return gap


def _streamed(run: Series, expected: NDArray[np.float32]) -> float:
    state = features.new_state()
    x, raw = np.empty((len(run), features.N_FEATURES), np.float32), np.empty(features.N_INDICATORS)
    for t in range(len(run)):
        features.update(
            state, run.open[t], run.high[t], run.low[t], run.close[t], run.volume[t],
            run.close_time_ns[t], run.interval_ns, x[t], raw,
        )  # fmt: skip
    return float(np.abs(x - expected).max())
