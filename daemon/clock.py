"""The only reader of wall time, and the only source of chance. Pure code is handed what comes from here."""

import os
import random
import time
import uuid


def now_ns() -> int:
    """Read the wall clock: nanoseconds since 1970, UTC."""
    return time.time_ns()  # noqa: TID251 (this is that one place)


def monotonic_s() -> float:
    """Read the clock that never jumps, seconds; for deadlines and durations only."""
    return time.monotonic()


def rng(seed: int | None = None) -> random.Random:
    """Return a source of chance; `LSTMD_SEED` fixes it for a repeatable run."""
    fixed = os.environ.get("LSTMD_SEED")
    return random.Random(seed if seed is not None else int(fixed) if fixed else None)  # noqa: S311 (jitter, no secret)


def boot_id() -> str:
    """Return a name for this life of the process, 12 hex digits."""
    return uuid.uuid4().hex[:12]
