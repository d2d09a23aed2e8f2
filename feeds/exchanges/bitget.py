"""Bitget futures, the public websocket of API v2 (called classic): perpetuals margined in USDT, USDC or the coin.

Confirmed by captures of 2022 and 2026 and the exchange's documentation: the shapes of all frames; one acknowledgement
for each subscribed channel; trades newest first, the taker's side, and a snapshot of the newest ones before the first
update; the milliseconds of a trade are the upper bits of its id, so ids ascend with time; candles begin at the close
before them, and that price counts for their low and high (all of 2002 recorded ones); a ticker tells all each time.

Assumed: trades arrive in order, one frame after the other, at most a second after another stream tells of later ones;
the snapshot and the updates after it leave no trade out; sizes of coin-margined contracts are coins, as documented.

Ids tell a repetition, never a missing trade, and no stream says that a candle is final: that a candle is whole rests on
the connection not having been lost. A wrong product type of a true symbol is acknowledged and silent; what shows it is
the ticker that never comes. Dated contracts are not served, nor is API v1 (``mc``, ``UMCBL``) or v3 (``topic``).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import msgspec

from feeds.events import Ack, Event, Kline, MarketTrade, MarkPrice, Refusal
from feeds.exchanges.base import MAX_FRAME_BYTES, malformed, plain, positive, rebase, scaled, signed, time_ns
from feeds.market import NS_PER_S, Candle, CandleSpec, Market, Origin, Trade
from feeds.traits import Identity, Traits

_MINUTE_NS = 60 * NS_PER_S
INTERVALS = {
    minutes * _MINUTE_NS: name
    for minutes, name in (
        (1, "1m"), (3, "3m"), (5, "5m"), (15, "15m"), (30, "30m"), (60, "1H"), (240, "4H"),
        (360, "6Hutc"), (720, "12Hutc"), (1440, "1Dutc"),
    )
}  # fmt: skip
"""Candles that the exchange publishes itself: its name by interval, ns; letter case counts. Days of the plain ``1D``
begin at 16:00 UTC."""
_NOT_STREAMED = "3m"
"""Documented for REST alone."""
PRODUCTS = {"USDT": "USDT-FUTURES", "USDC": "USDC-FUTURES"}
"""Product types by the coin that a contract is settled in; any other is a coin-margined one's."""
COIN_PRODUCT = "COIN-FUTURES"
_REQUEST_BYTES = 4096
_ID_MASK = (1 << 63) - 1
_ID_DIGITS = 40
_PONG = ("pong", b"pong")

_Topic = tuple[str, str, str]


class _Arg(msgspec.Struct, gc=False, rename="camel"):
    inst_type: str
    channel: str
    inst_id: str

    @property
    def topic(self) -> _Topic:
        return self.inst_type, self.channel, self.inst_id


class _Push(msgspec.Struct, gc=False):
    arg: _Arg
    action: Literal["snapshot", "update"]
    data: msgspec.Raw
    ts: int = 0


class _Trade(msgspec.Struct, gc=False, rename="camel"):
    ts: str
    price: str
    size: str
    side: Literal["buy", "sell"]
    trade_id: str


class _Ticker(msgspec.Struct, gc=False, rename="camel"):
    mark_price: str
    ts: str = ""
    index_price: str | None = None
    funding_rate: str | None = None
    next_funding_time: str | None = None
    holding_amount: str | None = None


class _Bar(msgspec.Struct, gc=False, array_like=True):
    open_ms: str
    open: str
    high: str
    low: str
    close: str
    volume: str


class _Answer(msgspec.Struct):
    event: str
    arg: _Arg | None = None
    code: int | str = ""
    msg: str = ""


