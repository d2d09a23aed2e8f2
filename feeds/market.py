"""What every part of lstmd agrees on: markets, trades, candles and candle specs.

Pure values. Times are integer nanoseconds UTC; prices and sizes of trades are integers scaled by the market's decimals;
candles hold the float64 that parsing the exchange's own kline text gives.
"""

import re
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from urllib.parse import quote

import msgspec

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
NS_PER_DAY = 86_400 * NS_PER_S
SEQ_PER_DAY = 10_000_000
"""Event candles are numbered within their UTC day: seq = day × SEQ_PER_DAY + number in the day."""


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """One contract of one exchange, named as ccxt names it."""

    exchange: str
    symbol: str
    """ccxt unified symbol, ``BTC/USDT:USDT``."""
    native: str
    """The exchange's own name, ``BTCUSDT``."""
    price_decimals: int
    size_decimals: int
    listed_at_ns: int | None = None
    """When trading began; before it there is no history. None: the exchange does not say."""
    max_leverage: float | None = None
    trading: bool = True
    """False while the exchange lists the contract and does not trade it: halted, or about to open or to end."""
    volume_unit: str = "base coin"
    """What `volume` and trade sizes count, as the exchange's klines do: ``base coin``, or ``contracts of 1 USD``."""

    @property
    def slug(self) -> str:
        """The market's level in topics, one to one with `symbol`."""
        return slug_of(self.symbol)


def slug_of(symbol: str) -> str:
    """Turn a ccxt unified symbol into a topic level.

    ``BTC/USDT:USDT`` → ``BTC-USDT-PERP``; ``BTC/USD:BTC`` → ``BTC-USD-INVERSE``; ``BTC/USDT:USDT-261225`` →
    ``BTC-USDT-261225``; ``BTC/USD:BTC-261225`` → ``BTC-USD-INVERSE-261225``; a quanto ``ETH/USD:BTC`` →
    ``ETH-USD-QUANTO-BTC``.
    Characters that a topic level or the separator reserves are percent-encoded.

    Raises:
        ValueError: the symbol is not a contract's unified symbol.

    """
    match = re.fullmatch(r"([^/:]+)/([^/:]+):([^/:-]+)(?:-([0-9]{6}))?", symbol)
    if match is None:
        raise ValueError(f"{symbol!r} is not a unified contract symbol such as BTC/USDT:USDT")
    base, quoted, settle, expiry = match.groups()
    kind: list[str] = [] if settle == quoted else ["INVERSE"] if settle == base else ["QUANTO", _level(settle)]
    tail = [expiry] if expiry else [] if kind else ["PERP"]
    return "-".join([_level(base), _level(quoted), *kind, *tail])


def _level(text: str) -> str:
    return "".join(c if c.isalnum() else quote(c, safe="").replace("-", "%2D") for c in text)


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One execution as the exchange reports it (Binance: one aggregate trade)."""

    id: int
    """Contiguous per market where the exchange numbers its trades, else what tells them apart; see `Identity`."""
    price: int
    """Price × 10**price_decimals."""
    size: int
    """Size × 10**size_decimals, in the exchange's kline volume unit."""
    event_time_ns: int
    """When it happened, by the exchange."""
    receive_time_ns: int
    """When we saw it, by our clock; for the latency ledger only."""
    fills: int
    """Raw executions inside it."""
    taker_is_buyer: bool


class Origin(StrEnum):
    """Where a candle's figures come from."""

    TRADES = "trades"
    EXCHANGE = "exchange"
    REPAIRED = "repaired"


FIGURES = ("open", "high", "low", "close", "volume")
"""What a candle says of its interval."""


class Candle(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Open, high, low, close and volume over the half-open interval ``[open_time_ns, close_time_ns)``."""

    seq: int
    """The candle's ordinal: close_time / interval for time candles."""
    open_time_ns: int
    close_time_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    trades: int
    """Raw executions; 0 in an empty interval."""
    closed: bool
    origin: Origin

    def same_figures(self, other: "Candle") -> bool:
        """Tell whether both hold the same interval, prices and volume, to the bit."""
        return (self.seq, self.open_time_ns, self.open, self.high, self.low, self.close, self.volume) == (
            other.seq, other.open_time_ns, other.open, other.high, other.low, other.close, other.volume,
        )  # fmt: skip

    def differences(self, other: "Candle") -> list[str]:
        """Name the figures in which both differ, to tick and lot: float64 of texts differ where the texts do."""
        return [name for name in FIGURES if getattr(self, name) != getattr(other, name)]


class SpecKind(StrEnum):
    """By what a candle closes."""

    TIME = "time"
    TRADES = "trades"
    VOLUME = "volume"
    VALUE = "value"


_UNITS_NS = {"s": NS_PER_S, "m": 60 * NS_PER_S, "h": 3600 * NS_PER_S, "d": NS_PER_DAY}
_KINDS = {"t": SpecKind.TRADES, "v": SpecKind.VOLUME, "$": SpecKind.VALUE}


class CandleSpec(msgspec.Struct, frozen=True, dict=True):
    """What makes a candle: ``5s 1m 4h 1d`` by time, ``100t`` by trades, ``50v`` by volume, ``1000000$`` by value."""

    text: str
    kind: SpecKind
    amount: Decimal
    """Nanoseconds for time; number, volume or value for the others."""

    @classmethod
    def parse(cls, text: str) -> "CandleSpec":
        """Read a spec.

        Raises:
            ValueError: not a spec; or an interval over a day, not of whole milliseconds, or one that does not divide
                the day evenly.

        """
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdtv$])", text)
        if match is None:
            raise ValueError(f"{text!r} is no candle spec; examples: 5s 1m 4h 1d 100t 50v 1000000$")
        number, unit = Decimal(match[1]), match[2]
        if number <= 0:
            raise ValueError(f"{text!r}: the amount must be above zero")
        if unit in _KINDS:
            if unit == "t" and number % 1:
                raise ValueError(f"{text!r}: a number of trades is whole")
            return cls(text, _KINDS[unit], number)
        interval = number * _UNITS_NS[unit]
        if interval > NS_PER_DAY or NS_PER_DAY % interval or interval % NS_PER_MS:
            raise ValueError(f"{text!r}: an interval is of whole milliseconds, divides the UTC day and is at most 1d")
        return cls(text, SpecKind.TIME, interval)

    @cached_property
    def interval_ns(self) -> int:
        """Length of a time candle, ns; 0 for event candles."""
        return int(self.amount) if self.kind is SpecKind.TIME else 0

    @property
    def by_time(self) -> bool:
        """Whether candles close by time, so that ordinals follow from the clock."""
        return self.kind is SpecKind.TIME

    def open_of(self, time_ns: int) -> int:
        """Start of the interval that holds `time_ns` (time candles)."""
        return time_ns - time_ns % self.interval_ns

    def seq_at(self, time_ns: int) -> int:
        """Ordinal of the newest candle that has closed by `time_ns` (time candles)."""
        return time_ns // self.interval_ns

    def __str__(self) -> str:
        return self.text
