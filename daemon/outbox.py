"""What becomes of messages: pending, in flight, acknowledged; and merged or forgotten past their bounds. Pure.

Of signals that wait too long for the broker a line's oldest are merged into one `gap` message: they can be recomputed
by whoever has the candles; feed and model go on. Delivered ones are kept for whoever asks for them again, and the
oldest are forgotten first. Bounds are in hours of the exchange's time, in rows and in bytes.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from daemon import topics
from daemon.topics import Context, Void
from feeds.market import NS_PER_S

SLACK = 0.9
"""Past a bound, so much of it is kept: merging is rare, and never row by row."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may wait, or is kept."""

    age_ns: int
    rows: int
    size_bytes: int

    @classmethod
    def of(cls, *, hours: float, rows: int, size_bytes: int) -> "Limits":
        """Take the bounds as the operator states them."""
        return cls(age_ns=round(hours * 3600 * NS_PER_S), rows=rows, size_bytes=size_bytes)


class Load(NamedTuple):
    """How much waits."""

    rows: int
    size_bytes: int
    oldest_ns: int
    """Exchange's time of the oldest; 0 where nothing waits."""


class Sent(NamedTuple):
    """What the policy needs to know of a delivered row."""

    row: int
    time_ns: int
    size_bytes: int


class Waiting(NamedTuple):
    """What the policy needs to know of a row."""

    row: int
    line: str
    size_bytes: int


class Window:
    """Which rows are pending, in flight or acknowledged, over one connection after another.

    A row is pending until it is handed to a connection, in order and at most `size` at a time; then it is in flight
    until the broker acknowledges it. What was in flight when a connection ended is pending again on the next.
    """

    def __init__(self, size: int) -> None:
        self.cursor = 0
        """The newest row handed to this connection: what is pending lies behind it."""
        self.sent_to = 0
        """The newest row ever handed to a connection: up to here rows may have arrived."""
        self._size = size
        self._in_flight: set[int] = set()
        self._acknowledged: list[int] = []

    @property
    def room(self) -> int:
        """How many rows may be handed over now."""
        return self._size - len(self._in_flight)

    @property
    def acknowledged(self) -> int:
        """How many acknowledgements are still to be written down."""
        return len(self._acknowledged)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in flight."""
        return not self._in_flight

    def begin(self) -> None:
        """Begin with a new connection."""
        self.cursor = 0
        self._in_flight.clear()

    def sent(self, row: int) -> None:
        """Note that a row was handed over."""
        self.cursor = row
        self.sent_to = max(self.sent_to, row)
        self._in_flight.add(row)

    def acknowledge(self, row: int) -> None:
        """Note the broker's word for a row, on whichever connection it was sent."""
        self._in_flight.discard(row)
        self._acknowledged.append(row)

    def refuse(self, row: int) -> None:
        """Note that the broker does not take a row; it is tried again on the next connection."""
        self._in_flight.discard(row)

    def take_acknowledged(self) -> list[int]:
        """Hand over what was acknowledged since the last call, to be written down."""
        rows, self._acknowledged = self._acknowledged, []
        return rows


def exceeded(load: Load, limits: Limits, now_ns: int) -> bool:
    """Tell whether a bound is passed; `now_ns` is the exchange's time."""
    too_old = load.oldest_ns > 0 and now_ns - load.oldest_ns > limits.age_ns
    return too_old or load.rows > limits.rows or load.size_bytes > limits.size_bytes


def expiry_ns(limits: Limits, now_ns: int) -> int:
    """Return the exchange's time before which rows are too old to be kept, once the bound in hours is passed."""
    return now_ns - int(SLACK * limits.age_ns)


def cut(oldest_first: Iterable[Waiting], load: Load, limits: Limits) -> int:
    """Return the last row to be merged so that the bounds in rows and bytes are kept with slack; 0 for none.

    Of each line one row stays, the `gap`. Nothing is read beyond the cut.
    """
    if load.rows <= limits.rows and load.size_bytes <= limits.size_bytes:
        return 0
    rows, size_bytes, last = load.rows, load.size_bytes, 0
    merged: set[str] = set()
    for waiting in oldest_first:
        if rows <= SLACK * limits.rows and size_bytes <= SLACK * limits.size_bytes:
            break
        last = waiting.row
        if waiting.line in merged:
            rows, size_bytes = rows - 1, size_bytes - waiting.size_bytes
        merged.add(waiting.line)
    return last


def surplus(oldest_first: Iterable[Sent], load: Load, limits: Limits, now_ns: int) -> list[Sent]:
    """Return the delivered rows to be forgotten so that the bounds are kept; `load` is that of all of them."""
    rows, size_bytes, gone = load.rows, load.size_bytes, list[Sent]()
    for sent in oldest_first:
        if not exceeded(Load(rows, size_bytes, sent.time_ns), limits, now_ns):
            break
        rows, size_bytes = rows - 1, size_bytes - sent.size_bytes
        gone.append(sent)
    return gone


class _Known(msgspec.Struct):
    """What a gap takes over from the messages it stands for."""

    kind: str
    seq: int
    exchange: str
    symbol: str
    spec: str
    model: str
    policy: str
    close_time: str
    valid_until: str
    from_seq: int | None = None


def is_gap(identity: bytes) -> bool:
    """Tell whether a stored message is a gap already."""
    return msgspec.json.decode(identity, type=_Known).kind == "gap"


def gap_of(first: bytes, last: bytes) -> Void:
    """Build the message that stands for a line's stored messages from `first` to `last` (their identities)."""
    begin, end = (msgspec.json.decode(identity, type=_Known) for identity in (first, last))
    from_seq = begin.seq if begin.from_seq is None else begin.from_seq
    return Void(
        kind="gap",
        id=topics.gap_id(end.exchange, end.symbol, end.spec, from_seq, end.seq, end.model, end.policy),
        seq=end.seq,
        exchange=end.exchange,
        symbol=end.symbol,
        spec=end.spec,
        model=end.model,
        policy=end.policy,
        inputs_hash="",
        close_time=end.close_time,
        valid_until=end.valid_until,
        from_seq=from_seq,
        to_seq=end.seq,
        reasons=["outbox_bound"],
        context=Context(late=True),
    )
