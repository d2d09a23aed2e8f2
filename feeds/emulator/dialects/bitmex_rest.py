"""The REST half of BitMEX, ``/api/v1/…``; what both halves say of instruments, bins, trades and funding."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from feeds.emulator.dialects.base import Refused, page
from feeds.emulator.funding import funding_rate, next_funding, settlements
from feeds.emulator.tape import K, T, Tape, decimal_text
from feeds.emulator.venue import Venue

BINS_MS = {"1m": 60_000, "5m": 300_000, "1h": 3_600_000, "1d": 86_400_000}
BIN_LAG_MS = 12_500
"""Bins were seen ten to sixteen seconds after their end."""
TRADE_LAG_MS = 12
COUNT, COUNT_MAX = 100, 1000
FILLS_MAX = 50
"""As many rows at most are made of one trade of the tape."""
POOL = "Aggregated"
NO_GUID = "00000000-0000-0000-0000-000000000000"
_NAME = re.compile(r"(XBT|[A-Z0-9]+?)(USDT|USD|EUR)?([FGHJKMNQUVXZ]\d\d)?").fullmatch
_MONTH_CODES = "FGHJKMNQUVXZ"
_DAY_MS = 86_400_000
Row = dict[str, Any]


def iso(time_ms: int) -> str:
    """Write a time as the exchange does."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def number(scaled: int, decimals: int) -> msgspec.Raw:
    """Write a JSON number exactly, without zeros at its end, and below a millionth with an exponent."""
    text = decimal_text(scaled, decimals)
    digits = str(scaled).rstrip("0")
    if 0 < scaled < 10 ** (decimals - 6):
        point = f"{digits[0]}.{digits[1:]}" if digits[1:] else digits
        return msgspec.Raw(f"{point}e-{decimals - len(str(scaled)) + 1}".encode())
    return msgspec.Raw((text.rstrip("0").rstrip(".") if "." in text else text).encode())


def kind_of(native: str) -> tuple[str, str, str]:
    """Return base, quote and settlement currency of a contract, by its name."""
    match = _NAME(native)
    base, quote, code = match.groups() if match else (native, "USDT", None)
    quote = quote or ("USD" if base == "XBT" else "XBT" if code else "USDT")
    return base, quote, "USDt" if quote == "USDT" else "XBt"


def executions(tape: Tape, row: list[int]) -> list[Row]:
    """Describe one order's executions: rows of one time and price, with ids of their own, that share its size."""
    fills = max(1, min(row[T.LAST] - row[T.FIRST] + 1, row[T.SIZE], FILLS_MAX))
    share = row[T.SIZE] // fills
    sizes = [share] * (fills - 1) + [row[T.SIZE] - share * (fills - 1)]
    side, tick = ("Sell", "MinusTick") if row[T.MAKER] else ("Buy", "PlusTick")
    return [
        {
            "timestamp": iso(row[T.TIME]), "symbol": tape.native, "side": side, "size": size,
            "price": number(row[T.PRICE], tape.price_decimals), "tickDirection": tick,
            "trdMatchID": f"00000000-006d-1000-0000-{row[T.ID] * FILLS_MAX + part:012x}",
            **_notional(tape, size, size * row[T.PRICE]), "trdType": "Regular",
        }
        for part, size in enumerate(sizes)
    ]  # fmt: skip


