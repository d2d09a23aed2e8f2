"""How long do many markets take at a candle's close, in one batch that gives the bits of a market alone?

python -m benchmarks.batch [--rounds 15]
"""

import argparse

import torch

from benchmarks import harness, networks
from benchmarks.harness import Row
from inference import lstm
from inference.kernels import reference
from inference.lstm import Weights

MARKETS = (500, 1000, 3000)
FEATURES, LAYERS, HIDDEN = 16, 2, 64
CAVEATS = (
    "ours runs on one core and gives every market the very bits that it has alone; none of the others promises that",
    "onnxruntime, torch and the matrix product each with one thread and with all cores, and the faster one counts",
    "sgemm has the flops of the gates' sums only: no exponentials, no state written",
    "one candle of a 16 → 2×64 network; weights are random and inputs noise",
)


def apart(weights: Weights, markets: int) -> tuple[int, int]:
    """Return how many markets of a batch have other bits than alone: ours, torch's."""
    x, h, c, y = networks.noise(markets, FEATURES), *(weights.zeros(markets) for _ in "hc"), weights.answers(markets)
    rnn, head = reference.to_torch(weights)[0]
    with torch.inference_mode():
        together = head(rnn(torch.from_numpy(x)[:, None])[0][:, -1]).numpy()
        alone = [head(rnn(torch.from_numpy(x[[b], None]))[0][:, -1]).numpy() for b in range(markets)]
    lstm.step(weights, x, h, c, y)
    differ = 0
    for b in range(markets):
        one = weights.zeros(1), weights.zeros(1), weights.answers(1)
        lstm.step(weights, x[[b]], *one)
        differ += any(mine.tobytes() != all_[[b]].tobytes() for mine, all_ in zip(one, (h, c, y), strict=True))
    return differ, sum(mine.tobytes() != together[[b]].tobytes() for b, mine in enumerate(alone))


def contestants(weights: Weights, markets: int) -> dict[str, tuple[networks.Call, int]]:
    x, h, c, y = networks.noise(markets, FEATURES), *(weights.zeros(markets) for _ in "hc"), weights.answers(markets)
    tasks: dict[str, tuple[networks.Call, int]] = {"ours": (lambda: lstm.step(weights, x, h, c, y), 3)}
    for threads in (1, 0):
        tasks[f"onnxruntime/{threads}"] = (
            networks.onnxs(weights, steps=1, batch=markets, carried=True, threads=threads), 3,
        )  # fmt: skip
    for threads in (1, torch.get_num_threads()):
        tasks[f"torch/{threads}"] = networks.torchs(weights, steps=1, batch=markets, threads=threads), 3
        tasks[f"sgemm/{threads}"] = sgemm(markets, threads), 3
    return tasks


def sgemm(markets: int, threads: int) -> networks.Call:
    """Multiply as the gates of all layers do, one product a layer."""
    sizes = [(FEATURES + HIDDEN, 4 * HIDDEN), *[(2 * HIDDEN, 4 * HIDDEN)] * (LAYERS - 1)]
    work = [
        (torch.randn(markets, rows), torch.randn(rows, columns), torch.empty(markets, columns))
        for rows, columns in sizes
    ]

    def run() -> None:
        torch.set_num_threads(threads)
        for a, b, out in work:
            torch.mm(a, b, out=out)

    return run


def rows_of(weights: Weights, markets: int, rounds: int) -> list[Row]:
    taken = harness.turns(contestants(weights, markets), rounds)
    return [
        networks.beside(f"batch.{markets}.{name}", f"{markets} markets at once", taken, name, name, reach)
        for name, reach in (("onnxruntime", 1.0), ("torch", 1.0), ("sgemm", 1 / 3))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns each contestant takes")
    rounds = parser.parse_args().rounds
    weights = networks.weights_of(inputs=FEATURES, layers=LAYERS, hidden=HIDDEN)
    rows = [row for markets in MARKETS for row in rows_of(weights, markets, rounds)]
    mine, theirs = apart(weights, MARKETS[1])
    rows.append(
        Row(
            key="batch.invariance", what=f"of {MARKETS[1]} markets, those with other bits than alone", ours=mine,
            other=theirs, beside="torch", unit="", ratio=float(mine == 0), reach=1.0,
        )
    )  # fmt: skip
    harness.publish("batch", "Many markets at a candle's close, equal to the bit for any batch", CAVEATS, rows)


if __name__ == "__main__":
    main()