_decode_push = msgspec.json.Decoder(_Push).decode
_decode_trades = msgspec.json.Decoder(list[_Trade]).decode
_decode_trade = msgspec.json.Decoder(_Trade).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_tickers = msgspec.json.Decoder(list[_Ticker]).decode
_decode_bars = msgspec.json.Decoder(list[_Bar]).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class BitgetCodec:
    """The codec of Bitget futures; see `feeds.exchanges.base.Codec`."""

    name: ClassVar[str] = "bitget"
    # In a capture trades came at most 134 ms after they happened, tickers at least 26 ms after their time.
    traits: ClassVar[Traits] = Traits(
        identity=Identity.UNIQUE, grace_ns=NS_PER_S, opens_at_previous_close=True, open_in_range=True
    )
    trade_history: ClassVar[bool] = False
    capacity: ClassVar[int] = 50  # recommended; 1000 are possible
    inbound_rate_per_s: ClassVar[float] = 10.0
    request_spacing_s: ClassVar[float] = 0.25
    lifetime_s: ClassVar[float] = 23.5 * 3600
    silence_s: ClassVar[float] = 30.0
    mark_silence_s: ClassVar[float] = 30.0
    kline_lag_s: ClassVar[float] = 5.0  # the forming candle is pushed once or twice a second
    ping_every_s: ClassVar[float | None] = 30.0
    answers_protocol_pings: ClassVar[bool] = False

    def __init__(self, markets: Sequence[Market], specs: Mapping[str, Sequence[CandleSpec]]) -> None:
        self.markets = tuple(markets)
        self._trades = {(product_of(m.symbol), "trade", m.native): m for m in markets}
        self._tickers = {(product_of(m.symbol), "ticker", m.native): m for m in markets}
        self._candles = {
            (product_of(market.symbol), f"candle{INTERVALS[spec.interval_ns]}", market.native): (market, spec)
            for market in markets
            for spec in specs.get(market.symbol, ())
            if self.has_kline(spec) and INTERVALS[spec.interval_ns] != _NOT_STREAMED
        }
        topics = (*self._trades, *self._tickers, *self._candles)
        self.streams = tuple("/".join(topic) for topic in topics)
        self._requests = list(_batches(topics))
        self._request_of = {topic: n for n, batch in enumerate(self._requests, start=1) for topic in batch}
        self._unacked = Counter(self._request_of.values())

    @property
    def load(self) -> int:
        """The number of channels."""
        return len(self.streams)

    @staticmethod
    def family(market: Market) -> str:  # noqa: ARG004 (one socket carries all)
        """Put every market on the same connection."""
        return ""

    @staticmethod
    def has_kline(spec: CandleSpec) -> bool:
        """Tell whether Bitget has candles of `spec` that begin with the UTC day: from 1m to 1d."""
        return spec.interval_ns in INTERVALS

    @staticmethod
    def native_of(symbol: str) -> str:
        """Return Bitget's name of a perpetual.

        ``BTC/USDT:USDT`` → ``BTCUSDT``, ``BTC/USDC:USDC`` → ``BTCPERP``, ``BTC/USD:BTC`` → ``BTCUSD``.
        """
        match = re.fullmatch(r"([^/:]+)/(?:(USDT|USDC):\2|USD:\1)", symbol)
        if match is None:
            raise ValueError(f"{symbol!r} is no perpetual of bitget in USDT, USDC or the coin")
        base, quote = match.groups()
        return base + {"USDT": "USDT", "USDC": "PERP", None: "USD"}[quote]

    def url(self, base: str | None = None) -> str:
        """Return the address of v2's public streams."""
        return rebase("wss://ws.bitget.com/v2/ws/public", base)

    def subscribe(self) -> list[tuple[int, str]]:
        """Return subscribe requests of at most 4096 bytes each, ids from 1 (the exchange sees none)."""
        return [
            (number, f'{{"op":"subscribe","args":[{",".join(map(_arg_text, batch))}]}}')
            for number, batch in enumerate(self._requests, start=1)
        ]

    def confirm(self) -> None:
        """Return None: the exchange has no list of subscriptions."""

    def ping(self) -> str:
        """Return the ping that the exchange wants every 30 s."""
        return "ping"

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        """Read one frame; see `Codec.decode`."""
        if len(frame) > MAX_FRAME_BYTES:
            return malformed("size", f"{len(frame)} bytes", frame)
        if frame in _PONG:
            return []
        try:
            if not frame.isascii():  # msgspec does not look into fields that it skips
                frame.encode() if isinstance(frame, str) else frame.decode()
            push = _decode_push(frame)
        except UnicodeError as error:
            return malformed("encoding", error, frame)
        except msgspec.ValidationError:
            return self._answer(frame)
        except (msgspec.DecodeError, RecursionError) as error:
            return malformed("json", error, frame)
        try:
            return self._apply(push, receive_time_ns)
        except msgspec.ValidationError as error:
            return malformed("type", error, frame)
        except ValueError as error:
            return malformed("value", error, frame)

    def _apply(self, push: _Push, receive_time_ns: int) -> list[Event]:
        topic = push.arg.topic
        if market := self._trades.get(topic):
            return _trades(market, push.data, receive_time_ns)
        if market := self._tickers.get(topic):
            return [_mark_price(market, row, push.ts, receive_time_ns) for row in _decode_tickers(push.data)]
        if topic not in self._candles:
            return []
        return _kline(*self._candles[topic], push, receive_time_ns)

    def _answer(self, frame: str | bytes) -> list[Event]:
        """Read what is no push: an acknowledgement, an error, a frame of another protocol, nonsense."""
        try:
            answer = _decode_answer(frame)
        except msgspec.ValidationError as error:
            return malformed("type", error, frame)
        except (msgspec.DecodeError, RecursionError) as error:  # the first reading stopped at a type, before this
            return malformed("json", error, frame)
        number = self._request_of.get(answer.arg.topic) if answer.arg else None
        if answer.event == "error":
            return [Refusal(number, answer.code, answer.msg)]
        if answer.event != "subscribe" or answer.arg is None:
            return malformed("type", f"event {answer.event[:40]!r}", frame)
        return self._acknowledged(answer.arg.topic)

    def _acknowledged(self, topic: _Topic) -> list[Event]:
        """Count an acknowledgement, each channel's once; the last of a request stands for all of it."""
        number = self._request_of.pop(topic, None)
        if number is None:
            return []
        self._unacked[number] -= 1
        return [] if self._unacked[number] else [Ack(number)]


