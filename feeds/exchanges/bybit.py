"""Bybit v5 futures, linear (settled in USDT or USDC) and inverse (settled in the coin), each on a socket of its own.

Confirmed by captures of 2026 and the exchange's documentation: the shapes of all frames; trades ascend within a frame
and name the taker's side; frames can share a `seq`, so only the uuid `i` tells trades apart; sizes are base coins on
linear contracts and US dollars on inverse ones; tickers are a snapshot and then what has changed; `confirm` closes a
kline, once. By all 236,160 recorded linear candles and the documentation's inverse ones a candle opens at the close
before it, and that price counts for its low and high; one without trades is published with volume zero.

Assumed: block trades (`BT`), agreed off the book, are in none of the exchange's candles, while RPI trades, which are
matched on the book, are; nothing cuts a connection by its age; a request without an answer of its own id is answered
in turn. Should the first be wrong the closed kline shows it, and our candle is repaired and counted.

Ids tell a repetition, never a missing trade: that a candle is whole rests on the connection not having been lost, and
on the exchange's closed kline, which each candle is compared with.
"""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from feeds.events import Ack, Event, Kline, MarketTrade, MarkPrice, Refusal
from feeds.exchanges.base import MAX_FRAME_BYTES, count, malformed, plain, positive, rebase, scaled, signed, time_ns
from feeds.market import NS_PER_S, Candle, CandleSpec, Market, Origin, Trade
from feeds.traits import Identity, Traits

_MINUTE_NS = 60 * NS_PER_S
INTERVALS = {n * _MINUTE_NS: str(n) for n in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)} | {1440 * _MINUTE_NS: "D"}
"""Candles that the exchange publishes itself: its name by interval, ns."""
_NAMES_PER_REQUEST = 100
_MONTH_CODES = "FGHJKMNQUVXZ"
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
"""In the names of dated contracts: inverse ones have the code."""
_TAKER_IS_BUYER = {"Buy": True, "Sell": False}
_ID_MASK = (1 << 63) - 1
_UUID_LENGTH, _DIGITS_MAX = 36, 19


class _Push(msgspec.Struct, gc=False):
    topic: str
    ts: int
    data: msgspec.Raw
    type: str = ""


class _Trade(msgspec.Struct, gc=False):
    T: int
    s: str
    S: str
    v: str
    p: str
    i: str
    BT: bool = False


class _Bar(msgspec.Struct, gc=False):
    start: int
    end: int
    interval: str
    open: str
    high: str
    low: str
    close: str
    volume: str
    confirm: bool


class _Ticker(msgspec.Struct, gc=False, rename="camel"):
    symbol: str
    mark_price: str | msgspec.UnsetType = msgspec.UNSET
    index_price: str | msgspec.UnsetType = msgspec.UNSET
    funding_rate: str | msgspec.UnsetType = msgspec.UNSET
    next_funding_time: str | msgspec.UnsetType = msgspec.UNSET
    open_interest: str | msgspec.UnsetType = msgspec.UNSET


class _Answer(msgspec.Struct):
    op: str
    success: bool = True
    ret_msg: str = ""
    req_id: str | int = ""


_decode_push = msgspec.json.Decoder(_Push).decode
_decode_trades = msgspec.json.Decoder(list[_Trade]).decode
_decode_trade = msgspec.json.Decoder(_Trade).decode
_decode_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_bars = msgspec.json.Decoder(list[_Bar]).decode
_decode_ticker = msgspec.json.Decoder(_Ticker).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class _SymbolError(ValueError):
    """A row speaks of another market than its topic."""


def _kind(error: ValueError) -> str:
    if isinstance(error, msgspec.ValidationError):
        return "type"
    return "symbol" if isinstance(error, _SymbolError) else "value"


