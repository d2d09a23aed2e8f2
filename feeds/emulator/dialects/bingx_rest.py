"""The REST half of BingX: ``/openApi/swap/…``, and as much of its other markets as a client wants to see first."""

from collections.abc import Callable, Mapping
from typing import Any

from feeds.emulator.dialects.base import Refused, page
from feeds.emulator.funding import funding_rate, next_funding, settlements
from feeds.emulator.tape import K, T, Tape
from feeds.emulator.venue import Venue

INTERVALS_MS = {f"{count}{unit}": count * ms for unit, ms, counts in (
    ("m", 60_000, (1, 3, 5, 15, 30)), ("h", 3_600_000, (1, 2, 4, 6, 8, 12)), ("d", 86_400_000, (1, 3)),
) for count in counts}  # fmt: skip
KLINES_MAX = 1440
ROWS_MAX = 1000
TRADES_REACH_MS = 3_600_000
ONLINE, SUSPENDED = 1, 25
"""Of a contract's statuses; 0 is for one that is gone."""
_ORDER = {"open": K.OPEN, "close": K.CLOSE, "high": K.HIGH, "low": K.LOW}


class BingxRest:
    """Answer requests about a venue; all refusals come under HTTP 200."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._answers: Mapping[str, Callable[[Mapping[str, str]], Any]] = {
            "spot/v1/common/symbols": lambda _: {"symbols": []},
            "cswap/v1/market/contracts": lambda _: [],
            "swap/v2/server/time": lambda _: {"serverTime": venue.clock.now_ms()},
            "swap/v2/quote/contracts": lambda query: [_contract(tape) for tape in self._tapes(query)],
            "swap/v3/quote/klines": self._klines,
            "swap/v1/market/markPriceKlines": self._mark_price_klines,
            "swap/v2/quote/trades": self._trades,
            "swap/v2/quote/fundingRate": self._funding_rate,
            "swap/v2/quote/premiumIndex": self._premium_index,
        }

    def answer(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer one GET; see `Dialect.rest`."""
        if path not in self._answers:
            raise _refused(100400, "this api is not exist")
        return {"code": 0, "msg": "", "data": self._answers[path](query)}

    def _tape(self, query: Mapping[str, str]) -> Tape:
        symbol = query.get("symbol", "")
        tape = self._venue.tapes.get(symbol)
        if tape is None:
            raise _refused(109425, f"{symbol} not exist, please verify it in api: /openApi/swap/v2/quote/contracts")
        return tape

    def _tapes(self, query: Mapping[str, str]) -> list[Tape]:
        return [self._tape(query)] if "symbol" in query else list(self._venue.tapes.values())

    def _bars(self, query: Mapping[str, str]) -> tuple[Tape, list[list[int]]]:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        step = INTERVALS_MS.get(query.get("interval", ""))
        if step is None:
            raise _refused(109400, "Invalid parameters, err:interval: invalid interval")
        limit = _integer(query, "limit", 500, most=KLINES_MAX)
        start, end = (_integer(query, name, 0) if name in query else None for name in ("startTime", "endTime"))
        return tape, page(tape, step, now_ms=now, limit=limit, start_ms=start, end_ms=end)[::-1]

    def _klines(self, query: Mapping[str, str]) -> Any:
        tape, bars = self._bars(query)
        return [{**_prices(tape, bar), "volume": tape.size_text(bar[K.VOLUME]), "time": bar[K.OPEN_MS]} for bar in bars]

    def _mark_price_klines(self, query: Mapping[str, str]) -> Any:
        """Answer as `klines` does: the mark is the last price; both times are the open."""
        tape, bars = self._bars(query)
        return [
            {**_prices(tape, bar), "volume": "0.00", "openTime": bar[K.OPEN_MS], "closeTime": bar[K.OPEN_MS]}
            for bar in bars
        ]

    def _trades(self, query: Mapping[str, str]) -> Any:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        rows = tape.trades(now - TRADES_REACH_MS, now)[-_integer(query, "limit", 500, most=ROWS_MAX) :]
        return [_trade(tape, row) for row in reversed(rows.tolist())]

    def _funding_rate(self, query: Mapping[str, str]) -> Any:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        limit = _integer(query, "limit", 100, most=ROWS_MAX)
        start, end = _integer(query, "startTime", 0), min(_integer(query, "endTime", now), now)
        dues = settlements(tape, start_ms=start, end_ms=end)[-limit:]
        rates = [(due, funding_rate(tape.native, due)) for due in reversed(dues)]
        return [{"symbol": tape.native, "fundingRate": rate, "fundingTime": due} for due, rate in rates]

    def _premium_index(self, query: Mapping[str, str]) -> Any:
        now = self._venue.clock.now_ms()
        found = []
        for tape in self._tapes(query):
            price, (rate, due) = tape.price_text(tape.price_at(now)), next_funding(tape, now)
            found.append({
                "symbol": tape.native, "markPrice": price, "indexPrice": price, "lastFundingRate": rate,
                "nextFundingTime": due,
            })  # fmt: skip
        return found[0] if "symbol" in query else found


def _prices(tape: Tape, bar: list[int]) -> dict[str, Any]:
    return {name: tape.price_text(bar[column]) for name, column in _ORDER.items()}


def _trade(tape: Tape, row: list[int]) -> dict[str, Any]:
    price, size = tape.price_text(row[T.PRICE]), tape.size_text(row[T.SIZE])
    quote = f"{float(price) * float(size):.2f}"
    return {"time": row[T.TIME], "isBuyerMaker": bool(row[T.MAKER]), "price": price, "qty": size, "quoteQty": quote}


def _contract(tape: Tape) -> dict[str, Any]:
    """Describe the market as ``quote/contracts`` does."""
    asset, currency = tape.native.split("-")
    return {
        "contractId": "100", "symbol": tape.native, "size": tape.size_text(1),
        "quantityPrecision": tape.size_decimals, "pricePrecision": _places(tape.price_text(tape.tick)),
        "feeRate": 0.0005, "makerFeeRate": 0.0002, "takerFeeRate": 0.0005, "tradeMinLimit": 0,
        "tradeMinQuantity": float(tape.size_text(1)), "tradeMinUSDT": 2, "maxLongLeverage": 125,
        "maxShortLeverage": 100, "currency": currency, "asset": asset,
        "status": SUSPENDED if tape.halted else ONLINE, "apiStateOpen": "true", "apiStateClose": "true",
        "ensureTrigger": True, "triggerFeeRate": "0.00050000", "brokerState": False, "launchTime": tape.begin_ms,
        "maintainTime": 0, "offTime": 0, "displayName": tape.native,
    }  # fmt: skip


def _places(text: str) -> int:
    return len(text.partition(".")[2].rstrip("0"))


def _refused(code: int, message: str) -> Refused:
    return Refused(200, {"code": code, "msg": message, "data": {}})


def _integer(query: Mapping[str, str], name: str, default: int, *, most: int | None = None) -> int:
    """Read a number that may be absent; with `most`, one from 1 to it."""
    text = query.get(name, str(default))
    if not text.isdigit() or (most is not None and not 1 <= int(text) <= most):
        raise _refused(109400, f"Invalid parameters, err:{name}: invalid value")
    return int(text)