def _notional(tape: Tape, size: int, quote: int) -> Row:
    """Say what so many contracts are worth, by their number and its product with the price; sizes are contracts."""
    base, _, settled = kind_of(tape.native)
    unit = 10**tape.price_decimals
    if base == "XBT" and settled == "XBt":
        home, foreign = size * size * unit / max(1, quote), float(size)
        return {"grossValue": round(home * 10**8), "homeNotional": round(home, 8), "foreignNotional": foreign}
    if settled == "XBt":
        home = size / 10**6
        return {"grossValue": quote * 100 // unit, "homeNotional": home, "foreignNotional": home * quote / unit}
    lots = 10**tape.size_decimals
    value = quote / unit / lots
    return {"grossValue": round(value * 10**6), "homeNotional": size / lots, "foreignNotional": value}


def bin_row(tape: Tape, bar: list[int], close_before: int, step_ms: int) -> Row:
    """Write a candle: its time is its end, and it opens at the close before it, wherever that lies."""
    o, h, l, c = (number(price, tape.price_decimals) for price in (close_before, *bar[K.HIGH : K.VOLUME]))
    volume = bar[K.VOLUME]
    worth = _notional(tape, volume, bar[K.QUOTE])
    mean = number(bar[K.QUOTE] * 10**4 // volume, tape.price_decimals + 4) if volume else None
    return {
        "timestamp": iso(bar[K.OPEN_MS] + step_ms), "symbol": tape.native, "open": o, "high": h, "low": l, "close": c,
        "trades": bar[K.FILLS], "volume": volume, "vwap": mean, "lastSize": 1 if volume else None,
        "turnover": worth["grossValue"], "homeNotional": worth["homeNotional"],
        "foreignNotional": worth["foreignNotional"],
    }  # fmt: skip


def funding_row(tape: Tape, due_ms: int) -> Row:
    """Describe a settlement."""
    rate = float(funding_rate(tape.native, due_ms))
    return {
        "timestamp": iso(due_ms), "symbol": tape.native, "fundingInterval": "2000-01-01T08:00:00.000Z",
        "fundingRate": rate, "fundingRateDaily": rate * 3,
    }  # fmt: skip


def dated(native: str) -> bool:
    """Tell whether a contract expires."""
    match = _NAME(native)
    return match is not None and match[3] is not None


def _expiry(native: str) -> str:
    return f"20{native[-2:]}-{_MONTH_CODES.index(native[-3]) + 1:02}-25T12:00:00.000Z"


def prices(tape: Tape, price: int, now_ms: int) -> Row:
    """Say what moves in an instrument; the index moves beside the mark, three times a second."""
    rate, due = ("", 0) if dated(tape.native) else next_funding(tape, now_ms)
    mark, index = (number(at, tape.price_decimals) for at in (price, price + now_ms // 300 % 7 * tape.tick))
    return {
        "fundingTimestamp": iso(due) if due else None, "fundingRate": float(rate) if rate else None, "lastPrice": mark,
        "openInterest": 10**8 + now_ms // 5000 % 1000, "fairPrice": mark, "markPrice": mark,
        "indicativeSettlePrice": index,
    }  # fmt: skip


def instrument(tape: Tape, now_ms: int) -> Row:
    """Describe a market in full."""
    base, quote, settled = kind_of(tape.native)
    is_inverse, lots = base == "XBT" and settled == "XBt", 10**tape.size_decimals
    is_quanto = settled == "XBt" and not is_inverse and quote != "XBT"
    is_dated = dated(tape.native)
    per = {"underlyingToSettleMultiplier": -(10**8)} if is_inverse else {"underlyingToPositionMultiplier": lots}
    return {
        "symbol": tape.native, "rootSymbol": base, "state": "Closed" if tape.halted else "Open",
        "typ": "FFCCSX" if is_dated else "FFWCSX", "listing": iso(tape.begin_ms), "front": iso(tape.begin_ms),
        **({"expiry": _expiry(tape.native)} if is_dated else {}),
        "positionCurrency": quote if is_inverse else "" if is_quanto else base, "underlying": base,
        "quoteCurrency": quote, "lotSize": 100 if is_inverse else 1, "tickSize": number(tape.tick, tape.price_decimals),
        "multiplier": -(10**8) if is_inverse else 100 if is_quanto else (10**6 if settled == "USDt" else 10**8) // lots,
        "settlCurrency": settled, **({} if is_quanto else per), "isQuanto": is_quanto, "isInverse": is_inverse,
        "initMargin": 0.01, "maintMargin": 0.005, **prices(tape, tape.price_at(now_ms), now_ms),
        "timestamp": iso(now_ms // 500 * 500),
    }  # fmt: skip


class BitmexRest:
    """Answer requests about a venue."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._answers: Mapping[str, Callable[[Mapping[str, str]], list[Row]]] = {
            "instrument/active": lambda _: self._instruments(),
            "instrument": self._filtered,
            "trade/bucketed": self._bins,
            "trade": self._trades,
            "funding": self._funding,
        }

    def answer(self, path: str, query: Mapping[str, str]) -> list[Row]:
        """Answer one GET; see `Dialect.rest`."""
        if path not in self._answers:
            raise refused(404, "Not Found", "HTTPError")
        return self._answers[path](query)

    def _instruments(self) -> list[Row]:
        return [instrument(tape, self._venue.clock.now_ms()) for tape in self._venue.tapes.values()]

    def _filtered(self, query: Mapping[str, str]) -> list[Row]:
        wanted = _json(query, "filter", dict) | ({"symbol": query["symbol"]} if "symbol" in query else {})
        rows = [row for row in self._instruments() if all(row.get(key) == value for key, value in wanted.items())]
        columns = {"symbol", "timestamp", *map(str, _json(query, "columns", list))} if "columns" in query else None
        rows = [{key: row[key] for key in row if columns is None or key in columns} for row in rows]
        return rows[: _count(query, 500)]

    def _bins(self, query: Mapping[str, str]) -> list[Row]:
        """Answer with bins that end within the span, both of its edges included, those not closed yet if asked for."""
        step, now = BINS_MS.get(query.get("binSize", "1m")), self._venue.clock.now_ms()
        if step is None:
            raise refused(400, "binSize must be one of 1m,5m,1h,1d")
        count, tape = _count(query), self._venue.tapes.get(query.get("symbol", ""))
        if tape is None:
            return []
        start, end = _span(query, tape.begin_ms // step * step + step, now + step)
        first = -(-start // step) * step - step
        if query.get("partial", "false") != "true":
            end = min(end, (now - BIN_LAG_MS) // step * step)
        if end - step < first:
            return []
        is_reversed = "reverse" in query  # any value of it was seen to reverse
        earliest = None if is_reversed else first
        bars = page(tape, step, now_ms=now, limit=count, start_ms=earliest, end_ms=end - step)
        rows = [bin_row(tape, bar, tape.price_at(bar[0] - 1), step) for bar in bars if bar[0] >= first]
        return [{**row, "pool": POOL} for row in (reversed(rows) if is_reversed else rows)]

    def _trades(self, query: Mapping[str, str]) -> list[Row]:
        tape, now, count = self._venue.tapes.get(query.get("symbol", "")), self._venue.clock.now_ms(), _count(query)
        if tape is None:
            return []
        start, end = _span(query, tape.begin_ms, now)
        found = tape.trades(start - 1, min(end, now - TRADE_LAG_MS))
        found = found[-count:] if "reverse" in query else found[:count]
        rows = [one for row in found.tolist() for one in executions(tape, row)]
        return rows[::-1][:count] if "reverse" in query else rows[:count]

    def _funding(self, query: Mapping[str, str]) -> list[Row]:
        tape, now, count = (
            self._venue.tapes.get(query.get("symbol", "")),
            self._venue.clock.now_ms(),
            _count(query, 500),
        )
        if tape is None or dated(tape.native):
            return []
        start, end = _span(query, tape.begin_ms, now)
        rows = [funding_row(tape, due) for due in settlements(tape, start_ms=start, end_ms=min(end, now))]
        return rows[::-1][:count] if "reverse" in query else rows[:count]


def refused(status: int, message: str, name: str = "ValidationError") -> Refused:
    """Refuse as the exchange does."""
    return Refused(status, {"error": {"message": message, "name": name}})


def last_trades(tape: Tape, until_ms: int) -> list[Row]:
    """Return the executions of the newest trade until a time."""
    rows = tape.trades(until_ms - 7 * _DAY_MS, until_ms)[-1:].tolist()
    return [one for row in rows for one in executions(tape, row)]


def _count(query: Mapping[str, str], most: int = COUNT_MAX) -> int:
    text = query.get("count", str(COUNT))
    if not text.isdigit() or not 0 < int(text) <= most:
        raise refused(400, f"count must be between 1 and {most}")
    return int(text)


def _span(query: Mapping[str, str], start_ms: int, end_ms: int) -> tuple[int, int]:
    """Read startTime and endTime, ms; what is not given is not bounded by more than the market's life."""
    try:
        start, end = (
            round(datetime.fromisoformat(query[name]).timestamp() * 1000) if name in query else default
            for name, default in (("startTime", start_ms), ("endTime", end_ms))
        )
    except ValueError:
        raise refused(400, "startTime or endTime is not a valid date") from None
    return max(start, start_ms), end


def _json(query: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(query.get(name, "{}" if kind is dict else "[]"), type=kind)
    except msgspec.DecodeError:
        raise refused(400, f"{name} is not valid JSON") from None
