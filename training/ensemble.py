"""Members into one set of weights, and its forecasts over whole epochs, in torch."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import lstm
from inference.kernels import reference
from inference.lstm import Combined
from training.member import Member
from training.model import DIRECTION, HEADS, Network, Normaliser
from training.recipe import Recipe


def pack(members: Sequence[Member], recipe: Recipe, normaliser: Normaliser) -> lstm.Weights:
    """Pack members as one ensemble.

    Some members also leave their weights as they were at the pass best for direction. Then the others' direction
    heads are silenced: an even chance from them is the shrinkage that the calibration measures and undoes.
    """
    specialists = [m.direction for m in members[: recipe.direction_members]]
    networks = [_network(m.main, recipe, normaliser, silent=bool(specialists)) for m in members]
    networks += [_network(weights, recipe, normaliser, silent=False) for weights in specialists]
    return reference.from_torch(
        [(n.lstm, n.heads) for n in networks], mean=normaliser.mean, inv_std=normaliser.inv_std, clip=normaliser.clip
    )


def _network(weights: dict[str, Tensor], recipe: Recipe, normaliser: Normaliser, *, silent: bool) -> Network:
    network = Network(
        inputs=len(normaliser.mean), hidden=recipe.hidden, layers=recipe.layers, horizons=len(recipe.horizons)
    )
    network.load_state_dict(weights)
    if silent:
        network.heads.weight.data[DIRECTION::HEADS] = 0.0
        network.heads.bias.data[DIRECTION::HEADS] = 0.0
    return network


@torch.no_grad()
def forecast(weights: lstm.Weights, x: NDArray[np.float32], *, warmup: int, lanes: int = 64) -> Combined:
    """Run whole epochs of raw features [N, W+E, F] from a zero state; return the ensemble's answers, each [N, E, K]."""
    members = reference.to_torch(weights)
    parts = []
    for begin in range(0, len(x), lanes):
        batch = torch.from_numpy(reference.normalise(weights, x[begin : begin + lanes]))
        outputs = np.stack([head(rnn(batch)[0][:, warmup:]).numpy() for rnn, head in members], axis=2)
        flat = lstm.combine(outputs.reshape(-1, *outputs.shape[2:]))
        parts.append([a.reshape(*outputs.shape[:2], -1) for a in flat])
    return Combined(*(np.concatenate(p) for p in zip(*parts, strict=True)))
