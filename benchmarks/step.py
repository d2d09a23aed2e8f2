"""How long does one candle take through the model, beside re-running a window and beside reading the weights once?

python -m benchmarks.step [--rounds 20]
"""

import argparse
import time
import tracemalloc

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks import harness, networks
from benchmarks.harness import Row
from inference import lstm
from inference.lstm import Weights

CASES = {  # features, layers, hidden, window
    "1x32": ("16 → 1×32", 16, 1, 32, 64),
    "2x64": ("16 → 2×64", 16, 2, 64, 64),
    "lstm_a": ("STAC-ML LSTM_A: 100 → 2×100", 100, 2, 100, 50),
    "lstm_b": ("STAC-ML LSTM_B: 250 → 3×200", 250, 3, 200, 100),
}
REACH = {"lstm_a.window_onnxruntime": 50.0, "lstm_a.step_onnxruntime": 5.0}
REACH |= {
    f"{key}.{what}": least for key in CASES for what, least in (("weights", 0.5), ("p99", 1 / 1.5), ("allocated", 1.0))
}
CAVEATS = (
    "a carried step and a window answer the same question only where the state is worth carrying",
    "one thread for us; onnxruntime with one and with as many as it likes, a step also with its arrays bound before",
    "of a peer's variants the fastest counts; torch on one thread, in inference mode: more make it slower here",
    "every figure includes the call from Python, that of reading the weights too; weights are random, inputs noise",
    "LSTM_B's weights (4 MB) may not fit the second cache level: then every contestant waits for the third",
    "the memory taken is what tracemalloc saw at the most: a few hundred bytes of the loop that counts; it misses",
    "what numba takes and gives back in C for each array of a call",
    "p99 over p50 is the median over blocks of 1,000 steps: the slowest percent of a shared machine is its neighbours'",
)
BLOCKS, BLOCK = 41, 1000


@njit(error_model="numpy")
def _read(words: NDArray[np.int64]) -> int:
    found = np.int64(0)
    for at in range(len(words)):  # becomes wide loads
        found ^= words[at]
    return found


def stepper(weights: Weights) -> networks.Call:
    x, h, c, y = networks.noise(1, weights.features), weights.zeros(1), weights.zeros(1), weights.answers(1)
    return lambda: lstm.step(weights, x, h, c, y)


def contestants(weights: Weights, window: int) -> dict[str, networks.Call]:
    """Return what to call by name; what follows a slash tells variants of one contestant apart."""
    words = weights._packed.view(np.int64)
    tasks = {"ours": stepper(weights), "weights": lambda: _read(words)}
    for threads in (1, 0):
        name = f"window_onnxruntime/{threads}"
        tasks[name] = networks.onnxs(weights, steps=window, batch=1, carried=False, threads=threads)
        for bound in (False, True):
            name = f"step_onnxruntime/{threads}{bound}"
            tasks[name] = networks.onnxs(weights, steps=1, batch=1, carried=True, threads=threads, bound=bound)
    tasks["window_torch"] = networks.torchs(weights, steps=window, batch=1)
    tasks["step_torch"] = networks.torchs(weights, steps=1, batch=1)
    return tasks


WORDS = {
    "window_onnxruntime": "onnxruntime, the window", "window_torch": "torch, the window",
    "step_onnxruntime": "onnxruntime, one step", "step_torch": "torch, one step", "weights": "reading the weights once",
}  # fmt: skip


def spread(weights: Weights) -> tuple[float, float]:
    """Return p50 and p99 in µs of a step timed by itself, medians over blocks."""
    step, taken = stepper(weights), np.empty((BLOCKS, BLOCK))
    for block in taken:
        for at in range(BLOCK):
            began = time.perf_counter_ns()
            step()
            block[at] = time.perf_counter_ns() - began
    middle, late = np.quantile(taken, [0.5, 0.99], axis=1) / 1e3
    p50 = float(np.median(middle))
    return p50, p50 * float(np.median(late / middle))


def allocated(weights: Weights) -> int:
    """Return the bytes that Python and numpy took hold of at the most during a thousand steps."""
    step = stepper(weights)
    step()
    tracemalloc.start()
    step()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(BLOCK):
        step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - before


def rows_of(key: str, rounds: int) -> list[Row]:
    what, features, layers, hidden, window = CASES[key]
    weights = networks.weights_of(inputs=features, layers=layers, hidden=hidden)
    turns = {name: (call, networks.often(call)) for name, call in contestants(weights, window).items()}
    taken = harness.turns(turns, rounds)
    rows = []
    for name, beside in WORDS.items():
        said = beside.replace("window", f"window of {window}")
        reach = REACH.get(f"{key}.{name}")
        rows.append(networks.beside(f"step.{key}.{name}", what, taken, name, said, reach))
    p50, p99 = spread(weights)
    rows.append(harness.faster(f"step.{key}.p99", f"{what}, p99", p99, p50, "p50", "µs", REACH.get(f"{key}.p99")))
    took = allocated(weights)
    rows.append(
        Row(
            key=f"step.{key}.allocated", what=f"{what}, memory taken in 1,000 steps", ours=took, other=0, beside="none",
            unit="B", ratio=float(took < BLOCK), reach=REACH.get(f"{key}.allocated"),
        )
    )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns each contestant takes")
    rounds = parser.parse_args().rounds
    rows = [row for key in CASES for row in rows_of(key, rounds)]
    harness.publish("step", "One carried step of one market, through Python", CAVEATS, rows)


if __name__ == "__main__":
    main()
