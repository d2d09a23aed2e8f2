"""The network in torch: an LSTM over normalised features, and per horizon three linear heads on its hidden state.

The heads factorise the question: is a barrier touched at all (predictable), which one given a touch (hardly), and how
large the variance will be (predictable). Output order, per horizon: touch logit, direction logit, log variance ratio.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.labels import Labels

HEADS = 3
TOUCH, DIRECTION, VARIANCE = range(HEADS)
State = tuple[Tensor, Tensor]


class Normaliser(NamedTuple):
    """Feature means and inverse deviations of the training rows, and where the result is cut off."""

    mean: NDArray[np.float32]
    inv_std: NDArray[np.float32]
    clip: float

    @classmethod
    def fit(cls, rows: NDArray[np.float32], *, clip: float) -> "Normaliser":
        """Measure training rows [n, F]; a feature that never changes is left at zero."""
        mean, std = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
        inverse = np.where(std > 1e-6, 1.0 / np.maximum(std, 1e-6), 0.0)
        return cls(mean.astype(np.float32), inverse.astype(np.float32), clip)

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalise in the order of the live kernel: subtract, multiply, clip."""
        scaled: NDArray[np.float32] = np.clip(
            (x - self.mean) * self.inv_std, np.float32(-self.clip), np.float32(self.clip)
        )
        return scaled


class Network(nn.Module):
    """One member of the ensemble."""

    def __init__(self, *, inputs: int, hidden: int, layers: int, horizons: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, layers)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.Linear(hidden, HEADS * horizons)
        for name, weight in self.lstm.named_parameters():
            if "weight_hh" in name:
                for gate in weight.chunk(4):
                    nn.init.orthogonal_(gate)
            elif "bias_ih" in name:
                # An open forget gate lets the state live long enough to learn what to keep (Jozefowicz et al. 2015).
                nn.init.zeros_(weight)
                weight.data[hidden : 2 * hidden] = 1.0
            elif "bias_hh" in name:
                nn.init.zeros_(weight)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map normalised features [T, B, F] and a state to outputs [T, B, K, 3] and the state after."""
        hidden, state = self.lstm(x, state)
        outputs: Tensor = self.heads(self.dropout(hidden))
        return outputs.view(*outputs.shape[:2], -1, HEADS), state


@dataclass(frozen=True, slots=True)
class Targets:
    """Labels of a chunk as tensors [T, B, K]; `weight` is 0 where a label may not be used."""

    weight: Tensor
    touched: Tensor
    up: Tensor
    log_ratio: Tensor

    @classmethod
    def of(cls, labels: Labels, usable: NDArray[np.bool_]) -> "Targets":
        """Lay out labels [B, T, K] time first."""
        return cls(*(
            torch.from_numpy(np.ascontiguousarray(a.swapaxes(0, 1), dtype=np.float32))
            for a in (usable, labels.touched, labels.up, labels.log_ratio)
        ))  # fmt: skip

    def to(self, device: torch.device) -> "Targets":
        """Move to a device."""
        return Targets(*(t.to(device) for t in (self.weight, self.touched, self.up, self.log_ratio)))

    def chunk(self, begin: int, end: int) -> "Targets":
        """Return a part in time."""
        return Targets(*(t[begin:end] for t in (self.weight, self.touched, self.up, self.log_ratio)))

    def lanes(self, index: Tensor) -> "Targets":
        """Return some of the epochs."""
        return Targets(*(t[:, index] for t in (self.weight, self.touched, self.up, self.log_ratio)))


def head_losses(outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Sum each head's loss over rows; return sums and weights, both [K, 3].

    Touch and direction are binary log losses (direction over touched rows), whose sum is the three-class log loss;
    variance is a Huber loss, since an empty hour must not rule the mean.
    """
    on_touch = targets.weight * targets.touched
    touch = functional.binary_cross_entropy_with_logits(outputs[..., TOUCH], targets.touched, reduction="none")
    side = functional.binary_cross_entropy_with_logits(outputs[..., DIRECTION], targets.up, reduction="none")
    variance = functional.huber_loss(outputs[..., VARIANCE], targets.log_ratio, reduction="none")
    sums = [
        (loss * w).sum((0, 1)) for loss, w in ((touch, targets.weight), (side, on_touch), (variance, targets.weight))
    ]
    weights = [w.sum((0, 1)) for w in (targets.weight, on_touch, targets.weight)]
    return torch.stack(sums, -1), torch.stack(weights, -1)


@torch.no_grad()
def run(network: Network, x: Tensor, *, warmup: int, lanes: int = 128) -> Tensor:
    """Run whole epochs x [W+E, N, F] from a zero state; return outputs [E, N, K, 3]."""
    network.eval()
    parts = [network(x[:, i : i + lanes])[0][warmup:] for i in range(0, x.shape[1], lanes)]
    return torch.cat(parts, dim=1)
