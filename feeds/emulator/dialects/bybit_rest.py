"""The REST half of Bybit v5 futures, ``/v5/market/…``; what both halves say of contracts, candles, executions."""

import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from feeds.emulator.dialects.base import Refused, page
from feeds.emulator.funding import FUNDING_MS, funding_rate, settlements
from feeds.emulator.tape import K, T, Tape, decimal_text
from feeds.emulator.venue import Venue

INTERVALS_MS = {str(n): n * 60_000 for n in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)} | {"D": 86_400_000}
KLINES_DEFAULT, KLINES_MAX = 200, 1000
INSTRUMENTS_MAX = 1000
FUNDING_MAX = 200
TRADES_MAX = 1000
BLOCK_EVERY = 101
"""After each so many executions a block trade is reported, at a price off the book; it is in no candle."""
RPI_EVERY = 7
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_NAME = re.compile(r"([A-Z0-9]+?)(?:(USD)([FGHJKMNQUVXZ]\d\d)?|(USDT)?-(\d+[A-Z]{3}\d\d)|(USDT|PERP))").fullmatch
Said = dict[str, Any]


def category_of(native: str) -> str:
    """Return the category that lists a market, by its name."""
    match = _NAME(native)
    return "inverse" if match and match[2] else "linear"


def dated(native: str) -> bool:
    """Tell whether a market expires: then there is no funding."""
    match = _NAME(native)
    return match is not None and bool(match[3] or match[5])


