"""Settled funding beside candles: what a long pays at each candle's close."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from feeds.market import NS_PER_S
from training.dataset import CandlesError, Series

HOUR_NS = 3600 * NS_PER_S
INTERVAL_MAX_NS = 8 * HOUR_NS
"""The longest time between two settlements of one market."""


class Settled(NamedTuple):
    """Settlements of one market, ascending."""

    time_ns: NDArray[np.int64]
    rate: NDArray[np.float64]
    """Of the position's value; a long pays it where it is positive."""

    def covers(self, start_ns: int, end_ns: int) -> bool:
        """Tell whether no settlement between the two can be missing at either end."""
        return bool(self.time_ns[0] <= start_ns + INTERVAL_MAX_NS and self.time_ns[-1] >= end_ns - INTERVAL_MAX_NS)

    def bps(self, run: Series) -> NDArray[np.float64]:
        """Return what a long pays at each candle's close, basis points; 0 where nothing settles."""
        paid = np.zeros(len(run))
        at = np.searchsorted(run.close_time_ns, self.time_ns)
        inside = (self.time_ns > run.span[0]) & (at < len(run))
        np.add.at(paid, at[inside], 1e4 * self.rate[inside])
        return paid


def market_of(name: str) -> str:
    """Return the market in a file's name: what stands before the interval or the word funding."""
    return re.split(r"_(?=\d+[smh]|funding)", name, maxsplit=1)[0]


def read(paths: Iterable[Path]) -> dict[str, Settled]:
    """Read parquet files with `time` and `funding_rate`, by market; of a folder, those named for funding.

    Exchanges settle on whole hours and stamp some ms beside them.

    Raises:
        CandlesError: a file cannot be used.

    """
    books = {}
    inside = [sorted(path.glob("*funding*.parquet")) if path.is_dir() else [path] for path in paths]
    for path in itertools.chain(*inside):
        try:
            table = pyarrow.parquet.read_table(path, columns=["time", "funding_rate"])
        except (OSError, pyarrow.ArrowException) as error:
            raise CandlesError(f"{path.name}: no readable funding: {str(error).splitlines()[0]}") from error
        time_ns = table["time"].to_numpy().astype("datetime64[ns]").astype(np.int64)
        if not len(time_ns) or (np.diff(time_ns) <= 0).any():
            raise CandlesError(f"{path.name}: time does not ascend over at least one settlement")
        hour_ns = (time_ns + HOUR_NS // 2) // HOUR_NS * HOUR_NS
        books[market_of(path.stem)] = Settled(hour_ns, table["funding_rate"].to_numpy().astype(np.float64))
    return books
