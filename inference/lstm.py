"""An ensemble of LSTMs advanced one candle at a time: the committed step, the peek, and the batch over markets.

The state of a market is (h, c); `step` folds a candle into it, `peek` answers without folding. Both run the same
compiled code (`kernels.fused`), whose results do not depend on the batch. `kernels.reference` is the same in torch.
"""

from dataclasses import dataclass, field, fields
from math import exp
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.kernels import fused
from inference.kernels.jit import jit

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
HEADS: Final = ("touch_logit", "direction_logit", "log_variance_ratio")
"""Outputs per horizon, in order; a member's outputs are all heads of the first horizon, then of the next."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """Weights of M members with L layers of H units over F features and O outputs, all float32.

    Gates are in torch's order i, f, g, o. Normalisation is inside: clip((raw − mean) × inv_std, ±clip).
    """

    first: F32
    """[M, 4H, F], input weights of the first layer."""
    deeper: F32
    """[M, L − 1, 4H, H], input weights of the layers above."""
    recurrent: F32
    """[M, L, 4H, H]."""
    bias: F32
    """[M, L, 4H], the sum of torch's two."""
    head: F32
    """[M, O, H]."""
    head_bias: F32
    """[M, O]."""
    mean: F32
    """[F]."""
    inv_std: F32
    """[F]; 0 silences a feature."""
    clip: F32
    """[], bound of a normalised feature."""
    _packed: F32 = field(init=False, repr=False)
    _scratch: F32 = field(init=False, repr=False)  # compiled code holds the interpreter's lock, so sharing it is safe

    def __post_init__(self) -> None:
        members, outputs, hidden = self.head.shape
        layers, features = self.bias.shape[1], self.mean.shape[0]
        wanted = {
            "first": (members, 4 * hidden, features), "deeper": (members, layers - 1, 4 * hidden, hidden),
            "recurrent": (members, layers, 4 * hidden, hidden), "bias": (members, layers, 4 * hidden),
            "head": (members, outputs, hidden), "head_bias": (members, outputs),
            "mean": (features,), "inv_std": (features,), "clip": (),
        }  # fmt: skip
        for name, shape in wanted.items():
            array: F32 = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"weights: {name} is {array.dtype}{list(array.shape)}, expected float32{list(shape)}")
            if not np.isfinite(array).all():
                raise ValueError(f"weights: {name} holds values that are not finite")
        scale = np.concatenate([self.mean, self.inv_std, self.clip[None]])
        packed = fused.pack(scale, self.first, self.deeper, self.recurrent, self.bias, self.head, self.head_bias)
        scratch = np.zeros(fused.scratch_size(hidden, features, outputs), np.float32)
        object.__setattr__(self, "_packed", packed)
        object.__setattr__(self, "_scratch", fused.aligned(scratch))

    @property
    def members(self) -> int:
        """M, the number of models whose answers are averaged."""
        return int(self.head.shape[0])

    @property
    def layers(self) -> int:
        """L."""
        return int(self.bias.shape[1])

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.head.shape[2])

    @property
    def features(self) -> int:
        """F."""
        return int(self.mean.shape[0])

    @property
    def outputs(self) -> int:
        """O, heads × horizons."""
        return int(self.head.shape[1])

    def tensors(self) -> dict[str, F32]:
        """Return the arrays by name, as an artifact stores them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @classmethod
    def from_tensors(cls, tensors: dict[str, F32]) -> "Weights":
        """Make weights from arrays by name.

        Raises:
            ValueError: a name is missing or unknown, a shape or type does not fit, or a value is not finite.

        """
        wanted = {f.name for f in fields(cls) if f.init}
        if set(tensors) != wanted:
            raise ValueError(f"weights: tensors {sorted(set(tensors) ^ wanted)} are missing or unknown")
        return cls(**tensors)

    def zeros(self, batch: int) -> F32:
        """Return h or c before the first candle of a fold, [batch, M, L, H]."""
        return np.zeros((batch, self.members, self.layers, self.hidden), np.float32)

    def answers(self, batch: int) -> F32:
        """Return room for raw outputs, [batch, M, O]."""
        return np.empty((batch, self.members, self.outputs), np.float32)


def step(weights: Weights, x: F32, h: F32, c: F32, y: F32) -> None:
    """Advance B markets by one candle in place.

    All arrays are float32 in C order: x [B, F] raw features, h and c [B, M, L, H]; y [B, M, O] receives the outputs.
    (Other layouts of x and y work too, but each is compiled on first use, which takes seconds.)

    Raises:
        ValueError: shapes do not belong together.
        numba.TypingError: h or c is not in C order or not of float32.

    """
    fused.run(weights._packed, weights._scratch, x, h, c, y, True)


def peek(weights: Weights, x: F32, h: F32, c: F32, y: F32) -> None:
    """Write to y what `step` would, to the bit, and leave h and c as they are."""
    fused.run(weights._packed, weights._scratch, x, h, c, y, False)


class Combined(NamedTuple):
    """The ensemble's answer, float64 [B, K] for K horizons."""

    p_touch: F64
    """Probability that either barrier is touched within the horizon."""
    p_up: F64
    """Probability that the upper one is first, given a touch."""
    log_variance_ratio: F64
    """log(realised variance over the horizon / (horizon × sigma²))."""


def combine(y: F32) -> Combined:
    """Average raw outputs [B, M, 3K] over members: probabilities and log variances, in float64, in order of members.

    Compiled loops, not numpy's: those may choose their arithmetic by the array's shape, and the batch must not show.
    """
    shape = (len(y), y.shape[2] // len(HEADS))
    combined = Combined(np.empty(shape), np.empty(shape), np.empty(shape))
    _combine(y, *combined)
    return combined


@jit
def _logistic(x: float) -> float:
    return 1.0 / (1.0 + exp(-x)) if x >= 0.0 else exp(x) / (1.0 + exp(x))  # neither overflows


@jit
def combine_one(y: F32, b: int, k: int) -> tuple[float, float, float]:
    """Return what `combine` does, of one market and one horizon, as plain numbers."""
    members = y.shape[1]
    touch = up = log_variance = 0.0
    for m in range(members):
        touch += _logistic(np.float64(y[b, m, 3 * k]))
        up += _logistic(np.float64(y[b, m, 3 * k + 1]))
        log_variance += np.float64(y[b, m, 3 * k + 2])
    return touch / members, up / members, log_variance / members


@jit
def _combine(y: F32, p_touch: F64, p_up: F64, log_variance_ratio: F64) -> None:
    for b in range(y.shape[0]):
        for k in range(p_touch.shape[1]):
            p_touch[b, k], p_up[b, k], log_variance_ratio[b, k] = combine_one(y, b, k)
