"""The REST half of Bitget futures: ``/api/v2/…``, and how the exchange writes trades and candles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from feeds.emulator.dialects.base import Refused, page
from feeds.emulator.funding import funding_rate, settlements
from feeds.emulator.tape import K, T, Tape, decimal_text
from feeds.emulator.venue import Venue

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
INTERVALS_MS = {
    **{f"{n}m": n * 60_000 for n in (1, 3, 5, 15, 30)},
    **{f"{n}H": n * _HOUR_MS for n in (1, 4)},
    "6Hutc": 6 * _HOUR_MS,
    "12Hutc": 12 * _HOUR_MS,
    "1Dutc": _DAY_MS,
}
"""Without ``6H`` and its like, which begin at other hours of UTC."""
RECENT_MS = 30 * _DAY_MS
SPAN_MS = 90 * _DAY_MS
RECENT_MAX, OLD_MAX = 1000, 200
FILLS_MAX, FILLS_HISTORY_MAX = 100, 1000
FUNDING_MAX = 100
_ID_EPOCH_MS = 1_435_725_920_677
_ID_TIME_BITS = 22


class BitgetRest:
    """Answer requests about a venue."""

    edges_count = False
    """Whether candles that open at `startTime` or `endTime` are part of the answer; which is true is not known."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._answers: Mapping[str, Callable[[Mapping[str, str]], Any]] = {
            "public/time": lambda _: {"serverTime": str(self._now)},
            "mix/market/contracts": self._contracts,
            "mix/market/candles": self._candles,
            "mix/market/history-candles": self._history_candles,
            "mix/market/history-mark-candles": self._history_candles,
            "mix/market/history-fund-rate": self._history_fund_rate,
            "mix/market/fills": self._fills,
            "mix/market/fills-history": self._fills_history,
        }

    def answer(self, path: str, query: Mapping[str, str]) -> Any:
        """Answer one GET; see `Dialect.rest`."""
        if path not in self._answers:
            raise Refused(404, self.body("40404", "Request URL NOT FOUND"))
        return self.body("00000", "success", self._answers[path](query))

    def body(self, code: str, message: str, data: Any = None) -> dict[str, Any]:
        """Wrap an answer or, with another code than 00000, a refusal."""
        return {"code": code, "msg": message, "requestTime": self._now, "data": data}

    @property
    def _now(self) -> int:
        return self._venue.clock.now_ms()

    def _refused(self, code: str, message: str) -> Refused:
        return Refused(400, self.body(code, message))

    def _tape(self, query: Mapping[str, str]) -> Tape:
        symbol = query.get("symbol", "")
        tape = self._venue.tapes.get(symbol)
        if tape is None or query.get("productType", "").upper() != product_of(symbol):
            raise self._refused("40034", f"Parameter {symbol} does not exist")
        return tape

    def _integer(self, query: Mapping[str, str], name: str, default: int, *, most: int | None = None) -> int:
        text = query.get(name, str(default))
        if not text.isdigit() or (most is not None and not 1 <= int(text) <= most):
            raise self._refused("40020", f"Parameter {name} error")
        return int(text)

    def _contracts(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        product = query.get("productType", "").upper()
        if not product.endswith("-FUTURES"):
            raise self._refused("40020", "Parameter productType error")
        return [contract(tape) for tape in self._venue.tapes.values() if product_of(tape.native) == product]

    def _candles(self, query: Mapping[str, str]) -> list[list[str]]:
        rows = self._klines(query, RECENT_MAX)
        return [row for row in rows if int(row[0]) >= self._now - RECENT_MS]

    def _history_candles(self, query: Mapping[str, str]) -> list[list[str]]:
        """Answer with finished candles only."""
        step = INTERVALS_MS.get(query.get("granularity", ""), 0)
        return [row for row in self._klines(query, OLD_MAX) if int(row[0]) + step <= self._now]

    def _klines(self, query: Mapping[str, str], most: int) -> list[list[str]]:
        """Answer oldest first, of too many rows the newest; without an end the start means nothing."""
        tape, now = self._tape(query), self._now
        step = INTERVALS_MS.get(query.get("granularity", ""))
        if step is None:
            raise self._refused("40020", "Parameter granularity error")
        limit = self._integer(query, "limit", 100, most=most)
        start, end = self._integer(query, "startTime", 0), self._integer(query, "endTime", now)
        if start and "endTime" in query and end - start > SPAN_MS:
            raise self._refused("40705", "The start and end time cannot exceed 90 days")
        first = 0 if "endTime" not in query else start // step * step
        last = end // step * step
        if not self.edges_count and "endTime" in query:
            first, last = first + step, last - step
        bars = page(tape, step, now_ms=now, limit=limit, start_ms=None, end_ms=last)
        return [kline_row(tape, bar) for bar in carried(tape, step, bars) if bar[K.OPEN_MS] >= first]

    def _history_fund_rate(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Answer newest first, page by page."""
        tape = self._tape(query)
        size = self._integer(query, "pageSize", 20, most=FUNDING_MAX)
        number = self._integer(query, "pageNo", 1, most=1 << 31)
        dues = settlements(tape, start_ms=0, end_ms=self._now)[::-1][(number - 1) * size : number * size]
        rates = [(due, trimmed(funding_rate(tape.native, due))) for due in dues]
        return [{"symbol": tape.native, "fundingRate": rate, "fundingTime": str(due)} for due, rate in rates]

    def _fills(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        tape, now = self._tape(query), self._now
        limit = self._integer(query, "limit", 100, most=FILLS_MAX)
        return [{**row, "symbol": tape.native} for row in trade_rows(tape, now - 7 * _DAY_MS, now, limit)]

    def _fills_history(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Answer newest first, with sides in capitals as in the documentation's example."""
        tape, now = self._tape(query), self._now
        limit = self._integer(query, "limit", 500, most=FILLS_HISTORY_MAX)
        end = min(self._integer(query, "endTime", now), now)
        start = self._integer(query, "startTime", max(0, end - 7 * _DAY_MS))
        rows = trade_rows(tape, start - 1, end, None)
        if "idLessThan" in query:
            rows = [row for row in rows if int(row["tradeId"]) < self._integer(query, "idLessThan", 0)]
        return [{**row, "side": row["side"].capitalize(), "symbol": tape.native} for row in rows[:limit]]


def product_of(native: str) -> str:
    """Return the product type that a symbol belongs to."""
    if native.endswith("PERP"):
        return "USDC-FUTURES"
    return "COIN-FUTURES" if native.endswith("USD") else "USDT-FUTURES"


def trimmed(text: str) -> str:
    """Write a decimal without zeros at its end."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def trade_id(row: Sequence[int]) -> int:
    """Give a trade an id like the exchange's: the time in the upper bits, below it what ascends."""
    number = 2 * row[T.ID] % (1 << _ID_TIME_BITS)
    return (row[T.TIME] - _ID_EPOCH_MS << _ID_TIME_BITS) + number


def trade_row(tape: Tape, row: Sequence[int]) -> dict[str, str]:
    """Write a trade."""
    return {
        "ts": str(row[T.TIME]), "price": trimmed(tape.price_text(row[T.PRICE])),
        "size": trimmed(tape.size_text(row[T.SIZE])), "side": "sell" if row[T.MAKER] else "buy",
        "tradeId": str(trade_id(row)),
    }  # fmt: skip


def trade_rows(tape: Tape, after_ms: int, until_ms: int, limit: int | None) -> list[dict[str, str]]:
    """Write the newest trades with ``after_ms < time <= until_ms``, newest first."""
    rows = tape.trades(after_ms, until_ms)[-limit if limit else 0 :].tolist()
    return [trade_row(tape, row) for row in reversed(rows)]


def carried(tape: Tape, step_ms: int, bars: list[list[int]]) -> list[list[int]]:
    """Let consecutive candles open at the close before them, which counts for their low and high."""
    if not bars:
        return []
    first = bars[0][K.OPEN_MS]
    before = tape.candles(step_ms, start_ms=first - step_ms, end_ms=first, now_ms=first - 1)
    close = before[-1][K.CLOSE] if before else bars[0][K.OPEN]
    out = []
    for bar in bars:
        high, low = max(bar[K.HIGH], close), min(bar[K.LOW], close)
        out.append([bar[K.OPEN_MS], close, high, low, *bar[K.CLOSE :]])
        close = bar[K.CLOSE]
    return out


def kline_row(tape: Tape, bar: list[int]) -> list[str]:
    """Write a candle: open time, o, h, l, c, volume in coins, turnover."""
    prices = [trimmed(tape.price_text(bar[column])) for column in (K.OPEN, K.HIGH, K.LOW, K.CLOSE)]
    turnover = decimal_text(bar[K.QUOTE], tape.price_decimals + tape.size_decimals)
    return [str(bar[K.OPEN_MS]), *prices, trimmed(tape.size_text(bar[K.VOLUME])), trimmed(turnover)]


def contract(tape: Tape) -> dict[str, Any]:
    """Describe a market as ``contracts`` does; `priceEndStep` is the tick in units of the last decimal."""
    product = product_of(tape.native)
    quote = {"USDT-FUTURES": "USDT", "USDC-FUTURES": "USDC", "COIN-FUTURES": "USD"}[product]
    base = tape.native.removesuffix("PERP").removesuffix(quote)
    lot = trimmed(tape.size_text(1))
    return {
        "symbol": tape.native, "baseCoin": base, "quoteCoin": quote, "buyLimitPriceRatio": "0.05",
        "sellLimitPriceRatio": "0.05", "feeRateUpRatio": "0.005", "makerFeeRate": "0.0002", "takerFeeRate": "0.0006",
        "openCostUpRatio": "0.01", "supportMarginCoins": [base if product == "COIN-FUTURES" else quote],
        "minTradeNum": lot, "priceEndStep": str(tape.tick), "volumePlace": str(tape.size_decimals),
        "pricePlace": str(tape.price_decimals), "sizeMultiplier": lot, "symbolType": "perpetual", "minTradeUSDT": "5",
        "maxSymbolOrderNum": "200", "maxProductOrderNum": "1000", "maxPositionNum": "200",
        "symbolStatus": "maintain" if tape.halted else "normal", "offTime": "-1", "limitOpenTime": "-1",
        "deliveryTime": "", "deliveryStartTime": "", "deliveryPeriod": "", "launchTime": "", "fundInterval": "8",
        "minLever": "1", "maxLever": "125", "posLimit": "0.2", "maintainTime": "", "openTime": "",
        "maxMarketOrderQty": "220", "maxOrderQty": "1200", "isRwa": "NO",
    }  # fmt: skip
