"""Build candles from trades, exactly: integers while a candle forms, one division by a power of ten when it is read.

Python divides integers with correct rounding, so the float64 equals what parsing the exchange's own kline text gives.
Pure: the exchange's time comes in with the trades, or as evidence through `close_until`; our clock is never asked.
"""

from feeds.market import NS_PER_DAY, NS_PER_MS, SEQ_PER_DAY, Candle, CandleSpec, Origin, SpecKind, Trade


class _Sums:
    """Open, high, low, close and sums of a forming candle, as scaled integers."""

    __slots__ = ("close", "fills", "high", "low", "open", "size")

    def __init__(self, price: int) -> None:
        self.open = self.high = self.low = self.close = price
        self.size = self.fills = 0

    def add(self, trade: Trade) -> None:
        price = trade.price
        if price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.close = price
        self.size += trade.size
        self.fills += trade.fills

    def candle(self, seq: int, start_ns: int, end_ns: int, price_unit: int, size_unit: int, *, closed: bool) -> Candle:
        return Candle(
            seq=seq,
            open_time_ns=start_ns,
            close_time_ns=end_ns,
            open=self.open / price_unit,
            high=self.high / price_unit,
            low=self.low / price_unit,
            close=self.close / price_unit,
            volume=self.size / size_unit,
            trades=self.fills,
            closed=closed,
            origin=Origin.TRADES,
        )


class TimeCandles:
    """Candles of one market by time.

    Only candles whose every trade was seen come out closed. After `lose()` (trades may have been missed) an interval
    that began unseen is left out: `frontier` has passed it and the caller asks the exchange.
    """

    def __init__(
        self,
        spec: CandleSpec,
        *,
        price_decimals: int,
        size_decimals: int,
        opens_at_previous_close: bool = False,
        open_in_range: bool = False,
    ) -> None:
        assert spec.by_time
        self.spec = spec
        self._opens_at_previous_close, self._open_in_range = opens_at_previous_close, open_in_range
        self._interval_ns = spec.interval_ns
        self._price_unit, self._size_unit = 10**price_decimals, 10**size_decimals
        self._open_ns = 0
        self._sums: _Sums | None = None
        self._last_price: int | None = None
        self._seen_since_ns: int | None = None
        self.late = 0
        """Trades that came after their candle had closed; they changed nothing."""

    @property
    def frontier(self) -> int:
        """Ordinal of the forming candle: every one below it has closed. 0 before the first evidence."""
        return self._open_ns // self._interval_ns + 1 if self._open_ns else 0

    @property
    def end_ns(self) -> int:
        """Close of the forming candle; 0 before the first evidence."""
        return self.frontier * self._interval_ns

    @property
    def complete(self) -> bool:
        """Whether every trade of the forming candle so far was seen."""
        return self._seen_since_ns is not None and self._seen_since_ns <= self._open_ns

    def see(self, time_ns: int) -> None:
        """Declare that no trade at or after `time_ns` escapes us, until `lose()`."""
        if self._seen_since_ns is None:
            self._seen_since_ns = time_ns

    def lose(self) -> None:
        """Declare that trades may have been missed: the forming candle will not close from trades."""
        self._seen_since_ns = self._last_price = None

    def carry(self, price: float) -> None:
        """Learn from the exchange the price that intervals without trades carry on."""
        self._last_price = round(price * self._price_unit)

    def add(self, trade: Trade) -> list[Candle]:
        """Take the next trade; return the candles it closes, oldest first."""
        time_ns = trade.event_time_ns
        if time_ns < self._open_ns:
            self.late += 1
            return []
        if self._seen_since_ns is None:
            self._seen_since_ns = time_ns + 1  # of the trades at this very time, those before it may be missing
        closed = self.close_until(time_ns) if time_ns >= self._open_ns + self._interval_ns else []
        sums = self._sums
        if sums is None:
            sums = self._sums = self._begin(trade)
        price = self._last_price = trade.price  # and what `_Sums.add` does, without the price of a call
        if price > sums.high:
            sums.high = price
        elif price < sums.low:
            sums.low = price
        sums.close = price
        sums.size += trade.size
        sums.fills += trade.fills
        return closed

    def _begin(self, trade: Trade) -> _Sums:
        if not self._opens_at_previous_close:
            return _Sums(trade.price)
        if self._last_price is None:  # nor is the open known, then
            self._seen_since_ns = trade.event_time_ns + 1
            return _Sums(trade.price)
        sums = _Sums(self._last_price if self._open_in_range else trade.price)
        sums.open = self._last_price
        return sums

    def close_until(self, time_ns: int) -> list[Candle]:
        """Close every interval that ends at or before `time_ns`, which the exchange's events have reached."""
        closed = []
        target_ns = self.spec.open_of(time_ns)
        while self._open_ns < target_ns:
            if self.complete and (candle := self._read(closed=True)):
                closed.append(candle)
            self._sums = None
            # Without a price no interval on the way can be told, so the way is not walked.
            self._open_ns = self._open_ns + self._interval_ns if self._last_price is not None else target_ns
        return closed

    def forming(self) -> Candle | None:
        """Read the current interval as it stands; None while no price is known."""
        return self._read(closed=False)

    def _read(self, *, closed: bool) -> Candle | None:
        sums = self._sums
        if sums is None:
            if self._last_price is None:
                return None
            sums = _Sums(self._last_price)
        end_ns = self._open_ns + self._interval_ns
        seq = end_ns // self._interval_ns
        return sums.candle(seq, self._open_ns, end_ns, self._price_unit, self._size_unit, closed=closed)


