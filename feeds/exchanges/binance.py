"""Binance USDⓈ-M futures: aggregate trades, klines and mark prices over the routed market-data endpoint.

Since 2026-04-23 the un-routed root acknowledges these streams and stays silent; `/market/stream` carries them, each
payload wrapped in ``{"stream", "data"}``. Un-wrapped payloads (captures of ``/ws``) and the undocumented ``@trade``
stream are read too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from feeds.events import Ack, Event, Kline, MarketTrade, MarkPrice, Refusal, Subscriptions
from feeds.exchanges.base import (
    END_OF_TIME_MS,
    ID_MAX,
    MAX_FRAME_BYTES,
    count,
    malformed,
    plain,
    positive,
    rebase,
    scaled,
    signed,
    time_ns,
)
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Origin, Trade
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
_NAMES_PER_REQUEST = 200
_MAX_FILLS = 1_000_000


class _AggTrade(msgspec.Struct, tag_field="e", tag="aggTrade", gc=False):
    s: str
    a: int
    p: str
    q: str
    f: int
    l: int
    T: int
    m: bool


class _RawTrade(msgspec.Struct, tag_field="e", tag="trade", gc=False):
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool
    X: str = "MARKET"


class _MarkPrice(msgspec.Struct, tag_field="e", tag="markPriceUpdate", gc=False):
    s: str
    E: int
    p: str
    i: str = ""
    r: str = ""  # empty, and T zero, for contracts without funding
    T: int = 0


class _Bar(msgspec.Struct, gc=False):
    t: int
    T: int
    i: str
    o: str
    h: str
    l: str
    c: str
    v: str
    n: int
    x: bool


class _Kline(msgspec.Struct, tag_field="e", tag="kline", gc=False):
    s: str
    E: int
    k: _Bar


_Payload = _AggTrade | _RawTrade | _MarkPrice | _Kline
_TAGS = frozenset({"aggTrade", "trade", "markPriceUpdate", "kline"})


class _Combined(msgspec.Struct, gc=False):
    stream: str
    data: _Payload


class _Error(msgspec.Struct):
    code: int | str
    msg: str


class _Reply(msgspec.Struct):
    id: int | str | None
    result: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    error: _Error | msgspec.UnsetType = msgspec.UNSET


_decode_combined = msgspec.json.Decoder(_Combined).decode


class BinanceCodec:
    """The codec of Binance USDⓈ-M; see `feeds.exchanges.base.Codec`."""

    name: ClassVar[str] = "binance"
    # Other streams are not held back as trades are by their aggregation: by up to 156 ms in a capture of four markets.
    traits: ClassVar[Traits] = Traits(identity=Identity.NUMBERED, grace_ns=NS_PER_S, kline_patience_ns=10 * NS_PER_S)
    trade_history: ClassVar[bool] = True
    capacity: ClassVar[int] = 1024
    inbound_rate_per_s: ClassVar[float] = 10.0
    request_spacing_s: ClassVar[float] = 0.25
    lifetime_s: ClassVar[float] = 23.5 * 3600
    silence_s: ClassVar[float] = 30.0
    mark_silence_s: ClassVar[float] = 30.0
    kline_lag_s: ClassVar[float] = 5.0
    ping_every_s: ClassVar[float | None] = None
    answers_protocol_pings: ClassVar[bool] = True

    def __init__(self, markets: Sequence[Market], specs: Mapping[str, Sequence[CandleSpec]]) -> None:
        self.markets = tuple(markets)
        self._markets = {market.native: market for market in markets}
        self._specs = {
            (market.native, INTERVALS[spec.interval_ns]): spec
            for market in markets
            for spec in specs.get(market.symbol, ())
            if self.has_kline(spec)
        }
        self.streams = tuple(name for market in markets for name in self._names(market))
        self._asked = frozenset(self.streams)

    @property
    def load(self) -> int:
        """The number of streams."""
        return len(self.streams)

    @staticmethod
    def family(market: Market) -> str:  # noqa: ARG004 (one socket carries all)
        """Put every market on the same connection."""
        return ""

    def ping(self) -> str:
        """Never asked for: the server pings."""
        return ""

    @staticmethod
    def has_kline(spec: CandleSpec) -> bool:
        """Tell whether Binance publishes candles of `spec`: from 1m to 1d, by time."""
        return spec.interval_ns in INTERVALS

    @staticmethod
    def native_of(symbol: str) -> str:
        """Return Binance's name of a linear contract: ``BTC/USDT:USDT`` → ``BTCUSDT``, dated ``BTCUSDT_261225``."""
        match = re.fullmatch(r"([^/:]+)/([^/:]+):\2(?:-(\d{6}))?", symbol)
        if match is None:
            raise ValueError(f"{symbol!r} is no linear contract of binance")
        base, quote, expiry = match.groups()
        return f"{base}{quote}_{expiry}" if expiry else f"{base}{quote}"

    def _names(self, market: Market) -> list[str]:
        symbol = market.native.lower()
        intervals = [interval for native, interval in self._specs if native == market.native]
        return [f"{symbol}@aggTrade", f"{symbol}@markPrice@1s", *(f"{symbol}@kline_{i}" for i in intervals)]

    def url(self, base: str | None = None) -> str:
        """Return the combined endpoint on the routed path."""
        return rebase("wss://fstream.binance.com/market/stream", base)

    def subscribe(self) -> list[tuple[int, str]]:
        """Return SUBSCRIBE requests of at most 200 names each, ids from 1."""
        starts = range(0, len(self.streams), _NAMES_PER_REQUEST)
        return [
            _request(n, "SUBSCRIBE", self.streams[start : start + _NAMES_PER_REQUEST])
            for n, start in enumerate(starts, start=1)
        ]

    def confirm(self) -> tuple[int, str]:
        """Return the LIST_SUBSCRIPTIONS request."""
        return _request(1 + -(-len(self.streams) // _NAMES_PER_REQUEST), "LIST_SUBSCRIPTIONS")

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        """Read one frame; see `Codec.decode`."""
        if len(frame) > MAX_FRAME_BYTES:
            return malformed("size", f"{len(frame)} bytes", frame)
        try:
            if not frame.isascii():  # msgspec does not look into fields that it skips
                frame.encode() if isinstance(frame, str) else frame.decode()
            payload = _decode_combined(frame).data
        except UnicodeError as error:
            return malformed("encoding", error, frame)
        except (msgspec.DecodeError, RecursionError):
            return self._decode_other(frame, receive_time_ns)
        return self._apply(payload, receive_time_ns, frame)

    def _decode_other(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        """Read what is no combined push of ours: replies, un-wrapped payloads, other streams, nonsense."""
        try:
            body = msgspec.json.decode(frame)
        except (msgspec.DecodeError, RecursionError) as error:
            return malformed("json", error, frame)
        try:
            if not isinstance(body, dict):
                return malformed("type", "not an object", frame)
            if "stream" not in body and "e" not in body:
                return [_reply(msgspec.convert(body, _Reply))]
            data = body["data"] if "stream" in body and "data" in body else body
            if not self._concerns_us(body.get("stream"), data):
                return []
            return self._apply(msgspec.convert(data, _Payload), receive_time_ns, frame)
        except msgspec.ValidationError as error:
            return malformed("type", error, frame)

    def _concerns_us(self, stream: object, data: object) -> bool:
        tag = data.get("e") if isinstance(data, dict) else None
        return (isinstance(stream, str) and stream in self._asked) or (isinstance(tag, str) and tag in _TAGS)

    def _apply(self, payload: _Payload, receive_time_ns: int, frame: str | bytes) -> list[Event]:
        market = self._markets.get(payload.s)
        if market is None:
            return []
        try:
            if isinstance(payload, _AggTrade):
                return _agg_trade(market, payload, receive_time_ns)
            if isinstance(payload, _Kline):
                return self._kline(market, payload, receive_time_ns)
            if isinstance(payload, _MarkPrice):
                return _mark_price(market, payload, receive_time_ns)
            return _raw_trade(market, payload, receive_time_ns)
        except ValueError as error:
            return malformed("value", error, frame)

    def _kline(self, market: Market, row: _Kline, receive_time_ns: int) -> list[Event]:
        spec = self._specs.get((market.native, row.k.i))
        if spec is None:
            return []
        return [Kline(market, spec, time_ns(row.E), receive_time_ns, _candle(row.k, spec))]


def _agg_trade(market: Market, row: _AggTrade, receive_time_ns: int) -> list[Event]:
    fills, number, at_ms = row.l - row.f + 1, row.a, row.T
    price, size = scaled(row.p, market.price_decimals), scaled(row.q, market.size_decimals)
    # Nine frames of ten are these: in one place, and told apart only where something is amiss.
    if price and size and 0 < fills <= _MAX_FILLS and 0 <= number <= ID_MAX and 0 < at_ms < END_OF_TIME_MS:
        trade = Trade(number, price, size, at_ms * NS_PER_MS, receive_time_ns, fills, not row.m)
        return [MarketTrade(market, trade)]
    if not 0 < fills <= _MAX_FILLS:
        raise ValueError(f"fills {str(row.f)[:40]} to {str(row.l)[:40]}")
    return [_trade(market, row, number, fills, receive_time_ns)]


def _raw_trade(market: Market, row: _RawTrade, receive_time_ns: int) -> list[Event]:
    if row.X != "MARKET":  # insurance fund and the like: no part of the kline
        return []
    return [_trade(market, row, row.t, 1, receive_time_ns)]


def _mark_price(market: Market, row: _MarkPrice, receive_time_ns: int) -> list[Event]:
    return [
        MarkPrice(
            market,
            time_ns(row.E),
            receive_time_ns,
            mark_price=positive(row.p),
            index_price=positive(row.i) if row.i else None,
            funding_rate=signed(row.r) if row.r else None,
            next_funding_time_ns=time_ns(row.T) if row.T else None,
        )
    ]


def _trade(market: Market, row: _AggTrade | _RawTrade, number: int, fills: int, receive_time_ns: int) -> MarketTrade:
    price, size = scaled(row.p, market.price_decimals), scaled(row.q, market.size_decimals)
    if not price or not size:
        raise ValueError("zero price or size")
    at_ns = time_ns(row.T)
    return MarketTrade(market, Trade(count(number), price, size, at_ns, receive_time_ns, fills, not row.m))


def _candle(bar: _Bar, spec: CandleSpec) -> Candle:
    open_ns, close_ns = time_ns(bar.t), time_ns(bar.T) + NS_PER_MS
    o, h, l, c = positive(bar.o), positive(bar.h), positive(bar.l), positive(bar.c)
    if open_ns % spec.interval_ns or close_ns - open_ns != spec.interval_ns:
        raise ValueError(f"{bar.t} to {bar.T} is no {spec} interval")
    if not l <= min(o, c) <= max(o, c) <= h:
        raise ValueError("open or close outside low and high")
    return Candle(
        seq=close_ns // spec.interval_ns, open_time_ns=open_ns, close_time_ns=close_ns, open=o, high=h, low=l, close=c,
        volume=plain(bar.v), trades=count(bar.n), closed=bar.x, origin=Origin.EXCHANGE,
    )  # fmt: skip


def _reply(reply: _Reply) -> Event:
    if isinstance(reply.error, _Error):
        return Refusal(reply.id, reply.error.code, reply.error.msg)
    if reply.id is None or reply.result is msgspec.UNSET:
        raise msgspec.ValidationError("neither a reply nor a push")
    if reply.result is None:
        return Ack(reply.id)
    return Subscriptions(reply.id, tuple(reply.result))


def _request(number: int, method: str, names: Sequence[str] = ()) -> tuple[int, str]:
    body = {"method": method, **({"params": names} if names else {}), "id": number}
    return number, msgspec.json.encode(body).decode()
