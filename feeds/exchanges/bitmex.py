"""BitMEX's last protocol, for captures, replays and servers that speak it: it closed on 2026-09-23 at 04:00 UTC.

Confirmed by captures of 2021, 2025 and 2026 and the exchange's documentation: the welcome; an acknowledgement a topic;
a table tells nothing of a topic before the `partial` of its last rows, which comes up to seconds after the
acknowledgement; the trades of one order are rows of one time, ascending, and name the taker's side; sizes are contracts
and prices JSON numbers, which are read from their text; bins are published closed, ten to sixteen seconds late, under
the time of their end, those without trades too; they open at the close before them, which may lie outside their low and
high (it did in 10.1 % of 2,485,440 recorded minutes).

Assumed: nothing lies between the last row of a partial and the first insert; the low 63 bits of its id tell a trade
from others; a topic carries one pool of liquidity; the server answers no websocket pings; no connection is too old.

A partial repeats rows at every reconnect: what has an id is known again by it, and a row whose id is all zeros cannot
be, so there it is left out. Ids show no missing trade: that a candle is whole rests on the connection not having been
lost, and on the closed bin, which each candle is compared with. Settled funding is asked for over REST; the funding to
come is in the instrument table.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import msgspec

from feeds.events import Ack, Event, Kline, MarketTrade, MarkPrice, Refusal
from feeds.exchanges.base import MAX_FRAME_BYTES, malformed, rebase, scaled, time_ns
from feeds.market import NS_PER_S, Candle, CandleSpec, Market, Origin, Trade
from feeds.traits import Identity, Traits

CLOSED = "BitMEX closed on 2026-09-23"
"""What to say to whoever would connect to the exchange itself."""
_MINUTE_NS = 60 * NS_PER_S
BINS = {_MINUTE_NS: "1m", 5 * _MINUTE_NS: "5m", 60 * _MINUTE_NS: "1h", 1440 * _MINUTE_NS: "1d"}
"""Candles that the exchange publishes itself: its name by interval, ns."""
_NAMES_PER_REQUEST = 20
"""Each name's acknowledgement repeats the whole request."""
_MONTH_CODES = "FGHJKMNQUVXZ"
_TAKER_IS_BUYER = {"Buy": True, "Sell": False}
_ID_MASK = (1 << 63) - 1
_UUID_LENGTH = 36
_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_TINY = re.compile(r"[0-9](?:\.[0-9]{1,18})?e-[0-9]{1,2}").fullmatch
"""How numbers below a millionth are written: ``1.6e-7``."""
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class _Filter(msgspec.Struct):
    symbol: str = ""


class _Push(msgspec.Struct, gc=False):
    table: str
    action: str
    data: msgspec.Raw
    filter: _Filter | None = None


class _Trade(msgspec.Struct, gc=False, rename={"match_id": "trdMatchID"}):
    timestamp: _Moment
    symbol: str
    side: str
    size: int
    price: msgspec.Raw
    match_id: str | None = None


class _Bin(msgspec.Struct, gc=False):
    timestamp: _Moment
    symbol: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    trades: int = 0


class _Instrument(msgspec.Struct, gc=False, rename="camel"):
    symbol: str
    timestamp: _Moment | msgspec.UnsetType = msgspec.UNSET
    mark_price: float | msgspec.UnsetType | None = msgspec.UNSET
    indicative_settle_price: float | msgspec.UnsetType | None = msgspec.UNSET
    funding_rate: float | msgspec.UnsetType | None = msgspec.UNSET
    funding_timestamp: _Moment | msgspec.UnsetType | None = msgspec.UNSET
    open_interest: float | msgspec.UnsetType | None = msgspec.UNSET


class _Request(msgspec.Struct):
    args: list[str] | str = ""


class _Answer(msgspec.Struct):
    """All that is no table: welcome, acknowledgement, error."""

    info: str | None = None
    subscribe: str | None = None
    success: bool = True
    error: str | None = None
    status: int = 0
    request: _Request | None = None


