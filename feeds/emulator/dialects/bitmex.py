"""BitMEX as it was until 2026-09-23; frames have the shape of those captured from 2021 to 2026."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from feeds.emulator.dialects.base import Close, Frame, Refused, Wire, json_text, page
from feeds.emulator.dialects.bitmex_rest import (
    BIN_LAG_MS,
    BINS_MS,
    NO_GUID,
    POOL,
    TRADE_LAG_MS,
    BitmexRest,
    Row,
    bin_row,
    executions,
    funding_row,
    instrument,
    iso,
    last_trades,
    prices,
)
from feeds.emulator.funding import FUNDING_MS, settlements
from feeds.emulator.player import Bar, Channel, Happening, Mark, Pace, Player, Trades
from feeds.emulator.tape import T, Tape
from feeds.emulator.venue import Venue

PACE = Pace(trade_lag_ms=TRADE_LAG_MS, trade_batch_ms=1, candle_lag_ms=BIN_LAG_MS, candle_pace_ms=None)
INSTRUMENT_MS = 500
PARTIAL_LAG_MS = 400
"""From an acknowledgement to the partial; in the capture two seconds passed."""
_TYPES = {str: "symbol", int: "long", float: "float", bool: "boolean", msgspec.Raw: "float"}


class Bitmex:
    """The exchange; see `Dialect`."""

    name: ClassVar[str] = "bitmex"
    natives: ClassVar[tuple[str, ...]] = ("XBTUSD", "ETHUSD", "SOLUSDT")
    ws_paths: ClassVar[tuple[str, ...]] = ("/realtime",)
    rest_prefix: ClassVar[str] = "/api/v1/"
    inbound_per_s: ClassVar[int] = 100  # no limit is documented
    lifetime_s: ClassVar[float] = math.inf
    farewell: ClassVar[Close] = Close(1001, "")

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._rest = BitmexRest(venue)

    def rest(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer a GET of ``/api/v1/…``."""
        return self._rest.answer(path, query)

    def limited(self, retry_after_s: int, *, banned: bool) -> Refused:
        """Refuse with 429, or 403 and a ban."""
        message = "Forbidden" if banned else f"Rate limit exceeded, retry in {retry_after_s} seconds."
        body = {"error": {"message": message, "name": "HTTPError" if banned else "RateLimitError"}}
        return Refused(403 if banned else 429, body, {"Retry-After": str(retry_after_s)})

    def connect(self, path: str, query: Mapping[str, str], now_s: float) -> Wire:  # noqa: ARG002
        """Take a connection to ``/realtime?subscribe=a,b``."""
        return _Wire(self._venue, [name for name in query.get("subscribe", "").split(",") if name])


class _Request(msgspec.Struct):
    op: str
    args: list[str] | str = []


