"""Settled funding of the emulated exchange: a function of market and time alone."""

import zlib

from feeds.emulator.tape import Tape, decimal_text

FUNDING_MS = 28_800_000


def next_funding_ms(now_ms: int) -> int:
    """Return the next settlement: 00:00, 08:00 and 16:00 UTC."""
    return (now_ms // FUNDING_MS + 1) * FUNDING_MS


def funding_rate(native: str, due_ms: int) -> str:
    """Return the rate settled at `due_ms`: 0.005 % to 0.015 %."""
    return decimal_text(5_000 + zlib.crc32(f"{native}{due_ms}".encode()) % 10_001, 8)


def next_funding(tape: Tape, now_ms: int) -> tuple[str, int]:
    """Return rate and time of the next settlement; empty and 0 on a tape that is not funded."""
    due = next_funding_ms(now_ms)
    return (funding_rate(tape.native, due), due) if tape.funded else ("", 0)


def settlements(tape: Tape, *, start_ms: int, end_ms: int) -> range:
    """Return the settlements in ``start_ms <= time <= end_ms``, none before the tape begins or if it is not funded."""
    if not tape.funded:
        return range(0)
    return range(next_funding_ms(max(start_ms, tape.begin_ms) - 1), end_ms + 1, FUNDING_MS)
