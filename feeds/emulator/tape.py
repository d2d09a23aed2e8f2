"""What one emulated market trades: executions in order, and the candles that follow from them.

Everything is integers, scaled by the market's decimals: candles are exact sums of the trades beside them.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Trades (columns `T`) or candles (columns `K`), one a row, ascending in time."""

MINUTE_MS = 60_000
RETENTION_MS = 3 * 86_400_000
"""Trades older than this are let go while a tape grows; the exchange itself serves 48 hours. Candles are kept."""


class T(IntEnum):
    """Columns of a trade."""

    ID = 0
    TIME = 1
    PRICE = 2
    SIZE = 3
    FIRST = 4
    LAST = 5
    MAKER = 6
    """1 where the buyer was the maker."""


class K(IntEnum):
    """Columns of a candle that has trades."""

    OPEN_MS = 0
    OPEN = 1
    HIGH = 2
    LOW = 3
    CLOSE = 4
    VOLUME = 5
    QUOTE = 6
    FILLS = 7
    BUY_VOLUME = 8
    BUY_QUOTE = 9
    FIRST = 10
    LAST = 11


class Block(NamedTuple):
    """The next piece of a growing tape: all trades up to, not including, `until_ms`, which is a whole minute."""

    until_ms: int
    trades: Rows


def fold(trades: Rows, step_ms: int) -> Rows:
    """Fold trades into candles of `step_ms`, only those that have trades."""
    if not len(trades):
        return np.empty((0, len(K)), np.int64)
    bars = np.empty((len(trades), len(K)), np.int64)
    price, size, taken = trades[:, T.PRICE], trades[:, T.SIZE], 1 - trades[:, T.MAKER]
    bars[:, K.OPEN_MS] = trades[:, T.TIME]
    bars[:, K.OPEN : K.VOLUME] = price[:, None]
    bars[:, K.VOLUME], bars[:, K.QUOTE] = size, price * size
    bars[:, K.FILLS] = trades[:, T.LAST] - trades[:, T.FIRST] + 1
    bars[:, K.BUY_VOLUME], bars[:, K.BUY_QUOTE] = size * taken, price * size * taken
    bars[:, K.FIRST], bars[:, K.LAST] = trades[:, T.FIRST], trades[:, T.LAST]
    return regroup(bars, step_ms)


def regroup(bars: Rows, step_ms: int) -> Rows:
    """Merge candles into longer ones of `step_ms`."""
    opens = bars[:, K.OPEN_MS] // step_ms * step_ms
    starts = np.flatnonzero(np.diff(opens, prepend=-1))
    if not len(starts):
        return bars
    ends = np.append(starts[1:], len(bars)) - 1
    out = np.add.reduceat(bars, starts, axis=0)
    out[:, K.OPEN_MS] = opens[starts]
    for column in (K.OPEN, K.FIRST):
        out[:, column] = bars[starts, column]
    for column in (K.CLOSE, K.LAST):
        out[:, column] = bars[ends, column]
    out[:, K.HIGH] = np.maximum.reduceat(bars[:, K.HIGH], starts)
    out[:, K.LOW] = np.minimum.reduceat(bars[:, K.LOW], starts)
    return out


class Tape:
    """One market's trades and candles; whole from the start, or growing out of `more` as time passes."""

    def __init__(
        self, native: str, trades: Rows, *, price_decimals: int, size_decimals: int, more: Iterator[Block] | None = None
    ) -> None:
        self.native = native
        self.price_decimals, self.size_decimals = price_decimals, size_decimals
        self._trades, self._bars = trades, fold(trades, MINUTE_MS)
        self._more = more
        self._known_ms = 0
        while more is not None and not len(self._trades):
            self._append(next(more))
        if not len(self._trades):
            raise ValueError(f"the tape of {native} has no trades")
        self.begin_ms = int(self._trades[0, T.TIME])

    @property
    def funded(self) -> bool:
        """Whether funding is settled: invented markets have it; recordings do not say, and none is made up."""
        return self._more is not None

    @property
    def end_ms(self) -> int | None:
        """Time of the last trade; None when the tape does not end."""
        return None if self._more is not None else int(self._trades[-1, T.TIME])

    def trades(self, after_ms: int, until_ms: int) -> Rows:
        """Return the trades with ``after_ms < time <= until_ms``."""
        self._grow(until_ms)
        low, high = np.searchsorted(self._trades[:, T.TIME], [after_ms, until_ms], side="right")
        return self._trades[low:high]

    def trades_from(self, first_id: int, until_ms: int, limit: int) -> Rows:
        """Return up to `limit` trades from the id on, none after `until_ms`."""
        self._grow(until_ms)
        low = int(np.searchsorted(self._trades[:, T.ID], first_id))
        high = int(np.searchsorted(self._trades[:, T.TIME], until_ms, side="right"))
        return self._trades[low : min(high, low + limit)]

    def price_at(self, now_ms: int) -> int:
        """Return the last price traded by `now_ms`; the first price before any trade."""
        self._grow(now_ms)
        at = int(np.searchsorted(self._trades[:, T.TIME], now_ms, side="right"))
        return int(self._trades[max(0, at - 1), T.PRICE])

    def candles(self, step_ms: int, *, start_ms: int, end_ms: int, now_ms: int) -> list[list[int]]:
        """Return the candles with ``start_ms <= open < end_ms`` as of `now_ms`, the last one perhaps forming.

        Each is a list in the order of `K`. An interval without trades carries the last close and has zero volume, as
        the exchange's has; there is none before the first trade, and none that opens after `now_ms`.
        """
        self._grow(now_ms)
        at = max(-(-start_ms // step_ms), self.begin_ms // step_ms) * step_ms
        end = min(end_ms, now_ms + 1)
        if at >= end:
            return []
        minute = now_ms // MINUTE_MS * MINUTE_MS
        low, high = np.searchsorted(self._bars[:, K.OPEN_MS], [at, min(-(-end // step_ms) * step_ms, minute)])
        forming = fold(self.trades(minute - 1, now_ms), MINUTE_MS)
        close = int(self._bars[low - 1, K.CLOSE]) if low else 0
        traded = regroup(np.concatenate((self._bars[low:high], forming)), step_ms).tolist()
        out: list[list[int]] = []
        for bar in traded:
            out += [_empty(t, close) for t in range(at, min(bar[0], end), step_ms)]
            if bar[0] >= end:
                return out
            out.append(bar)
            at, close = bar[0] + step_ms, bar[K.CLOSE]
        return out + [_empty(t, close) for t in range(at, end, step_ms)]

    def _grow(self, until_ms: int) -> None:
        while self._more is not None and self._known_ms <= until_ms:
            self._append(next(self._more))

    def _append(self, block: Block) -> None:
        kept = np.searchsorted(self._trades[:, T.TIME], block.until_ms - RETENTION_MS)
        self._trades = np.concatenate((self._trades[kept:], block.trades))
        self._bars = np.concatenate((self._bars, fold(block.trades, MINUTE_MS)))
        self._known_ms = block.until_ms


def _empty(open_ms: int, close: int) -> list[int]:
    return [open_ms, close, close, close, close, 0, 0, 0, 0, 0, -1, -1]
