"""What the benchmarks share: contestants that take turns, and results that are ratios of figures of one run."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

RESULTS = Path(__file__).parent / "results"
LATEST = RESULTS / "latest.json"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of ours beside a peer's or a limit's, both measured in the same run."""

    key: str
    """Stable name, such as ``step.lstm_a.window``: floors go by it."""
    what: str
    """The case in words."""
    ours: float
    other: float
    """The peer's figure or the limit, in the same unit."""
    beside: str
    """Which peer or limit that is."""
    unit: str
    ratio: float
    """How good ours is: more is better, whichever way round the division goes."""
    reach: float | None = None
    """The ratio to reach; None where the figure only informs."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one script found."""

    script: str
    question: str
    caveats: list[str]
    rows: list[Row]
    machine: str
    taken_at: str


def faster(key: str, what: str, ours: float, other: float, beside: str, unit: str, reach: float | None = None) -> Row:
    """Set a cost of ours (time, memory: less is better) beside another's."""
    return Row(key=key, what=what, ours=ours, other=other, beside=beside, unit=unit, ratio=other / ours, reach=reach)


def more(key: str, what: str, ours: float, other: float, beside: str, unit: str, reach: float | None = None) -> Row:
    """Set a rate of ours (more is better) beside another's."""
    return Row(key=key, what=what, ours=ours, other=other, beside=beside, unit=unit, ratio=ours / other, reach=reach)


def turns(tasks: Mapping[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, list[float]]:
    """Let all contestants take turns; return each one's seconds a call, round by round.

    `tasks`: what to call, and how often a turn. So a disturbance meets all of them alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for call, _ in tasks.values():
        call()
    for _ in range(rounds):
        for name, (call, number) in tasks.items():
            gc.collect()
            began = time.perf_counter()
            for _ in range(number):
                call()
            taken[name].append((time.perf_counter() - began) / number)
    return taken


def medians(tasks: Mapping[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Let all contestants take turns; return each one's median seconds a call."""
    return {name: statistics.median(values) for name, values in turns(tasks, rounds).items()}


def ratio(taken: Mapping[str, Sequence[float]], ours: str, other: str) -> float:
    """Return the median over rounds of how much longer `other` took: each round compares neighbours in time."""
    return statistics.median(b / a for a, b in zip(taken[ours], taken[other], strict=True))


def publish(script: str, question: str, caveats: Sequence[str], rows: Sequence[Row]) -> None:
    """Print what was found, and keep it in the file of the latest results in place of this script's earlier ones."""
    known = msgspec.json.decode(LATEST.read_bytes(), type=dict[str, Report]) if LATEST.exists() else {}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    taken_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    known[script] = Report(
        script=script, question=question, caveats=list(caveats), rows=list(rows), machine=machine, taken_at=taken_at
    )
    RESULTS.mkdir(exist_ok=True)
    LATEST.write_bytes(msgspec.json.format(msgspec.json.encode(known, order="sorted")) + b"\n")
    print(f"\n{question}")
    for caveat in caveats:
        print(f"  ({caveat})")
    for row in rows:
        missed = "" if row.reach is None or row.ratio >= row.reach else f"  short of {row.reach:g}"
        figures = f"{row.ours:12.4g} {row.unit:6s} beside {row.other:10.4g} {row.beside}"
        print(f"  {row.what:60s} {figures}: {row.ratio:.3g}{missed}")
