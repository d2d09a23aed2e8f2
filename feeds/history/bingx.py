"""BingX perpetual swaps margined in USDT or USDC over REST, ``https://open-api.bingx.com/openApi/swap``.

Confirmed by captured answers: ``{"code": 0, "msg", "data"}`` with errors in `code` under HTTP 200; klines newest first,
as objects. Assumed: nothing about which edges of a span of time are part of it (one interval more is asked for on
either side and left out again); rows as arrays begin with open time, open, high, low, close, volume; a kline is final
ten seconds after its close; a contract settles funding at most once an hour. Only the newest trades are served, without
ids; index price and the rate to come are not looked at.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar

from feeds.errors import FeedError, RateLimited, RequestRefused
from feeds.events import FundingSettlement
from feeds.exchanges.bingx import INTERVALS, oldest_first
from feeds.history.base import PAGE_ROWS, TIMEOUT_MS, RestHistory, decimals, final_candle, moved, scaled
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Trade

_PACE = {
    "enableRateLimit": True,
    "rateLimit": 25,
    "rateLimiterAlgorithm": "rollingWindow",
    "rollingWindowSize": 10_000.0,
}
"""ccxt's limiter: 10000 / 25 = 400 requests in any 10 s, of the 500 allowed."""
_KLINES_MAX = 1440
_OFFLINE, _ONLINE = "0", "1"
_HOUR_MS = 3_600_000
_BLOCKED = re.compile(r'unblocked after (\d{13})\b.*"timestamp":\s*(\d{13})\b').search


