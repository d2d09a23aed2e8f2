"""Ensembles with weights of the usual size for a trained model, from torch's own initialiser."""

import numpy as np
import torch

from inference.features import N_FEATURES
from inference.kernels import reference
from inference.lstm import Weights

torch.set_num_threads(1)  # its threads wait for each other where cores are shared


def ensemble(
    *, members: int = 2, layers: int = 1, hidden: int = 24, inputs: int = N_FEATURES, outputs: int = 6, seed: int = 0,
    gain: float = 1.0,
) -> Weights:  # fmt: skip
    """Make random members; `gain` above 1 gives the saturated gates and long memories of a trained one."""
    random = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models = [(torch.nn.LSTM(inputs, hidden, layers), torch.nn.Linear(hidden, outputs)) for _ in range(members)]
    for lstm, _ in models:
        for parameter in lstm.parameters():
            parameter.data *= gain
    mean, inv_std = random.normal(0, 0.1, inputs), random.uniform(0.5, 2.0, inputs)
    return reference.from_torch(models, mean=mean.astype("f4"), inv_std=inv_std.astype("f4"), clip=5.0)
