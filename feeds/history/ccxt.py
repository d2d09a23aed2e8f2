"""Any other exchange over REST, through ccxt's unified methods.

Unified costs exactness. Numbers come as float64, which for texts of up to 15 digits are the exchange's own; volume is
in whatever unit ccxt hands on, not always that of the trades; how many rows a page has differs from exchange to
exchange, so pages are walked until nothing new comes. A row is taken for final twenty seconds after its close, which no
exchange was asked about. Of trades only the newest are served. Where ccxt reads no settled funding, there is none.
"""

import difflib
from decimal import Decimal
from typing import Any, ClassVar

from feeds.errors import RequestRefused
from feeds.events import FundingSettlement
from feeds.exchanges.base import rebase
from feeds.history.base import PAGE_ROWS, TIMEOUT_MS, RestHistory, decimals, final_candle, moved
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Trade

PREFIX = "ccxt:"
_TICK_SIZE, _DECIMAL_PLACES = 4, 2
_DECIMALS_MAX = 12
_SPARE_DECIMALS = 2
"""Ticks may become finer while a daemon runs, and older trades may have had finer ones."""
_FEW_ROWS = 100
"""Rows a request that every exchange serves; what ccxt knows of an exchange goes before."""


def build(exchange: str, *, pro: bool, ws_url: str | None = None, rest_url: str | None = None) -> Any:
    """Build ccxt's client for ``ccxt:<id>``; the addresses replace scheme, host and port of all its own.

    Raises:
        RequestRefused: ccxt has no such exchange with a websocket, or an address is none.

    """
    import ccxt.pro

    name = exchange.removeprefix(PREFIX)
    if name not in ccxt.pro.exchanges:
        near = difflib.get_close_matches(name, ccxt.pro.exchanges, n=3, cutoff=0.5)
        said = f"; near to it: {', '.join(PREFIX + one for one in near)}" if near else ""
        raise RequestRefused(f"ccxt has no websocket for an exchange {name!r}{said}")
    client = getattr(ccxt.pro if pro else ccxt.async_support, name)({"timeout": TIMEOUT_MS, "enableRateLimit": True})
    client.urls["api"] = _relocated(client.urls["api"], ws_url, rest_url)
    return client


def need(client: Any, exchange: str, *methods: str) -> None:
    """Insist on what ccxt can do with an exchange.

    Raises:
        RequestRefused: it cannot.

    """
    lacking = [method for method in methods if client.has.get(method) is not True]
    if lacking:
        raise RequestRefused(f"{exchange} cannot be followed: ccxt has no {', no '.join(lacking)} for it")


def _relocated(urls: Any, ws_url: str | None, rest_url: str | None) -> Any:
    if isinstance(urls, dict):
        return {key: _relocated(url, ws_url, rest_url) for key, url in urls.items()}
    if ws_url and str(urls).startswith("ws"):
        return rebase(urls, ws_url)
    return moved(urls, rest_url) if rest_url and str(urls).startswith("http") else urls


def timeframe(client: Any, spec: CandleSpec) -> str | None:
    """Return ccxt's name for the candles of `spec`; None where the exchange has none."""
    known = {client.parse_timeframe(name) * NS_PER_S: name for name in client.timeframes or {}}
    return known.get(spec.interval_ns) if spec.by_time else None


def exact(value: Any) -> Decimal:
    """Read a number of ccxt's: a float stands for the shortest text that gives it.

    Raises:
        ValueError: it is none.

    """
    try:
        number = Decimal(repr(value) if isinstance(value, float) else str(value))
    except ArithmeticError as error:
        raise ValueError(f"{str(value)[:40]!r} is no number") from error
    if not number.is_finite():
        raise ValueError(f"{value} is no number")
    return number


def scaled(value: Any, places: int) -> tuple[int, bool]:
    """Return a number above zero as an integer of 10**-places, and whether it had to be rounded to that.

    Raises:
        ValueError: it is none.

    """
    number = exact(value).scaleb(places)
    whole = int(number.to_integral_value())
    if whole <= 0:
        raise ValueError(f"{value} where a number above zero must be")
    return whole, whole != number


def candle_of(row: list[Any], spec: CandleSpec) -> Candle:
    """Read a row of ccxt's: open time in ms, open, high, low, close, volume; the number of trades is not known."""
    o, h, l, c, v = (format(exact(value), "f") for value in (*row[1:5], row[5] or 0))
    return final_candle(spec, int(row[0]), (o, h, l, c, v), open_may_lie_outside=True)


