"""BingX perpetual swaps margined in USDT or USDC: trades, forming klines and mark prices.

Confirmed by frames captured from 2024 to 2026: each frame of the server is binary and holds one gzip member, the text
``Ping`` every 5 s included, which wants the text ``Pong``; a request subscribes to one topic; `data` of a trade push is
an array (an object on spot, which is refused here), newest first where there are several; a kline's `T` is its open;
the mark price comes once a second, alone. There is no index price and no funding on the stream.

Assumed: trades of one time are newest first as well, unless the frame's times rise; frames of one market may overtake
one another by up to a second (the documentation says only that their order is not guaranteed; the trades of the one
captured burst span 0.6 s); two seconds past a close no trade before it is still to come; the server does not answer
websocket pings; connections have no age limit.

What is complete: trades have no ids, and rows alike to the byte are real trades. While one connection lasts, TCP
delivers whatever the exchange sends on it; that the exchange sends every trade nothing can prove, and a missing trade
shows nowhere in the stream. No kline says that it is closed. So a candle is held against the exchange's klines over
REST, and those of a broken connection are taken from there.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, TypeVar

import msgspec

from feeds.events import Ack, Event, Kline, MarketTrade, MarkPrice, Refusal, Reply
from feeds.exchanges.base import MAX_FRAME_BYTES, malformed, plain, positive, rebase, scaled, time_ns
from feeds.market import NS_PER_S, Candle, CandleSpec, Market, Origin, Trade
from feeds.traits import Identity, Traits

_MINUTE_NS = 60 * NS_PER_S
INTERVALS = {
    minutes * _MINUTE_NS: name
    for minutes, name in (
        (1, "1m"), (3, "3m"), (5, "5m"), (15, "15m"), (30, "30m"), (60, "1h"), (120, "2h"),
        (240, "4h"), (360, "6h"), (480, "8h"), (720, "12h"), (1440, "1d"),
    )
}  # fmt: skip
"""Candles that the exchange publishes itself: its name by interval, ns."""
RENAMED = {
    "Snowman": "SNOW",
    "OmniCat": "OMNI",
    "$NAP": "NAP",
    "TRUMPMAGA": "TRUMP",
    "TRUMP": "TRUMPSOL",
}
"""The exchange's names of coins that ccxt calls otherwise."""
_GZIP = b"\x1f\x8b"
_GZIP_ONLY = zlib.MAX_WBITS | 16
_NUMBER = re.compile(r"[0-9]{1,18}").fullmatch
_T = TypeVar("_T")


class _Frame(msgspec.Struct, rename={"topic": "dataType"}, gc=False):
    """A push has a topic, an answer an `id` and a code."""

    topic: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    code: int | None = None
    s: str | None = None
    id: int | str | None = None
    msg: str | None = None


class _Ping(msgspec.Struct):
    """How spot asks for a sign of life."""

    ping: str
    time: str


class _Trade(msgspec.Struct, gc=False):
    q: str
    p: str
    T: int
    m: bool
    s: str | None = None


class _Mark(msgspec.Struct, gc=False):
    E: int
    p: str
    s: str | None = None


class _Bar(msgspec.Struct, gc=False):
    T: int
    o: str
    h: str
    l: str
    c: str
    v: str


class _DocumentedBar(msgspec.Struct, gc=False):
    t: int
    o: str
    h: str
    l: str
    c: str
    v: str


class _Documented(msgspec.Struct, gc=False):
    """A kline as the documentation has it; captured ones are arrays of `_Bar`."""

    K: _DocumentedBar
    E: int | None = None
    s: str | None = None


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_ping = msgspec.json.Decoder(_Ping).decode
_decode_trades = msgspec.json.Decoder(list[_Trade]).decode
_decode_mark = msgspec.json.Decoder(_Mark).decode
_decode_klines = msgspec.json.Decoder(list[_Bar] | _Documented).decode


class _TooLong(ValueError):
    """A frame would inflate beyond the limit."""


class _OtherSymbol(ValueError):
    """A push names another market than its topic does."""


_Read = Callable[[Market, msgspec.Raw, int], list[Event]]


