"""How far the live path is from training, measured on real candles: features and network, step by step."""

import numpy as np
from numpy.typing import NDArray

from inference import features, lstm
from inference.artifact import Parity
from inference.kernels import reference
from training.dataset import Series, fold_features

CANDLES = 10_240


def measure(weights: lstm.Weights, runs: list[Series], *, candles: int = CANDLES) -> Parity:
    """Step through the end of the longest run, at most `candles` candles, without a reset.

    Raw outputs are held against one pass of `torch.nn.LSTM`, features folded one candle at a time against features
    folded at once.
    """
    run = max(runs, key=len)
    run = run.rows(slice(-candles, None))
    x, _ = fold_features(run)
    return Parity(candles=len(run), step_vs_torch_max_abs=_network(weights, x), features_max_abs=_features(run, x))


def _network(weights: lstm.Weights, x: NDArray[np.float32]) -> float:
    expected, _, _ = reference.full_pass(weights, x)
    h, c, y = weights.zeros(1), weights.zeros(1), weights.answers(1)
    worst = 0.0
    for t in range(len(x)):
        lstm.step(weights, x[t : t + 1], h, c, y)
        worst = max(worst, float(np.abs(y[0] - expected[t]).max()))
    return worst


def _features(run: Series, expected: NDArray[np.float32]) -> float:
    state = features.new_state()
    x, raw = np.empty(features.N_FEATURES, np.float32), np.empty(features.N_INDICATORS)
    worst = 0.0
    for t in range(len(run)):
        features.update(
            state, run.open[t], run.high[t], run.low[t], run.close[t], run.volume[t],
            run.close_time_ns[t], run.interval_ns, x, raw,
        )  # fmt: skip
        worst = max(worst, float(np.abs(x - expected[t]).max()))
    return worst
