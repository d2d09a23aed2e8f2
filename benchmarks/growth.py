"""How does the step's cost grow with the hidden size and with the markets?

python -m benchmarks.growth [--rounds 15]
"""

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks import harness, networks
from benchmarks.harness import Row
from inference import lstm
from inference.lstm import Weights

HIDDEN = (32, 64, 128, 256, 512)
MARKETS = (1, 10, 100, 1000, 10_000)
FEATURES = 16
CAVEATS = (
    "an exponent of 1 is linear: the slope of the logarithms, over the whole range and of its steepest step",
    "hidden size: cost over the bytes of one layer's weights, which grow with its square",
    "past the second cache level (2 MB here, passed at 512 units) weights come from the third: a steeper step",
    "markets: 2×64, one candle of all in one call; with 10,000 the state itself (10 MB) no longer fits the caches",
)


def batch(weights: Weights, markets: int) -> tuple[networks.Call, int]:
    x, h, c, y = networks.noise(markets, FEATURES), *(weights.zeros(markets) for _ in "hc"), weights.answers(markets)
    return lambda: lstm.step(weights, x, h, c, y), 1 + 200 // markets


def exponents(key: str, what: str, sizes: Sequence[float], taken: Sequence[float]) -> list[Row]:
    """Set the exponents over the whole range and of the steepest step beside 1, the linear one."""
    x, y = np.log(sizes), np.log(taken)
    steps = np.diff(y) / np.diff(x)
    overall = float(np.polyfit(x, y, 1)[0])
    return [
        harness.faster(f"growth.{key}", f"{what}, whole range", overall, 1.0, "linear", "", 1.0),
        harness.faster(f"growth.{key}.steepest", f"{what}, steepest step", float(steps.max()), 1.0, "linear", ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns each contestant takes")
    rounds = parser.parse_args().rounds
    networks_by_size = {n: networks.weights_of(inputs=FEATURES, layers=1, hidden=n) for n in HIDDEN}
    taken = harness.medians({str(n): batch(weights, 1) for n, weights in networks_by_size.items()}, rounds)
    sizes = [weights._packed.nbytes for weights in networks_by_size.values()]
    rows = exponents("hidden", f"hidden {HIDDEN[0]} → {HIDDEN[-1]}, by bytes of weights", sizes, list(taken.values()))
    weights = networks.weights_of(inputs=FEATURES, layers=2, hidden=64)
    taken = harness.medians({str(n): batch(weights, n) for n in MARKETS}, rounds)
    rows += exponents("markets", f"markets {MARKETS[0]} → {MARKETS[-1]:,}", MARKETS, list(taken.values()))
    harness.publish("growth", "How the step's cost grows", CAVEATS, rows)


if __name__ == "__main__":
    main()