class BingxHistory(RestHistory):
    """BingX's linear perpetual swaps."""

    exchange: ClassVar[str] = "bingx"
    page_rows: ClassVar[int] = _KLINES_MAX - 2
    settle_ns = 10 * NS_PER_S

    def __init__(self, rest_url: str | None = None) -> None:
        from ccxt.async_support.bingx import bingx
        from ccxt.base.errors import RateLimitExceeded

        super().__init__(bingx({**_PACE, "timeout": TIMEOUT_MS}))
        self._rest.exceptions["exact"]["100410"] = RateLimitExceeded  # to ccxt a failure like any other
        if rest_url is not None:
            url = self._rest.implode_hostname(self._rest.urls["api"]["swap"])
            self._rest.urls["api"]["swap"] = moved(url, rest_url)

    def is_our_fault(self, error: Exception, said: str) -> bool:  # noqa: ARG002
        """Follow ccxt's reading of the codes: 109425 unknown symbol, 109400 and 100400 bad argument and their like."""
        from ccxt.base.errors import BadRequest

        return isinstance(error, BadRequest)

    def _translated(self, error: Exception) -> FeedError:
        """Take the wait after a limit from the answer: when the block ends, and when it was told."""
        ours = super()._translated(error)
        told = _BLOCKED(str(error))
        if not isinstance(ours, RateLimited) or told is None:
            return ours
        return RateLimited(str(ours), retry_after_s=max(0.0, (int(told[1]) - int(told[2])) / 1000))

    async def time_ns(self) -> int:
        """Return the exchange's clock, ms resolution."""
        reply = await self.call("swapV2PublicGetServerTime", {})
        return self.read([reply], lambda row: int(row["data"]["serverTime"]) * NS_PER_MS)[0]

    async def markets(self) -> dict[str, Market]:
        """Return the contracts by ccxt's unified symbol, see `History.markets`; one request, quote/contracts."""
        rows = await self.call("fetch_swap_markets", {})
        listed = [row for row in rows if str(row["info"].get("status")) != _OFFLINE]
        return {market.symbol: market for market in self.read(listed, _market)}

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, see `History.candles`."""
        return await self._klines("swapV3PublicGetQuoteKlines", _candle, market, spec, start_ns, end_ns)

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles of the mark price, see `History.mark_candles`."""
        return await self._klines("swapV1PublicGetMarketMarkPriceKlines", _mark_candle, market, spec, start_ns, end_ns)

    async def _klines(
        self,
        method: str,
        parse: Callable[[Any, CandleSpec], Candle],
        market: Market,
        spec: CandleSpec,
        start_ns: int,
        end_ns: int,
    ) -> list[Candle]:
        if spec.interval_ns not in INTERVALS:
            raise RequestRefused(f"bingx has no klines of {spec}")

        async def fetch(at_ns: int, until_ns: int) -> list[Candle]:
            ask = {
                "symbol": market.native,
                "interval": INTERVALS[spec.interval_ns],
                "startTime": (at_ns - spec.interval_ns) // NS_PER_MS,
                "endTime": until_ns // NS_PER_MS,
                "limit": (until_ns - at_ns) // spec.interval_ns + 2,
            }
            rows = await self._data(method, ask)
            candles = self.read(rows, lambda row: parse(row, spec))
            return [candle for candle in candles if at_ns <= candle.open_time_ns < until_ns]

        return await self.pages(spec, fetch, start_ns=start_ns, end_ns=end_ns)

    async def trades(
        self, market: Market, *, start_ns: int | None = None, from_id: int | None = None, limit: int = PAGE_ROWS
    ) -> list[Trade]:
        """Return the newest trades, at most 1000, in order of time; all have the id 0, see `History.trades`.

        Raises:
            RequestRefused: older trades are asked for.

        """
        if start_ns is not None or from_id is not None:
            raise RequestRefused("bingx serves its newest trades only, neither from a time nor from an id")
        rows = await self._data("swapV2PublicGetQuoteTrades", {"symbol": market.native, "limit": limit})
        return oldest_first(self.read(rows, lambda row: _trade(row, market)), lambda trade: trade.event_time_ns)

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending, in spans that no page can be too short for."""
        now_ms = await self.time_ns() // NS_PER_MS
        at_ms = -(-max(start_ns, market.listed_at_ns or 0) // NS_PER_MS)
        found: list[FundingSettlement] = []
        while at_ms <= now_ms:
            until_ms = min(at_ms + (PAGE_ROWS - 2) * _HOUR_MS, now_ms + 1)
            ask = {"symbol": market.native, "startTime": at_ms - 1, "endTime": until_ms, "limit": PAGE_ROWS}
            rows = self.read(await self._data("swapV2PublicGetQuoteFundingRate", ask), _settlement)
            inside = [row for row in rows if at_ms <= row.time_ns // NS_PER_MS < until_ms]
            found += sorted(inside, key=lambda row: row.time_ns)
            at_ms = until_ms
        return found

    async def _data(self, method: str, ask: dict[str, Any]) -> Any:
        """Return the rows of an answer; none are told by null."""
        reply = await self.call(method, ask)
        return self.read([reply], lambda row: row["data"] or [])[0]


def _market(row: dict[str, Any]) -> Market:
    """Turn ccxt's market into ours; trades and klines count in coins, and leverage is the lesser of both sides'."""
    info = row["info"]
    leverage = [float(info[side]) for side in ("maxLongLeverage", "maxShortLeverage") if float(info.get(side) or 0)]
    launched_ms = int(info.get("launchTime") or 0)
    return Market(
        exchange="bingx",
        symbol=row["symbol"],
        native=row["id"],
        price_decimals=max(int(info["pricePrecision"]), decimals(str(info.get("tickSize") or 1))),
        size_decimals=max(int(info["quantityPrecision"]), decimals(str(info.get("size") or 1))),
        listed_at_ns=launched_ms * NS_PER_MS or None,
        max_leverage=min(leverage, default=None),
        trading=str(info["status"]) == _ONLINE,
    )


def _candle(row: Any, spec: CandleSpec) -> Candle:
    """Read a kline, an object or an array."""
    if isinstance(row, dict):
        row = [row["time"], row["open"], row["high"], row["low"], row["close"], row["volume"]]
    o, h, l, c, v = row[1:6]
    return final_candle(spec, int(row[0]), (o, h, l, c, v))


def _mark_candle(row: Any, spec: CandleSpec) -> Candle:
    """Read a kline of the mark price, whose open was seen under another name; its volume means nothing."""
    if isinstance(row, dict):
        row = {"time": row.get("openTime"), **row, "volume": "0"}
        return _candle(row, spec)
    return _candle([*row[:5], "0"], spec)


def _trade(row: dict[str, Any], market: Market) -> Trade:
    """Read a trade; `isBuyerMaker` makes the taker a seller."""
    time_ns = int(row["time"]) * NS_PER_MS
    price, size = scaled(str(row["price"]), market.price_decimals), scaled(str(row["qty"]), market.size_decimals)
    return Trade(0, price, size, time_ns, time_ns, 1, not row["isBuyerMaker"])


def _settlement(row: dict[str, Any]) -> FundingSettlement:
    return FundingSettlement(int(row["fundingTime"]) * NS_PER_MS, float(row["fundingRate"]))
