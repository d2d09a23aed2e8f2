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
GROWTH_MAX_MS = 366 * 86_400_000
"""A growing tape has no end of its own; one asked for more than this at once was asked by mistake."""
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


_PRICED = (K.OPEN, K.HIGH, K.LOW, K.CLOSE, K.QUOTE, K.BUY_QUOTE)


class Block(NamedTuple):
    """The next piece of a growing tape: all trades up to, not including, `until_ms`, which is a whole minute."""

    until_ms: int
    trades: Rows


def decimal_text(scaled: int, decimals: int) -> str:
    """Write ``scaled / 10**decimals`` exactly, every decimal place shown."""
    digits = str(scaled).zfill(decimals + 1)
    return f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits


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
        self.tick = 1
        """The least step of its prices, in units of their last decimal."""
        self._scale, self._spread, self._shift = 1, 1, np.zeros(len(T), np.int64)
        self._aside: Rows | None = None
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
    def halted(self) -> bool:
        """Whether nothing is traded now."""
        return self._aside is not None

    @property
    def end_ms(self) -> int | None:
        """Time of the last trade; None when the tape does not end."""
        return None if self._more is not None else int(self._trades[-1, T.TIME])

    def price_text(self, scaled: int) -> str:
        """Write a price of this tape."""
        return decimal_text(scaled, self.price_decimals)

    def size_text(self, scaled: int) -> str:
        """Write a size of this tape."""
        return decimal_text(scaled, self.size_decimals)

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

    def halt(self, at_ms: int) -> None:
        """Let nothing be traded from `at_ms` on, until `resume`."""
        assert not self.halted, "halted already"
        self._grow(at_ms)
        self._aside = self._trades[np.searchsorted(self._trades[:, T.TIME], at_ms) :]
        self._replace(at_ms, self._aside[:0])

    def resume(self, at_ms: int) -> None:
        """Trade again from `at_ms` on: what lay between never happened, and ids go on without a gap."""
        assert self._aside is not None, "not halted"
        self._grow(at_ms)
        cut = int(np.searchsorted(self._aside[:, T.TIME], at_ms))
        dropped, rest, self._aside = self._aside[:cut], self._aside[cut:], None
        shift = np.zeros(len(T), np.int64)
        if cut:
            shift[T.ID] = cut
            shift[[T.FIRST, T.LAST]] = dropped[-1, T.LAST] - dropped[0, T.FIRST] + 1
        self._shift += shift
        self._replace(at_ms, rest - shift)

    def retick(self, at_ms: int, price_decimals: int) -> None:
        """Change the tick to ``10**-price_decimals`` from `at_ms` on; what was traded before keeps its prices.

        Prices to come are rounded to a coarser tick, or spread by their ids within the old one.
        """
        assert not self.halted, "halted"
        self._grow(at_ms)
        finer, scale = price_decimals - self.price_decimals, 1
        if finer > 0:
            scale = 10**finer
            self.price_decimals = price_decimals
            self._trades = self._trades * np.where(np.arange(len(T)) == T.PRICE, scale, 1)
            self._bars = self._bars * np.where(np.isin(np.arange(len(K)), _PRICED), scale, 1)
        self._scale, self._spread, self.tick = self._scale * scale, scale, 10 ** max(0, -finer)
        self._replace(at_ms, self._ticked(self._trades[np.searchsorted(self._trades[:, T.TIME], at_ms) :]))

    def _ticked(self, trades: Rows) -> Rows:
        out = trades.copy()
        price = trades[:, T.PRICE] + trades[:, T.ID] % self._spread
        out[:, T.PRICE] = np.maximum((price + self.tick // 2) // self.tick, 1) * self.tick
        return out

    def _replace(self, from_ms: int, trades: Rows) -> None:
        """Put `trades` in the place of those from `from_ms` on; candles follow."""
        kept = np.searchsorted(self._trades[:, T.TIME], from_ms)
        self._trades = np.concatenate((self._trades[:kept], trades))
        minute = from_ms // MINUTE_MS * MINUTE_MS
        bars, trades = self._bars[:, K.OPEN_MS] < minute, self._trades[self._trades[:, T.TIME] >= minute]
        self._bars = np.concatenate((self._bars[bars], fold(trades, MINUTE_MS)))

    def _grow(self, until_ms: int) -> None:
        if until_ms - self._known_ms > GROWTH_MAX_MS and self._known_ms:
            raise ValueError(f"the tape of {self.native} is asked for more than a year beyond what it has")
        while self._more is not None and self._known_ms <= until_ms:
            self._append(next(self._more))

    def _append(self, block: Block) -> None:
        self._known_ms = block.until_ms
        trades = block.trades - self._shift
        trades[:, T.PRICE] *= self._scale
        trades = self._ticked(trades)
        if self._aside is not None:
            self._aside = np.concatenate((self._aside, trades))
            return
        kept = np.searchsorted(self._trades[:, T.TIME], block.until_ms - RETENTION_MS)
        self._trades = np.concatenate((self._trades[kept:], trades))
        self._bars = np.concatenate((self._bars, fold(trades, MINUTE_MS)))


def _empty(open_ms: int, close: int) -> list[int]:
    return [open_ms, close, close, close, close, 0, 0, 0, 0, 0, -1, -1]
