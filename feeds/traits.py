"""What an exchange's streams promise, and what not: all that the pure parts need to know of a protocol."""

from enum import StrEnum

import msgspec


class Identity(StrEnum):
    """What a trade's id tells."""

    NUMBERED = "numbered"
    """Ids are contiguous per market: a missing trade shows."""
    UNIQUE = "unique"
    """Ids tell one trade from another and no more: a repetition shows, a missing trade does not."""
    NONE = "none"
    """There are none: what arrives counts, and rows alike to the byte may both be real."""


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange's promises about its streams."""

    identity: Identity
    grace_ns: int
    """How far another stream's event time must be past a close to prove that no trade before it is still to come."""
    kline_patience_ns: int = 0
    """How long a quiet market waits for the exchange's own closed kline; 0 where its stream never says "closed"."""
    disorder_ns: int = 0
    """Trades may arrive out of order of time by up to this much."""
    opens_at_previous_close: bool = False
    """Whether a candle's open is the close before it, which may lie outside its low and high."""
    open_in_range: bool = False
    """With `opens_at_previous_close`: that open counts for the low and the high too, so that it never lies outside."""