class BingxCodec:
    """The codec of BingX's linear perpetual swaps; see `feeds.exchanges.base.Codec`."""

    name: ClassVar[str] = "bingx"
    traits: ClassVar[Traits] = Traits(identity=Identity.NONE, grace_ns=2 * NS_PER_S, disorder_ns=NS_PER_S)
    trade_history: ClassVar[bool] = False
    capacity: ClassVar[int] = 200
    inbound_rate_per_s: ClassVar[float] = 10.0
    request_spacing_s: ClassVar[float] = 0.2
    lifetime_s: ClassVar[float] = math.inf
    silence_s: ClassVar[float] = 30.0
    mark_silence_s: ClassVar[float] = 30.0
    kline_lag_s: ClassVar[float] = 15.0
    ping_every_s: ClassVar[float | None] = None
    answers_protocol_pings: ClassVar[bool] = False

    def __init__(self, markets: Sequence[Market], specs: Mapping[str, Sequence[CandleSpec]]) -> None:
        self.markets = tuple(markets)
        self._topics: dict[str | None, tuple[Market, _Read]] = {}
        for market in markets:
            self._topics[f"{market.native}@trade"] = market, _trades
            self._topics[f"{market.native}@markPrice"] = market, _mark_price
            for spec in specs.get(market.symbol, ()):
                if self.has_kline(spec):
                    topic = f"{market.native}@kline_{INTERVALS[spec.interval_ns]}"
                    self._topics[topic] = market, partial(_klines, spec)
        self.streams = tuple(topic for topic in self._topics if topic is not None)

    @property
    def load(self) -> int:
        """The number of topics."""
        return len(self.streams)

    @staticmethod
    def family(market: Market) -> str:  # noqa: ARG004 (one socket carries all)
        """Put every market on the same connection."""
        return ""

    @staticmethod
    def has_kline(spec: CandleSpec) -> bool:
        """Tell whether BingX publishes candles of `spec`: from 1m to 1d, by time."""
        return spec.interval_ns in INTERVALS

    @staticmethod
    def native_of(symbol: str) -> str:
        """Return BingX's name of a linear perpetual: ``BTC/USDT:USDT`` → ``BTC-USDT``."""
        match = re.fullmatch(r"([^/:]+)/(USDT|USDC):\2", symbol)
        if match is None:
            raise ValueError(f"{symbol!r} is no linear perpetual of bingx")
        base, quote = match.groups()
        return f"{RENAMED.get(base, base)}-{quote}"

    def url(self, base: str | None = None) -> str:
        """Return the address of the swap market data."""
        return rebase("wss://open-api-swap.bingx.com/swap-market", base)

    def subscribe(self) -> list[tuple[int, str]]:
        """Return one request a topic: an array of topics is not even answered."""
        return [
            (number, json.dumps({"id": str(number), "reqType": "sub", "dataType": topic}))
            for number, topic in enumerate(self.streams, start=1)
        ]

    def confirm(self) -> tuple[int, str] | None:
        """Return None: the exchange does not list what a connection carries."""
        return None

    def ping(self) -> str:
        """Never asked for: the server pings."""
        return ""

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        """Read one frame, gzipped or plain; see `Codec.decode`."""
        if len(frame) > MAX_FRAME_BYTES:
            return malformed("size", f"{len(frame)} bytes", frame)
        try:
            text = _gunzip(frame) if isinstance(frame, bytes) and frame.startswith(_GZIP) else frame
            if not text.isascii():  # msgspec does not look into fields that it skips
                text.encode() if isinstance(text, str) else text.decode()
            push = _decode_frame(text)
        except (msgspec.DecodeError, RecursionError) as error:
            return [Reply("Pong")] if text in ("Ping", b"Ping") else _unreadable(error, text)
        except _TooLong as error:
            return malformed("size", error, frame)
        except (UnicodeError, zlib.error) as error:
            return malformed("encoding", error, frame)
        topic = self._topics.get(push.topic)
        if topic is None or push.id is not None or push.code:
            return _other(push, text)
        market, read = topic
        try:
            _check_symbol(market, push.s)
            return read(market, push.data, receive_time_ns)
        except (msgspec.DecodeError, RecursionError) as error:
            return _unreadable(error, text)
        except ValueError as error:
            return malformed("symbol" if isinstance(error, _OtherSymbol) else "value", error, text)


def _gunzip(frame: bytes) -> bytes:
    """Inflate exactly one gzip member, never beyond the limit of a frame."""
    member = zlib.decompressobj(wbits=_GZIP_ONLY)
    text = member.decompress(frame, MAX_FRAME_BYTES + 1)
    if len(text) > MAX_FRAME_BYTES:
        raise _TooLong(f"{len(frame)} bytes inflate to more than {MAX_FRAME_BYTES}")
    if not member.eof or member.unused_data:
        raise zlib.error("cut short" if not member.eof else "more than one gzip member")
    return text


