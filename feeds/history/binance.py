"""Binance USDⓈ-M futures over REST, ``https://fapi.binance.com/fapi/v1``."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, ClassVar

from feeds.budget import Pace
from feeds.errors import RemoteError, RequestRefused
from feeds.events import FundingSettlement
from feeds.exchanges.binance import INTERVALS
from feeds.history.base import PAGE_ROWS, TIMEOUT_MS, RestHistory, decimals, final_candle, moved, scaled
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Trade

_PACE = {
    "enableRateLimit": True,
    "rateLimit": 26,
    "rateLimiterAlgorithm": "rollingWindow",
    "rollingWindowSize": 60_000.0,
}
"""ccxt's limiter: a weight of 60000 / 26 = 2307 in any 60 s, of the 2400 allowed in each clock minute. A request of
1000 klines weighs 5, of 499 at most 2, of more than 1000 10. Settled funding has a limit of its own, see `fundings`."""
_USED = "x-mbx-used-weight-1m"
"""Header in which the exchange says what was used in this minute, by all behind our address."""
_GONE = frozenset({"CLOSE", "SETTLING", "DELIVERED"})
"""Statuses of contracts that are listed as a memory; a delisted perpetual was seen to be ``SETTLING`` for years."""


class BinanceHistory(RestHistory):
    """Binance USDⓈ-M; aggTrades reach 48 hours back, what is older is refused."""

    exchange: ClassVar[str] = "binance"
    settle_ns = 5 * NS_PER_S
    """The closing kline of a quiet market was seen on the stream 2.0 s after its close."""

    def __init__(self, rest_url: str | None = None) -> None:
        from ccxt.async_support.binanceusdm import binanceusdm

        super().__init__(binanceusdm({**_PACE, "timeout": TIMEOUT_MS}))
        if rest_url is not None:
            self._rest.urls["api"]["fapiPublic"] = moved(self._rest.urls["api"]["fapiPublic"], rest_url)

    def _heard(self, status: int, reason: str, url: str, method: str, headers: Any, body: str, *more: Any) -> str:
        used = next((value for name, value in headers.items() if name.lower() == _USED), "")
        if self.budget and isinstance(self.budget.pace, Pace) and used.isdigit():
            self.budget.pace.heard(int(used), asyncio.get_running_loop().time())
        return super()._heard(status, reason, url, method, headers, body, *more)

    def is_our_fault(self, error: Exception, said: str) -> bool:  # noqa: ARG002
        """Read Binance's codes: -1000 to -1099 are its own and the network's trouble, below -1100 the request's."""
        code = re.search(r'"code":\s*(-\d+)', said)
        return code is not None and int(code[1]) <= -1100

    async def time_ns(self) -> int:
        """Return the exchange's clock, ms resolution."""
        reply = await self.call("fapiPublicGetTime", {})
        return self.read([reply], lambda row: int(row["serverTime"]) * NS_PER_MS)[0]

    async def markets(self) -> dict[str, Market]:
        """Return the contracts by ccxt's unified symbol, see `History.markets`; one request, exchangeInfo."""
        rows = await self.call("fetch_markets", {})
        listed = [row for row in rows if row["linear"] and row["info"].get("status") not in _GONE]
        if not listed:  # ccxt makes this of an answer of another shape
            raise RemoteError("binance lists no contracts")
        return {market.symbol: market for market in self.read(listed, _market)}

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, see `History.candles`."""
        return await self._klines("fapiPublicGetKlines", _candle, market, spec, start_ns, end_ns)

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles of the mark price, see `History.mark_candles`."""
        return await self._klines("fapiPublicGetMarkPriceKlines", _mark_candle, market, spec, start_ns, end_ns)

    async def _klines(
        self,
        method: str,
        parse: Callable[[list[Any], CandleSpec], Candle],
        market: Market,
        spec: CandleSpec,
        start_ns: int,
        end_ns: int,
    ) -> list[Candle]:
        if spec.interval_ns not in INTERVALS:
            raise RequestRefused(f"binance has no klines of {spec}")

        async def fetch(at_ns: int, until_ns: int) -> list[Candle]:
            ask = {
                "symbol": market.native,
                "interval": INTERVALS[spec.interval_ns],
                "startTime": at_ns // NS_PER_MS,
                "endTime": until_ns // NS_PER_MS - 1,
                "limit": (until_ns - at_ns) // spec.interval_ns,
            }
            return self.read(await self.call(method, ask), lambda row: parse(row, spec))

        return await self.pages(spec, fetch, start_ns=start_ns, end_ns=end_ns)

    async def trades(
        self, market: Market, *, start_ns: int | None = None, from_id: int | None = None, limit: int = PAGE_ROWS
    ) -> list[Trade]:
        """Return one page of aggregate trades, ascending by id, see `History.trades`."""
        assert start_ns is None or from_id is None, "from a time or from an id, not both"
        ask: dict[str, Any] = {"symbol": market.native, "limit": limit}
        if start_ns is not None:
            ask["startTime"] = -(-start_ns // NS_PER_MS)
        if from_id is not None:
            ask["fromId"] = from_id
        rows = await self.call("fapiPublicGetAggTrades", ask)
        page = self.read(rows, lambda row: _trade(row, market))
        return sorted(page, key=lambda trade: trade.id)

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending, page after page up to now."""
        found: list[FundingSettlement] = []
        while True:
            ask = {"symbol": market.native, "startTime": -(-start_ns // NS_PER_MS), "limit": PAGE_ROWS}
            rows = await self.call("fapiPublicGetFundingRate", ask)
            settled = sorted(self.read(rows, _settlement), key=lambda row: row.time_ns)
            page = [row for row in settled if row.time_ns >= start_ns]
            found += page
            if not page or len(rows) < PAGE_ROWS:
                return found
            start_ns = page[-1].time_ns + 1

    async def fundings(self, *, start_ns: int) -> dict[str, list[FundingSettlement]] | None:
        """Return all settlements of all markets since `start_ns`, ascending, by native names.

        The endpoint takes 500 requests in five minutes, whatever their weight: one for each market would be too many
        in an exchange of some hundred markets. Without a symbol it lists those of all, ascending in time.
        """
        found: dict[str, dict[int, FundingSettlement]] = {}
        while True:
            ask = {"startTime": -(-start_ns // NS_PER_MS), "limit": PAGE_ROWS}
            rows = await self.call("fapiPublicGetFundingRate", ask)
            page = self.read(rows, lambda row: (str(row["symbol"]), _settlement(row)))
            for native, row in page:
                found.setdefault(native, {})[row.time_ns] = row
            # Those of the newest millisecond may go on in the next page.
            newest_ns = max((row.time_ns for _, row in page), default=start_ns)
            if len(page) < PAGE_ROWS:
                return {native: [of[time_ns] for time_ns in sorted(of)] for native, of in found.items()}
            if newest_ns <= start_ns:
                return None
            start_ns = newest_ns


def _market(row: dict[str, Any]) -> Market:
    """Turn ccxt's market into ours; scales hold the tick as well as the precision that the exchange states."""
    info = row["info"]
    filters = {rule["filterType"]: rule for rule in info["filters"]}
    return Market(
        exchange="binance",
        symbol=row["symbol"],
        native=row["id"],
        price_decimals=max(decimals(filters["PRICE_FILTER"]["tickSize"]), int(info["pricePrecision"])),
        size_decimals=max(decimals(filters["LOT_SIZE"]["stepSize"]), int(info["quantityPrecision"])),
        listed_at_ns=int(info["onboardDate"]) * NS_PER_MS if "onboardDate" in info else None,
        trading=info["status"] == "TRADING",
    )


def _candle(row: list[Any], spec: CandleSpec) -> Candle:
    """Read a kline: open time, o, h, l, c, volume, close time, quote volume, number of trades and more."""
    o, h, l, c, v = row[1:6]
    return final_candle(spec, int(row[0]), (o, h, l, c, v), trades=int(row[8]))


def _mark_candle(row: list[Any], spec: CandleSpec) -> Candle:
    """Read a kline of the mark price: as others, but volume means nothing and the count is of seconds."""
    return _candle([*row[:5], "0", row[6], "0", 0], spec)


def _trade(row: dict[str, Any], market: Market) -> Trade:
    """Read an aggregate trade; `m`, the buyer was the maker, makes the taker a seller."""
    time_ns = int(row["T"]) * NS_PER_MS
    return Trade(
        id=int(row["a"]),
        price=scaled(row["p"], market.price_decimals),
        size=scaled(row["q"], market.size_decimals),
        event_time_ns=time_ns,
        receive_time_ns=time_ns,
        fills=int(row["l"]) - int(row["f"]) + 1,
        taker_is_buyer=not row["m"],
    )


def _settlement(row: dict[str, Any]) -> FundingSettlement:
    return FundingSettlement(int(row["fundingTime"]) * NS_PER_MS, float(row["fundingRate"]))
