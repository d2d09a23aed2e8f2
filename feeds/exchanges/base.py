"""What every exchange codec offers, and the exact reading of number texts that they share.

A codec is pure: it says what to send, and turns frames into events. It never raises on what an exchange sends.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from feeds.events import Event, Malformed
from feeds.market import NS_PER_MS, CandleSpec, Market
from feeds.traits import Traits

MAX_FRAME_BYTES = 1 << 20
"""A longer frame is reported as malformed and not parsed."""
END_OF_TIME_MS = 4_102_444_800_000
"""2100-01-01; a later time is a mistake of unit."""
ID_MAX = (1 << 63) - 1
_NUMBER = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?").fullmatch
_DIGITS = 18
_POWERS = [10**n for n in range(_DIGITS + 1)]


class Codec(Protocol):
    """One exchange's websocket protocol for one connection's markets."""

    name: ClassVar[str]
    traits: ClassVar[Traits]
    trade_history: ClassVar[bool]
    """Whether REST serves trades far enough back to repair a gap: only then candles below a minute and by events."""
    capacity: ClassVar[int]
    """What the exchange allows on one connection, in the unit of `load`."""
    inbound_rate_per_s: ClassVar[float]
    """Messages a second, pings included, above which the exchange closes the connection."""
    request_spacing_s: ClassVar[float]
    """Time to leave between two requests."""
    lifetime_s: ClassVar[float]
    """Age at which to replace the connection, before the exchange cuts it."""
    silence_s: ClassVar[float]
    """A connection without any market data for this long is dead."""
    mark_silence_s: ClassVar[float]
    """Likewise for the mark price of one market while others flow."""
    kline_lag_s: ClassVar[float]
    """How much older than a kline's message the newest trade in it may be: the exchange's slowest pace of klines."""
    ping_every_s: ClassVar[float | None]
    """How often the exchange wants to be sent `ping`; None: never."""
    answers_protocol_pings: ClassVar[bool]
    """Whether the server is known to answer websocket pings, so that an unanswered one means a dead connection."""

    streams: tuple[str, ...]
    """What the connection subscribes to, by the exchange's names."""
    markets: tuple[Market, ...]

    def __init__(self, markets: Sequence[Market], specs: Mapping[str, Sequence[CandleSpec]]) -> None:
        """Serve `markets`; `specs` are the wanted candles by `Market.symbol`."""

    @property
    def load(self) -> int:
        """How much of a connection's `capacity` the streams use: their number, or what else the exchange counts."""

    @staticmethod
    def family(market: Market) -> str:
        """Name what must be alike for two markets to share a connection (linear, inverse); often always empty."""

    @staticmethod
    def has_kline(spec: CandleSpec) -> bool:
        """Tell whether the exchange has its own candles of `spec`, on a stream or over REST."""

    @staticmethod
    def native_of(symbol: str) -> str:
        """Return the exchange's name for a unified symbol, where no list of markets is at hand.

        Raises:
            ValueError: the exchange can have no such contract.

        """

    def url(self, base: str | None = None) -> str:
        """Return the address to connect to; `base` replaces scheme, host and port."""

    def subscribe(self) -> list[tuple[int, str]]:
        """Return the requests that subscribe to `streams`: (id, frame)."""

    def confirm(self) -> tuple[int, str] | None:
        """Return the request whose answer lists what the connection carries; None where there is none."""

    def ping(self) -> str:
        """Return the frame that tells the exchange that we live."""

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        """Read one frame, into market events and `Malformed`, or into one answer to a request of ours, or a `Reply`.

        Where a frame tells both, the answer comes last.

        A codec serves one connection, so it may keep what the exchange tells only once (snapshots before deltas), and
        count the acknowledgements of a request. Trades of a frame come out in order of time.

        Never raises: what is not understood becomes `Malformed`, what was not asked for is left out.
        """


def rebase(address: str, base: str | None) -> str:
    """Replace scheme, host and port of `address` by those of `base`; the path stays.

    Raises:
        ValueError: `base` is no websocket address, or has a path of its own.

    """
    if base is None:
        return address
    parts = urlsplit(base)
    if parts.scheme not in ("ws", "wss") or not parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{base!r} is not of the form ws://host:port or wss://host:port")
    return urlsplit(address)._replace(scheme=parts.scheme, netloc=parts.netloc).geturl()


@functools.lru_cache(maxsize=1 << 14)  # prices come again and again, sizes often
def scaled(text: str, decimals: int) -> int:
    """Read a plain decimal text as an integer of 10**-decimals, exactly.

    Raises:
        ValueError: a sign, an exponent, anything but digits and one point, or more non-zero decimals than `decimals`.

    """
    whole, point, fraction = text.partition(".")
    digits = whole + fraction
    spare = decimals - len(fraction)
    # What exchanges write, read without a regular expression: every trade has two of these.
    is_plain = whole and digits.isdigit() and digits.isascii() and (fraction or not point)
    if is_plain and spare >= 0 and len(digits) <= _DIGITS:
        return int(digits) * _POWERS[spare] if spare else int(digits)
    return _scaled(text, decimals)


def _scaled(text: str, decimals: int) -> int:
    match = _NUMBER(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a plain number")
    whole: str = match[1]
    fraction: str = match[2] or ""
    if fraction[decimals:].strip("0"):
        raise ValueError(f"{text[:40]!r} has more than {decimals} decimals")
    return int(whole + fraction[:decimals].ljust(decimals, "0"))


def plain(text: str) -> float:
    """Read a plain decimal text as the nearest float64.

    Raises:
        ValueError: a sign, an exponent, anything but digits and one point.

    """
    if _NUMBER(text) is None:
        raise ValueError(f"{text[:40]!r} is not a plain number")
    return float(text)


def positive(text: str) -> float:
    """Read a plain decimal text above zero; see `plain`."""
    value = plain(text)
    if value == 0:
        raise ValueError("zero where there must be more")
    return value


def signed(text: str) -> float:
    """Read a plain decimal text that may begin with a minus; see `plain`."""
    return -plain(text[1:]) if text.startswith("-") else plain(text)


def time_ns(time_ms: int) -> int:
    """Turn an exchange's milliseconds into nanoseconds.

    Raises:
        ValueError: not between 1970 and 2100.

    """
    if not 0 < time_ms < END_OF_TIME_MS:
        raise ValueError(f"time {str(time_ms)[:40]} ms is absurd")
    return time_ms * NS_PER_MS


def count(number: int) -> int:
    """Return `number` if it can be an id or a count: not negative, within 63 bits.

    Raises:
        ValueError: it cannot.

    """
    if not 0 <= number <= ID_MAX:
        raise ValueError(f"{str(number)[:40]} is no id or count")
    return number


def malformed(kind: str, reason: object, frame: str | bytes) -> list[Event]:
    """Report a frame that was not understood."""
    return [Malformed(kind, f"{str(reason)[:100]}: {frame[:80]!r}"[:200])]
