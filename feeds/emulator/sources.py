"""Where tapes come from: files of trades, files of candles, or a seed."""

from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feeds.capture import AggTrade, CandleColumns, read_candles, tape_trades
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import MINUTE_MS, Rows, T, Tape
from feeds.market import NS_PER_MS

SYNTHETIC = "synthetic"
_DECIMALS_MAX = 8


def tape_from(source: str | Path, native: str, *, seed: int = 0, begin_ns: int = 0) -> Tape:
    """Make the tape of market `native`.

    `source` is ``synthetic`` (from `seed`, beginning at the minute of `begin_ns`); a parquet file of candles, each
    turned into at most four trades; or anything that `feeds.capture.tape_trades` reads.

    Raises:
        ValueError: the file is not understood or has no trades of this market.
        OSError: it cannot be read.

    """
    if str(source) == SYNTHETIC:
        return synthetic_tape(native, seed=seed, begin_ms=begin_ns // NS_PER_MS // MINUTE_MS * MINUTE_MS)
    path = Path(source)
    if path.suffix == ".parquet":
        return tape_of_candles(native, read_candles(path))
    return tape_of_trades(native, tape_trades(path, native))


def tape_of_trades(native: str, trades: Iterable[AggTrade]) -> Tape:
    """Make a tape of recorded trades, in order of their ids."""
    rows = list(trades)
    price_decimals = max((_places(row.price) for row in rows), default=0)
    size_decimals = max((_places(row.size) for row in rows), default=0)
    table = np.empty((len(rows), len(T)), np.int64)
    for at, row in enumerate(rows):
        price, size = _scaled(row.price, price_decimals), _scaled(row.size, size_decimals)
        table[at] = row.id, row.time_ms, price, size, row.first, row.last, row.buyer_is_maker
    # A recording may repeat trades after a reconnect, and neighbours may be a millisecond out of order.
    table = table[np.unique(table[:, T.ID], return_index=True)[1]]
    table[:, T.TIME] = np.maximum.accumulate(table[:, T.TIME])
    return Tape(native, table, price_decimals=price_decimals, size_decimals=size_decimals)


def _places(text: str) -> int:
    return len(text.partition(".")[2].rstrip("0"))


def _scaled(text: str, decimals: int) -> int:
    return int(Decimal(text).scaleb(decimals))


def tape_of_candles(native: str, candles: CandleColumns) -> Tape:
    """Turn candles into trades that fold into them again: open, the extremes, close; real candles, invented trades.

    The volume is split evenly and its rest goes to the close; neighbours of one price are one trade; an empty candle
    has none. The interval is the smallest distance between two opens.
    """
    prices = (candles.open, candles.high, candles.low, candles.close)
    price_decimals, size_decimals = _places_of(prices), _places_of((candles.volume,))
    o, h, l, c = (_ints(column, price_decimals) for column in prices)
    rises = c >= o
    path = np.stack((o, np.where(rises, l, h), np.where(rises, h, l), c), axis=1)
    volume = _ints(candles.volume, size_decimals)
    traded = np.ones(path.shape, bool)
    traded[:, 1:] = path[:, 1:] != path[:, :-1]
    traded &= (volume > 0)[:, None]
    count = traded.sum(axis=1)
    share = volume // np.maximum(count, 1)
    size = np.broadcast_to(share[:, None], path.shape).copy()
    last = path.shape[1] - 1 - traded[:, ::-1].argmax(axis=1)
    size[np.arange(len(size)), last] += volume - share * count
    interval_ms = int(np.diff(candles.open_time_ns).min()) // NS_PER_MS if len(volume) > 1 else MINUTE_MS
    opens_ms = candles.open_time_ns // NS_PER_MS
    times = opens_ms[:, None] + np.array([5, 250, 700, 985]) * interval_ms // 1000
    traded &= size > 0
    number = np.arange(1, int(traded.sum()) + 1)
    maker = np.diff(path, axis=1, prepend=path[:, :1]) < 0
    columns = (number, times[traded], path[traded], size[traded], number, number, maker[traded])
    return Tape(native, np.stack(columns, axis=1), price_decimals=price_decimals, size_decimals=size_decimals)


def _places_of(columns: Iterable[npt.NDArray[np.float64]]) -> int:
    """Count the decimals that the shortest texts of these numbers need, at most eight."""
    texts = {format(Decimal(repr(value)), "f") for column in columns for value in np.unique(column).tolist()}
    return min(_DECIMALS_MAX, max((_places(text) for text in texts), default=0))


def _ints(column: npt.NDArray[np.float64], decimals: int) -> Rows:
    return np.rint(column * 10.0**decimals).astype(np.int64)