def trimmed(text: str) -> str:
    """Write a number as the candles have it, without zeros at its end: ``61030.00`` → ``61030``."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def execution(tape: Tape, row: list[int], *, block: bool = False) -> Said:
    """Describe one execution by the names of ``recent-trade``; prices show a place more than the tick has."""
    price, kind = (row[T.PRICE] * 103 // 100, "block") if block else (row[T.PRICE], "trade")
    return {
        "execId": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{tape.native}/{kind}/{row[T.ID]}")),
        "symbol": tape.native, "price": tape.price_text(price) + ("0" if tape.price_decimals else ""),
        "size": tape.size_text(row[T.SIZE]), "side": "Sell" if row[T.MAKER] else "Buy", "time": str(row[T.TIME]),
        "isBlockTrade": block, "isRPITrade": not block and row[T.ID] % RPI_EVERY == 0, "seq": str(sequence(row)),
    }  # fmt: skip


def executions(tape: Tape, rows: list[list[int]]) -> list[Said]:
    """Describe executions, ascending, with the block trades that were reported beside them."""
    out = []
    for row in rows:
        out.append(execution(tape, row))
        if row[T.ID] % BLOCK_EVERY == 0:
            out.append(execution(tape, row, block=True))
    return out


def sequence(row: list[int]) -> int:
    """Return the cross sequence, which messages of the same 10 ms share."""
    return 10**11 + row[T.TIME] // 10


def opened_at(bar: list[int], close: int) -> list[int]:
    """Let a candle open at the close before it, which then counts for its low and high."""
    return [bar[K.OPEN_MS], close, max(bar[K.HIGH], close), min(bar[K.LOW], close), *bar[K.CLOSE :]]


def kline_row(tape: Tape, bar: list[int]) -> list[str]:
    """Write a candle: start, o, h, l, c, volume, turnover."""
    prices = [trimmed(tape.price_text(bar[column])) for column in (K.OPEN, K.HIGH, K.LOW, K.CLOSE)]
    volume = trimmed(tape.size_text(bar[K.VOLUME]))
    places = tape.price_decimals + tape.size_decimals
    turnover = decimal_text(bar[K.QUOTE], places)
    if category_of(tape.native) == "inverse":  # in coins: the volume by its mean price
        coins = bar[K.VOLUME] ** 2 * 10 ** (8 + places) // max(1, bar[K.QUOTE] * 100**tape.size_decimals)
        turnover = decimal_text(coins, 8)
    return [str(bar[K.OPEN_MS]), *prices, volume, trimmed(turnover)]


def error(code: int, message: str, now_ms: int) -> Said:
    """Write the body of a refusal, which comes with HTTP 200."""
    return {"retCode": code, "retMsg": message, "result": {}, "retExtInfo": {}, "time": now_ms}


class BybitRest:
    """Answer requests about a venue."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._answers: Mapping[str, Callable[[Mapping[str, str]], Said]] = {
            "market/time": self._time,
            "market/instruments-info": self._instruments,
            "market/kline": self._klines,
            "market/mark-price-kline": self._mark_klines,
            "market/recent-trade": self._recent_trades,
            "market/funding/history": self._funding,
        }

    def answer(self, path: str, query: Mapping[str, str]) -> Said:
        """Answer one GET; see `Dialect.rest`."""
        if path not in self._answers:
            raise Refused(404, {"code": -1, "message": "Not Found"})
        result = self._answers[path](query)
        now = self._venue.clock.now_ms()
        return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": now}

    def _wrong(self, message: str) -> Refused:
        return Refused(200, error(10001, message, self._venue.clock.now_ms()))

    def _category(self, query: Mapping[str, str]) -> str:
        if query.get("category") not in ("linear", "inverse"):
            raise self._wrong("Illegal category")
        return query["category"]

    def _tape(self, query: Mapping[str, str]) -> Tape:
        tape = self._venue.tapes.get(query.get("symbol", ""))
        if tape is None or category_of(tape.native) != self._category(query):
            raise self._wrong("params error: Symbol Invalid")
        return tape

    def _integer(self, query: Mapping[str, str], name: str, default: int) -> int:
        text = query.get(name, str(default))
        if not text.isdigit():
            raise self._wrong(f"params error: {name} invalid")
        return int(text)

    def _limit(self, query: Mapping[str, str], default: int, most: int) -> int:
        return min(most, max(1, self._integer(query, "limit", default)))

    def _time(self, _query: Mapping[str, str]) -> Said:
        now_ns = self._venue.clock.now_ns()
        return {"timeSecond": str(now_ns // 10**9), "timeNano": str(now_ns)}

    def _instruments(self, query: Mapping[str, str]) -> Said:
        category, status = self._category(query), query.get("status", "Trading")
        listed = [contract(tape) for tape in self._venue.tapes.values() if category_of(tape.native) == category]
        rows = [row for row in listed if row["status"] == status]
        start, limit = self._integer(query, "cursor", 0), self._limit(query, 500, INSTRUMENTS_MAX)
        after = start + limit
        return {
            "category": category, "list": rows[start:after], "nextPageCursor": str(after) if after < len(rows) else "",
        }  # fmt: skip

    def _klines(self, query: Mapping[str, str]) -> Said:
        """Answer newest first. With an end the newest before it are served, else the oldest after the start."""
        tape, now = self._tape(query), self._venue.clock.now_ms()
        step = INTERVALS_MS.get(query.get("interval", ""))
        if step is None:
            raise self._wrong("Invalid period!")
        limit = self._limit(query, KLINES_DEFAULT, KLINES_MAX)
        start, end = self._integer(query, "start", 0), min(self._integer(query, "end", now), now)
        if "end" in query or "start" not in query:
            bars = page(tape, step, now_ms=now, limit=limit, start_ms=None, end_ms=end)
        else:
            bars = page(tape, step, now_ms=now, limit=limit, start_ms=start, end_ms=end)
        bars = self._opened(tape, step, [bar for bar in bars if bar[0] >= start])
        rows = [kline_row(tape, bar) for bar in reversed(bars)]
        return {"category": query["category"], "symbol": tape.native, "list": rows}

    def _opened(self, tape: Tape, step: int, bars: list[list[int]]) -> list[list[int]]:
        if not bars:
            return bars
        first = bars[0][K.OPEN_MS]
        before = tape.candles(step, start_ms=first - step, end_ms=first, now_ms=first - 1)
        close = before[0][K.CLOSE] if before else bars[0][K.OPEN]
        return [opened_at(bar, last) for bar, last in zip(bars, [close, *(b[K.CLOSE] for b in bars)], strict=False)]

    def _mark_klines(self, query: Mapping[str, str]) -> Said:
        """Answer as `kline` does, without volumes: the mark is the last price."""
        said = self._klines(query)
        return {**said, "list": [row[:5] for row in said["list"]]}

    def _recent_trades(self, query: Mapping[str, str]) -> Said:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        limit = self._limit(query, 500, TRADES_MAX)
        rows = tape.trades(now - 86_400_000, now)[-limit:].tolist()
        return {"category": query["category"], "list": executions(tape, rows)[-limit:][::-1]}

    def _funding(self, query: Mapping[str, str]) -> Said:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        if "startTime" in query and "endTime" not in query:
            raise self._wrong("params error: endTime needed")
        start, end = self._integer(query, "startTime", 0), min(self._integer(query, "endTime", now), now)
        dues = range(0) if dated(tape.native) else settlements(tape, start_ms=start, end_ms=end)
        newest = list(dues)[-self._limit(query, FUNDING_MAX, FUNDING_MAX) :][::-1]
        rows = [
            {
                "symbol": tape.native,
                "fundingRate": trimmed(funding_rate(tape.native, due)),
                "fundingRateTimestamp": str(due),
            }
            for due in newest
        ]
        return {"category": query["category"], "list": rows}


def contract(tape: Tape) -> Said:
    """Describe the market as ``instruments-info`` does; one without trading shows under no status but its own."""
    match = _NAME(tape.native)
    base, inverse, code, tether, day, kind = match.groups() if match else (tape.native, None, None, None, None, "USDT")
    quote = "USD" if inverse else "USDT" if "USDT" in (tether, kind) else "USDC"
    tick, lot = trimmed(tape.price_text(tape.tick)), trimmed(tape.size_text(1))
    delivery = _delivery(code, day)
    return {
        "symbol": tape.native,
        "contractType": ("Inverse" if inverse else "Linear") + ("Futures" if delivery else "Perpetual"),
        "status": "Delivering" if tape.halted else "Trading", "baseCoin": base, "quoteCoin": quote,
        "launchTime": str(tape.begin_ms), "deliveryTime": str(delivery), "deliveryFeeRate": "",
        "priceScale": str(tape.price_decimals + bool(tape.price_decimals)),
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
        "priceFilter": {"minPrice": tick, "maxPrice": "1999999.80", "tickSize": tick},
        "lotSizeFilter": {
            "maxOrderQty": "1190.000", "minOrderQty": lot, "qtyStep": lot, "postOnlyMaxOrderQty": "1190.000",
            "maxMktOrderQty": "500.000", "minNotionalValue": "5",
        },
        "unifiedMarginTrade": True, "fundingInterval": FUNDING_MS // 60_000, "settleCoin": base if inverse else quote,
        "copyTrading": "none", "upperFundingRate": "0.00375", "lowerFundingRate": "-0.00375", "isPreListing": False,
        "preListingInfo": None,
    }  # fmt: skip


def _delivery(code: str | None, day: str | None) -> int:
    """Return when a contract expires, 08:00 UTC of its day or of its month's last Friday, ms; 0 if it does not."""
    if day:
        at = datetime(2000 + int(day[-2:]), _MONTHS.index(day[-5:-2]) + 1, int(day[:-5]), 8, tzinfo=UTC)
    elif code:
        month = "FGHJKMNQUVXZ".index(code[0]) + 1
        at = datetime(2000 + int(code[1:]) + month // 12, month % 12 + 1, 1, 8, tzinfo=UTC) - timedelta(days=1)
        at -= timedelta(days=(at.weekday() - 4) % 7)
    else:
        return 0
    return int(at.timestamp()) * 1000
