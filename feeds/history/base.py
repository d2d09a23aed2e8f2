"""What an exchange remembers: contracts, its clock, closed candles, trades and funding over REST.

The raw endpoints are called through ccxt, because its unified ones re-shape rows (turnover for volume on some inverse
markets) and parse numbers on their own. A candle's float64 is what parsing the exchange's own text gives.
"""

import asyncio
import math
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any, ClassVar, Protocol, TypeVar
from urllib.parse import urlsplit

from feeds.budget import Budget, Priority, asking_for
from feeds.errors import FeedError, Forbidden, RateLimited, RemoteError, RequestRefused
from feeds.events import FundingSettlement
from feeds.history.client import network_faults
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin, Trade
from feeds.proxy import masked, shown

PAGE_ROWS = 1000
"""Rows per request where the exchange allows as many."""
TIMEOUT_MS = 10_000
CLOCK_REUSE_S = 30.0
"""For how long a reading of the exchange's clock serves, where it is late enough for what is asked."""
BACK_OFF_S = 60.0
"""How long to wait after a limit was hit when the answer does not say."""
_T = TypeVar("_T")


class History(Protocol):
    """An exchange's REST side. Every method raises `RemoteError`, `RateLimited` or `RequestRefused`, nothing else."""

    settle_ns: int
    """How long after its close a row may still change."""
    budget: Budget | None
    """Shared by all who ask this exchange; see `feeds.budget`."""

    async def markets(self) -> dict[str, Market]:
        """Return the contracts that are listed, by unified symbol; `Market.trading` tells which of them trade now."""

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

        Fewer than `limit` say that there is nothing newer: where an exchange's pages are shorter, or rows are left out,
        further ones are fetched.

        The exchange does not say when we first saw them: `receive_time_ns` is their `event_time_ns`.
        """

    async def funding(self, market: Market, *, start_ns: int) -> list[FundingSettlement]:
        """Return all settlements since `start_ns`, ascending."""

    async def fundings(self, *, start_ns: int) -> dict[str, list[FundingSettlement]] | None:
        """Return all settlements of all markets since `start_ns`, ascending, by the exchange's names for them.

        None: the exchange does not serve them together.
        """

    def join(self, budget: Budget) -> None:
        """Ask within a budget and at a pace that others share."""

    def route(self, proxy: str) -> None:
        """Send what follows through a proxy, see `feeds.proxy`."""

    async def aclose(self) -> None:
        """Close the connections."""


class RestHistory:
    """What the histories of all exchanges share: calls through ccxt, and the walk over pages.

    An exchange's history sets the class variables, builds ccxt's exchange and says how its rows read.
    """

    exchange: ClassVar[str]
    page_rows: ClassVar[int] = PAGE_ROWS
    barred: ClassVar[tuple[int, ...]] = (403, 451)
    """HTTP statuses by which the exchange says that it will not serve us."""
    settle_ns: int

    def __init__(self, rest: Any) -> None:
        self._rest = rest
        self._proxy = ""
        if hasattr(rest, "on_rest_response"):  # ccxt's hook, before it reads an answer in one of its many ways
            rest.on_rest_response = self._heard
        self.budget: Budget | None = None
        """Who may ask, and when; None: anyone at any time."""
        self._clock_ns, self._clock_at_s, self._clock_asked = 0, -math.inf, asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._rest.close()

    def join(self, budget: Budget) -> None:
        """Ask within a budget and at a pace that others share."""
        self.budget = budget
        self._rest.throttler = budget.share(self._rest.throttler)

    def route(self, proxy: str) -> None:
        """Send what follows through a proxy, see `feeds.proxy`."""
        self._proxy = shown(proxy)
        setattr(self._rest, "httpProxy" if proxy.startswith("http://") else "socksProxy", proxy)

    def _heard(self, status: int, _reason: str, url: str, _method: str, _headers: Any, body: str, *_: Any) -> str:
        if status in self.barred:
            raise Forbidden(f"HTTP {status} from {urlsplit(url).hostname}: {' '.join(body.split())[:100]}".rstrip(": "))
        return body.strip()

    async def time_ns(self) -> int:
        """Return the exchange's clock, ns UTC."""
        raise NotImplementedError

    async def clock_ns(self, wanted_ns: int = 0) -> int:
        """Return a reading of the exchange's clock; where an earlier one is at `wanted_ns` or past it, maybe that."""
        time_s = asyncio.get_running_loop().time
        async with self._clock_asked:  # by one for all who need it; it is not to wait behind their other requests
            if self._clock_ns < wanted_ns or time_s() - self._clock_at_s > CLOCK_REUSE_S:
                with asking_for(Priority.REPAIR):
                    self._clock_at_s, self._clock_ns = time_s(), await self.time_ns()
            return self._clock_ns

    async def fundings(self, *, start_ns: int) -> dict[str, list[FundingSettlement]] | None:  # noqa: ARG002
        """Return None: the exchange serves settlements market by market; see `History.fundings`."""
        return None

    async def pages(
        self,
        spec: CandleSpec,
        fetch: Callable[[int, int], Any],
        *,
        start_ns: int,
        end_ns: int,
    ) -> list[Candle]:
        """Fetch the final candles with ``start_ns <= open_time_ns < end_ns``, ascending, page after page.

        `fetch(at_ns, until_ns)` returns candles that open within ``[at_ns, until_ns)``, no more than `page_rows`
        intervals of them, in any order. What the exchange lacks is left out; a page without any is passed over.
        """
        step = spec.interval_ns
        at, end = spec.open_of(start_ns + step - 1), spec.open_of(end_ns + step - 1)
        final_ns = await self.clock_ns(end + self.settle_ns) - self.settle_ns
        end = min(end, spec.open_of(final_ns))
        found: list[Candle] = []
        while at < end:
            until = min(end, at + self.page_rows * step)
            page = sorted(await fetch(at, until), key=lambda candle: candle.open_time_ns)
            opens = [at - step, *(candle.open_time_ns for candle in page), until]
            if any(early >= late for early, late in pairwise(opens)):
                raise RemoteError(f"{self.exchange} klines of {spec}: not what was asked for, or twice the same")
            found += page
            at = until
        return found

    async def call(self, method: str, ask: dict[str, Any]) -> Any:
        """Call one endpoint when its turn has come."""
        if self.budget is None:
            return await self._called(method, ask)
        async with self.budget.turn():
            try:
                return await self._called(method, ask)
            except RateLimited as limited:
                self.budget.block(limited.retry_after_s)
                raise

    async def _called(self, method: str, ask: dict[str, Any]) -> Any:
        """Call one endpoint: the place where foreign exceptions become ours.

        An exchange that ccxt does not know brings a client and a `_called` of its own, and needs nothing below.
        """
        from ccxt.base.errors import BaseError

        try:
            return await self._ask(method, ask)
        except (BaseError, *network_faults()) as error:
            raise self._translated(error) from error
        except (AttributeError, KeyError, TypeError) as error:  # ccxt read an answer of another shape
            raise RemoteError(f"{self.exchange} {method}: not what is documented: {error!r}") from error

    async def _ask(self, method: str, ask: dict[str, Any]) -> Any:
        return await getattr(self._rest, method)(ask)

    def _translated(self, error: Exception) -> FeedError:
        """Say who is to blame."""
        from ccxt.base.errors import DDoSProtection, RateLimitExceeded

        said = " ".join(str(error).split())[:300] or type(error).__name__
        if self._proxy:
            said = masked(f"through proxy {self._proxy}: {said}: {error.__cause__ or ''}").rstrip(": ")
        if isinstance(error, DDoSProtection | RateLimitExceeded):
            headers = self._rest.last_response_headers or {}
            wait = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
            return RateLimited(said, retry_after_s=float(wait) if wait.isdigit() else BACK_OFF_S)
        return RequestRefused(said) if self.is_our_fault(error, said) else RemoteError(said)

    def is_our_fault(self, error: Exception, said: str) -> bool:
        """Tell whether the exchange finds the request itself wrong, so that asking again is useless."""
        raise NotImplementedError

    def read(self, rows: Any, parse: Callable[[Any], _T]) -> list[_T]:
        """Parse each row; an answer that does not have the documented shape is the exchange's fault."""
        try:
            return [parse(row) for row in rows]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            raise RemoteError(f"{self.exchange} answered something else ({error!r}): {str(rows)[:200]}") from error


