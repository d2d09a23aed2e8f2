"""What a feed hands to the pipeline, besides trades: pure values, times in integer nanoseconds UTC."""

from enum import StrEnum

import msgspec

from feeds.market import Candle, CandleSpec, Market, Trade


class MarketTrade(msgspec.Struct, frozen=True, gc=False):
    """A trade and the market it belongs to."""

    market: Market
    trade: Trade


class MarkPrice(msgspec.Struct, frozen=True, gc=False):
    """The exchange's mark price, and what it says of funding. Evidence of the exchange's time."""

    market: Market
    event_time_ns: int
    receive_time_ns: int
    mark_price: float
    index_price: float | None = None
    funding_rate: float | None = None
    """Predicted rate of the next settlement; never decides a durable signal."""
    next_funding_time_ns: int | None = None
    open_interest: float | None = None
    """Contracts or coins open, in the exchange's own unit; where the stream carries it."""


class Kline(msgspec.Struct, frozen=True, gc=False):
    """The exchange's own candle, forming or closed (`candle.closed`)."""

    market: Market
    spec: CandleSpec
    event_time_ns: int
    receive_time_ns: int
    candle: Candle


class Malformed(msgspec.Struct, frozen=True):
    """A frame or a row of one that was not understood: counted and logged, never applied."""

    kind: str
    """One of a small closed set of names, fit for a metric label: json, encoding, size, type, value, symbol."""
    detail: str
    """At most 200 characters for the log."""


class Ack(msgspec.Struct, frozen=True):
    """The exchange accepted the request `request_id`."""

    request_id: int | str


class Refusal(msgspec.Struct, frozen=True):
    """The exchange refused the request `request_id`, or said an error of its own."""

    request_id: int | str | None
    code: int | str
    message: str


class Subscriptions(msgspec.Struct, frozen=True):
    """The streams that the exchange says this connection carries."""

    request_id: int | str
    streams: tuple[str, ...]


class Reply(msgspec.Struct, frozen=True):
    """The exchange asks for a sign of life: `text` is to be sent at once."""

    text: str


class FundingSettlement(msgspec.Struct, frozen=True, gc=False):
    """A funding payment that took place: at `time_ns`, at `rate` of the position's value (longs pay when positive)."""

    time_ns: int
    rate: float


class Entry(StrEnum):
    """What a feed's tap tells of one connection, and what a recording holds."""

    OPENED = "opened"
    """A connection was made: its frames follow, and whoever reads them begins afresh."""
    FRAME = "frame"
    CONFIRMED = "confirmed"
    """Everything asked for is subscribed."""
    ENDED = "ended"
    FUNDING = "funding"
    """Settled funding as it was read over REST; no tap tells it."""


MarketEvent = MarketTrade | MarkPrice | Kline
Event = MarketEvent | Malformed | Ack | Refusal | Subscriptions | Reply
