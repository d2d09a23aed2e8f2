"""Where recorded market data lies when it is present; tests that need it skip with a reason where it is not."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(os.environ.get("LSTMD_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


def shared(relative: str) -> pathlib.Path:
    """Return a recorded file or folder under `data/`, or skip the calling test."""
    path = ROOT / "data" / relative
    if not path.exists():
        pytest.skip(f"recorded data {relative} is not present beside the project")
    return path
