"""Any other exchange live, through ccxt.pro: the fallback where we do not speak the protocol ourselves.

What it cannot do that the others can. Nothing proves that a stream is subscribed but its first trade, and nothing that
no trade is missing while it is. Under a burst ccxt keeps the newest `TRADES_MAX` trades of a market until it is asked;
when as many come at once, or a connection is lost, even between two questions, the trades count as broken off and the
exchange's own candles stand in. Ids tell trades apart where the exchange has any. So ``close = "exchange"`` is the
better choice, and candles are compared with the exchange's afterwards in any case.
"""

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import msgspec
from structlog.typing import FilteringBoundLogger

from feeds.backoff import Backoff
from feeds.errors import FORBIDDEN_S, Forbidden, RateLimited, RemoteError
from feeds.events import Event, Kline, Malformed, MarketTrade, MarkPrice
from feeds.history.ccxt import build, candle_of, timeframe, trade_of
from feeds.history.client import network_faults
from feeds.market import NS_PER_MS, NS_PER_S, CandleSpec, Market
from feeds.proxy import masked, shown
from feeds.runner import FeedSink
from feeds.traits import Identity, Traits

TRAITS = Traits(identity=Identity.UNIQUE, grace_ns=2 * NS_PER_S, disorder_ns=NS_PER_S // 2)
TRADES_MAX = 5000
_BACK_OFF_S = 60.0


class CcxtClient:
    """One client of ccxt.pro, shared by the feeds of an exchange's markets; connections are ccxt's own affair."""

    def __init__(
        self, exchange: str, *, ws_url: str | None = None, rest_url: str | None = None, proxy: str | None = None
    ) -> None:
        """Set up for ``ccxt:<id>``, which must exist; nothing is opened yet."""
        self.exchange, self._proxy = exchange, proxy
        self._addresses = ws_url, rest_url
        self._users = 0
        self._pro: Any = None
        self._lost: set[Callable[[str], None]] = set()

    @asynccontextmanager
    async def used(self, lost: Callable[[str], None]) -> AsyncIterator[None]:
        """Keep the client open for the length of the block; `lost` is told of every connection that ends."""
        if self._users == 0:
            self._open()
        self._users += 1
        self._lost.add(lost)
        try:
            yield
        finally:
            self._lost.discard(lost)
            self._users -= 1
            if self._users == 0:
                pro, self._pro = self._pro, None
                await pro.close()

    def _open(self) -> None:
        ws_url, rest_url = self._addresses
        pro = self._pro = build(self.exchange, pro=True, ws_url=ws_url, rest_url=rest_url)
        pro.newUpdates = True
        pro.options["tradesLimit"] = TRADES_MAX
        if self._proxy:
            is_http = self._proxy.startswith("http://")
            setattr(pro, "wsProxy" if is_http else "wsSocksProxy", self._proxy)
            setattr(pro, "httpProxy" if is_http else "socksProxy", self._proxy)
        on_error, on_close = pro.on_error, pro.on_close

        # A question that waits is told of the end of its connection; these are told when none waits.
        def error(client: Any, error: Any) -> None:
            on_error(client, error)
            self._tell(str(error))

        def close(client: Any, code: Any) -> None:
            on_close(client, code)
            self._tell(f"closed: {code}")

        pro.on_error, pro.on_close = error, close

    def _tell(self, reason: str) -> None:
        for lost in list(self._lost):
            lost(self._said(reason))

    def has(self, method: str) -> bool:
        """Tell whether ccxt can do something with this exchange: ``watchTrades``."""
        return self._pro.has.get(method) is True

    def timeframe(self, spec: CandleSpec) -> str | None:
        """Return ccxt's name of a candle spec; None where there are no such candles."""
        return timeframe(self._pro, spec)

    async def ask(self, method: str, *args: str) -> Any:
        """Wait for news.

        Raises:
            RemoteError: the exchange or the network is at fault; `RateLimited`, `Forbidden`.

        """
        from ccxt.base.errors import BaseError, DDoSProtection

        try:
            return await getattr(self._pro, method)(*args)
        except (BaseError, *network_faults()) as error:
            said = self._said(str(error) or type(error).__name__)
            if isinstance(error, DDoSProtection):
                raise RateLimited(said, retry_after_s=_BACK_OFF_S) from error
            if status := re.search(r"(?:^|\s)(403|451)[,\s]", str(error)):
                raise Forbidden(f"HTTP {status[1]}") from error
            raise RemoteError(said) from error

    def _said(self, text: str) -> str:
        through = f"through proxy {shown(self._proxy)}: " if self._proxy else ""
        return through + masked(" ".join(text.split())[:200])


class CcxtFeed:
    """One market's streams; see `FeedRunner`, whose place it takes."""

    def __init__(
        self,
        client: CcxtClient,
        market: Market,
        specs: list[CandleSpec],
        *,
        sink: FeedSink,
        now_ns: Callable[[], int],
        rng: random.Random,
        log: FilteringBoundLogger,
        hindered: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Set up; `hindered` is told when during an outage something else stands in the way than what began it."""
        self._client, self._market, self._specs, self._sink = client, market, specs, sink
        self._now_ns, self._rng, self._hindered = now_ns, rng, hindered
        self._log = log.bind(market=market.symbol)
        self.rounded = 0
        """Trades whose price or size had more decimals than the market."""
        self._reason: str | None = "connecting"
        self._newest_ns = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Feed the sink until `stop` is set."""
        async with self._client.used(self._lost), asyncio.TaskGroup() as group:
            watching = [group.create_task(watch) for watch in self._watches()]
            await stop.wait()
            for task in watching:
                task.cancel()

    def renew(self) -> None:
        """Do nothing: of one market none can leave."""

    def _watches(self) -> list[Any]:
        client, symbol = self._client, self._market.symbol
        watches = [self._watch(self._trades, "watch_trades", symbol)]
        specs = self._specs if client.has("watchOHLCV") else []
        named = [(spec, name) for spec in specs if (name := client.timeframe(spec))]
        watches += [self._watch(self._klines(spec), "watch_ohlcv", symbol, name) for spec, name in named]
        # The mark price comes each second, traded or not: it is what tells the time in a quiet market.
        if client.has("watchMarkPrice"):
            watches.append(self._watch(self._ticker, "watch_mark_price", symbol))
        elif client.has("watchTicker"):
            watches.append(self._watch(self._ticker, "watch_ticker", symbol))
        return watches

    async def _watch(self, take: Callable[[Any], None], method: str, *args: str) -> NoReturn:
        """Ask for news without end; after a fault, again after a delay."""
        time_s, backoff, live_s = asyncio.get_running_loop().time, Backoff(self._rng), 0.0
        while True:
            began_s = time_s()
            try:
                news = await self._client.ask(method, *args)
            except RemoteError as error:
                is_forbidden = isinstance(error, Forbidden)
                self._lost(f"refused: {error}" if is_forbidden else str(error))
                delay_s = backoff.delay_s(live_s=live_s, since_attempt_s=time_s() - began_s)
                told_s = error.retry_after_s if isinstance(error, RateLimited) else FORBIDDEN_S * is_forbidden
                await asyncio.sleep(max(delay_s, told_s))
                live_s = 0.0
            else:
                live_s += time_s() - began_s
                take(news)

    # ---- what comes

    def _trades(self, rows: list[dict[str, Any]]) -> None:
        events: list[Event] = []
        resumed_ns = self._newest_ns if self._reason is not None else 0
        for row in rows:
            try:
                trade, rounded = trade_of(row, self._market, self._now_ns())
            except (KeyError, TypeError, ValueError) as error:
                events.append(Malformed("value", f"{error!r}: {row!s}"[:200]))
                continue
            self.rounded += rounded
            trade = msgspec.structs.replace(trade, id=_id(row.get("id")))
            if trade.id == 0 and trade.event_time_ns <= resumed_ns:
                continue  # what a new connection begins with may be old, and without an id nothing else tells
            self._newest_ns = max(self._newest_ns, trade.event_time_ns)
            events.append(MarketTrade(self._market, trade))
        if len(rows) >= TRADES_MAX:
            self._lost(f"{len(rows)} trades at once: there may have been more")
        self._sink.events(events)
        self._up()

    def _klines(self, spec: CandleSpec) -> Callable[[list[list[Any]]], None]:
        def take(rows: list[list[Any]]) -> None:
            self._sink.events([self._kline(row, spec) for row in rows])

        return take

    def _kline(self, row: list[Any], spec: CandleSpec) -> Event:
        """Read a forming candle; it has no time of its own but its open, nor is it ever said to be closed."""
        try:
            candle = msgspec.structs.replace(candle_of(row, spec), closed=False)
        except (IndexError, TypeError, ValueError) as error:
            return Malformed("value", f"{error!r}: {row!s}"[:200])
        return Kline(self._market, spec, candle.open_time_ns, self._now_ns(), candle)

    def _ticker(self, row: dict[str, Any]) -> None:
        """Take the time and the mark price; without the one or the other a ticker is of no use."""
        price, time_ms = row.get("markPrice") or row.get("last"), row.get("timestamp")
        if price and time_ms:
            index = float(row["indexPrice"]) if row.get("indexPrice") and row.get("markPrice") else None
            time_ns = int(time_ms) * NS_PER_MS
            mark = MarkPrice(self._market, time_ns, self._now_ns(), mark_price=float(price), index_price=index)
            self._sink.events([mark])

    # ---- the connection, as far as it can be told

    def _up(self) -> None:
        if self._reason is not None:
            self._log.info("feed_connected")
            self._reason = None
            self._sink.connected()

    def _lost(self, reason: str) -> None:
        """Tell of a loss once, and then of what else stands in the way."""
        if self._reason is None or self._reason == "connecting":
            self._log.warning("feed_lost", reason=reason)
            self._sink.lost(reason)
        elif reason != self._reason:
            self._log.info("feed_retry", reason=reason)
            self._hindered(reason)
        self._reason = reason


def _id(text: Any) -> int:
    """Return 63 bits that tell trades apart: the number itself where it is one that fits; 0 where there is no id."""
    if not text:
        return 0
    if str(text).isdecimal() and str(text).isascii() and (number := int(text)) < 1 << 63:
        return number
    return int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=8).digest(), "big") >> 1