class CcxtHistory(RestHistory):
    """An exchange of ccxt's."""

    exchange: ClassVar[str] = "ccxt"
    settle_ns = 20 * NS_PER_S

    def __init__(self, exchange: str, rest_url: str | None = None) -> None:
        """Set up for ``ccxt:<id>``.

        Raises:
            RequestRefused: there is no such exchange, it has no clock or no candles, or `rest_url` is no address.

        """
        super().__init__(build(exchange, pro=False, rest_url=rest_url))
        self._name = exchange
        need(self._rest, exchange, "fetchOHLCV", "fetchTime")

    async def _ask(self, method: str, ask: dict[str, Any]) -> Any:
        return await getattr(self._rest, method)(**ask)

    def is_our_fault(self, error: Exception, said: str) -> bool:  # noqa: ARG002
        """Believe ccxt's reading of the exchange's answer."""
        from ccxt.base.errors import ArgumentsRequired, BadRequest, NotSupported

        return isinstance(error, BadRequest | NotSupported | ArgumentsRequired)

    async def time_ns(self) -> int:
        """Return the exchange's clock, ms resolution."""
        return self.read([await self.call("fetch_time", {})], lambda ms: int(ms) * NS_PER_MS)[0]

    async def markets(self) -> dict[str, Market]:
        """Return the contracts that trade now, by unified symbol."""
        found = await self.call("load_markets", {"reload": True})
        trading = [row for row in found.values() if row.get("contract") and not row.get("option")]
        rows = [row for row in trading if row.get("active") is not False]
        return {market.symbol: market for market in self.read(rows, self._market)}

    def _market(self, row: dict[str, Any]) -> Market:
        precision, created = row["precision"], row.get("created")
        return Market(
            exchange=self._name,
            symbol=row["symbol"],
            native=str(row["id"]),
            price_decimals=self._decimals(precision.get("price")),
            size_decimals=self._decimals(precision.get("amount")),
            listed_at_ns=int(created) * NS_PER_MS if created else None,
            volume_unit="as ccxt has it",
        )

    def _decimals(self, precision: Any) -> int:
        """Return how many decimals hold what the market's precision allows, with some to spare."""
        if precision is None or self._rest.precisionMode not in (_TICK_SIZE, _DECIMAL_PLACES):
            return _DECIMALS_MAX
        is_places = self._rest.precisionMode == _DECIMAL_PLACES
        places = int(precision) if is_places else decimals(format(exact(precision), "f"))
        return min(_DECIMALS_MAX, max(0, places) + _SPARE_DECIMALS)

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, see `History.candles`."""
        return await self._klines("fetch_ohlcv", market, spec, start_ns, end_ns)

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles of the mark price, see `History.mark_candles`.

        Raises:
            RequestRefused: ccxt reads none.

        """
        if not self._rest.has.get("fetchMarkOHLCV"):
            raise RequestRefused(f"ccxt reads no mark prices of the past from {self._name}")
        return await self._klines("fetch_mark_ohlcv", market, spec, start_ns, end_ns)

    async def _klines(self, method: str, market: Market, spec: CandleSpec, start_ns: int, end_ns: int) -> list[Candle]:
        name = timeframe(self._rest, spec)
        if name is None:
            raise RequestRefused(f"{self._name} has no candles of {spec}")
        limit = self._rest.feature_value(market.symbol, "fetchOHLCV", "limit") or _FEW_ROWS
        rows = min(int(limit), PAGE_ROWS)

        async def fetch(at_ns: int, until_ns: int) -> list[Candle]:
            found: dict[int, Candle] = {}
            while at_ns < until_ns:
                ask = {"symbol": market.symbol, "timeframe": name, "since": at_ns // NS_PER_MS, "limit": rows}
                page = self.read(await self.call(method, ask), lambda row: candle_of(row, spec))
                news = {c.open_time_ns: c for c in page if at_ns <= c.open_time_ns < until_ns}
                if not news:
                    break
                found |= news
                at_ns = max(news) + spec.interval_ns  # an exchange may serve fewer rows than were asked for
            return list(found.values())

        return await self.pages(spec, fetch, start_ns=start_ns, end_ns=end_ns)

    async def trades(
        self, market: Market, *, start_ns: int | None = None, from_id: int | None = None, limit: int = PAGE_ROWS
    ) -> list[Trade]:
        """Return the newest trades, see `History.trades`; their ids are none.

        Raises:
            RequestRefused: older ones are asked for.

        """
        if start_ns is not None or from_id is not None:
            raise RequestRefused(f"{self._name} serves its newest trades only, as far as ccxt tells")
        rows = await self.call("fetch_trades", {"symbol": market.symbol, "limit": limit})
        return sorted(self.read(rows, lambda row: trade_of(row, market)[0]), key=lambda trade: trade.event_time_ns)

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending; none where ccxt reads none."""
        found: dict[int, FundingSettlement] = {}
        while self._rest.has.get("fetchFundingRateHistory") is True:
            ask = {"symbol": market.symbol, "since": -(-start_ns // NS_PER_MS), "limit": _FEW_ROWS}
            page = self.read(await self.call("fetch_funding_rate_history", ask), _settlement)
            news = [one for one in page if one.time_ns >= start_ns]
            if not news:
                break
            found |= {one.time_ns: one for one in news}
            start_ns = max(one.time_ns for one in news) + 1
        return [found[time_ns] for time_ns in sorted(found)]


def trade_of(row: dict[str, Any], market: Market, receive_time_ns: int = 0) -> tuple[Trade, bool]:
    """Read a trade of ccxt's without its id, and whether price or size had to be rounded.

    Raises:
        KeyError, TypeError, ValueError: it lacks a figure.

    """
    time_ns = int(row["timestamp"]) * NS_PER_MS
    price, price_rounded = scaled(row["price"], market.price_decimals)
    size, size_rounded = scaled(row["amount"], market.size_decimals)
    trade = Trade(0, price, size, time_ns, receive_time_ns or time_ns, 1, row.get("side") != "sell")
    return trade, price_rounded or size_rounded


def _settlement(row: dict[str, Any]) -> FundingSettlement:
    return FundingSettlement(int(row["timestamp"]) * NS_PER_MS, float(row["fundingRate"]))
