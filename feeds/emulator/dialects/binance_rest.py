"""The REST half of Binance USDⓈ-M futures: ``/fapi/v1/…``."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from feeds.emulator.dialects.base import Refused, page
from feeds.emulator.funding import funding_rate, next_funding, settlements
from feeds.emulator.tape import K, T, Tape, decimal_text
from feeds.emulator.venue import Venue

INTERVALS_MS = {f"{count}{unit}": count * ms for unit, ms, counts in (
    ("m", 60_000, (1, 3, 5, 15, 30)), ("h", 3_600_000, (1, 2, 4, 6, 8, 12)), ("d", 86_400_000, (1, 3)),
) for count in counts}  # fmt: skip
KLINES_MAX = 1500
ROWS_MAX = 1000
TRADES_REACH_MS = 48 * 3_600_000
WEIGHT_MAX, FUNDING_MAX = 2400, 500
"""Of all requests in a minute of its clock, and of requests for settled funding in five, which weigh nothing."""
USED_HEADER = "X-MBX-USED-WEIGHT-1M"
_FUNDING = "fundingRate"
_KLINES = frozenset({"klines", "markPriceKlines"})
_WEIGHTS = {"aggTrades": 20, _FUNDING: 0}
_WEIGHT_LIMIT = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": WEIGHT_MAX}


def weight_of(path: str, query: Mapping[str, str]) -> int:
    """Return what a request weighs; of klines it goes by their number."""
    if path not in _KLINES:
        return _WEIGHTS.get(path, 1)
    rows = int(query["limit"]) if query.get("limit", "").isdigit() else 500
    return 1 if rows < 100 else 2 if rows < 500 else 5 if rows <= 1000 else 10


class BinanceRest:
    """Answer requests about a venue."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._used: Counter[tuple[str, int]] = Counter()
        self._answers: Mapping[str, Callable[[Mapping[str, str]], Any]] = {
            "ping": lambda _: {},
            "time": lambda _: {"serverTime": venue.clock.now_ms()},
            "exchangeInfo": self._exchange_info,
            "klines": self._klines,
            "markPriceKlines": self._mark_price_klines,
            "aggTrades": self._agg_trades,
            "premiumIndex": self._premium_index,
            _FUNDING: self._funding_rate,
            "ticker/price": self._ticker_price,
        }

    def answer(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer one GET; see `Dialect.rest`."""
        if path not in self._answers:
            raise Refused(404, {"code": -5000, "msg": f"Path /fapi/v1/{path}, Method GET is invalid"})
        self._weigh(path, query)
        return self._answers[path](query)

    def _weigh(self, path: str, query: Mapping[str, str]) -> None:
        """Count a request, and refuse one too many until the minute, or the five of funding, are over."""
        used = self._count("weight", 1, weight_of(path, query), WEIGHT_MAX)
        self._venue.headers[USED_HEADER] = str(used)
        if path == _FUNDING:
            self._count(_FUNDING, 5, 1, FUNDING_MAX)

    def _count(self, what: str, minutes: int, weight: int, most: int) -> int:
        clock, span_ms = self._venue.clock, minutes * 60_000
        number = clock.now_ms() // span_ms
        self._used[what, number] += weight
        if self._used[what, number] > most:
            wait_s = -(-((number + 1) * span_ms - clock.now_ms()) // (1000 * clock.speed))
            body = {"code": -1003, "msg": f"Too many requests; current limit of {what} is {most}."}
            raise Refused(429, body, {"Retry-After": str(int(wait_s))})
        return self._used[what, number]

    def _tape(self, query: Mapping[str, str]) -> Tape:
        tape = self._venue.tapes.get(_needed(query, "symbol"))
        if tape is None:
            raise _refused(-1121, "Invalid symbol.")
        return tape

    def _tapes(self, query: Mapping[str, str]) -> list[Tape]:
        return [self._tape(query)] if "symbol" in query else list(self._venue.tapes.values())

    def _exchange_info(self, _query: Mapping[str, str]) -> Any:
        return {
            "timezone": "UTC",
            "serverTime": self._venue.clock.now_ms(),
            "futuresType": "U_MARGINED",
            "rateLimits": [_WEIGHT_LIMIT],
            "exchangeFilters": [],
            "assets": [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"}],
            "symbols": [_contract(tape) for tape in self._venue.tapes.values()],
        }

    def _klines(self, query: Mapping[str, str]) -> Any:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        step = INTERVALS_MS.get(_needed(query, "interval"))
        if step is None:
            raise _refused(-1120, "Invalid interval.")
        limit = _integer(query, "limit", 500, most=KLINES_MAX)
        start, end = (_integer(query, name, 0) if name in query else None for name in ("startTime", "endTime"))
        bars = page(tape, step, now_ms=now, limit=limit, start_ms=start, end_ms=end)
        return [kline_row(tape, bar, step) for bar in bars]

    def _mark_price_klines(self, query: Mapping[str, str]) -> Any:
        """Answer as `klines` does: the mark is the last price; there is no volume, and the count is of seconds."""
        rows = self._klines(query)
        return [[*row[:5], "0", row[6], "0", (row[6] - row[0] + 1) // 1000, "0", "0", "0"] for row in rows]

    def _agg_trades(self, query: Mapping[str, str]) -> Any:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        limit = _integer(query, "limit", 500, most=ROWS_MAX)
        if "fromId" in query:
            rows = tape.trades_from(_integer(query, "fromId", 0), now, limit)
        elif "startTime" in query or "endTime" in query:
            until = min(_integer(query, "endTime", now), now)
            after = _integer(query, "startTime", until - 3_600_000) - 1
            if after + 1 < now - TRADES_REACH_MS:
                raise _refused(-4166, "Search window is restricted to recent 2 days only.")
            rows = tape.trades(after, until)[:limit]
        else:
            rows = tape.trades(now - TRADES_REACH_MS, now)[-limit:]
        return [_agg_row(tape, row) for row in rows.tolist()]

    def _premium_index(self, query: Mapping[str, str]) -> Any:
        now = self._venue.clock.now_ms()
        found = []
        for tape in self._tapes(query):
            price, (rate, due) = tape.price_text(tape.price_at(now)), next_funding(tape, now)
            found.append({
                "symbol": tape.native, "markPrice": price, "indexPrice": price, "estimatedSettlePrice": price,
                "lastFundingRate": rate, "interestRate": "0.00010000", "nextFundingTime": due, "time": now,
            })  # fmt: skip
        return found[0] if "symbol" in query else found

    def _funding_rate(self, query: Mapping[str, str]) -> Any:
        now, limit = self._venue.clock.now_ms(), _integer(query, "limit", 100, most=ROWS_MAX)
        start, end = _integer(query, "startTime", 0), min(_integer(query, "endTime", now), now)
        tapes = self._tapes(query)
        dues = sorted((due, t.native) for t in tapes for due in settlements(t, start_ms=start, end_ms=end))
        dues = dues[:limit] if "startTime" in query else dues[-limit:]
        return [
            {"symbol": native, "fundingTime": due, "fundingRate": funding_rate(native, due), "markPrice": ""}
            for due, native in dues
        ]

    def _ticker_price(self, query: Mapping[str, str]) -> Any:
        now = self._venue.clock.now_ms()
        found = [
            {"symbol": tape.native, "price": tape.price_text(tape.price_at(now)), "time": now}
            for tape in self._tapes(query)
        ]
        return found[0] if "symbol" in query else found


def kline_row(tape: Tape, bar: list[int], step_ms: int) -> list[int | str]:
    """Write a candle: open time, o, h, l, c, v, close time, quote volume, fills, taker-buy volumes, 0."""
    prices = [tape.price_text(bar[column]) for column in (K.OPEN, K.HIGH, K.LOW, K.CLOSE)]
    volume, buy = (tape.size_text(bar[column]) for column in (K.VOLUME, K.BUY_VOLUME))
    decimals = tape.price_decimals + tape.size_decimals
    quote, buy_quote = (decimal_text(bar[column], decimals) for column in (K.QUOTE, K.BUY_QUOTE))
    return [bar[0], *prices, volume, bar[0] + step_ms - 1, quote, bar[K.FILLS], buy, buy_quote, "0"]


def _agg_row(tape: Tape, row: list[int]) -> dict[str, Any]:
    size = tape.size_text(row[T.SIZE])
    return {
        "a": row[T.ID], "p": tape.price_text(row[T.PRICE]), "q": size, "nq": size, "f": row[T.FIRST], "l": row[T.LAST],
        "T": row[T.TIME], "m": bool(row[T.MAKER]),
    }  # fmt: skip


def _contract(tape: Tape) -> dict[str, Any]:
    """Describe the market as ``exchangeInfo`` does."""
    base, quote = tape.native.removesuffix("USDT"), "USDT"
    tick, lot = tape.price_text(tape.tick), tape.size_text(1)
    return {
        "symbol": tape.native, "pair": tape.native, "contractType": "PERPETUAL", "deliveryDate": 4133404800000,
        "onboardDate": tape.begin_ms, "status": "TRADING_HALT" if tape.halted else "TRADING",
        "maintMarginPercent": "2.5000",
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


def _refused(code: int, message: str) -> Refused:
    return Refused(400, {"code": code, "msg": message})


def _needed(query: Mapping[str, str], name: str) -> str:
    if not query.get(name):
        raise _refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    return query[name]


def _integer(query: Mapping[str, str], name: str, default: int, *, most: int | None = None) -> int:
    """Read a number that may be absent; with `most`, one from 1 to it."""
    text = query.get(name, str(default))
    if not text.isdigit() or (most is not None and not 1 <= int(text) <= most):
        raise _refused(-1130, f"Data sent for parameter '{name}' is not valid.")
    return int(text)
