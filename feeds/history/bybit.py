"""Bybit v5 futures over REST, ``https://api.bybit.com/v5/market``: lists come newest first, errors with HTTP 200."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from feeds.errors import FeedError, RateLimited, RemoteError, RequestRefused
from feeds.events import FundingSettlement
from feeds.exchanges.bybit import INTERVALS, BybitCodec, trade_id
from feeds.history.base import PAGE_ROWS, TIMEOUT_MS, RestHistory, decimals, final_candle, moved, scaled
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Trade

_PACE = {"enableRateLimit": True, "rateLimit": 20}
"""ccxt's limiter: a request to the market endpoints weighs 5, so 10 a second, of the 120 allowed."""
_BANNED_S = 600.0
"""What the exchange asks to wait after HTTP 403, "access too frequent"."""
_OUR_FAULTS = (10001, 10017, 10029)
"""Of its codes: a wrong parameter, no such route, no such symbol. All others are limits and troubles of its own."""
_INSTRUMENTS_PAGE = 1000
_LISTED: tuple[dict[str, str], ...] = ({}, {"status": "Delivering"})
"""What to ask for: without a status those that trade, or are about to, are listed; ``Closed`` is what is gone."""
_FUNDING_PAGE = 200
_SPARE_DECIMALS = 2
"""Steps may become finer while a daemon runs, and what was bought in fine steps is sold after they became coarse."""


