"""How long does one candle take through the model, beside what torch needs for the same?

Caveats first. Absolute figures are this machine's and move with whatever else runs on it; compare within one run. Each
figure is the median over rounds in which all contestants take turns, so that a disturbance meets all of them. torch
runs on one thread: at these sizes more threads make it slower. The kernel's figures include the call from Python, as
the daemon pays it. Weights are random and inputs are noise: neither decides the time. A carried step and a window of 50
answer the same question only where the state is worth carrying; STAC-ML's published figures are for the window.

    python benchmarks/step.py [--rounds 40]
"""

import argparse
import statistics
import timeit
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from inference import features, lstm
from inference.features import N_FEATURES, N_INDICATORS
from inference.kernels import reference
from inference.lstm import Weights

WINDOW = 50
CASES = {  # members, layers, hidden, features, outputs
    "STAC-ML LSTM_A: 100 features, 2×100": (1, 2, 100, 100, 3),
    f"one member: {N_FEATURES} features, 1×64": (1, 1, 64, N_FEATURES, 12),
    f"an ensemble of 5: {N_FEATURES} features, 1×64": (5, 1, 64, N_FEATURES, 12),
}
BATCHES = (1, 4, 64)
Task = tuple[Callable[[], object], int]
"""What to call, and how often a round."""


def weights_of(members: int, layers: int, hidden: int, inputs: int, outputs: int) -> Weights:
    models = [(nn.LSTM(inputs, hidden, layers), nn.Linear(hidden, outputs)) for _ in range(members)]
    none, one = np.zeros(inputs, np.float32), np.ones(inputs, np.float32)
    return reference.from_torch(models, mean=none, inv_std=one, clip=5.0)


def ours(weights: Weights, batch: int, call: Callable[..., None]) -> Task:
    x = np.random.default_rng(0).normal(size=(batch, weights.features)).astype(np.float32)
    h, c, y = weights.zeros(batch), weights.zeros(batch), weights.answers(batch)
    return lambda: call(weights, x, h, c, y), 1 + 200 // batch


def torchs(weights: Weights, steps: int) -> Task:
    """One pass over `steps` candles of one market, all members, from a given state."""
    models = reference.to_torch(weights)
    x = torch.randn(1, steps, weights.features)
    state = (torch.zeros(weights.layers, 1, weights.hidden),) * 2

    def run() -> None:
        for rnn, head in models:
            head(rnn(x, state)[0][:, -1])

    return run, 4


def one_candle_of_features() -> Task:
    state, x, raw = features.new_state(), np.empty(N_FEATURES, np.float32), np.empty(N_INDICATORS)
    return lambda: features.update(state, 1.0, 1.1, 0.9, 1.05, 3.0, 60 * 10**9, 60 * 10**9, x, raw), 200


def medians_us(tasks: dict[str, Task], rounds: int) -> dict[str, float]:
    """Let all take turns; return the median time of a call."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for run, _ in tasks.values():
        run()
    for _ in range(rounds):
        for name, (run, number) in tasks.items():
            taken[name].append(timeit.timeit(run, number=number) / number * 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}


def report(title: str, weights: Weights, rounds: int) -> None:
    tasks = {f"step, {batch} markets": ours(weights, batch, lstm.step) for batch in BATCHES}
    tasks["peek, 1 market"] = ours(weights, 1, lstm.peek)
    tasks["torch, one step"] = torchs(weights, 1)
    tasks[f"torch, window of {WINDOW}"] = torchs(weights, WINDOW)
    taken = medians_us(tasks, rounds)
    base = taken["step, 1 markets"]
    print(f"\n{title}")
    for name, value in taken.items():
        print(f"  {name:22s} {value:9.2f} µs   × {value / base:7.2f}")
    print(f"  a market in a batch of {BATCHES[-1]}: {taken[f'step, {BATCHES[-1]} markets'] / BATCHES[-1]:.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="turns each contestant takes")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        for title, sizes in CASES.items():
            report(title, weights_of(*sizes), rounds)
    taken = medians_us({"update": one_candle_of_features()}, rounds)["update"]
    print(f"\nfeatures of one candle  {taken:9.2f} µs")


if __name__ == "__main__":
    main()
