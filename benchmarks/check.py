"""Does every ratio of the latest results stand at or above its floor in floors.toml?

A floor lies about a quarter under what was measured: shared machines move that much, a mistake moves more. A floor
whose row is missing fails too.

    python -m benchmarks.check
"""

import sys
import tomllib
from pathlib import Path

import msgspec

from benchmarks.harness import LATEST, Report

FLOORS = Path(__file__).parent / "floors.toml"


def fallen(reports: dict[str, Report], floors: dict[str, dict[str, float]]) -> list[str]:
    """Say of each ratio that is under its floor, or was not measured, which one it is. Floors: script, key, ratio."""
    found = []
    for script, keys in floors.items():
        measured = {row.key: row.ratio for row in reports[script].rows} if script in reports else {}
        for name, floor in keys.items():
            key = f"{script}.{name}"
            if key not in measured:
                found.append(f"{key}: not measured, floor {floor:g}")
            elif not measured[key] >= floor:
                found.append(f"{key}: {measured[key]:.3g} is under its floor of {floor:g}")
    return found


def main() -> None:
    reports = msgspec.json.decode(LATEST.read_bytes(), type=dict[str, Report]) if LATEST.exists() else {}
    floors = tomllib.loads(FLOORS.read_text())
    found = fallen(reports, floors)
    for line in found:
        print(line)
    if found:
        sys.exit(1)
    print(f"{sum(map(len, floors.values()))} ratios stand at or above their floors")


if __name__ == "__main__":
    main()
