"""Run many seeds and tell how often each kind of fault struck; a seed that diverges is named with what repeats it."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

REPEAT = "PYTHONHASHSEED=0 .venv/bin/python -m tests.simulation --seed {seed} --trace"


class Result(NamedTuple):
    """What a worker hands back."""

    seed: int
    said: str
    """What was noticed; empty where nothing was."""
    fired: Counter[str]
    lives: int
    whole_after_s: float
    trace: list[str]


def one(seed: int) -> Result:
    """Run a seed."""
    from tests.simulation import run

    try:
        found = run.simulate(seed)
    except run.Diverged as error:
        lines = [f"{at_s:10.4f} {what} {more}" for at_s, what, more in run.LAST]
        return Result(seed, str(error), Counter(), 0, 0.0, lines)
    return Result(seed, "", found.fired, found.lives, found.whole_after_s, [])


def all_of(seeds: range, jobs: int) -> Iterator[Result]:
    """Run seeds, several at once."""
    if jobs == 1 or len(seeds) == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(one, seeds, chunksize=4)


def main() -> int:
    """Read the arguments; return 1 if a seed diverged."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many, default 50")
    parser.add_argument("--first", type=int, default=0, help="the first of them, default 0")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, default one a core")
    parser.add_argument("--trace", action="store_true", help="print what happened in a run that diverged")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds) if asked.seed is None else range(asked.seed, asked.seed + 1)
    began_s, tally, lives, diverged, slowest_s = time.monotonic(), Counter[str](), 0, 0, 0.0
    for result in all_of(seeds, asked.jobs):
        tally += result.fired
        lives += result.lives
        slowest_s = max(slowest_s, result.whole_after_s)
        if result.said:
            diverged += 1
            print(f"seed {result.seed}: {result.said}\n  {REPEAT.format(seed=result.seed)}", flush=True)
            print("\n".join(result.trace if asked.trace else []))
    took_s = time.monotonic() - began_s
    print(f"{len(seeds)} schedules, {diverged} diverged; {lives} lives of the daemon; {took_s:.0f} s")
    print(f"all was whole {slowest_s:.0f} s after the last fault at the latest")
    for kind, times in sorted(tally.items()):
        print(f"  {kind:20} {times:6}")
    return int(diverged > 0)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of names is part of a run
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"PYTHONHASHSEED": "0"})
    raise SystemExit(main())
