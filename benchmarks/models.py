"""Models of a stated size: the shipped one, or one of random weights, whose cost is the same as a trained one's."""

import numpy as np

from inference import artifact, lstm
from inference.artifact import Manifest, seal, sizes_of
from inference.engine import Model
from inference.features import N_FEATURES
from inference.signals import Rules

SHIPPED = "shipped"
_OUTPUTS = 3


def of(size: str) -> Model:
    """Return the model of a size such as ``2x64``, layers by hidden units; ``shipped`` is the package's own."""
    if size == SHIPPED:
        return Model(artifact.load(artifact.resolve("default")), Rules())
    layers, hidden = map(int, size.split("x"))
    rng = np.random.default_rng(1)

    def some(*shape: int) -> lstm.F32:
        return rng.normal(0.0, hidden**-0.5, shape).astype(np.float32)

    weights = lstm.Weights(
        first=some(1, 4 * hidden, N_FEATURES), deeper=some(1, layers - 1, 4 * hidden, hidden),
        recurrent=some(1, layers, 4 * hidden, hidden), bias=some(1, layers, 4 * hidden),
        head=some(1, _OUTPUTS, hidden), head_bias=some(1, _OUTPUTS), mean=np.zeros(N_FEATURES, np.float32),
        inv_std=np.ones(N_FEATURES, np.float32), clip=np.array(8.0, np.float32),
    )  # fmt: skip
    manifest = Manifest(
        name="random", created="2026-01-01T00:00:00Z", sizes=sizes_of(weights), specs=("1m",), horizons=(15,),
        signal_horizon={"1m": 15},
    )  # fmt: skip
    return Model(seal(weights, manifest), Rules())
