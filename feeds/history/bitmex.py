"""BitMEX over REST, ``https://www.bitmex.com/api/v1``: closed on 2026-09-23, this is for servers that speak like it.

Confirmed by captured answers: lists of rows, oldest first unless `reverse` is asked for (which is not sent otherwise:
any value of it was seen to reverse); bins have the time of their end and open at the close before them, empty ones are
listed; an id may be all zeros; some listing times lie in the future, and those are not believed.

The exchange has no clock: its time is that of the newest row among its open instruments, which change within seconds.
Assumed: nothing about which edges of a span of time are part of it (one bin more is asked for on either side and left
out again); a bin, said to be listed 16 s after its end, does not change 30 s after it.

ccxt dropped the exchange, so it is asked directly. Its limiter takes 30 requests at once and gives one back in 2 s.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar

from feeds.errors import RemoteError, RequestRefused
from feeds.events import FundingSettlement
from feeds.exchanges.bitmex import BINS, CLOSED, trade_id
from feeds.history.base import (
    BACK_OFF_S,
    PAGE_ROWS,
    TIMEOUT_MS,
    RestHistory,
    decimals,
    final_candle,
    moved,
    scaled,
)
from feeds.history.client import HttpClient, TokenBucket
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Trade

_BURST, _PER_S = 25, 0.45
_LISTED = frozenset({"Open", "Closed"})
"""States of instruments that are not over: ``Closed`` is for a while; they end as ``Settled`` or ``Unlisted``."""
_CONTRACTS = frozenset({"FFWCSX", "FFSCSX", "FFCCSX"})
"""Types of instruments: perpetuals, and futures that expire. Spreads, spot, indices and predictions are others."""
_COINS = {"XBT": "BTC", "XBt": "BTC", "USDt": "USDT", "Gwei": "ETH", "LAMp": "SOL"}
"""Unified names of currencies, where they differ; settlement is counted in the smallest units of some."""
_UNITS = {"BTC": 10**8, "USDT": 10**6, "ETH": 10**9, "SOL": 10**9}
"""How many of these units make one coin."""
_SPARE_DECIMALS = 2
"""Ticks may become finer while a daemon runs, and what was traded before they became coarser is in the history."""
_INSTRUMENTS_MAX = 500
_FUNDING_ROWS = 500
_FUNDING_FEW = 100
"""A shorter page is the last, whatever the exchange allows at most."""
_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_TAKER_IS_BUYER = {"Buy": True, "Sell": False}


class BitmexHistory(RestHistory):
    """BitMEX's perpetuals and futures, linear, inverse and quanto."""

    exchange: ClassVar[str] = "bitmex"
    page_rows: ClassVar[int] = PAGE_ROWS - 2
    settle_ns = 30 * NS_PER_S

    def __init__(self, rest_url: str | None = None) -> None:
        """Ask the server at `rest_url`.

        Raises:
            RequestRefused: it is not given, or no address.

        """
        if rest_url is None:
            raise RequestRefused(f"{CLOSED}: --rest-url must name a server that speaks its protocol")
        pace = TokenBucket(burst=_BURST, per_s=_PER_S)
        base = moved("https://www.bitmex.com/api/v1", rest_url)
        super().__init__(HttpClient(base, pace=pace, timeout_s=TIMEOUT_MS / 1000, back_off_s=BACK_OFF_S))

    def route(self, proxy: str) -> None:
        """Send what follows through a proxy, see `feeds.proxy`."""
        self._rest.route(proxy)

    async def _called(self, method: str, ask: dict[str, Any]) -> Any:
        return await self._rest.get(method, ask)

    async def _rows(self, path: str, ask: dict[str, Any]) -> list[dict[str, Any]]:
        reply = await self.call(path, ask)
        return self.read([reply], lambda said: [row for row in said if row["symbol"]])[0]

    async def time_ns(self) -> int:
        """Return the time of the newest row among the open instruments, ms resolution."""
        ask = {"filter": '{"state":"Open"}', "columns": '["timestamp"]', "count": _INSTRUMENTS_MAX}
        times = self.read(await self._rows("instrument", ask), lambda row: _ms(row["timestamp"]))
        if not times:
            raise RemoteError("bitmex has no open instrument that could tell the time")
        return max(times) * NS_PER_MS

    async def markets(self) -> dict[str, Market]:
        """Return the contracts by ccxt's unified symbol, see `History.markets`."""
        rows = await self._rows("instrument/active", {})
        listed = [row for row in rows if row.get("state") in _LISTED and row.get("typ") in _CONTRACTS]
        return {market.symbol: market for market in self.read(listed, _market)}

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        """Return the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, see `History.candles`."""
        if spec.interval_ns not in BINS:
            raise RequestRefused(f"bitmex has no candles of {spec}")

        async def fetch(at_ns: int, until_ns: int) -> list[Candle]:
            """Ask for the ends from `at_ns` on, the first of which is the candle before."""
            ask = {
                "binSize": BINS[spec.interval_ns],
                "partial": "false",
                "symbol": market.native,
                "count": (until_ns - at_ns) // spec.interval_ns + 2,
                "startTime": _iso(at_ns),
                "endTime": _iso(until_ns + spec.interval_ns),
            }
            traded = [row for row in await self._rows("trade/bucketed", ask) if row.get("close") is not None]
            candles = self.read(traded, lambda row: _candle(row, spec))
            return [candle for candle in candles if at_ns <= candle.open_time_ns < until_ns]

        return await self.pages(spec, fetch, start_ns=start_ns, end_ns=end_ns)

    async def mark_candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:  # noqa: ARG002
        """Return nothing: the exchange keeps no history of the mark price."""
        return []

    async def trades(
        self, market: Market, *, start_ns: int | None = None, from_id: int | None = None, limit: int = PAGE_ROWS
    ) -> list[Trade]:
        """Return trades from a time on, or the newest, at most 1000, in order of time; see `History.trades`.

        Raises:
            RequestRefused: from an id, as ids here have no order.

        """
        if from_id is not None:
            raise RequestRefused("bitmex serves trades from a time on, not from an id")
        ask: dict[str, Any] = {"symbol": market.native, "count": min(limit, PAGE_ROWS)}
        ask |= {"reverse": "true"} if start_ns is None else {"startTime": _iso(start_ns + NS_PER_MS - 1)}
        rows = await self._rows("trade", ask)
        return self.read(rows[::-1] if start_ns is None else rows, lambda row: _trade(row, market))

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending, page after page; futures that expire have none."""
        found: list[FundingSettlement] = []
        if "-" in market.symbol.partition(":")[2]:
            return found
        while True:
            ask = {"symbol": market.native, "count": _FUNDING_ROWS, "startTime": _iso(start_ns + NS_PER_MS - 1)}
            page = self.read(await self._rows("funding", ask), _settlement)
            found += [row for row in page if row.time_ns >= start_ns]
            if len(page) < _FUNDING_FEW or page[-1].time_ns < start_ns:
                return found
            start_ns = page[-1].time_ns + 1


def _ms(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // _MS


def _iso(time_ns: int) -> str:
    """Write a time, ms resolution."""
    moment = _EPOCH + max(0, time_ns // NS_PER_MS) * _MS
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _coin(name: str) -> str:
    return _COINS.get(name, name)


def _market(row: dict[str, Any]) -> Market:
    base, quote, settle = (_coin(row[name]) for name in ("underlying", "quoteCurrency", "settlCurrency"))
    symbol = f"{base}/{quote}:{settle}"
    if row["typ"] == "FFCCSX":
        symbol += datetime.fromisoformat(row["expiry"]).strftime("-%y%m%d")
    listed_ms = _ms(row["listing"]) if row.get("listing") else 0
    margin = float(row.get("initMargin") or 0)
    return Market(
        exchange="bitmex",
        symbol=symbol,
        native=row["symbol"],
        price_decimals=decimals(str(row["tickSize"])) + _SPARE_DECIMALS,
        size_decimals=0,
        listed_at_ns=listed_ms * NS_PER_MS if 0 < listed_ms <= _ms(row["timestamp"]) else None,
        max_leverage=1 / margin if margin else None,
        trading=row["state"] == "Open",
        volume_unit=_volume_unit(row, base, quote, settle),
    )


def _volume_unit(row: dict[str, Any], base: str, quote: str, settle: str) -> str:
    """Say what a contract is: so much of the quote, of the base, or (quanto) of the settlement coin by the quote."""
    if settle not in _UNITS:
        return "contracts"
    amount = format((abs(Decimal(row["multiplier"])) / _UNITS[settle]).normalize(), "f")
    if row["isQuanto"]:
        return f"contracts of {amount} {settle} per {quote}"
    return f"contracts of {amount} {quote if row['isInverse'] else base}"


def _candle(row: dict[str, Any], spec: CandleSpec) -> Candle:
    """Read a bin, whose time is its end."""
    open_ms = _ms(row["timestamp"]) - spec.interval_ns // NS_PER_MS
    o, h, l, c, v = (str(row[name]) for name in ("open", "high", "low", "close", "volume"))
    return final_candle(spec, open_ms, (o, h, l, c, v), trades=int(row["trades"]), open_may_lie_outside=True)


def _trade(row: dict[str, Any], market: Market) -> Trade:
    time_ns = _ms(row["timestamp"]) * NS_PER_MS
    return Trade(
        id=trade_id(row.get("trdMatchID")),
        price=scaled(str(row["price"]), market.price_decimals),
        size=scaled(str(row["size"]), market.size_decimals),
        event_time_ns=time_ns,
        receive_time_ns=time_ns,
        fills=1,
        taker_is_buyer=_TAKER_IS_BUYER[row["side"]],
    )


def _settlement(row: dict[str, Any]) -> FundingSettlement:
    return FundingSettlement(_ms(row["timestamp"]) * NS_PER_MS, float(row["fundingRate"]))