def _unreadable(error: Exception, text: str | bytes) -> list[Event]:
    return malformed("type" if isinstance(error, msgspec.ValidationError) else "json", error, text)


def _other(frame: _Frame, text: str | bytes) -> list[Event]:
    """Read what is no push of ours: answers, errors, spot's heartbeat, topics never asked for."""
    request_id = None if frame.id is None else _request_id(frame.id)
    if frame.code:
        return [Refusal(request_id, frame.code, (frame.msg or frame.topic or "")[:200])]
    if request_id is not None and frame.code is not None:
        return [Ack(request_id)]
    if frame.topic and request_id is None:
        return []
    try:
        beat = _decode_ping(text)
    except (msgspec.DecodeError, RecursionError):
        return malformed("type", "neither push nor answer", text)
    return [Reply(json.dumps({"pong": beat.ping, "time": beat.time}))]


def _request_id(said: int | str) -> int | str:
    """Return the number that we gave; the exchange repeats it as text."""
    return int(said) if isinstance(said, str) and _NUMBER(said) else said


def _check_symbol(market: Market, named: str | None) -> None:
    if named is not None and named != market.native:
        raise _OtherSymbol(f"{named[:40]!r} on a topic of {market.native}")


def oldest_first(rows: Sequence[_T], time: Callable[[_T], int]) -> list[_T]:
    """Put trades in order of time; those of one time are taken to be newest first unless the times rise."""
    if len(rows) > 1 and time(rows[0]) >= time(rows[-1]):
        rows = rows[::-1]
    return sorted(rows, key=time)


def _trades(market: Market, data: msgspec.Raw, receive_time_ns: int) -> list[Event]:
    rows = _decode_trades(data)
    events: list[Event] = []
    for row in rows if len(rows) == 1 else oldest_first(rows, lambda row: row.T):
        try:
            _check_symbol(market, row.s)
            events.append(MarketTrade(market, _trade(market, row, receive_time_ns)))
        except ValueError as error:
            kind = "symbol" if isinstance(error, _OtherSymbol) else "value"
            events += malformed(kind, error, str(row))
    return events


def _trade(market: Market, row: _Trade, receive_time_ns: int) -> Trade:
    price, size = scaled(row.p, market.price_decimals), scaled(row.q, market.size_decimals)
    if not price or not size:
        raise ValueError("zero price or size")
    return Trade(0, price, size, time_ns(row.T), receive_time_ns, 1, not row.m)


def _mark_price(market: Market, data: msgspec.Raw, receive_time_ns: int) -> list[Event]:
    row = _decode_mark(data)
    _check_symbol(market, row.s)
    return [MarkPrice(market, time_ns(row.E), receive_time_ns, mark_price=positive(row.p))]


def _klines(spec: CandleSpec, market: Market, data: msgspec.Raw, receive_time_ns: int) -> list[Event]:
    """Read forming candles. Captured ones have no time but their open: all they prove is that it has come."""
    klines = _decode_klines(data)
    if isinstance(klines, _Documented):
        _check_symbol(market, klines.s)
        candle = _candle(klines.K, klines.K.t, spec)
        event_time_ns = time_ns(klines.E) if klines.E is not None else candle.open_time_ns
        return [Kline(market, spec, event_time_ns, receive_time_ns, candle)]
    candles = [_candle(bar, bar.T, spec) for bar in klines]
    return [Kline(market, spec, candle.open_time_ns, receive_time_ns, candle) for candle in candles]


def _candle(bar: _Bar | _DocumentedBar, open_ms: int, spec: CandleSpec) -> Candle:
    open_ns = time_ns(open_ms)
    o, h, l, c = positive(bar.o), positive(bar.h), positive(bar.l), positive(bar.c)
    if open_ns % spec.interval_ns:
        raise ValueError(f"{open_ms} is no open of {spec}")
    if not l <= min(o, c) <= max(o, c) <= h:
        raise ValueError("open or close outside low and high")
    close_ns = open_ns + spec.interval_ns
    return Candle(
        seq=close_ns // spec.interval_ns, open_time_ns=open_ns, close_time_ns=close_ns, open=o, high=h, low=l, close=c,
        volume=plain(bar.v), trades=0, closed=False, origin=Origin.EXCHANGE,
    )  # fmt: skip
