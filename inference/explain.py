"""What happened inside one step: gates, candidate and memory of each unit, in plain numpy.

For people and for tests; slow beside `lstm.step` and equal to it within float32 rounding.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.lstm import F32, Weights

F64 = NDArray[np.float64]


class Gates(NamedTuple):
    """One step of every member and layer; each array is float64 [M, L, H]."""

    input: F64
    """How much of the candidate is written, 0 to 1."""
    forget: F64
    """How much of the cell is kept, 0 to 1."""
    candidate: F64
    """What would be written, −1 to 1."""
    output: F64
    """How much of the cell is shown, 0 to 1."""
    cell: F64
    """The cell state after the step."""
    hidden: F64
    """The hidden state after the step, output × tanh(cell)."""


def explain(weights: Weights, x: F32, h: F32, c: F32) -> Gates:
    """Take one step apart: raw features x [F] met the state h, c [M, L, H], which is left as it is."""
    result = Gates(*(np.empty((weights.members, weights.layers, weights.hidden)) for _ in Gates._fields))
    scaled = np.clip((x - weights.mean) * weights.inv_std, -weights.clip, weights.clip).astype(np.float64)
    for m in range(weights.members):
        below = scaled
        for layer in range(weights.layers):
            into = weights.first[m] if layer == 0 else weights.deeper[m, layer - 1]
            sums = into @ below + weights.recurrent[m, layer] @ h[m, layer].astype(np.float64) + weights.bias[m, layer]
            i, f, g, o = np.split(sums, 4)
            i, f, g, o = _logistic(i), _logistic(f), np.tanh(g), _logistic(o)
            cell = f * c[m, layer] + i * g
            below = o * np.tanh(cell)
            for array, value in zip(result, (i, f, g, o, cell, below), strict=True):
                array[m, layer] = value
    return result


def _logistic(x: F64) -> F64:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def mean_forget(weights: Weights, x: F32) -> F64:
    """Fold raw features [T, F] from the zero state and return each unit's mean forget gate, [M, L, H]."""
    h, c = weights.zeros(1)[0], weights.zeros(1)[0]
    total = np.zeros(h.shape)
    for row in x:
        gates = explain(weights, row, h, c)
        h, c = gates.hidden.astype(np.float32), gates.cell.astype(np.float32)
        total += gates.forget
    return total / len(x)


def half_life(forget: F64) -> F64:
    """Return after how many candles half of a memory is left, from the mean forget gate: ln ½ / ln f."""
    return np.asarray(np.log(0.5) / np.log(np.clip(forget, 1e-12, 1.0 - 1e-12)))
