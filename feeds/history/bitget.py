"""Bitget futures over REST, ``https://api.bitget.com/api/v2``: perpetuals margined in USDT, USDC or the coin.

Confirmed by captured answers and the exchange's documentation: ``{"code": "00000", "data"}``; klines oldest first, the
newest 30 days from one endpoint, older ones from another with shorter pages, at most 90 days in a request; intervals of
six hours and more begin with the UTC day only under names of their own; most contracts do not say since when they are
listed. Assumed: nothing about which edges of a span of time belong to it, nor which end of it is served when there are
more rows than asked for; a kline is final five seconds after its close; volume counts coins on every contract.

Whether an interval without trades has a kline is not known; where it has none the answer lacks it. Trades are served
90 days back by time, but nothing says that a page of them is whole, so only the newest are asked for.
"""

import re
from typing import Any, ClassVar

from feeds.errors import RequestRefused
from feeds.events import FundingSettlement
from feeds.exchanges.bitget import COIN_PRODUCT, INTERVALS, PRODUCTS, product_of
from feeds.history.base import PAGE_ROWS, TIMEOUT_MS, RestHistory, decimals, final_candle, moved, scaled
from feeds.market import NS_PER_DAY, NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Trade

_PACE = {"enableRateLimit": True, "rateLimit": 62.5}
"""ccxt's limiter: 16 requests a second, of the 20 allowed; 8 where 10 are."""
_RECENT_ROWS, _OLD_ROWS = 1000, 200
_RECENT = "publicMixGetV2MixMarketCandles"
_OLD = {
    "MARKET": "publicMixGetV2MixMarketHistoryCandles",
    "MARK": "publicMixGetV2MixMarketHistoryMarkCandles",
}
_REACH_NS = 28 * NS_PER_DAY
"""How far back the endpoint of recent candles is asked; it is said to reach a month, further for long intervals."""
_SPAN_NS = 90 * NS_PER_DAY
_FEW_TRADES = 100
_FUNDING_ROWS = 100
_TAKER_IS_BUYER = {"buy": True, "sell": False}
_OUR_FAULT = frozenset({
    "400172", "40017", "40019", "40020", "40034", "40054", "40102", "40309", "40404", "40704", "40705", "40707",
})  # fmt: skip
"""A parameter that is missing, wrong or names nothing, a contract removed, a span too long or reversed."""