def product_of(symbol: str) -> str:
    """Return the product type of a unified symbol, by the coin that it is settled in."""
    return PRODUCTS.get(symbol.partition(":")[2], COIN_PRODUCT)


def whole(text: str) -> int:
    """Read a whole number, a time in ms or an id; of one longer than 63 bits the lower ones.

    Raises:
        ValueError: it is none.

    """
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{text[:40]!r} is no whole number")
    return int(text[-_ID_DIGITS:]) & _ID_MASK


def _arg_text(topic: _Topic) -> str:
    return '{{"instType":"{}","channel":"{}","instId":"{}"}}'.format(*topic)


def _batches(topics: Iterable[_Topic]) -> Iterable[list[_Topic]]:
    """Part the channels so that each part fits into one request."""
    batch: list[_Topic] = []
    envelope = len('{"op":"subscribe","args":[]}')
    size = envelope
    for topic in topics:
        needed = len(_arg_text(topic).encode()) + 1
        if batch and size + needed > _REQUEST_BYTES:
            yield batch
            batch, size = [], envelope
        batch.append(topic)
        size += needed
    yield batch


def _trades(market: Market, data: msgspec.Raw, receive_time_ns: int) -> list[Event]:
    """Read a frame's trades, oldest first; where one cannot be read the others still count."""
    try:
        trades = [_trade(market, row, receive_time_ns) for row in _decode_trades(data)]
    except ValueError:
        return _those_readable(market, data, receive_time_ns)
    if len(trades) > 1:
        trades.sort(key=_age)
    return list(trades)


def _those_readable(market: Market, data: msgspec.Raw, receive_time_ns: int) -> list[Event]:
    trades: list[MarketTrade] = []
    faults: list[Event] = []
    for raw in _decode_raws(data):
        try:
            trades.append(_trade(market, _decode_trade(raw), receive_time_ns))
        except ValueError as error:
            kind = "type" if isinstance(error, msgspec.ValidationError) else "value"
            faults += malformed(kind, error, bytes(raw))
    return [*sorted(trades, key=_age), *faults]


def _age(event: MarketTrade) -> tuple[int, int]:
    """Order trades by their time, those of one moment by their ids, whichever way round a frame has them."""
    return event.trade.event_time_ns, event.trade.id


def _trade(market: Market, row: _Trade, receive_time_ns: int) -> MarketTrade:
    price, size = scaled(row.price, market.price_decimals), scaled(row.size, market.size_decimals)
    if not price or not size:
        raise ValueError("zero price or size")
    number, at_ns = whole(row.trade_id), time_ns(whole(row.ts))
    return MarketTrade(market, Trade(number, price, size, at_ns, receive_time_ns, 1, row.side == "buy"))


def _mark_price(market: Market, row: _Ticker, sent_ms: int, receive_time_ns: int) -> MarkPrice:
    """Read a ticker; dated contracts are never funded and tell a time of 0, if any."""
    due_ms = whole(row.next_funding_time or "0")
    return MarkPrice(
        market,
        time_ns(whole(row.ts) if row.ts else sent_ms),
        receive_time_ns,
        mark_price=positive(row.mark_price),
        index_price=positive(row.index_price) if row.index_price else None,
        funding_rate=signed(row.funding_rate) if row.funding_rate else None,
        next_funding_time_ns=time_ns(due_ms) if due_ms else None,
        open_interest=plain(row.holding_amount) if row.holding_amount else None,
    )


def _kline(market: Market, spec: CandleSpec, push: _Push, receive_time_ns: int) -> list[Event]:
    """Read the newest candle of a frame, the one that is forming; a snapshot holds hundreds before it."""
    bars = _decode_bars(push.data)
    if not bars:
        return []
    candle = _candle(max(bars, key=lambda bar: whole(bar.open_ms)), spec)
    sent_ns = time_ns(push.ts) if push.ts else 0  # some snapshots do not tell
    return [Kline(market, spec, max(sent_ns, candle.open_time_ns), receive_time_ns, candle)]


def _candle(bar: _Bar, spec: CandleSpec) -> Candle:
    open_ns = time_ns(whole(bar.open_ms))
    close_ns = open_ns + spec.interval_ns
    o, h, l, c = positive(bar.open), positive(bar.high), positive(bar.low), positive(bar.close)
    if open_ns % spec.interval_ns:
        raise ValueError(f"{bar.open_ms} is no start of a {spec} interval of the UTC day")
    if not l <= min(o, c) <= max(o, c) <= h:
        raise ValueError("open or close outside low and high")
    return Candle(
        seq=close_ns // spec.interval_ns, open_time_ns=open_ns, close_time_ns=close_ns, open=o, high=h, low=l, close=c,
        volume=plain(bar.volume), trades=0, closed=False, origin=Origin.EXCHANGE,
    )  # fmt: skip
