"""Bitget futures, the public websocket of API v2; frames have the shape of those captured from 2023 to 2026."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import msgspec

from feeds.emulator.dialects.base import ABNORMAL, Close, Frame, Refused, Wire, json_text, page
from feeds.emulator.dialects.bitget_rest import (
    INTERVALS_MS,
    BitgetRest,
    carried,
    kline_row,
    product_of,
    trade_row,
    trade_rows,
    trimmed,
)
from feeds.emulator.funding import next_funding
from feeds.emulator.player import Bar, Channel, Happening, Mark, Pace, Player
from feeds.emulator.tape import Tape
from feeds.emulator.venue import Venue

PACE = Pace(trade_lag_ms=100, trade_batch_ms=100, candle_lag_ms=300, candle_pace_ms=500)
"""In a capture of 2022 trades were told 56 to 134 ms after they happened."""
TICKER_MS = 100
CANDLES_SNAPSHOT, TRADES_SNAPSHOT = 500, 50
_DAY_MS = 86_400_000
REQUEST_BYTES = 4096
REQUESTS_MAX = 240
"""Subscribing requests on one connection; the exchange allows as many in an hour."""
PING_WITHIN_S = 130.0
"""Documented are two minutes; 127 and 142 seconds were seen."""
_NOT_STREAMED = "candle3m"
OVER_LIMIT = {"event": "error", "code": 30007, "msg": "request over limit,connection close"}
BAD_REQUEST = {"event": "error", "code": 30002, "msg": "illegal request"}
BAD_OPERATION = {"event": "error", "code": 30003, "msg": "invalid op"}


class Bitget:
    """The exchange; see `Dialect`."""

    name: ClassVar[str] = "bitget"
    natives: ClassVar[tuple[str, ...]] = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    ws_paths: ClassVar[tuple[str, ...]] = ("/v2/ws/public",)
    rest_prefix: ClassVar[str] = "/api/v2/"
    inbound_per_s: ClassVar[int] = 10
    lifetime_s: ClassVar[float] = 86_400.0
    farewell: ClassVar[Close] = Close(ABNORMAL)  # all closes that were observed were so

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._rest = BitgetRest(venue)

    def rest(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer a GET of ``/api/v2/…``."""
        return self._rest.answer(path, query)

    def limited(self, retry_after_s: int, *, banned: bool) -> Refused:  # noqa: ARG002 (it has one way to say so)
        """Refuse with 429; how long to wait it is not documented to say, but a client under test is told."""
        return Refused(429, self._rest.body("429", "Too Many Requests"), {"Retry-After": str(retry_after_s)})

    def connect(self, path: str, query: Mapping[str, str], now_s: float) -> Wire:  # noqa: ARG002 (one address)
        """Take a connection to the public streams."""
        return _Wire(self._venue, now_s)


class _Arg(msgspec.Struct, frozen=True, rename="camel"):
    inst_type: str
    channel: str
    inst_id: str


class _Request(msgspec.Struct):
    op: str
    args: list[_Arg] = []


class _Refusal(NamedTuple):
    code: int
    message: str


