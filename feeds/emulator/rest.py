"""The REST half of the emulated exchange: ``/fapi/v1/…``; nothing newer than its clock is ever visible."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from feeds.capture import AggTrade
from feeds.emulator.tape import Tape
from feeds.emulator.venue import (
    FUNDING_MS,
    INTERVALS_MS,
    Venue,
    agg_trades,
    contract_info,
    decimal_text,
    funding_rate,
    kline_row,
    next_funding,
    next_funding_ms,
)

KLINES_MAX = 1500
ROWS_MAX = 1000
TRADES_REACH_MS = 48 * 3_600_000
_WEIGHT_LIMIT = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400}


class Refused(Exception):
    """The request is wrong: status 400 with Binance's code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Rest:
    """Answer requests about a venue."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._answers: Mapping[str, Callable[[Mapping[str, str]], Any]] = {
            "ping": lambda _: {},
            "time": lambda _: {"serverTime": venue.clock.now_ms()},
            "exchangeInfo": self._exchange_info,
            "klines": self._klines,
            "markPriceKlines": self._mark_price_klines,
            "aggTrades": self._agg_trades,
            "premiumIndex": self._premium_index,
            "fundingRate": self._funding_rate,
            "ticker/price": self._ticker_price,
        }

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one GET."""
        name = request.match_info["name"]
        self._venue.requests[name] += 1
        if self._venue.refuse:
            return web.Response(status=503)
        if name not in self._answers:
            return _reply({"code": -5000, "msg": f"Path /fapi/v1/{name}, Method GET is invalid"}, 404)
        try:
            return _reply(self._answers[name](request.query))
        except Refused as refused:
            return _reply({"code": refused.code, "msg": str(refused)}, 400)

    def _tape(self, query: Mapping[str, str]) -> Tape:
        tape = self._venue.tapes.get(_needed(query, "symbol"))
        if tape is None:
            raise Refused(-1121, "Invalid symbol.")
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
            "symbols": [contract_info(tape) for tape in self._venue.tapes.values()],
        }

    def _klines(self, query: Mapping[str, str]) -> Any:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        step = INTERVALS_MS.get(_needed(query, "interval"))
        if step is None:
            raise Refused(-1120, "Invalid interval.")
        limit = _integer(query, "limit", 500, most=KLINES_MAX)
        end = min(_integer(query, "endTime", now), now) + 1
        newest = (end - 1) // step * step
        start = _integer(query, "startTime", newest - (limit - 1) * step)
        end = min(end, max(start, tape.begin_ms // step * step) // step * step + (limit + 1) * step)
        bars = tape.candles(step, start_ms=start, end_ms=end, now_ms=now)
        return [kline_row(tape, bar, step) for bar in bars[:limit]]

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
                raise Refused(-4166, "Search window is restricted to recent 2 days only.")
            rows = tape.trades(after, until)[:limit]
        else:
            rows = tape.trades(now - TRADES_REACH_MS, now)[-limit:]
        return [_agg_row(trade) for trade in agg_trades(tape, rows)]

    def _premium_index(self, query: Mapping[str, str]) -> Any:
        now = self._venue.clock.now_ms()
        found = []
        for tape in self._tapes(query):
            price, (rate, due) = decimal_text(tape.price_at(now), tape.price_decimals), next_funding(tape, now)
            found.append({
                "symbol": tape.native, "markPrice": price, "indexPrice": price, "estimatedSettlePrice": price,
                "lastFundingRate": rate, "interestRate": "0.00010000", "nextFundingTime": due, "time": now,
            })  # fmt: skip
        return found[0] if "symbol" in query else found

    def _funding_rate(self, query: Mapping[str, str]) -> Any:
        tape, now = self._tape(query), self._venue.clock.now_ms()
        if not tape.funded:
            return []
        limit = _integer(query, "limit", 100, most=ROWS_MAX)
        first = next_funding_ms(max(_integer(query, "startTime", 0), tape.begin_ms) - 1)
        dues = range(first, min(_integer(query, "endTime", now), now) + 1, FUNDING_MS)
        dues = dues[:limit] if "startTime" in query else dues[-limit:]
        rates = [(due, funding_rate(tape.native, due)) for due in dues]
        return [{"symbol": tape.native, "fundingTime": t, "fundingRate": rate, "markPrice": ""} for t, rate in rates]

    def _ticker_price(self, query: Mapping[str, str]) -> Any:
        now = self._venue.clock.now_ms()
        found = [
            {"symbol": tape.native, "price": decimal_text(tape.price_at(now), tape.price_decimals), "time": now}
            for tape in self._tapes(query)
        ]
        return found[0] if "symbol" in query else found


def _agg_row(trade: AggTrade) -> dict[str, Any]:
    return {
        "a": trade.id, "p": trade.price, "q": trade.size, "nq": trade.size, "f": trade.first, "l": trade.last,
        "T": trade.time_ms, "m": trade.buyer_is_maker,
    }  # fmt: skip


def _needed(query: Mapping[str, str], name: str) -> str:
    if not query.get(name):
        raise Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    return query[name]


def _integer(query: Mapping[str, str], name: str, default: int, *, most: int | None = None) -> int:
    """Read a number that may be absent; with `most`, one from 1 to it."""
    text = query.get(name, str(default))
    if not text.isdigit() or (most is not None and not 1 <= int(text) <= most):
        raise Refused(-1130, f"Data sent for parameter '{name}' is not valid.")
    return int(text)


def _reply(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
