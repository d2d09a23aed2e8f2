"""What each emulated exchange says for itself: the shape of its messages, its limits and its manners.

A dialect is pure: it gets texts and times, and returns frames and values that the shells (`websocket`, `rest`) send.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from feeds.emulator.tape import Tape
from feeds.emulator.venue import Venue

ABNORMAL = 1006


class Close(NamedTuple):
    """The exchange ends the connection; with `ABNORMAL`, without a close frame."""

    code: int
    reason: str = ""


class Ping(NamedTuple):
    """A ping of the websocket protocol."""


class Pong(NamedTuple):
    """The answer to the client's; the shell sends it."""

    payload: bytes


Frame = str | bytes | Close | Ping | Pong
"""Text, binary, or one of the three above."""


class Refused(Exception):
    """A request is refused: the HTTP status (200 where the exchange says so in the body), body and headers."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body, self.headers = status, body, headers or {}


class Wire(Protocol):
    """One connection. `now_s` is the time of its keep-alive rules, on any scale that runs evenly."""

    def hello(self) -> list[Frame]:
        """Return what the exchange says before it is asked anything."""
        return []

    def answer(self, text: str, now_s: float, /) -> list[Frame]:
        """Take one message of the client and return the answers; anything may come."""

    def pong(self, now_s: float, /) -> None:
        """Take note of the client's answer to a `Ping`."""

    def due(self, now_ms: int) -> list[Frame]:
        """Return the market data that has fallen due by the exchange's time `now_ms`, in order of event time."""

    def idle(self, _now_s: float, /) -> list[Frame]:
        """Return what keep-alive wants sent now, or the `Close` that its rules demand; called many times a second."""
        return []


class Dialect(Protocol):
    """One exchange."""

    name: ClassVar[str]
    natives: ClassVar[tuple[str, ...]]
    """The markets it lists when nobody says which."""
    ws_paths: ClassVar[tuple[str, ...]]
    """Paths of the websocket, as aiohttp's router writes them."""
    rest_prefix: ClassVar[str]
    """What all paths of REST begin with, with its slashes: ``/fapi/v1/``."""
    inbound_per_s: ClassVar[int]
    """More messages a second than this, pings and pongs included, end the connection."""
    lifetime_s: ClassVar[float]
    """Age at which a connection is ended."""
    farewell: ClassVar[Close]
    """What is said then."""

    def __init__(self, venue: Venue) -> None:
        """Speak about `venue`."""

    def rest(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer a GET of ``rest_prefix + path`` with a value for JSON; nothing newer than the clock is visible.

        Raises:
            Refused: the request is wrong.

        """

    def limited(self, retry_after_s: int, *, banned: bool) -> Refused:
        """Return the refusal of one request too many; `banned`: of one made in spite of such refusals."""

    def connect(self, path: str, query: Mapping[str, str], now_s: float) -> Wire:
        """Take a new connection to `path`."""


def page(
    tape: Tape, step_ms: int, *, now_ms: int, limit: int, start_ms: int | None, end_ms: int | None
) -> list[list[int]]:
    """Return at most `limit` candles that open in ``start_ms <= open <= end_ms``, oldest first, in the order of `K`.

    With a start the oldest ones, without it the newest; the last may be forming.
    """
    end = min(now_ms if end_ms is None else end_ms, now_ms) + 1
    newest = (end - 1) // step_ms * step_ms
    start = newest - (limit - 1) * step_ms if start_ms is None else start_ms
    end = min(end, max(start, tape.begin_ms // step_ms * step_ms) // step_ms * step_ms + (limit + 1) * step_ms)
    return tape.candles(step_ms, start_ms=start, end_ms=end, now_ms=now_ms)[:limit]


def json_text(value: Any) -> str:
    """Write JSON without spaces."""
    return msgspec.json.encode(value).decode()
