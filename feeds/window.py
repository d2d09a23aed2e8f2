"""The newest candles of a market as one contiguous array."""

import numpy as np
import numpy.typing as npt

from feeds.market import Candle

COLUMNS = ("open", "high", "low", "close", "volume")


class Window:
    """A ring of OHLCV rows in a buffer of twice its length.

    Each row is written twice, one capacity apart, so that any run of up to `capacity` newest rows lies in one piece:
    appending costs two rows whatever the capacity, reading costs nothing.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a window holds at least one row")
        self.capacity = capacity
        self._buffer = np.empty((2 * capacity, len(COLUMNS)))
        self._rows = self._buffer.view()
        self._rows.flags.writeable = False
        self._appended = 0

    def __len__(self) -> int:
        return min(self._appended, self.capacity)

    def append(self, candle: Candle) -> None:
        """Add the newest candle; the oldest leaves once the window is full."""
        at = self._appended % self.capacity
        row = (candle.open, candle.high, candle.low, candle.close, candle.volume)
        self._buffer[at] = self._buffer[at + self.capacity] = row
        self._appended += 1

    def newest(self, count: int | None = None) -> npt.NDArray[np.float64]:
        """Return the newest `count` rows (all by default), oldest first, columns as in `COLUMNS`.

        The result is a read-only view: later appends show through once they reach its rows; copy it to keep it.

        Raises:
            ValueError: fewer rows than `count` are held.

        """
        count = len(self) if count is None else count
        if not 0 <= count <= len(self):
            raise ValueError(f"{count} rows asked, {len(self)} held")
        end = (self._appended - 1) % self.capacity + 1 + self.capacity
        return self._rows[end - count : end]

    def clear(self) -> None:
        """Forget all rows."""
        self._appended = 0
