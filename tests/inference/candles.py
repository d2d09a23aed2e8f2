"""Recorded candles as arrays, and their features."""

from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inference import features
from tests.data import shared

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
MINUTE_NS = 60 * 10**9


class Candles(NamedTuple):
    open: F64
    high: F64
    low: F64
    close: F64
    volume: F64
    close_time_ns: NDArray[np.int64]

    def scaled(self, price: float, volume: float) -> "Candles":
        o, h, l, c = (array * price for array in (self.open, self.high, self.low, self.close))
        return Candles(o, h, l, c, self.volume * volume, self.close_time_ns)

    def rows(self, rows: slice) -> "Candles":
        prices = (self.open[rows], self.high[rows], self.low[rows], self.close[rows])
        return Candles(*prices, self.volume[rows], self.close_time_ns[rows])


def read(relative: str, count: int = 100_000) -> Candles:
    """Read the first candles of a recorded file."""
    batch = next(pq.ParquetFile(shared(f"ohlcv/{relative}")).iter_batches(batch_size=count))
    o, h, l, c, v = (batch[name].to_numpy().astype(float) for name in ("open", "high", "low", "close", "volume"))
    opened = batch["open_time"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    return Candles(o, h, l, c, v, opened + MINUTE_NS)


def fold(candles: Candles, state: F64 | None = None, interval_ns: int = MINUTE_NS) -> tuple[F32, F64]:
    """Fold all candles at once; return features and indicators."""
    rows = len(candles.close)
    out = np.empty((rows, features.N_FEATURES), np.float32), np.empty((rows, features.N_INDICATORS))
    features.update_many(features.new_state() if state is None else state, *candles, interval_ns, *out)
    return out