class _Wire(Wire):
    def __init__(self, venue: Venue, names: list[str]) -> None:
        self._venue, self._names = venue, names
        self._player = Player(venue, PACE)
        self._awaited: deque[tuple[int, str]] = deque()
        """Topics whose partial is to come, and when."""
        self._told: dict[str, Row] = {}

    def hello(self) -> list[Frame]:
        welcome = {
            "info": "Welcome to the BitMEX Realtime API.", "version": "2.0.0",
            "timestamp": iso(self._venue.clock.now_ms()), "docs": "https://www.bitmex.com/app/wsAPI",
            "heartbeatEnabled": False, "appName": "ws-feedhandler",
        }  # fmt: skip
        request = _Request("subscribe", self._names)
        return [json_text(welcome), *(self._subscribe(name, request) for name in self._names)]

    def answer(self, text: str, _now_s: float, /) -> list[Frame]:
        if text == "ping":
            return ["pong"]
        try:
            request = msgspec.json.decode(text, type=_Request)
        except (msgspec.DecodeError, RecursionError):
            return [_error("Unrecognized request.", None)]
        names = [request.args] if isinstance(request.args, str) else request.args
        if request.op == "subscribe":
            return [self._subscribe(name, request) for name in names]
        if request.op == "unsubscribe":
            return [self._unsubscribe(name, request) for name in names]
        return [_error(f"Unknown operation: {request.op}", request)]

    def pong(self, now_s: float, /) -> None:
        """Pass over what nobody asked for: the exchange sends no protocol pings."""

    def _subscribe(self, name: str, request: _Request) -> Frame:
        """Acknowledge a topic; its table begins with the partial, later."""
        channel = self._channel(name)
        if isinstance(channel, str):
            return _error(channel, request)
        if name in self._player.topics:
            return _error(f"You are already subscribed to this topic: {name}", request)
        self._player.subscribe(name, channel)
        self._awaited.append((self._venue.clock.now_ms() + PARTIAL_LAG_MS, name))
        return json_text({"success": True, "subscribe": name, "pool": POOL, "request": request})

    def _unsubscribe(self, name: str, request: _Request) -> Frame:
        self._player.unsubscribe(name)
        self._awaited = deque(one for one in self._awaited if one[1] != name)
        self._told.pop(name, None)
        return json_text({"success": True, "unsubscribe": name, "request": request})

    def _channel(self, name: str) -> Channel | str:
        """Return what a topic carries, or what is wrong with it."""
        table, _, native = name.partition(":")
        kinds = {
            "trade": Channel(native, "trades"), "instrument": Channel(native, "mark", INSTRUMENT_MS),
            "funding": Channel(native, "funding"),
            **{f"tradeBin{size}": Channel(native, "candles", step) for size, step in BINS_MS.items()},
        }  # fmt: skip
        if table not in kinds:
            return f"Unknown table: {table}"
        return kinds[table] if native in self._venue.tapes else "Unknown or expired symbol."

    def due(self, now_ms: int) -> list[Frame]:
        """Play what is due; what falls due before the partial of its topic is sent too, and means nothing."""
        frames: list[Frame] = []
        while self._awaited and self._awaited[0][0] <= now_ms:
            at_ms, name = self._awaited.popleft()
            frames += self._played(at_ms)
            frames += self._partial(name, at_ms)
        return frames + self._played(now_ms)

    def _played(self, now_ms: int) -> list[Frame]:
        return [frame for one in self._player.due(now_ms) for frame in self._frames(one)]

    def _frames(self, one: Happening) -> Iterator[Frame]:
        table = one.topic.partition(":")[0]
        if isinstance(one, Trades):
            yield _push(table, "insert", [each for row in one.rows for each in executions(one.tape, row)])
        elif isinstance(one, Bar):
            yield _push(table, "insert", [_bin(one.tape, one.bar, one.step_ms)])
        elif table == "funding":
            yield _push(table, "insert", [funding_row(one.tape, one.funding_ms)])
        elif changed := self._changed(one):
            yield _push(table, "update", [{"symbol": one.tape.native, **changed, "timestamp": iso(one.event_ms)}])

    def _changed(self, one: Mark) -> Row:
        now, known = prices(one.tape, one.price, one.event_ms), self._told.get(one.topic, {})
        self._told[one.topic] = now
        return {key: value for key, value in now.items() if key not in known or _text(known[key]) != _text(value)}

    def _partial(self, name: str, at_ms: int) -> list[Frame]:
        table, _, native = name.partition(":")
        tape = self._venue.tapes.get(native)
        if tape is None:
            return []
        rows = _last_rows(table, tape, at_ms)
        if table == "instrument":
            self._told[name] = prices(tape, tape.price_at(at_ms), at_ms)
        head = {
            "table": table, "action": "partial", "keys": ["symbol"] if table == "instrument" else [],
            "types": {key: _type(key, value) for row in rows[:1] for key, value in row.items()},
            "filter": {"pool": POOL, "symbol": native},
        }  # fmt: skip
        return [json_text({**head, "data": rows})]


def _last_rows(table: str, tape: Tape, at_ms: int) -> list[Row]:
    """Return what a table's partial holds of a market; the ids of some trades are all zeros there."""
    if table == "trade":
        newest = tape.trades(0, at_ms - TRADE_LAG_MS)[-1:, T.ID].tolist()
        guid = {"trdMatchID": NO_GUID} if newest and newest[0] % 2 else {}
        return [{**row, **guid} for row in last_trades(tape, at_ms - TRADE_LAG_MS)]
    if table == "instrument":
        return [instrument(tape, at_ms)]
    if table == "funding":
        return [funding_row(tape, due) for due in settlements(tape, start_ms=at_ms - FUNDING_MS, end_ms=at_ms)[-1:]]
    step = BINS_MS[table.removeprefix("tradeBin")]
    until_ms = (at_ms - BIN_LAG_MS) // step * step
    bars = page(tape, step, now_ms=until_ms, limit=1, start_ms=until_ms - step, end_ms=until_ms - step)
    return [_bin(tape, bar, step) for bar in bars]


def _bin(tape: Tape, bar: list[int], step_ms: int) -> Row:
    return bin_row(tape, bar, tape.price_at(bar[0] - 1), step_ms)


def _text(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _type(key: str, value: Any) -> str:
    if key == "trdMatchID":
        return "guid"
    return "timestamp" if key.lower().endswith("timestamp") else _TYPES.get(type(value), "float")


def _push(table: str, action: str, rows: list[Row]) -> str:
    return json_text({"table": table, "action": action, "data": rows})


def _error(message: str, request: _Request | None) -> str:
    return json_text({"status": 400, "error": message, "meta": {}, "request": request})
