"""What falls due on one connection of any exchange; how it is written is the dialect's affair."""

from collections.abc import Iterator
from itertools import groupby
from typing import Literal, NamedTuple

from feeds.emulator.funding import next_funding, settlements
from feeds.emulator.tape import T, Tape
from feeds.emulator.venue import Venue

WINDOW_MS = 600_000
"""The most exchange time played in one go to a connection that has fallen behind."""

Kind = Literal["trades", "candles", "mark", "funding"]


class Pace(NamedTuple):
    """How late and how often an exchange speaks."""

    trade_lag_ms: int = 100
    """From a trade to its message."""
    trade_batch_ms: int = 0
    """Trades within the same so many ms share a message; at 0 each has its own."""
    candle_lag_ms: int = 250
    """From a trade, or a candle's end, to the candle that says so."""
    candle_pace_ms: int | None = 250
    """The least time between two pushes of a forming candle; None: only closed candles are pushed."""


class Channel(NamedTuple):
    """One thing that can be subscribed to."""

    native: str
    kind: Kind
    step_ms: int = 0
    """Of candles their interval, of the mark price the time between two pushes."""


class Trades(NamedTuple):
    """Executions that share a message; rows in the order of `T`."""

    topic: str
    tape: Tape
    event_ms: int
    rows: list[list[int]]


class Bar(NamedTuple):
    """A candle, forming or closed, in the order of `K`."""

    topic: str
    tape: Tape
    event_ms: int
    bar: list[int]
    step_ms: int
    closed: bool


class Mark(NamedTuple):
    """The mark price, which is the last one traded, and the funding to come (of kind ``funding``: just settled)."""

    topic: str
    tape: Tape
    event_ms: int
    price: int
    rate: str
    """Empty, with `funding_ms` 0, on a tape without funding."""
    funding_ms: int


Happening = Trades | Bar | Mark


class Player:
    """What one connection has subscribed to, and what of it falls due."""

    def __init__(self, venue: Venue, pace: Pace) -> None:
        self.topics: dict[str, Channel | None] = {}
        """By the name under which the connection knows it; None: accepted, and silent for ever."""
        self._venue, self._pace = venue, pace
        self._seen_ms = venue.clock.now_ms()
        self._pushed_ms: dict[str, int] = {}

    def subscribe(self, topic: str, channel: Channel | None) -> None:
        """Play this too, from now on; the exchange's clock begins with the first subscription of all."""
        self.topics[topic] = channel
        self._venue.clock.begin()

    def unsubscribe(self, topic: str) -> None:
        """Play this no more."""
        self.topics.pop(topic, None)
        self._pushed_ms.pop(topic, None)

    def due(self, now_ms: int) -> list[Happening]:
        """Return what happened since the last call up to `now_ms`, in order of event time."""
        now_ms = min(now_ms, self._seen_ms + WINDOW_MS)
        happened = [one for topic in self.topics for one in self._topic(topic, self._seen_ms, now_ms)]
        self._seen_ms = now_ms
        happened.sort(key=lambda one: one.event_ms)
        return happened

    def _topic(self, topic: str, after_ms: int, now_ms: int) -> Iterator[Happening]:
        channel = self.topics[topic]
        tape = channel and self._venue.tapes.get(channel.native)
        if channel is None or tape is None:
            return
        if channel.kind == "trades":
            yield from self._trades(topic, tape, after_ms, now_ms)
        elif channel.kind == "candles":
            yield from self._candles(topic, tape, channel.step_ms, after_ms, now_ms)
        elif channel.kind == "mark":
            at = now_ms // channel.step_ms * channel.step_ms
            if at > after_ms:
                yield Mark(topic, tape, at, tape.price_at(at), *next_funding(tape, at))
        else:
            for at in settlements(tape, start_ms=after_ms + 1, end_ms=now_ms):
                yield Mark(topic, tape, at, tape.price_at(at), *next_funding(tape, at - 1))

    def _trades(self, topic: str, tape: Tape, after_ms: int, now_ms: int) -> Iterator[Trades]:
        """Let a message leave the lag after its batch of milliseconds has ended."""
        lag, batch = self._pace.trade_lag_ms, max(1, self._pace.trade_batch_ms)
        after, until = ((at - lag + 1) // batch * batch - 1 for at in (after_ms, now_ms))
        rows = tape.trades(after, until).tolist()
        if not self._pace.trade_batch_ms:
            yield from (Trades(topic, tape, row[T.TIME] + lag, [row]) for row in rows)
            return
        for number, shared in groupby(rows, lambda row: row[T.TIME] // batch):
            yield Trades(topic, tape, (number + 1) * batch - 1 + lag, list(shared))

    def _candles(self, topic: str, tape: Tape, step: int, after_ms: int, now_ms: int) -> Iterator[Bar]:
        """Push each candle's end once, and the forming one at the exchange's pace while it is traded."""
        lag = self._pace.candle_lag_ms
        after, until = after_ms - lag, now_ms - lag
        for bar in tape.candles(step, start_ms=after // step * step, end_ms=until + 1, now_ms=until):
            end = bar[0] + step
            if end <= until:
                yield Bar(topic, tape, end + lag, bar, step, closed=True)
            elif self._may_push(topic, now_ms):
                since = self._pushed_ms.get(topic, after_ms) - lag
                if len(tape.trades(max(since, bar[0] - 1), until)):
                    self._pushed_ms[topic] = now_ms
                    yield Bar(topic, tape, now_ms, bar, step, closed=False)

    def _may_push(self, topic: str, now_ms: int) -> bool:
        pace = self._pace.candle_pace_ms
        return pace is not None and now_ms - self._pushed_ms.get(topic, 0) >= pace
