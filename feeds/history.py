"""What an exchange remembers: contracts, its clock, closed candles, trades and funding over REST.

The raw endpoints are called through ccxt, because its unified ones re-shape rows (turnover for volume on some inverse
markets) and parse numbers on their own. A candle's float64 is what parsing the exchange's own text gives.
"""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from feeds.errors import FeedError, RateLimited, RemoteError, RequestRefused
from feeds.events import FundingSettlement
from feeds.exchanges.binance import INTERVALS
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Origin, Trade

PAGE_ROWS = 1000
"""Rows per request: Binance charges weight 5 of 2400 a minute for 1000 klines and 10 for more."""
TIMEOUT_MS = 10_000
BACK_OFF_S = 60.0
"""How long to wait after a limit was hit when the answer does not say: the window is the UTC clock minute."""
_PACE = {
    "enableRateLimit": True,
    "rateLimit": 30,
    "rateLimiterAlgorithm": "rollingWindow",
    "rollingWindowSize": 60_000.0,
}
"""ccxt's limiter: a weight of 60000 / 30 = 2000 in any 60 s, of the 2400 allowed in each clock minute."""
_T = TypeVar("_T")
_ParseCandle = Callable[[list[Any], CandleSpec], Candle]


class History(Protocol):
    """An exchange's REST side. Every method raises `RemoteError`, `RateLimited` or `RequestRefused`, nothing else."""

    settle_ns: int
    """How long after its close a row may still change."""

    async def markets(self) -> dict[str, Market]:
        """Return the contracts that trade now, by unified symbol."""

    async def time_ns(self) -> int:
        """Return the exchange's clock."""

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending.

        Final: `settle_ns` past the close by the exchange's clock, asked before the rows. What the exchange lacks is
        missing in the answer; the caller looks for holes.
        """

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return candles of the mark price, otherwise as `candles` does; their volume and trades are 0."""

    async def trades(
        self, market: Market, *, start_ns: int | None = None, from_id: int | None = None, limit: int = PAGE_ROWS
    ) -> list[Trade]:
        """Return one page of trades, ascending by id: from a time, from an id, or the newest when neither is given.

        The exchange does not say when we first saw them: `receive_time_ns` is their `event_time_ns`.
        """

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending."""

    async def aclose(self) -> None:
        """Close the connections."""


def open_history(exchange: str, rest_url: str | None = None) -> History:
    """Build the history of `exchange`; `rest_url` replaces scheme, host and port of its address.

    Raises:
        RequestRefused: no history is known for this exchange, or `rest_url` is not an http address.

    """
    if exchange != "binance":
        raise RequestRefused(f"no history is known for the exchange {exchange!r}; known: binance")
    return BinanceHistory(rest_url)


class BinanceHistory:
    """Binance USDⓈ-M futures, ``https://fapi.binance.com/fapi/v1``.

    aggTrades reach 48 hours back; what is older is refused.
    """

    settle_ns = 5 * NS_PER_S
    """The closing kline of a quiet market was seen on the stream 2.0 s after its close."""

    def __init__(self, rest_url: str | None = None) -> None:
        from ccxt.async_support.binanceusdm import binanceusdm

        self._rest = binanceusdm({**_PACE, "timeout": TIMEOUT_MS})
        if rest_url is not None:
            self._rest.urls["api"]["fapiPublic"] = _moved(self._rest.urls["api"]["fapiPublic"], rest_url)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._rest.close()

    async def time_ns(self) -> int:
        """Return the exchange's clock, ms resolution."""
        reply = await self._call("fapiPublicGetTime", {})
        return _read([reply], lambda row: int(row["serverTime"]) * NS_PER_MS)[0]

    async def markets(self) -> dict[str, Market]:
        """Return the contracts that trade now, by ccxt's unified symbol; one request, exchangeInfo."""
        rows = await self._call("fetch_markets", {})
        trading = [row for row in rows if row["active"] and row["linear"]]
        return {market.symbol: market for market in _read(trading, _market)}

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, see `History.candles`."""
        return await self._final("fapiPublicGetKlines", _candle, market, spec, start_ns, end_ns)

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles of the mark price, see `History.mark_candles`."""
        return await self._final("fapiPublicGetMarkPriceKlines", _mark_candle, market, spec, start_ns, end_ns)

    async def _final(
        self, method: str, parse: _ParseCandle, market: Market, spec: CandleSpec, start_ns: int, end_ns: int
    ) -> list[Candle]:
        """Fetch the final candles of an endpoint, page after page."""
        if spec.interval_ns not in INTERVALS:
            raise RequestRefused(f"binance has no klines of {spec}")
        final_ns = await self.time_ns() - self.settle_ns
        step = spec.interval_ns
        at, end = spec.open_of(start_ns + step - 1), min(spec.open_of(end_ns + step - 1), spec.open_of(final_ns))
        found: list[Candle] = []
        while at < end:
            page = await self._page(method, parse, market, spec, start_ns=at, end_ns=end)
            if not page:
                break
            found += page
            at = page[-1].close_time_ns
        return found

    async def _page(
        self, method: str, parse: _ParseCandle, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int
    ) -> list[Candle]:
        """Fetch one page, its opens within ``[start_ns, end_ns)``."""
        ask = {
            "symbol": market.native,
            "interval": INTERVALS[spec.interval_ns],
            "startTime": start_ns // NS_PER_MS,
            "endTime": end_ns // NS_PER_MS - 1,
            "limit": min(PAGE_ROWS, (end_ns - start_ns) // spec.interval_ns),
        }
        rows = await self._call(method, ask)
        page = _read(rows, lambda row: parse(row, spec))
        opens = [start_ns - spec.interval_ns, *(candle.open_time_ns for candle in page), end_ns]
        if any(early >= late for early, late in pairwise(opens)):
            raise RemoteError(f"binance klines of {market.native} out of order or not what was asked for: {ask}")
        return page

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
        rows = await self._call("fapiPublicGetAggTrades", ask)
        page = _read(rows, lambda row: _trade(row, market))
        return sorted(page, key=lambda trade: trade.id)

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending, page after page up to now."""
        found: list[FundingSettlement] = []
        while True:
            ask = {"symbol": market.native, "startTime": -(-start_ns // NS_PER_MS), "limit": PAGE_ROWS}
            rows = await self._call("fapiPublicGetFundingRate", ask)
            settled = sorted(_read(rows, _settlement), key=lambda row: row.time_ns)
            page = [row for row in settled if row.time_ns >= start_ns]
            found += page
            if not page or len(rows) < PAGE_ROWS:
                return found
            start_ns = page[-1].time_ns + 1

    async def _call(self, method: str, ask: dict[str, Any]) -> Any:
        """Call one endpoint: the place where foreign exceptions become ours."""
        from aiohttp import ClientError
        from ccxt.base.errors import BaseError

        try:
            return await getattr(self._rest, method)(ask)
        except (BaseError, ClientError, TimeoutError, OSError) as error:
            raise _translated(error, self._rest.last_response_headers or {}) from error


def _moved(url: str, base: str) -> str:
    """Put `url`'s path behind the scheme, host and port of `base`."""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RequestRefused(f"{base!r} is not an address such as http://127.0.0.1:9000")
    return urlsplit(url)._replace(scheme=parts.scheme, netloc=parts.netloc).geturl()


def _translated(error: Exception, headers: dict[str, str]) -> FeedError:
    """Say who is to blame.

    Binance's codes -1000 to -1099 are its own and the network's trouble, those below -1100 a request that is wrong.
    """
    from ccxt.base.errors import DDoSProtection, RateLimitExceeded

    said = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, DDoSProtection | RateLimitExceeded):
        wait = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
        return RateLimited(said, retry_after_s=float(wait) if wait.isdigit() else BACK_OFF_S)
    code = re.search(r'"code":\s*(-\d+)', said)
    return RequestRefused(said) if code and int(code[1]) <= -1100 else RemoteError(said)


