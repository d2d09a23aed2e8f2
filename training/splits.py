"""Which candles teach, which choose, which are scored: by time, walked forward, purged and embargoed.

A cut is a moment, not a row: markets move together, so all of them are cut at the same moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Role(IntEnum):
    """What a candle's label may be used for."""

    NONE = 0
    TRAIN = 1
    VALIDATE = 2
    TEST = 3


@dataclass(frozen=True, slots=True)
class Fold:
    """Three spans of time in order: train before `validate_from_ns`, validate, then test from `test_from_ns` on."""

    start_ns: int
    validate_from_ns: int
    test_from_ns: int
    end_ns: int

    def roles(self, close_time_ns: NDArray[np.int64], *, label_span_ns: int) -> NDArray[np.int8]:
        """Say what each candle's label is for.

        A candle whose label reaches over the end of its span is purged, one that closes within the same length after a
        boundary is embargoed; `label_span_ns` is the longest horizon.
        """
        roles = np.full(len(close_time_ns), Role.NONE, dtype=np.int8)
        edges = (self.start_ns, self.validate_from_ns, self.test_from_ns, self.end_ns)
        for role, begin, end in zip((Role.TRAIN, Role.VALIDATE, Role.TEST), edges, edges[1:], strict=False):
            embargo = 0 if role is Role.TRAIN else label_span_ns
            roles[(close_time_ns > begin + embargo) & (close_time_ns + label_span_ns <= end)] = role
        return roles

    def joined(self) -> "Fold":
        """Return the cuts of a second fit, in which what validated teaches too; what is scored stays the same."""
        return Fold(self.start_ns, self.test_from_ns, self.test_from_ns, self.end_ns)


def eras(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join spans of time (start, end) that overlap; candles years apart are cut each in their own era."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def cut(span: tuple[int, int], *, validate_from: float, test_from: float) -> Fold:
    """Cut one era at two fractions of its time."""
    start, end = span
    if not 0 < validate_from < test_from <= 1:
        raise ValueError(f"cuts at {validate_from} and {test_from}: 0 < validate_from < test_from <= 1 is needed")
    return Fold(start, start + int((end - start) * validate_from), start + int((end - start) * test_from), end)