def moved(url: str, base: str) -> str:
    """Put `url`'s path behind the scheme, host and port of `base`.

    Raises:
        RequestRefused: `base` is no http address.

    """
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RequestRefused(f"{base!r} is not an address such as http://127.0.0.1:9000")
    return urlsplit(url)._replace(scheme=parts.scheme, netloc=parts.netloc).geturl()


def decimals(text: str) -> int:
    """Count the decimal places that `text` needs: ``0.010`` → 2, ``1e-7`` → 7."""
    exponent = Decimal(text).normalize().as_tuple().exponent
    return max(0, -int(exponent))


def scaled(text: str, places: int) -> int:
    """Read a number above zero as an integer of 10**-places, exactly.

    Raises:
        ValueError: it is none, or has more decimals.

    """
    number = Decimal(text).scaleb(places)
    if number <= 0 or number != number.to_integral_value():
        raise ValueError(f"{text!r} is not a number above zero with at most {places} decimals")
    return int(number)


def final_candle(
    spec: CandleSpec,
    open_ms: int,
    figures: tuple[str, str, str, str, str],
    *,
    trades: int = 0,
    open_may_lie_outside: bool = False,
) -> Candle:
    """Make a closed candle from the texts of open, high, low, close and volume.

    Raises:
        ValueError: the figures are no candle of `spec`.

    """
    opened, step = open_ms * NS_PER_MS, spec.interval_ns
    o, h, l, c, v = (float(text) for text in figures)
    inside = (c,) if open_may_lie_outside else (o, c)
    if opened % step or not (0 < l <= min(inside) <= max(inside) <= h < math.inf and 0 < o < math.inf):
        raise ValueError(f"kline {open_ms} {figures} of {spec}")
    if not 0 <= v < math.inf:
        raise ValueError(f"volume {v} of {spec}")
    return Candle(
        seq=(opened + step) // step, open_time_ns=opened, close_time_ns=opened + step, open=o, high=h, low=l, close=c,
        volume=v, trades=trades, closed=True, origin=Origin.EXCHANGE,
    )  # fmt: skip