class BybitHistory(RestHistory):
    """Bybit linear and inverse contracts; of trades only the newest thousand are served."""

    exchange: ClassVar[str] = "bybit"
    barred: ClassVar[tuple[int, ...]] = (451,)  # 403 is its word for haste
    settle_ns = 5 * NS_PER_S
    """Assumed: the exchange does not say for how long a closed row may change."""

    def __init__(self, rest_url: str | None = None) -> None:
        from ccxt.async_support.bybit import bybit

        super().__init__(bybit({**_PACE, "timeout": TIMEOUT_MS}))
        if rest_url is not None:
            self._rest.urls["api"]["public"] = moved(self._rest.urls["api"]["public"], rest_url)

    def is_our_fault(self, error: Exception, said: str) -> bool:  # noqa: ARG002
        """Read Bybit's code."""
        code = re.search(r'"retCode":\s*(\d+)', said)
        return code is not None and int(code[1]) in _OUR_FAULTS

    def _translated(self, error: Exception) -> FeedError:
        found = super()._translated(error)
        if isinstance(found, RateLimited) and " 403 " in str(error):
            return RateLimited(str(found), retry_after_s=_BANNED_S)
        return found

    async def time_ns(self) -> int:
        """Return the exchange's clock, ns resolution."""
        reply = await self.call("publicGetV5MarketTime", {})
        return self.read([reply], lambda row: int(row["result"]["timeNano"]))[0]

    async def markets(self) -> dict[str, Market]:
        """Return the contracts by ccxt's unified symbol, see `History.markets`: all pages of both kinds."""
        rows = [
            row
            for category in ("linear", "inverse")
            for status in _LISTED
            for row in await self._instruments({"category": category, **status})
        ]
        listed = [row for row in rows if row.get("status") != "Closed"]
        return {market.symbol: market for market in self.read(listed, self._market)}

    async def _instruments(self, which: dict[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        ask: dict[str, Any] = {**which, "limit": _INSTRUMENTS_PAGE}
        while True:
            rows, cursor = await self._list("publicGetV5MarketInstrumentsInfo", ask)
            found += rows
            if not rows or not cursor:
                return found
            ask["cursor"] = cursor

    async def _list(self, method: str, ask: dict[str, Any]) -> tuple[list[Any], str]:
        """Ask for a list; return its rows and the cursor of the next page, where it has one."""
        reply = await self.call(method, ask)
        return self.read([reply], lambda said: (list(said["result"]["list"]), said["result"].get("nextPageCursor")))[0]

    def _market(self, row: dict[str, Any]) -> Market:
        base, quote, settle = (
            self._rest.safe_currency_code(row[coin]) for coin in ("baseCoin", "quoteCoin", "settleCoin")
        )
        symbol = f"{base}/{quote}:{settle}"
        if row["contractType"].endswith("Futures"):
            symbol += datetime.fromtimestamp(int(row["deliveryTime"]) / 1000, UTC).strftime("-%y%m%d")
        return Market(
            exchange=self.exchange,
            symbol=symbol,
            native=row["symbol"],
            price_decimals=max(decimals(row["priceFilter"]["tickSize"]), int(row["priceScale"])) + _SPARE_DECIMALS,
            size_decimals=decimals(row["lotSizeFilter"]["qtyStep"]) + _SPARE_DECIMALS,
            listed_at_ns=int(row["launchTime"]) * NS_PER_MS,
            max_leverage=float(row["leverageFilter"]["maxLeverage"]),
            trading=row["status"] == "Trading",
            volume_unit="contracts of 1 USD" if settle == base else "base coin",
        )

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, see `History.candles`."""
        return await self._klines("publicGetV5MarketKline", _candle, market, spec, start_ns, end_ns)

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles of the mark price, see `History.mark_candles`."""
        return await self._klines("publicGetV5MarketMarkPriceKline", _mark_candle, market, spec, start_ns, end_ns)

    async def _klines(
        self,
        method: str,
        parse: Callable[[Sequence[str], CandleSpec], Candle],
        market: Market,
        spec: CandleSpec,
        start_ns: int,
        end_ns: int,
    ) -> list[Candle]:
        if spec.interval_ns not in INTERVALS:
            raise RequestRefused(f"bybit has no klines of {spec}")

        async def fetch(at_ns: int, until_ns: int) -> list[Candle]:
            ask = {
                **_named(market),
                "interval": INTERVALS[spec.interval_ns],
                "start": at_ns // NS_PER_MS,
                "end": until_ns // NS_PER_MS - 1,
                "limit": (until_ns - at_ns) // spec.interval_ns,  # without it 200 rows come, whatever is asked for
            }
            rows, _ = await self._list(method, ask)
            return self.read(rows, lambda row: parse(row, spec))

        return await self.pages(spec, fetch, start_ns=start_ns, end_ns=end_ns)

    async def trades(
        self, market: Market, *, start_ns: int | None = None, from_id: int | None = None, limit: int = PAGE_ROWS
    ) -> list[Trade]:
        """Return the newest trades, ascending; block trades, which are in no candle, are left out.

        Raises:
            RequestRefused: from a time or an id, as the exchange serves no others.

        """
        if start_ns is not None or from_id is not None:
            raise RequestRefused("bybit serves the newest trades only, none from a time or an id")
        rows, _ = await self._list("publicGetV5MarketRecentTrade", {**_named(market), "limit": limit})
        on_book = [row for row in reversed(rows) if not row.get("isBlockTrade")]
        return sorted(self.read(on_book, lambda row: _trade(row, market)), key=lambda trade: trade.event_time_ns)

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending, page after page back from now; dated contracts have none.

        The pages are asked for by their end alone: what a start and an end do where there is more between them is not
        documented.
        """
        found: list[FundingSettlement] = []
        if "-" in market.symbol.partition(":")[2]:
            return found
        end_ns = await self.time_ns()
        while True:
            ask = {**_named(market), "endTime": end_ns // NS_PER_MS, "limit": _FUNDING_PAGE}
            rows, _ = await self._list("publicGetV5MarketFundingHistory", ask)
            page = sorted(self.read(rows, _settlement), key=lambda row: row.time_ns)
            if page and page[-1].time_ns > end_ns:
                raise RemoteError(f"bybit funding until {end_ns} ends at {page[-1].time_ns}")
            found = [row for row in page if row.time_ns >= start_ns] + found
            if len(page) < _FUNDING_PAGE or page[0].time_ns <= start_ns:
                return found
            end_ns = page[0].time_ns - NS_PER_MS


def _named(market: Market) -> dict[str, Any]:
    return {"category": BybitCodec.family(market), "symbol": market.native}


def _candle(row: Sequence[str], spec: CandleSpec) -> Candle:
    """Read a kline: start, o, h, l, c, volume, turnover."""
    o, h, l, c, v = row[1:6]
    return final_candle(spec, int(row[0]), (o, h, l, c, v))


def _mark_candle(row: Sequence[str], spec: CandleSpec) -> Candle:
    """Read a kline of the mark price: start, o, h, l, c."""
    return _candle([*row[:5], "0"], spec)


def _trade(row: dict[str, Any], market: Market) -> Trade:
    time_ns = int(row["time"]) * NS_PER_MS
    return Trade(
        id=trade_id(row["execId"]),
        price=scaled(row["price"], market.price_decimals),
        size=scaled(row["size"], market.size_decimals),
        event_time_ns=time_ns,
        receive_time_ns=time_ns,
        fills=1,
        taker_is_buyer={"Buy": True, "Sell": False}[row["side"]],
    )


def _settlement(row: dict[str, Any]) -> FundingSettlement:
    return FundingSettlement(int(row["fundingRateTimestamp"]) * NS_PER_MS, float(row["fundingRate"]))