class BybitCodec:
    """The codec of Bybit v5; see `feeds.exchanges.base.Codec`."""

    name: ClassVar[str] = "bybit"
    # Trades were seen to be pushed 1 ms after they happened; the closed kline's delay is not documented.
    traits: ClassVar[Traits] = Traits(
        identity=Identity.UNIQUE,
        grace_ns=NS_PER_S,
        kline_patience_ns=10 * NS_PER_S,
        opens_at_previous_close=True,
        open_in_range=True,
    )
    trade_history: ClassVar[bool] = False
    capacity: ClassVar[int] = 21_000
    inbound_rate_per_s: ClassVar[float] = 10.0  # none is documented
    request_spacing_s: ClassVar[float] = 0.25
    lifetime_s: ClassVar[float] = float("inf")
    silence_s: ClassVar[float] = 65.0  # klines come every 1 to 60 s
    mark_silence_s: ClassVar[float] = 65.0
    kline_lag_s: ClassVar[float] = 65.0
    ping_every_s: ClassVar[float | None] = 20.0
    answers_protocol_pings: ClassVar[bool] = False

    def __init__(self, markets: Sequence[Market], specs: Mapping[str, Sequence[CandleSpec]]) -> None:
        self.markets = tuple(markets)
        self._trades = {f"publicTrade.{market.native}": market for market in markets}
        self._tickers = {f"tickers.{market.native}": market for market in markets}
        self._klines = {
            f"kline.{INTERVALS[spec.interval_ns]}.{market.native}": (market, spec)
            for market in markets
            for spec in specs.get(market.symbol, ())
            if self.has_kline(spec)
        }
        self.streams = (*self._trades, *self._tickers, *self._klines)
        self._unanswered = deque(number for number, _ in self.subscribe())
        self._known: dict[str, dict[str, Any]] = {}

    @property
    def load(self) -> int:
        """The characters of the streams' names, with quotes and comma."""
        return sum(len(name) + 3 for name in self.streams)

    @staticmethod
    def family(market: Market) -> str:
        """Return the category of a market: ``inverse`` if it is settled in its base coin, else ``linear``."""
        base, _, rest = market.symbol.partition("/")
        return "inverse" if rest.partition(":")[2].partition("-")[0] == base else "linear"

    @staticmethod
    def has_kline(spec: CandleSpec) -> bool:
        """Tell whether Bybit publishes candles of `spec`: from 1m to 1d, by time."""
        return spec.interval_ns in INTERVALS

    @staticmethod
    def native_of(symbol: str) -> str:
        """Return Bybit's name of a contract.

        ``BTC/USDT:USDT`` → ``BTCUSDT``, ``BTC/USDC:USDC`` → ``BTCPERP``, ``BTC/USD:BTC`` → ``BTCUSD``; dated
        ``BTCUSDT-25DEC26``, ``BTC-25DEC26``, ``BTCUSDZ26``.
        """
        match = re.fullmatch(r"([^/:]+)/(?:(USDT|USDC):\2|(USD):\1)(?:-(\d\d)(0[1-9]|1[0-2])(\d\d))?", symbol)
        if match is None:
            raise ValueError(f"{symbol!r} is no linear or inverse contract of bybit")
        base, linear, inverse, year, month, day = match.groups()
        if year is None:
            return f"{base}PERP" if linear == "USDC" else f"{base}{linear or inverse}"
        at = int(month) - 1
        if inverse:
            return f"{base}USD{_MONTH_CODES[at]}{year}"
        return f"{base if linear == 'USDC' else base + linear}-{int(day)}{_MONTHS[at]}{year}"

    def url(self, base: str | None = None) -> str:
        """Return the address of the markets' category, which all of them share."""
        (category,) = {self.family(market) for market in self.markets}
        return rebase(f"wss://stream.bybit.com/v5/public/{category}", base)

    def subscribe(self) -> list[tuple[int, str]]:
        """Return subscribe requests of at most 100 names each, ids from 1."""
        starts = range(0, len(self.streams), _NAMES_PER_REQUEST)
        return [
            (number, _request(number, self.streams[start : start + _NAMES_PER_REQUEST]))
            for number, start in enumerate(starts, start=1)
        ]

    def confirm(self) -> None:
        """Return None: the exchange has no list of subscriptions."""

    def ping(self) -> str:
        """Return the ping that the exchange wants every 20 s."""
        return '{"op":"ping"}'

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        """Read one frame; see `Codec.decode`."""
        if len(frame) > MAX_FRAME_BYTES:
            return malformed("size", f"{len(frame)} bytes", frame)
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
        except ValueError as error:
            return malformed(_kind(error), error, frame)

    def _apply(self, push: _Push, receive_time_ns: int) -> list[Event]:
        topic = push.topic
        if market := self._trades.get(topic):
            return _trades(market, push.data, receive_time_ns)
        if market := self._tickers.get(topic):
            return self._ticker(market, push, receive_time_ns)
        if topic not in self._klines:
            return []
        market, spec = self._klines[topic]
        sent_ns = time_ns(push.ts)
        bars = _decode_bars(push.data)
        return [Kline(market, spec, sent_ns, receive_time_ns, _candle(bar, spec)) for bar in bars]

    def _ticker(self, market: Market, push: _Push, receive_time_ns: int) -> list[Event]:
        """Merge what has changed into what is known; a change without a snapshot before it tells nothing."""
        ticker = _decode_ticker(push.data)
        if ticker.symbol != market.native:
            raise _SymbolError(f"{ticker.symbol[:40]} under {push.topic}")
        sent_ns, told = time_ns(push.ts), _told(ticker)
        if push.type == "delta":
            if market.native not in self._known:
                return []
            told = self._known[market.native] | told
        elif "mark_price" not in told:
            return []
        self._known[market.native] = told
        return [MarkPrice(market, sent_ns, receive_time_ns, **told)]

    def _answer(self, frame: str | bytes) -> list[Event]:
        """Read what is no push: the answer to a request, a pong, nonsense."""
        try:
            answer = _decode_answer(frame)
        except msgspec.ValidationError as error:
            return malformed("type", error, frame)
        except (msgspec.DecodeError, RecursionError) as error:  # the first reading stopped at a type, before this
            return malformed("json", error, frame)
        if answer.op in ("ping", "pong"):
            return []
        number = self._request_meant(str(answer.req_id))
        if not answer.success:
            return [Refusal(number, answer.op, answer.ret_msg)]
        if answer.op != "subscribe":
            return malformed("type", f"op {answer.op[:40]!r}", frame)
        return [] if number is None else [Ack(number)]

    def _request_meant(self, req_id: str) -> int | str | None:
        """Return the request that is answered: by its id, else the oldest that is not answered yet."""
        if not req_id:
            return self._unanswered.popleft() if self._unanswered else None
        number = next((one for one in self._unanswered if str(one) == req_id), None)
        if number is None:
            return req_id
        self._unanswered.remove(number)
        return number