_decode_push = msgspec.json.Decoder(_Push).decode
_decode_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_trades = msgspec.json.Decoder(list[_Trade]).decode
_decode_trade = msgspec.json.Decoder(_Trade).decode
_decode_bin = msgspec.json.Decoder(_Bin).decode
_decode_instrument = msgspec.json.Decoder(_Instrument).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class BitmexCodec:
    """The codec of BitMEX; see `feeds.exchanges.base.Codec`."""

    name: ClassVar[str] = "bitmex"
    # Trades were seen 10 to 15 ms after they happened; a closed bin 16 s after its end at the latest.
    traits: ClassVar[Traits] = Traits(
        identity=Identity.UNIQUE,
        grace_ns=2 * NS_PER_S,
        kline_patience_ns=20 * NS_PER_S,
        opens_at_previous_close=True,
    )
    trade_history: ClassVar[bool] = False  # REST serves all trades, but their ids do not tell which one is missing
    capacity: ClassVar[int] = 500  # no limit is documented
    inbound_rate_per_s: ClassVar[float] = 10.0  # likewise
    request_spacing_s: ClassVar[float] = 0.25
    lifetime_s: ClassVar[float] = float("inf")
    silence_s: ClassVar[float] = 90.0  # a bin comes each minute, traded or not
    mark_silence_s: ClassVar[float] = 90.0
    # A bin's newest trade may be as old as the bin is long. But a trade is in one bin of each length only, so those of
    # an hour and a day cannot contradict a healthy stream often enough to condemn it: this is for bins of 5m.
    kline_lag_s: ClassVar[float] = 320.0
    ping_every_s: ClassVar[float | None] = 5.0
    answers_protocol_pings: ClassVar[bool] = False

    def __init__(self, markets: Sequence[Market], specs: Mapping[str, Sequence[CandleSpec]]) -> None:
        self.markets = tuple(markets)
        self._by_native = {market.native: market for market in markets}
        self._bins = {
            f"tradeBin{BINS[spec.interval_ns]}:{market.native}": (market, spec)
            for market in markets
            for spec in specs.get(market.symbol, ())
            if self.has_kline(spec)
        }
        self._bin_tables = {name.partition(":")[0] for name in self._bins}
        tables = [f"{table}:{native}" for table in ("trade", "instrument") for native in self._by_native]
        self.streams = (*tables, *self._bins)
        self._begun: set[str] = set()
        """Topics whose partial has come."""
        self._trading: dict[str, Market] = {}
        """Those of trades, by the exchange's names of their markets."""
        self._known: dict[str, dict[str, Any]] = {}
        self._lacking: dict[int, set[tuple[str, str]]] = {}
        """By request: the acknowledgements and partials that are still to come."""
        self._request_of: dict[str, int] = {}
        for number, names in self._requests():
            self._lacking[number] = {(kind, name) for name in names for kind in ("ack", "partial")}
            self._request_of |= dict.fromkeys(names, number)

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
        """Tell whether BitMEX publishes candles of `spec`: 1m, 5m, 1h, 1d."""
        return spec.interval_ns in BINS

    @staticmethod
    def native_of(symbol: str) -> str:
        """Return BitMEX's name of a contract.

        ``BTC/USD:BTC`` → ``XBTUSD``, quanto ``ETH/USD:BTC`` → ``ETHUSD``, ``SOL/USDT:USDT`` → ``SOLUSDT``,
        ``ETH/USD:ETH`` → ``ETHUSD_ETH``; dated ``BTC/USD:BTC-261225`` → ``XBTZ26``, ``ETH/BTC:BTC-261225`` →
        ``ETHZ26``, ``ETH/USDT:USDT-261225`` → ``ETHUSDTZ26``.
        """
        match = re.fullmatch(r"([^/:]+)/([^/:]+):([^/:-]+)(?:-(\d\d)(0[1-9]|1[0-2])\d\d)?", symbol)
        if match is None or (match[3] not in (match[1], match[2], "BTC")):
            raise ValueError(f"{symbol!r} is no contract of bitmex")
        base, quote = ("XBT" if coin == "BTC" else coin for coin in match.group(1, 2))
        settled, year, month = match.group(3, 4, 5)
        if year is None:
            return f"{base}{quote}_{settled}" if settled == base else base + quote
        quoted = "" if quote == "XBT" or base + quote == "XBTUSD" else quote
        return f"{base}{quoted}{_MONTH_CODES[int(month) - 1]}{year}"

    def url(self, base: str | None = None) -> str:
        """Return the address of the realtime API."""
        return rebase("wss://ws.bitmex.com/realtime", base)

    def _requests(self) -> list[tuple[int, tuple[str, ...]]]:
        starts = range(0, len(self.streams), _NAMES_PER_REQUEST)
        return [(n, self.streams[start : start + _NAMES_PER_REQUEST]) for n, start in enumerate(starts, start=1)]

    def subscribe(self) -> list[tuple[int, str]]:
        """Return subscribe requests of at most 20 names each; their ids, from 1, are not sent."""
        return [
            (number, msgspec.json.encode({"op": "subscribe", "args": names}).decode())
            for number, names in self._requests()
        ]

    def confirm(self) -> None:
        """Return None: the exchange has no list of subscriptions."""

    def ping(self) -> str:
        """Return the ping that the exchange wants after five silent seconds; it is no JSON, nor is the pong."""
        return "ping"

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        """Read one frame; see `Codec.decode`.

        A request counts as acknowledged once each of its topics is, and has begun with its partial.
        """
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
            return [] if frame in ("pong", b"pong") else malformed("json", error, frame)
        try:
            return self._apply(push, receive_time_ns)
        except msgspec.ValidationError as error:
            return malformed("type", error, frame)

    def _apply(self, push: _Push, receive_time_ns: int) -> list[Event]:
        is_partial = push.action == "partial"
        if not (is_partial or push.action in ("insert", "update")):
            return []
        names = self._topics_begun(push) if is_partial else []
        if push.table == "trade":
            events = self._trades(push.data, receive_time_ns, is_partial=is_partial)
        elif push.table == "instrument":
            events = _each(push.data, lambda raw: self._instrument(raw, receive_time_ns, is_partial=is_partial))
        elif push.table in self._bin_tables:
            events = _each(push.data, lambda raw: self._bin(push.table, raw, receive_time_ns))
        else:
            return []
        return [*events, *(answer for name in names for answer in self._came("partial", name))]

    def _topics_begun(self, push: _Push) -> list[str]:
        """Note which topics a partial begins: of the symbol that it is filtered by, or all of its table."""
        symbol = push.filter.symbol if push.filter else ""
        topic = f"{push.table}:{symbol}"
        names = [name for name in self.streams if (name == topic if symbol else name.startswith(topic))]
        self._begun.update(names)
        self._trading = {native: m for native, m in self._by_native.items() if f"trade:{native}" in self._begun}
        return names

    def _came(self, kind: str, name: str) -> list[Event]:
        """Strike off an acknowledgement or a partial; the last one of its request acknowledges that."""
        number = self._request_of.get(name, 0)
        lacking = self._lacking.get(number)
        if not lacking:
            return []
        lacking.discard((kind, name))
        return [] if lacking else [Ack(number)]

    def _trades(self, data: msgspec.Raw, receive_time_ns: int, *, is_partial: bool) -> list[Event]:
        """Read a frame's trades; where one cannot be read the others still count."""
        try:
            rows = _decode_trades(data)
            if len(rows) > 1:
                rows.sort(key=lambda row: row.timestamp)
            trades = [self._trade(row, receive_time_ns, is_partial=is_partial) for row in rows]
        except ValueError:  # what msgspec finds wrong is one too
            return _each(data, lambda raw: self._trade(_decode_trade(raw), receive_time_ns, is_partial=is_partial))
        return [trade for trade in trades if trade is not None]

    def _trade(self, row: _Trade, receive_time_ns: int, *, is_partial: bool) -> Event | None:
        market = self._trading.get(row.symbol)
        if market is None:
            return None
        price, size = _price(row.price, market.price_decimals), row.size * 10**market.size_decimals
        if not price or size <= 0:
            raise ValueError("zero price or size")
        if row.side not in _TAKER_IS_BUYER:
            raise ValueError(f"side {row.side[:40]!r}")
        number, at_ns = trade_id(row.match_id), _ns(row.timestamp)
        if is_partial and not number:
            return None
        return MarketTrade(market, Trade(number, price, size, at_ns, receive_time_ns, 1, _TAKER_IS_BUYER[row.side]))

    def _instrument(self, raw: msgspec.Raw, receive_time_ns: int, *, is_partial: bool) -> Event | None:
        """Merge what has changed into what is known."""
        row = _decode_instrument(raw)
        market = self._by_native.get(row.symbol)
        if market is None or f"instrument:{row.symbol}" not in self._begun:
            return None
        known = {} if is_partial else self._known.get(market.native, {})
        told = self._known[market.native] = known | _told(row)
        if row.timestamp is msgspec.UNSET or told.get("mark_price") is None:
            return None
        return MarkPrice(market, _ns(row.timestamp), receive_time_ns, **told)

    def _bin(self, table: str, raw: msgspec.Raw, receive_time_ns: int) -> Event | None:
        row = _decode_bin(raw)
        name = f"{table}:{row.symbol}"
        if name not in self._begun:
            return None
        market, spec = self._bins[name]
        candle = _candle(row, spec)
        return Kline(market, spec, candle.close_time_ns, receive_time_ns, candle)

    def _answer(self, frame: str | bytes) -> list[Event]:
        """Read what is no table: the welcome, the answer to a request, nonsense."""
        try:
            answer = _decode_answer(frame)
        except msgspec.ValidationError as error:
            return malformed("type", error, frame)
        except (msgspec.DecodeError, RecursionError) as error:  # the first reading stopped at a type, before this
            return malformed("json", error, frame)
        if answer.error is not None or not answer.success:
            return [Refusal(self._request_meant(answer.request), answer.status, (answer.error or "refused")[:200])]
        if answer.subscribe is not None:
            return self._came("ack", answer.subscribe)
        if answer.info is None:
            return malformed("type", "neither table nor answer", frame)
        # A welcome: in a capture of several connections it is where the next one begins.
        self._begun, self._trading = set(), {}
        return []

    def _request_meant(self, request: _Request | None) -> int | None:
        names = request.args if request else ""
        return self._request_of.get(names[0] if isinstance(names, list) and names else str(names))