class EventCandles:
    """Candles of one market by number of trades, volume or value; they start afresh at 00:00 UTC.

    The trade that reaches the amount belongs to the candle it closes. The day's last candle closes with the day,
    whatever it holds, so that each trade is in exactly one candle; a trade that comes out of order after midnight
    belongs to the new day. `close_time` is a millisecond (the exchanges' resolution) past the last trade; the next
    candle opens no earlier, so intervals never overlap.
    """

    def __init__(self, spec: CandleSpec, *, price_decimals: int, size_decimals: int) -> None:
        assert not spec.by_time
        self.spec = spec
        self._price_unit, self._size_unit = 10**price_decimals, 10**size_decimals
        unit = {SpecKind.TRADES: 1, SpecKind.VOLUME: self._size_unit}.get(spec.kind, self._price_unit * self._size_unit)
        self._amount = spec.amount * unit
        self._sums: _Sums | None = None
        self._reached = 0
        self._day = 0
        self._number = 1
        self._open_ns = self._last_ns = 0

    def add(self, trade: Trade) -> list[Candle]:
        """Take the next trade; return the candles it closes, oldest first."""
        closed = self.close_until(trade.event_time_ns)
        if self._sums is None:
            self._sums = _Sums(trade.price)
            self._open_ns = max(trade.event_time_ns, self._open_ns)
        self._sums.add(trade)
        self._last_ns = max(trade.event_time_ns, self._last_ns)
        self._reached += self._measure(trade)
        if self._reached >= self._amount and (candle := self._close()):
            closed.append(candle)
        return closed

    def close_until(self, time_ns: int) -> list[Candle]:
        """Close the day's last candle once the exchange's events have reached the next day."""
        day = time_ns // NS_PER_DAY
        if day <= self._day:
            return []
        candle = self._close()
        self._day, self._number = day, 1
        self._open_ns = self._last_ns = day * NS_PER_DAY
        return [candle] if candle else []

    def forming(self) -> Candle | None:
        """Read the current candle as it stands; None before its first trade."""
        return self._read(closed=False)

    def _measure(self, trade: Trade) -> int:
        if self.spec.kind is SpecKind.TRADES:
            return trade.fills
        return trade.size if self.spec.kind is SpecKind.VOLUME else trade.size * trade.price

    def _close(self) -> Candle | None:
        candle = self._read(closed=True)
        if candle:
            self._open_ns = candle.close_time_ns
            self._number += 1
        self._sums, self._reached = None, 0
        return candle

    def _read(self, *, closed: bool) -> Candle | None:
        if self._sums is None:
            return None
        end_ns = max(self._open_ns, self._last_ns + NS_PER_MS)
        seq = self._day * SEQ_PER_DAY + self._number
        return self._sums.candle(seq, self._open_ns, end_ns, self._price_unit, self._size_unit, closed=closed)


def candle_builder(
    spec: CandleSpec,
    *,
    price_decimals: int,
    size_decimals: int,
    opens_at_previous_close: bool = False,
    open_in_range: bool = False,
) -> TimeCandles | EventCandles:
    """Make the builder that `spec` asks for."""
    if not spec.by_time:
        return EventCandles(spec, price_decimals=price_decimals, size_decimals=size_decimals)
    return TimeCandles(
        spec,
        price_decimals=price_decimals,
        size_decimals=size_decimals,
        opens_at_previous_close=opens_at_previous_close,
        open_in_range=open_in_range,
    )
