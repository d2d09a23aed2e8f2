"""Anyone's table of candles as columns in order: whatever its times are written in, each open time once."""

import datetime as dt
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feeds.market import NS_PER_MS, NS_PER_S

Floats = NDArray[np.float64]
FIGURES = ("open", "high", "low", "close", "volume")
ROUNDING = 1e-6
"""A file may hold one price in single precision and another in double."""
YEARS_S = (946_684_800, 4_102_444_800)
"""2000 to 2100: times written as numbers lie there in exactly one of s, ms, µs and ns."""


class Columns(NamedTuple):
    """Candles in ascending order; each [n]."""

    open_time_ns: NDArray[np.int64]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats


def columns_of(table: pa.Table) -> Columns:
    """Read a table in any order of rows and columns; further columns are let be, a row given twice counts once.

    `open_time` is a timestamp of any unit and zone (UTC where it names none), or a number since 1970.

    Raises:
        ValueError: a column is missing or no number, a figure cannot be, or two candles claim the same time.

    """
    if missing := {"open_time", *FIGURES} - set(table.column_names):
        raise ValueError(f"no column {', '.join(sorted(missing))}; it has {', '.join(table.column_names) or 'none'}")
    opened = _times_ns(table["open_time"])
    order = np.argsort(opened, kind="stable")
    opened, figures = opened[order], np.stack([_numbers(table, name)[order] for name in FIGURES])
    _check(opened, figures)
    again = np.flatnonzero(np.diff(opened) == 0)
    differ = (figures[:, again] != figures[:, again + 1]).any(axis=0)
    if differ.any():
        raise ValueError(f"two different candles open at {moment(int(opened[again[differ.argmax()]]))}")
    first = np.flatnonzero(np.diff(opened, prepend=-1))
    return Columns(opened[first], *figures[:, first])


def moment(time_ns: int) -> str:
    """Write a time for people, UTC."""
    return dt.datetime.fromtimestamp(time_ns / NS_PER_S, tz=dt.UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _times_ns(column: pa.ChunkedArray) -> NDArray[np.int64]:
    kind = column.type
    if column.null_count:
        raise ValueError(f"open_time is missing in {column.null_count} rows")
    if pa.types.is_timestamp(kind):
        times: NDArray[np.int64] = column.cast(pa.timestamp("ns", tz=kind.tz)).cast(pa.int64()).to_numpy()
        return times
    if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
        raise ValueError(f"open_time is of type {kind}; a timestamp is needed, or a number since 1970")
    numbers: NDArray[Any] = column.to_numpy()
    for per_s in (1, 10**3, 10**6, 10**9):
        if len(numbers) and YEARS_S[0] * per_s <= numbers.min() and numbers.max() < YEARS_S[1] * per_s:
            if pa.types.is_integer(kind):
                return numbers.astype(np.int64) * (NS_PER_S // per_s)
            return np.rint(numbers * (1000 / per_s)).astype(np.int64) * NS_PER_MS
    raise ValueError("open_time is no number of s, ms, µs or ns since 1970 that lies between 2000 and 2100")


def _numbers(table: pa.Table, name: str) -> Floats:
    try:
        return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowException as error:
        raise ValueError(f"{name} is not all numbers: {str(error).splitlines()[0]}") from error


def _check(opened: NDArray[np.int64], figures: Floats) -> None:
    _, high, low, close, volume = figures
    cannot_be = ~(np.isfinite(figures).all(axis=0) & (figures[:4] > 0).all(axis=0) & (volume >= 0))
    if cannot_be.any():
        raise ValueError(f"{_at(opened, cannot_be)} a price is not a positive number, or the volume negative or none")
    outside = (close > high * (1 + ROUNDING)) | (close < low * (1 - ROUNDING))
    if outside.any():
        raise ValueError(f"{_at(opened, outside)} the close lies outside low and high")


def _at(opened: NDArray[np.int64], rows: NDArray[np.bool_]) -> str:
    count = int(rows.sum())
    return f"at {moment(int(opened[rows.argmax()]))}{f' and {count - 1} more' if count > 1 else ''}"
