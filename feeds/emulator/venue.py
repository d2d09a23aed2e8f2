"""The emulated exchange's state: its clock, its tapes, its faults, and the texts in which it speaks of them.

Shapes follow the frames and replies of Binance USDⓈ-M as captured in 2026.
"""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from feeds.capture import AggTrade
from feeds.emulator.clock import VirtualClock
from feeds.emulator.tape import K, Rows, Tape

FUNDING_MS = 28_800_000
INTERVALS_MS = {f"{count}{unit}": count * ms for unit, ms, counts in (
    ("m", 60_000, (1, 3, 5, 15, 30)), ("h", 3_600_000, (1, 2, 4, 6, 8, 12)), ("d", 86_400_000, (1, 3)),
) for count in counts}  # fmt: skip


@dataclass
class Venue:
    """What REST and websocket share."""

    clock: VirtualClock
    tapes: Mapping[str, Tape]
    """By native symbol, ``BTCUSDT``."""
    refuse: bool = False
    """Fault: every new connection and request is answered 503."""
    mute: bool = False
    """Fault: connections stay open and carry no market data."""
    frames: int = 0
    """Frames of market data sent."""
    lost: int = 0
    """Frames that fell due while mute."""
    requests: Counter[str] = field(default_factory=Counter)
    """REST requests by endpoint; ``websocket`` counts connections."""


def decimal_text(scaled: int, decimals: int) -> str:
    """Write ``scaled / 10**decimals`` exactly, every decimal place shown."""
    digits = str(scaled).zfill(decimals + 1)
    return f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits


def agg_trades(tape: Tape, rows: Rows) -> list[AggTrade]:
    """Turn rows of the tape into trades whose numbers are texts."""
    price, size = tape.price_decimals, tape.size_decimals
    return [
        AggTrade(ident, decimal_text(p, price), decimal_text(q, size), first, last, time, bool(maker))
        for ident, time, p, q, first, last, maker in rows.tolist()
    ]


def kline_row(tape: Tape, bar: list[int], step_ms: int) -> list[int | str]:
    """Write a candle as REST does: open time, o, h, l, c, v, close time, quote volume, fills, taker-buy volumes, 0."""
    price, size = tape.price_decimals, tape.size_decimals
    prices = [decimal_text(bar[column], price) for column in (K.OPEN, K.HIGH, K.LOW, K.CLOSE)]
    quote, buy_quote = (decimal_text(bar[column], price + size) for column in (K.QUOTE, K.BUY_QUOTE))
    volume, buy = (decimal_text(bar[column], size) for column in (K.VOLUME, K.BUY_VOLUME))
    return [bar[0], *prices, volume, bar[0] + step_ms - 1, quote, bar[K.FILLS], buy, buy_quote, "0"]


def kline_data(tape: Tape, bar: list[int], interval: str, *, event_ms: int, closed: bool) -> str:
    """Write a candle as the stream does."""
    t, o, h, l, c, v, end, q, n, buy, buy_quote, _ = kline_row(tape, bar, INTERVALS_MS[interval])
    return (
        f'{{"e":"kline","E":{event_ms},"s":"{tape.native}","k":{{"t":{t},"T":{end},"s":"{tape.native}",'
        f'"i":"{interval}","f":{bar[K.FIRST]},"L":{bar[K.LAST]},"o":"{o}","c":"{c}","h":"{h}","l":"{l}","v":"{v}",'
        f'"n":{n},"x":{"true" if closed else "false"},"q":"{q}","V":"{buy}","Q":"{buy_quote}","B":"0"}}}}'
    )


def mark_data(tape: Tape, second_ms: int) -> str:
    """Write the mark price of a whole second; mark and index are the last trade's price."""
    p = decimal_text(tape.price_at(second_ms), tape.price_decimals)
    rate, due = next_funding(tape, second_ms)
    return (
        f'{{"e":"markPriceUpdate","E":{second_ms},"s":"{tape.native}","p":"{p}","ap":"{p}","P":"{p}","i":"{p}",'
        f'"r":"{rate}","T":{due},"st":1}}'
    )


def next_funding(tape: Tape, now_ms: int) -> tuple[str, int]:
    """Return rate and time of the next settlement, as the exchange writes them: empty and 0 where there is none."""
    due = next_funding_ms(now_ms)
    return (funding_rate(tape.native, due), due) if tape.funded else ("", 0)


def next_funding_ms(now_ms: int) -> int:
    """Return the next settlement: 00:00, 08:00 and 16:00 UTC."""
    return (now_ms // FUNDING_MS + 1) * FUNDING_MS


def funding_rate(native: str, due_ms: int) -> str:
    """Return the rate settled at `due_ms`: 0.005 % to 0.015 %, a function of market and time alone."""
    return decimal_text(5_000 + zlib.crc32(f"{native}{due_ms}".encode()) % 10_001, 8)


def contract_info(tape: Tape) -> dict[str, Any]:
    """Describe the market as ``exchangeInfo`` does."""
    base, quote = tape.native.removesuffix("USDT"), "USDT"
    tick, lot = decimal_text(1, tape.price_decimals), decimal_text(1, tape.size_decimals)
    return {
        "symbol": tape.native, "pair": tape.native, "contractType": "PERPETUAL", "deliveryDate": 4133404800000,
        "onboardDate": tape.begin_ms, "status": "TRADING", "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000", "baseAsset": base, "quoteAsset": quote, "marginAsset": quote,
        "pricePrecision": tape.price_decimals, "quantityPrecision": tape.size_decimals, "baseAssetPrecision": 8,
        "quotePrecision": 8, "underlyingType": "COIN", "underlyingSubType": [], "triggerProtect": "0.0500",
        "liquidationFee": "0.012500", "marketTakeBound": "0.05", "maxMoveOrderLimit": 10000,
        "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "10000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "10000000", "stepSize": lot},
            {"filterType": "MARKET_LOT_SIZE", "minQty": lot, "maxQty": "1000000", "stepSize": lot},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MIN_NOTIONAL", "notional": "5"},
            {"filterType": "PERCENT_PRICE", "multiplierUp": "1.1", "multiplierDown": "0.9", "multiplierDecimal": "4"},
        ],
    }  # fmt: skip