def trade_id(text: str) -> int:
    """Return the low 63 bits of a trade's uuid; a number, which other products of the exchange have, as it is.

    Raises:
        ValueError: it is neither.

    """
    if len(text) == _UUID_LENGTH:
        return int(text[19:23] + text[24:], 16) & _ID_MASK
    if len(text) > _DIGITS_MAX or not (text.isascii() and text.isdigit()):
        raise ValueError(f"trade id {text[:40]!r}")
    return count(int(text))


def _trades(market: Market, data: msgspec.Raw, receive_time_ns: int) -> list[Event]:
    """Read a frame's trades; where one cannot be read the others still count."""
    try:
        return [_trade(market, row, receive_time_ns) for row in _decode_trades(data) if not row.BT]
    except ValueError:
        return [event for row in _decode_rows(data) for event in _trade_alone(market, row, receive_time_ns)]


def _trade_alone(market: Market, raw: msgspec.Raw, receive_time_ns: int) -> list[Event]:
    try:
        row = _decode_trade(raw)
        return [] if row.BT else [_trade(market, row, receive_time_ns)]
    except ValueError as error:
        return malformed(_kind(error), error, bytes(raw))


def _trade(market: Market, row: _Trade, receive_time_ns: int) -> MarketTrade:
    price, size = scaled(row.p, market.price_decimals), scaled(row.v, market.size_decimals)
    if not price or not size:
        raise ValueError("zero price or size")
    if row.s != market.native:
        raise _SymbolError(f"{row.s[:40]} under publicTrade.{market.native}")
    if row.S not in _TAKER_IS_BUYER:
        raise ValueError(f"side {row.S[:40]!r}")
    number, at_ns = trade_id(row.i), time_ns(row.T)
    return MarketTrade(market, Trade(number, price, size, at_ns, receive_time_ns, 1, _TAKER_IS_BUYER[row.S]))


def _told(ticker: _Ticker) -> dict[str, Any]:
    """Read what a ticker tells, by the names of `MarkPrice`; empty texts and a time of 0 tell that there is none."""
    told: dict[str, Any] = {}
    if ticker.mark_price:
        told["mark_price"] = positive(ticker.mark_price)
    if ticker.index_price is not msgspec.UNSET:
        told["index_price"] = positive(ticker.index_price) if ticker.index_price else None
    if ticker.funding_rate is not msgspec.UNSET:
        told["funding_rate"] = signed(ticker.funding_rate) if ticker.funding_rate else None
    if ticker.next_funding_time is not msgspec.UNSET:
        due_ms = scaled(ticker.next_funding_time or "0", 0)
        told["next_funding_time_ns"] = time_ns(due_ms) if due_ms else None
    if ticker.open_interest is not msgspec.UNSET:
        told["open_interest"] = plain(ticker.open_interest) if ticker.open_interest else None
    return told


def _candle(bar: _Bar, spec: CandleSpec) -> Candle:
    """Read a kline. Of a forming one `end` is not told the same everywhere: the candle's end, or now."""
    open_ns = time_ns(bar.start)
    close_ns = open_ns + spec.interval_ns
    o, h, l, c = positive(bar.open), positive(bar.high), positive(bar.low), positive(bar.close)
    if open_ns % spec.interval_ns or bar.interval != INTERVALS[spec.interval_ns]:
        raise ValueError(f"{bar.start} is no start of a {spec} interval, or not of {bar.interval[:40]!r}")
    if bar.confirm and time_ns(bar.end + 1) != close_ns:
        raise ValueError(f"closed from {bar.start} to {bar.end}")
    if not l <= min(o, c) <= max(o, c) <= h:
        raise ValueError("open or close outside low and high")
    return Candle(
        seq=close_ns // spec.interval_ns, open_time_ns=open_ns, close_time_ns=close_ns, open=o, high=h, low=l, close=c,
        volume=plain(bar.volume), trades=0, closed=bar.confirm, origin=Origin.EXCHANGE,
    )  # fmt: skip


def _request(number: int, names: Sequence[str]) -> str:
    return msgspec.json.encode({"req_id": str(number), "op": "subscribe", "args": names}).decode()