class _Wire(Wire):
    def __init__(self, venue: Venue, now_s: float) -> None:
        self._venue, self._player = venue, Player(venue, PACE)
        self._args: dict[str, _Arg] = {}
        self._new: list[tuple[str, Channel]] = []
        """What begins with the next data, by a snapshot."""
        self._pinged_s, self._requests = now_s, 0

    def answer(self, text: str, now_s: float) -> list[Frame]:
        """Take a ping or a request; each channel of a request is answered for itself."""
        if text == "ping":
            self._pinged_s = now_s
            return ["pong"]
        self._requests += 1
        if len(text.encode(errors="replace")) > REQUEST_BYTES or self._requests > REQUESTS_MAX:
            return [json_text(OVER_LIMIT), Close(ABNORMAL)]
        try:
            request = msgspec.json.decode(text, type=_Request)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return [json_text(BAD_REQUEST)]
        if request.op == "subscribe":
            return [self._subscribe(arg) for arg in request.args]
        if request.op != "unsubscribe":
            return [json_text(BAD_OPERATION)]
        for arg in request.args:
            self._player.unsubscribe(_topic(arg))
        return [json_text({"event": "unsubscribe", "arg": arg}) for arg in request.args]

    def _subscribe(self, arg: _Arg) -> str:
        channel = self._channel(arg)
        if isinstance(channel, _Refusal):
            return json_text(
                {"event": "error", "arg": arg, "code": channel.code, "msg": channel.message, "op": "subscribe"}
            )
        topic = _topic(arg)
        self._args[topic] = arg
        if topic not in self._player.topics:
            self._player.subscribe(topic, None)
        if channel:
            self._new.append((topic, channel))
        return json_text({"event": "subscribe", "arg": arg})

    def _channel(self, arg: _Arg) -> Channel | _Refusal | None:
        """Find what an argument means; a true symbol under a wrong product type is accepted, and silent for ever."""
        native, kind = arg.inst_id, arg.channel
        interval = INTERVALS_MS.get(kind.removeprefix("candle")) if kind.startswith("candle") else None
        if kind not in ("trade", "ticker") and (interval is None or kind == _NOT_STREAMED):
            return _Refusal(30016, "Param error")
        if native not in self._venue.tapes:
            named = f"instType:{arg.inst_type},channel:{kind},instId:{native}"
            return _Refusal(30001, f"{named},precision:null doesn't exist")
        if arg.inst_type != product_of(native):
            return None
        if interval:
            return Channel(native, "candles", interval)
        return Channel(native, "trades") if kind == "trade" else Channel(native, "mark", TICKER_MS)

    def _begun(self, now: int) -> Iterator[str]:
        """Play what is new from now on, and write its snapshot."""
        for topic, channel in self._new:
            tape = self._venue.tapes.get(channel.native)
            if tape and topic in self._player.topics:
                self._player.subscribe(topic, channel)
                yield from self._snapshot(topic, channel, tape, now)
        self._new.clear()

    def _snapshot(self, topic: str, channel: Channel, tape: Tape, now: int) -> list[str]:
        """Write what is pushed at first: the newest trades, newest first; the newest candles, oldest first."""
        if channel.kind == "trades":
            told = now - PACE.trade_lag_ms
            rows: list[Any] = trade_rows(tape, told - _DAY_MS, told, TRADES_SNAPSHOT)
        elif channel.kind == "candles":
            told = now - PACE.candle_lag_ms
            step = channel.step_ms
            bars = page(tape, step, now_ms=told, limit=CANDLES_SNAPSHOT, start_ms=None, end_ms=None)
            rows = [_candle_row(tape, bar) for bar in carried(tape, step, bars)]
        else:
            rows = [_ticker(Mark(topic, tape, now, tape.price_at(now), *next_funding(tape, now)))]
        return [_push("snapshot", self._args[topic], rows, now)] if rows else []

    def due(self, now_ms: int) -> list[Frame]:
        played = self._player.due(now_ms)
        return [*(self._written(one) for one in played), *self._begun(now_ms)]

    def _written(self, one: Happening) -> str:
        arg = self._args[one.topic]
        if isinstance(one, Mark):
            return _push("snapshot", arg, [_ticker(one)], one.event_ms + 1)
        if isinstance(one, Bar):
            (bar,) = carried(one.tape, one.step_ms, [one.bar])
            return _push("update", arg, [_candle_row(one.tape, bar)], one.event_ms)
        return _push("update", arg, [trade_row(one.tape, row) for row in reversed(one.rows)], one.event_ms)

    def pong(self, now_s: float, /) -> None:
        """Pass over what nobody asked for: the exchange sends no protocol pings."""

    def idle(self, now_s: float) -> list[Frame]:
        """End a connection that has not pinged for two minutes, whatever flows."""
        return [Close(ABNORMAL)] if now_s - self._pinged_s > PING_WITHIN_S else []


def _topic(arg: _Arg) -> str:
    return f"{arg.inst_type}/{arg.channel}/{arg.inst_id}"


def _push(action: str, arg: _Arg, rows: list[Any], sent_ms: int) -> str:
    return json_text({"action": action, "arg": arg, "data": rows, "ts": sent_ms})


def _candle_row(tape: Tape, bar: list[int]) -> list[str]:
    """Write a candle with one column more than over REST: the turnover in USDT."""
    row = kline_row(tape, bar)
    return [*row, row[-1]]


def _ticker(one: Mark) -> dict[str, str]:
    tape, price = one.tape, trimmed(one.tape.price_text(one.price))
    return {
        "instId": tape.native, "lastPr": price, "bidPr": price, "askPr": price, "bidSz": "1", "askSz": "1",
        "open24h": price, "high24h": price, "low24h": price, "change24h": "0", "fundingRate": trimmed(one.rate),
        "nextFundingTime": str(one.funding_ms), "markPrice": price, "indexPrice": price, "holdingAmount": "31911.3456",
        "baseVolume": "0", "quoteVolume": "0", "openUtc": price, "symbolType": "1", "symbol": tape.native,
        "deliveryPrice": "0", "ts": str(one.event_ms),
    }  # fmt: skip
