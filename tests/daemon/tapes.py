"""Real trades as events, and candles folded from them apart from the project's own builder."""

import functools
from decimal import Decimal

from feeds.capture import AggTrade, frames_from_trades, read_agg_trades
from feeds.events import Event, MarketTrade
from feeds.exchanges import CODECS
from feeds.market import Candle, CandleSpec, Market, Origin
from tests.data import shared

APE = Market(exchange="binance", symbol="APE/USDT:USDT", native="APEUSDT", price_decimals=4, size_decimals=0)


@functools.cache
def ape_trades(hours: int) -> list[AggTrade]:
    """Read the first hours of a recorded day."""
    rows = read_agg_trades(shared("trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip"))
    first = next(rows)
    return [first, *(row for row in rows if row.time_ms < first.time_ms + hours * 3_600_000)]


@functools.cache
def ape_events(hours: int) -> list[MarketTrade]:
    codec = CODECS["binance"]([APE], {APE.symbol: [CandleSpec.parse("1m")]})
    frames = frames_from_trades(APE.native, ape_trades(hours))
    events: list[Event] = [event for frame in frames for event in codec.decode(frame.text, frame.receive_time_ns)]
    return [event for event in events if isinstance(event, MarketTrade)]


@functools.cache
def folded(hours: int, spec_text: str) -> dict[int, Candle]:
    """Fold with exact decimals, by ordinal; empty intervals carry the last close, the forming one is left out."""
    spec = CandleSpec.parse(spec_text)
    sums: dict[int, list[Decimal]] = {}
    fills: dict[int, int] = {}
    for trade in ape_trades(hours):
        seq = trade.time_ms * 1_000_000 // spec.interval_ns + 1
        price = Decimal(trade.price)
        row = sums.setdefault(seq, [price, price, price, price, Decimal(0)])
        row[1], row[2], row[3] = max(row[1], price), min(row[2], price), price
        row[4] += Decimal(trade.size)
        fills[seq] = fills.get(seq, 0) + trade.last - trade.first + 1
    close = Decimal(0)
    candles = {}
    for seq in range(min(sums), max(sums)):
        o, h, l, c, volume = map(float, sums.get(seq, [close, close, close, close, Decimal(0)]))
        close = sums[seq][3] if seq in sums else close
        candles[seq] = Candle(
            seq=seq, open_time_ns=(seq - 1) * spec.interval_ns, close_time_ns=seq * spec.interval_ns, open=o, high=h,
            low=l, close=c, volume=volume, trades=fills.get(seq, 0), closed=True, origin=Origin.EXCHANGE,
        )  # fmt: skip
    return candles