def trade_id(guid: str | None) -> int:
    """Return the low 63 bits of a trade's guid; 0, which tells nothing, where it has none or all zeros.

    Raises:
        ValueError: it is no guid.

    """
    if guid is None:
        return 0
    if len(guid) != _UUID_LENGTH:
        raise ValueError(f"{guid[:40]!r} is no guid")
    return int(guid[19:23] + guid[24:], 16) & _ID_MASK


def _each(data: msgspec.Raw, read: Callable[[msgspec.Raw], Event | None]) -> list[Event]:
    """Read a frame's rows one by one, so that none takes the others with it."""
    events: list[Event] = []
    for raw in _decode_rows(data):
        try:
            event = read(raw)
            if event is not None:
                events.append(event)
        except msgspec.ValidationError as error:
            events += malformed("type", error, bytes(raw))
        except ValueError as error:
            events += malformed("value", error, bytes(raw))
    return events


def _price(raw: msgspec.Raw, decimals: int) -> int:
    """Read a JSON number from its text, exactly."""
    text = str(raw, "ascii")
    return scaled(format(Decimal(text), "f") if "e" in text and _TINY(text) else text, decimals)


def _ns(moment: datetime) -> int:
    return time_ns((moment - _EPOCH) // _MS)


def _above_zero(number: float | msgspec.UnsetType | None) -> float | msgspec.UnsetType | None:
    if isinstance(number, float) and not 0 < number < float("inf"):
        raise ValueError(f"{number} where there must be more than zero")
    return number


def _told(row: _Instrument) -> dict[str, Any]:
    """Read what a row tells, by the names of `MarkPrice`."""
    due = row.funding_timestamp
    told = {
        "mark_price": _above_zero(row.mark_price),
        "index_price": _above_zero(row.indicative_settle_price),
        "funding_rate": row.funding_rate,
        "next_funding_time_ns": _ns(due) if isinstance(due, datetime) else due,
        "open_interest": row.open_interest,
    }
    return {key: value for key, value in told.items() if value is not msgspec.UNSET}


def _candle(row: _Bin, spec: CandleSpec) -> Candle:
    """Read a bin: its time is its end, and its open is the close before it, wherever that lies."""
    close_ns = _ns(row.timestamp)
    if close_ns % spec.interval_ns:
        raise ValueError(f"{row.timestamp} is no end of {spec}")
    if not (0 < row.low <= row.close <= row.high < float("inf") and 0 < row.open < float("inf")):
        raise ValueError("close outside low and high")
    if not 0 <= row.volume < float("inf") or row.trades < 0:
        raise ValueError("volume or trades below zero")
    return Candle(
        seq=close_ns // spec.interval_ns, open_time_ns=close_ns - spec.interval_ns, close_time_ns=close_ns,
        open=row.open, high=row.high, low=row.low, close=row.close, volume=row.volume, trades=row.trades, closed=True,
        origin=Origin.EXCHANGE,
    )  # fmt: skip