class BitgetHistory(RestHistory):
    """Bitget's perpetuals."""

    exchange: ClassVar[str] = "bitget"
    page_rows: ClassVar[int] = _RECENT_ROWS - 2
    settle_ns = 5 * NS_PER_S

    def __init__(self, rest_url: str | None = None) -> None:
        from ccxt.async_support.bitget import bitget

        super().__init__(bitget({**_PACE, "timeout": TIMEOUT_MS}))
        if rest_url is not None:
            api = self._rest.urls["api"]
            for part in ("common", "mix"):
                api[part] = moved(self._rest.implode_hostname(api[part]), rest_url)

    def is_our_fault(self, error: Exception, said: str) -> bool:  # noqa: ARG002
        """Read Bitget's codes: most others, 40808 among them, are answered now and then while it is being updated."""
        code = re.search(r'"code":\s*"(\d+)"', said)
        return code is not None and code[1] in _OUR_FAULT

    async def time_ns(self) -> int:
        """Return the exchange's clock, ms resolution."""
        reply = await self.call("publicCommonGetV2PublicTime", {})
        return self.read([reply], lambda row: int(row["data"]["serverTime"]) * NS_PER_MS)[0]

    async def markets(self) -> dict[str, Market]:
        """Return the perpetuals by ccxt's unified symbol, see `History.markets`; one request a product type."""
        found: dict[str, Market] = {}
        for product in (*PRODUCTS.values(), COIN_PRODUCT):
            rows = await self._data("publicMixGetV2MixMarketContracts", {"productType": product})
            found |= {market.symbol: market for market in self.read(rows, self._market) if market}
        return found

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, see `History.candles`."""
        return await self._klines("MARKET", market, spec, start_ns, end_ns)

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles of the mark price, see `History.mark_candles`."""
        return await self._klines("MARK", market, spec, start_ns, end_ns)

    async def _klines(self, kind: str, market: Market, spec: CandleSpec, start_ns: int, end_ns: int) -> list[Candle]:
        if spec.interval_ns not in INTERVALS:
            raise RequestRefused(f"bitget has no klines of {spec}")
        recent_ns = await self.clock_ns() - _REACH_NS

        async def fetch(at_ns: int, until_ns: int) -> list[Candle]:
            found: list[Candle] = []
            while at_ns < until_ns:
                is_old = at_ns < recent_ns
                rows = min(_OLD_ROWS if is_old else _RECENT_ROWS, _SPAN_NS // spec.interval_ns) - 2
                end_ns = min(until_ns, at_ns + rows * spec.interval_ns)
                found += await self._page(kind, market, spec, at_ns, end_ns, is_old=is_old)
                at_ns = end_ns
            return found

        return await self.pages(spec, fetch, start_ns=start_ns, end_ns=end_ns)

    async def _page(
        self, kind: str, market: Market, spec: CandleSpec, at_ns: int, end_ns: int, *, is_old: bool
    ) -> list[Candle]:
        """Fetch the candles that open in a span, by asking for one more at either end."""
        ask = {
            "symbol": market.native,
            "productType": product_of(market.symbol),
            "granularity": INTERVALS[spec.interval_ns],
            "startTime": (at_ns - spec.interval_ns) // NS_PER_MS,
            "endTime": end_ns // NS_PER_MS,
            "limit": (end_ns - at_ns) // spec.interval_ns + 2,
        }
        if not is_old:
            ask["kLineType"] = kind
        rows = await self._data(_OLD[kind] if is_old else _RECENT, ask)
        candles = self.read(rows, lambda row: _candle(row, spec, has_volume=kind == "MARKET"))
        return [candle for candle in candles if at_ns <= candle.open_time_ns < end_ns]

    async def trades(
        self, market: Market, *, start_ns: int | None = None, from_id: int | None = None, limit: int = PAGE_ROWS
    ) -> list[Trade]:
        """Return the newest trades, at most 1000, in order of time, see `History.trades`.

        Raises:
            RequestRefused: older trades are asked for.

        """
        if start_ns is not None or from_id is not None:
            raise RequestRefused("bitget's trades are asked for newest first only, neither from a time nor from an id")
        method = "publicMixGetV2MixMarketFills" if limit <= _FEW_TRADES else "publicMixGetV2MixMarketFillsHistory"
        ask = {"symbol": market.native, "productType": product_of(market.symbol), "limit": limit}
        rows = self.read(await self._data(method, ask), lambda row: _trade(row, market))
        return sorted(rows, key=lambda trade: (trade.event_time_ns, trade.id))

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending, page after page back to it or to the oldest there is."""
        ask = {"symbol": market.native, "productType": product_of(market.symbol), "pageSize": _FUNDING_ROWS}
        found: dict[int, FundingSettlement] = {}
        number = 1
        while True:
            rows = await self._data("publicMixGetV2MixMarketHistoryFundRate", {**ask, "pageNo": number})
            page = {row.time_ns: row for row in self.read(rows, _settlement)}
            if page.keys() <= found.keys():
                break
            found |= page
            if min(page) <= start_ns:
                break
            number += 1
        return [found[time_ns] for time_ns in sorted(found) if time_ns >= start_ns]

    async def _data(self, method: str, ask: dict[str, Any]) -> Any:
        """Return the rows of an answer; none are told by null."""
        reply = await self.call(method, ask)
        return self.read([reply], lambda row: row["data"] or [])[0]

    def _market(self, row: dict[str, Any]) -> Market | None:
        """Turn a contract into our market, named as ccxt names it; None if it is dated or gone."""
        if row["symbolType"] != "perpetual" or row["symbolStatus"] == "off":
            return None
        base, quote = (self._rest.safe_currency_code(row[coin]) for coin in ("baseCoin", "quoteCoin"))
        settle = quote if quote in PRODUCTS else base
        return Market(
            exchange=self.exchange,
            symbol=f"{base}/{quote}:{settle}",
            native=row["symbol"],
            price_decimals=int(row["pricePlace"]),
            size_decimals=max(int(row["volumePlace"]), decimals(row["sizeMultiplier"])),
            listed_at_ns=int(row.get("launchTime") or 0) * NS_PER_MS or None,
            max_leverage=float(row["maxLever"]) if row.get("maxLever") else None,
            trading=row["symbolStatus"] == "normal",
        )


def _candle(row: list[str], spec: CandleSpec, *, has_volume: bool) -> Candle:
    """Read a kline: open time, o, h, l, c, volume in coins, turnover; of the mark price volume means nothing."""
    o, h, l, c, v = row[1:6]
    return final_candle(spec, int(row[0]), (o, h, l, c, v if has_volume else "0"))


def _trade(row: dict[str, Any], market: Market) -> Trade:
    """Read a trade; `side` is the taker's, with a capital letter or without."""
    time_ns = int(row["ts"]) * NS_PER_MS
    price, size = scaled(row["price"], market.price_decimals), scaled(row["size"], market.size_decimals)
    return Trade(int(row["tradeId"]), price, size, time_ns, time_ns, 1, _TAKER_IS_BUYER[row["side"].lower()])


def _settlement(row: dict[str, Any]) -> FundingSettlement:
    return FundingSettlement(int(row["fundingTime"]) * NS_PER_MS, float(row["fundingRate"]))
