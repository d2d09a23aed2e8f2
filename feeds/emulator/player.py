"""What falls due on one connection: the pure half of the emulated websocket."""

from collections.abc import Iterable, Iterator

from feeds.capture import agg_trade_data
from feeds.emulator.tape import Tape
from feeds.emulator.venue import INTERVALS_MS, Venue, agg_trades, kline_data, mark_data

TRADE_LAG_MS = 120
"""How long after a trade its message leaves; the exchange aggregates for 100 ms (120 to 155 ms in captures)."""
KLINE_LAG_MS = 250
"""Likewise for candles, forming and closed."""
KLINE_PACE_MS = 250
"""The least time between two pushes of a forming candle."""
WINDOW_MS = 600_000
"""The most exchange time played in one go to a connection that has fallen behind."""
FAMILIES = {"market": ("aggTrade", "kline", "markPrice"), "public": ("trade",)}
"""What each routed path carries; the un-routed root acknowledges and stays silent."""

Event = tuple[int, str, str]
"""Event time in ms, stream, data as JSON."""


class Player:
    """What one connection has subscribed to, and the events of it that fall due."""

    def __init__(self, venue: Venue, family: str) -> None:
        self.streams: dict[str, None] = {}
        self._venue, self._carried = venue, FAMILIES.get(family, ())
        self._seen_ms = venue.clock.now_ms()
        self._pushed_ms: dict[str, int] = {}

    def subscribe(self, names: Iterable[str]) -> None:
        """Play these streams too, from now on; unknown ones are accepted and stay silent, as the exchange does it."""
        self.streams.update(dict.fromkeys(names))

    def unsubscribe(self, names: Iterable[str]) -> None:
        """Play these no more."""
        for name in names:
            self.streams.pop(name, None)

    def due(self, now_ms: int) -> list[tuple[str, str]]:
        """Return streams and data of what happened since the last call up to `now_ms`, in order of event time."""
        now_ms = min(now_ms, self._seen_ms + WINDOW_MS)
        events = [event for name in self.streams for event in self._stream(name, self._seen_ms, now_ms)]
        self._seen_ms = now_ms
        events.sort(key=lambda event: event[0])
        return [(name, data) for _, name, data in events]

    def _stream(self, name: str, after_ms: int, now_ms: int) -> Iterator[Event]:
        symbol, _, channel = name.partition("@")
        tape = self._venue.tapes.get(symbol.upper())
        kind, _, variant = channel.partition("_")
        kind, _, pace = kind.partition("@")
        if tape is None or kind not in self._carried:
            return
        if kind in ("aggTrade", "trade"):
            yield from _trades(tape, name, kind, after_ms, now_ms)
        elif kind == "markPrice":
            every_ms = 1000 if pace == "1s" else 3000
            second = now_ms // every_ms * every_ms
            if second > after_ms:
                yield second, name, mark_data(tape, second)
        elif variant in INTERVALS_MS:
            yield from self._klines(tape, name, variant, after_ms, now_ms)

    def _klines(self, tape: Tape, name: str, interval: str, after_ms: int, now_ms: int) -> Iterator[Event]:
        """Push each candle's end once, and the forming one at most four times a second while it is traded."""
        step = INTERVALS_MS[interval]
        after, until = after_ms - KLINE_LAG_MS, now_ms - KLINE_LAG_MS
        opens = after // step * step
        for bar in tape.candles(step, start_ms=opens, end_ms=until + 1, now_ms=until):
            end = bar[0] + step
            if end <= until:
                event_ms = end + KLINE_LAG_MS
                yield event_ms, name, kline_data(tape, bar, interval, event_ms=event_ms, closed=True)
            elif self._may_push(name, now_ms) and len(tape.trades(max(after, bar[0] - 1), until)):
                self._pushed_ms[name] = now_ms
                yield now_ms, name, kline_data(tape, bar, interval, event_ms=now_ms, closed=False)

    def _may_push(self, name: str, now_ms: int) -> bool:
        return now_ms - self._pushed_ms.get(name, 0) >= KLINE_PACE_MS


def _trades(tape: Tape, name: str, kind: str, after_ms: int, now_ms: int) -> Iterator[Event]:
    for trade in agg_trades(tape, tape.trades(after_ms - TRADE_LAG_MS, now_ms - TRADE_LAG_MS)):
        event_ms = trade.time_ms + TRADE_LAG_MS
        if kind == "aggTrade":
            yield event_ms, name, agg_trade_data(tape.native, trade, event_ms)
        else:  # the tape knows aggregates only: each is sent as one execution, under its own id
            maker = "true" if trade.buyer_is_maker else "false"
            yield event_ms, name, (
                f'{{"e":"trade","E":{event_ms},"T":{trade.time_ms},"s":"{tape.native}","t":{trade.id},'
                f'"p":"{trade.price}","q":"{trade.size}","X":"MARKET","m":{maker}}}'
            )  # fmt: skip
