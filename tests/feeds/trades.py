"""Recorded trades as the builders take them, and candles folded from their texts in another way: by Decimal."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from feeds.capture import AggTrade, tape_trades
from feeds.exchanges.base import scaled
from feeds.market import NS_PER_MS, Candle, Market, Trade
from tests.data import shared

APE = Market(exchange="binance", symbol="APE/USDT:USDT", native="APEUSDT", price_decimals=4, size_decimals=0)
ETH = Market(exchange="binance", symbol="ETH/USDT:USDT", native="ETHUSDT", price_decimals=2, size_decimals=3)
_TAPES = {
    "APEUSDT": "trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip",
    "ETHUSDT": "hftbacktest/usdm_ethusdt_20240808.gz",
}


@functools.cache
def recorded(market: Market) -> list[AggTrade]:
    """Read a market's recorded trades: a whole day of APEUSDT, or six minutes of ETHUSDT."""
    return list(tape_trades(shared(_TAPES[market.native]), market.native))


def as_trades(rows: Iterable[AggTrade], market: Market) -> Iterator[Trade]:
    """Scale recorded rows as the codec does."""
    for row in rows:
        price, size = scaled(row.price, market.price_decimals), scaled(row.size, market.size_decimals)
        time_ns = row.time_ms * NS_PER_MS
        yield Trade(row.id, price, size, time_ns, time_ns, row.last - row.first + 1, not row.buyer_is_maker)


def made(n: int, time_ms: int, price: int = 100, size: int = 1) -> Trade:
    """Make a trade of one execution."""
    return Trade(n, price, size, time_ms * NS_PER_MS, 0, 1, False)


class Figures(NamedTuple):
    """A candle without its ordinal and times."""

    open: float
    high: float
    low: float
    close: float
    volume: float
    trades: int


def figures(candle: Candle) -> Figures:
    return Figures(candle.open, candle.high, candle.low, candle.close, candle.volume, candle.trades)


def folded(rows: Sequence[AggTrade]) -> Figures:
    """Fold the texts of at least one trade."""
    prices, volume = [Decimal(row.price) for row in rows], sum((Decimal(row.size) for row in rows), Decimal(0))
    o, h, l, c = (float(price) for price in (prices[0], max(prices), min(prices), prices[-1]))
    return Figures(o, h, l, c, float(volume), sum(row.last - row.first + 1 for row in rows))


def folded_by_time(rows: Sequence[AggTrade], interval_ms: int) -> dict[int, Figures]:
    """Fold texts into candles by ordinal, from the first trade's interval to the last's; empty ones carry the close."""
    by_seq: dict[int, list[AggTrade]] = {}
    for row in rows:
        by_seq.setdefault(row.time_ms // interval_ms + 1, []).append(row)
    candles: dict[int, Figures] = {}
    for seq in range(min(by_seq), max(by_seq) + 1):
        if seq in by_seq:
            candles[seq] = folded(by_seq[seq])
        else:
            close = candles[seq - 1].close
            candles[seq] = Figures(close, close, close, close, 0.0, 0)
    return candles
