"""When a candle has closed, and with which figures: the exchange's evidence only, never our timer.

Evidence, strongest first:

1. A trade at or past the close, in unbroken order: nothing of the candle can still be under way.
2. The exchange's own closed kline. Equal to ours, it closes the candle; where trades were missed, it is the candle.
   Where ours is whole and yet differs, trades may still be on their way on the other stream: wait for 1 or 3, then the
   exchange's figures stand and the mismatch is counted.
3. Two events of other streams (mark price, forming kline), both `grace` past the close: for a quiet market. One alone
   may carry a wrong time.

Pure. One `Closer` per market and candle spec.
"""

from feeds.candles import EventCandles, TimeCandles, candle_builder
from feeds.market import Candle, CandleSpec, Market, Trade
from feeds.traits import Identity, Traits


class Closer:
    """Turn trades, klines and times of one market into closed candles of one spec, in order."""

    def __init__(self, market: Market, spec: CandleSpec, traits: Traits, *, has_kline: bool, by_exchange: bool) -> None:
        """Set up; `by_exchange` waits for the exchange's own kline at every close.

        Where the stream never calls a kline closed, it is the caller who fetches that kline and hands it in.
        """
        self.spec = spec
        self.by_exchange = by_exchange and has_kline
        self._mismatches: list[tuple[Candle, Candle]] = []
        self._grace_ns = max(traits.grace_ns, traits.kline_patience_ns) if has_kline else traits.grace_ns
        self._gaps_show = traits.identity is Identity.NUMBERED
        self._builder: TimeCandles | EventCandles = candle_builder(
            spec,
            price_decimals=market.price_decimals,
            size_decimals=market.size_decimals,
            opens_at_previous_close=traits.opens_at_previous_close,
            open_in_range=traits.open_in_range,
        )
        self._has_kline = has_kline
        self._official: dict[int, Candle] = {}
        self._followed = False
        self._unsure = False
        self._witness_ns = 0

    @property
    def frontier(self) -> int:
        """Ordinal of the forming time candle: every one below it has closed, known to us or not."""
        return self._builder.frontier if isinstance(self._builder, TimeCandles) else 0

    @property
    def late(self) -> int:
        """Trades that came after their candle had closed."""
        return self._builder.late if isinstance(self._builder, TimeCandles) else 0

    @property
    def complete(self) -> bool:
        """Whether every trade of the forming candle so far was seen."""
        return self._builder.complete and not self._unsure if isinstance(self._builder, TimeCandles) else True

    def take_mismatches(self) -> list[tuple[Candle, Candle]]:
        """Hand over the candles that were whole by our evidence and yet not the exchange's: ours, and the official."""
        taken, self._mismatches = self._mismatches, []
        return taken

    def forming(self) -> Candle | None:
        """Read the forming candle, as far as it was seen."""
        return self._builder.forming()

    def see(self, time_ns: int) -> None:
        """Declare that no trade at or after `time_ns` escapes us."""
        if isinstance(self._builder, TimeCandles):
            self._builder.see(time_ns)

    def doubt(self) -> None:
        """Declare the connection lost: the next trade's id will tell whether any was missed.

        Where trades are not numbered, or before the first, nothing could tell, so trades count as missed. Where the
        exchange has no klines, trades come through a `Stitch`, which lets none be missed.
        """
        if not self._has_kline:
            return
        if self._followed and self._gaps_show:
            self._unsure = True
        else:
            self.lose()

    def lose(self) -> None:
        """Declare that trades were missed."""
        self._unsure = False
        if isinstance(self._builder, TimeCandles):
            self._builder.lose()

    def trade(self, trade: Trade) -> list[Candle]:
        """Take the next trade, its order proven by its id; return what it closes."""
        self._followed, self._unsure = True, False
        closed = self._builder.add(trade)
        return self._settle(closed) if closed or self._official else closed

    def time(self, time_ns: int) -> list[Candle]:
        """Take the time of another stream's event; return what it closes."""
        proven_ns = min(time_ns, self._witness_ns) - self._grace_ns
        self._witness_ns = time_ns
        if not isinstance(self._builder, TimeCandles):
            return self._builder.close_until(proven_ns)
        return self._close_until(self._builder, proven_ns) if proven_ns >= self._builder.end_ns else []

    def kline(self, official: Candle) -> list[Candle]:
        """Take the exchange's own closed candle; return what it closes.

        The caller compares candles below the frontier that are already its own; here they fill what was missed.
        """
        builder = self._builder
        assert isinstance(builder, TimeCandles)
        closed = [] if builder.frontier >= official.seq else self._close_until(builder, official.open_time_ns)
        if builder.frontier > official.seq:
            return [*closed, official]
        self._official[official.seq] = official
        own = builder.forming()
        if own and builder.complete and not (self._unsure or self.by_exchange or own.same_figures(official)):
            return closed
        builder.carry(official.close)
        return closed + self._close_until(builder, official.close_time_ns)

    def _close_until(self, builder: TimeCandles, time_ns: int) -> list[Candle]:
        return self._settle(builder.close_until(time_ns))

    def _settle(self, closed: list[Candle]) -> list[Candle]:
        """Set our closed candles against the exchange's where those came first."""
        own_by_seq = {own.seq: own for own in closed}
        trusted = not (self.by_exchange or self._unsure)
        settled = dict(own_by_seq) if trusted else {}
        for seq in [seq for seq in self._official if seq < self.frontier]:
            official, own = self._official.pop(seq), own_by_seq.get(seq)
            same = own is not None and own.same_figures(official)
            settled[seq] = own if same and own else official
            if trusted and own and not same:
                self._mismatches.append((own, official))
        return [settled[seq] for seq in sorted(settled)]
