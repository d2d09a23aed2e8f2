"""The same ensemble in torch: what the compiled step is measured against, and the way weights come from training.

The only module of this package that imports torch; the runtime does not import it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from inference.lstm import F32, Weights

Models = Sequence[tuple[nn.LSTM, nn.Linear]]
"""One LSTM and its head per member."""


def to_torch(weights: Weights) -> list[tuple[nn.LSTM, nn.Linear]]:
    """Build one LSTM (batch first) and its head per member."""
    return [_member(weights, m) for m in range(weights.members)]


def _member(weights: Weights, m: int) -> tuple[nn.LSTM, nn.Linear]:
    lstm = nn.LSTM(weights.features, weights.hidden, weights.layers, batch_first=True)
    head = nn.Linear(weights.hidden, weights.outputs)
    state = {}
    for layer in range(weights.layers):
        below = weights.first[m] if layer == 0 else weights.deeper[m, layer - 1]
        state[f"weight_ih_l{layer}"] = torch.from_numpy(below.copy())
        state[f"weight_hh_l{layer}"] = torch.from_numpy(weights.recurrent[m, layer].copy())
        state[f"bias_ih_l{layer}"] = torch.from_numpy(weights.bias[m, layer].copy())
        state[f"bias_hh_l{layer}"] = torch.zeros(4 * weights.hidden)
    lstm.load_state_dict(state)
    head.load_state_dict(
        {"weight": torch.from_numpy(weights.head[m].copy()), "bias": torch.from_numpy(weights.head_bias[m].copy())}
    )
    return lstm, head


def from_torch(models: Models, *, mean: F32, inv_std: F32, clip: float) -> Weights:
    """Make weights from one LSTM and one head per member; all members have the same sizes."""
    layers = models[0][0].num_layers
    hidden = models[0][0].hidden_size

    def stacked(name: str, layers: range) -> F32:
        rows = [[_array(getattr(lstm, f"{name}_l{layer}")) for layer in layers] for lstm, _ in models]
        return np.array(rows, np.float32)

    every, upper = range(layers), range(1, layers)
    none = np.zeros((len(models), 0, 4 * hidden, hidden), np.float32)
    return Weights(
        first=stacked("weight_ih", range(1))[:, 0],
        deeper=stacked("weight_ih", upper) if upper else none,
        recurrent=stacked("weight_hh", every),
        bias=stacked("bias_ih", every) + stacked("bias_hh", every),
        head=np.stack([_array(head.weight) for _, head in models]),
        head_bias=np.stack([_array(head.bias) for _, head in models]),
        mean=np.asarray(mean, np.float32),
        inv_std=np.asarray(inv_std, np.float32),
        clip=np.asarray(clip, np.float32),
    )


def _array(tensor: torch.Tensor) -> F32:
    return tensor.detach().cpu().numpy().astype(np.float32)


def normalise(weights: Weights, x: F32) -> F32:
    """Normalise raw features [..., F] as the compiled step does."""
    scaled: F32 = np.clip((x - weights.mean) * weights.inv_std, -weights.clip, weights.clip)
    return scaled


def full_pass(weights: Weights, x: F32) -> tuple[F32, F32, F32]:
    """Run raw features [T, F] of one market from the zero state through `torch.nn.LSTM` in one call.

    Returns:
        Raw outputs [T, M, O] and the last h and c, [M, L, H].

    """
    sequence = torch.from_numpy(normalise(weights, x))[None]
    outputs, hiddens, cells = [], [], []
    with torch.no_grad():
        for lstm, head in to_torch(weights):
            hidden, (h, c) = lstm(sequence)
            outputs.append(head(hidden)[0].numpy())
            hiddens.append(h[:, 0].numpy())
            cells.append(c[:, 0].numpy())
    return np.stack(outputs, axis=1), np.stack(hiddens), np.stack(cells)


def step(models: Models, weights: Weights, x: F32, h: F32, c: F32) -> tuple[F32, F32, F32]:
    """Advance B markets by one candle: raw features [B, F], h and c [B, M, L, H], none of which is changed.

    Keeping the state that comes back makes it a step; throwing it away, a peek.

    Returns:
        Raw outputs [B, M, O] and the state after the candle.

    """
    candle = torch.from_numpy(normalise(weights, x))[:, None]
    outputs, hiddens, cells = [], [], []
    with torch.no_grad():
        for m, (lstm, head) in enumerate(models):
            before = tuple(torch.from_numpy(state[:, m].swapaxes(0, 1).copy()) for state in (h, c))
            hidden, (after_h, after_c) = lstm(candle, before)
            outputs.append(head(hidden[:, 0]).numpy())
            hiddens.append(after_h.numpy().swapaxes(0, 1))
            cells.append(after_c.numpy().swapaxes(0, 1))
    return np.stack(outputs, axis=1), np.stack(hiddens, axis=1), np.stack(cells, axis=1)