def _read(rows: Any, parse: Callable[[Any], _T]) -> list[_T]:
    """Parse each row; an answer that does not have the documented shape is the exchange's fault."""
    try:
        return [parse(row) for row in rows]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise RemoteError(f"binance answered something else ({error!r}): {str(rows)[:200]}") from error


def _market(row: dict[str, Any]) -> Market:
    """Turn ccxt's market into ours; scales hold the tick as well as the precision that the exchange states."""
    info = row["info"]
    filters = {rule["filterType"]: rule for rule in info["filters"]}
    return Market(
        exchange="binance",
        symbol=row["symbol"],
        native=row["id"],
        price_decimals=max(_decimals(filters["PRICE_FILTER"]["tickSize"]), int(info["pricePrecision"])),
        size_decimals=max(_decimals(filters["LOT_SIZE"]["stepSize"]), int(info["quantityPrecision"])),
        listed_at_ns=int(info["onboardDate"]) * NS_PER_MS if "onboardDate" in info else None,
    )


def _decimals(text: str) -> int:
    """Count the decimal places that `text` needs: ``0.010`` → 2."""
    exponent = Decimal(text).normalize().as_tuple().exponent
    return max(0, -int(exponent))


def _candle(row: list[Any], spec: CandleSpec) -> Candle:
    """Read a kline: open time, o, h, l, c, volume, close time, quote volume, number of trades and more."""
    opened, step = int(row[0]) * NS_PER_MS, spec.interval_ns
    o, h, l, c, v = (float(text) for text in row[1:6])
    if opened % step or not (0 < l <= min(o, c) <= max(o, c) <= h < math.inf and 0 <= v < math.inf):
        raise ValueError(f"kline {row[:6]} of {spec}")
    return Candle(
        seq=(opened + step) // step, open_time_ns=opened, close_time_ns=opened + step, open=o, high=h, low=l, close=c,
        volume=v, trades=int(row[8]), closed=True, origin=Origin.EXCHANGE,
    )  # fmt: skip


def _mark_candle(row: list[Any], spec: CandleSpec) -> Candle:
    """Read a kline of the mark price: as others, but volume means nothing and the count is of seconds."""
    return _candle([*row[:5], "0", row[6], "0", 0], spec)


def _trade(row: dict[str, Any], market: Market) -> Trade:
    """Read an aggregate trade; `m`, the buyer was the maker, makes the taker a seller."""
    time_ns = int(row["T"]) * NS_PER_MS
    return Trade(
        id=int(row["a"]),
        price=_scaled(row["p"], market.price_decimals),
        size=_scaled(row["q"], market.size_decimals),
        event_time_ns=time_ns,
        receive_time_ns=time_ns,
        fills=int(row["l"]) - int(row["f"]) + 1,
        taker_is_buyer=not row["m"],
    )


def _scaled(text: str, decimals: int) -> int:
    scaled = Decimal(text).scaleb(decimals)
    if scaled <= 0 or scaled != scaled.to_integral_value():
        raise ValueError(f"{text!r} is not a number above zero with at most {decimals} decimals")
    return int(scaled)


def _settlement(row: dict[str, Any]) -> FundingSettlement:
    return FundingSettlement(int(row["fundingTime"]) * NS_PER_MS, float(row["fundingRate"]))
