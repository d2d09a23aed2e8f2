"""Any other exchange through ccxt: the real library over a real websocket against the emulated Binance."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from ccxt.async_support.base.exchange import Exchange

from feeds import ccxt_feed
from feeds.ccxt_feed import CcxtClient, CcxtFeed
from feeds.emulator import Emulator, tape_from
from feeds.emulator.tape import T
from feeds.errors import Forbidden, RemoteError, RequestRefused
from feeds.events import Event, Kline, Malformed, MarketTrade, MarkPrice
from feeds.history import open_history
from feeds.history.ccxt import build, candle_of, scaled
from feeds.kinds import Setting, kind_of
from feeds.market import Candle, CandleSpec, Market
from tests.feeds.emulators import BEGIN_MS, START_MS
from tests.feeds.proxies import CREDENTIALS, HttpProxy, SocksProxy
from tests.feeds.test_transport import until

EXCHANGE, SYMBOL = "ccxt:binanceusdm", "BTC/USDT:USDT"
MINUTE = CandleSpec.parse("1m")
MINUTE_NS = MINUTE.interval_ns


class Sink:
    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.edges: list[str] = []

    def connected(self) -> None:
        self.edges.append("connected")

    def lost(self, reason: str) -> None:
        self.edges.append(reason)

    def interrupted(self) -> None:
        self.edges.append("interrupted")

    def rolled_over(self, lost: int) -> None:
        pass

    def events(self, events: list[Event]) -> None:
        self.seen += events

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(Exchange, "timeout_on_exit", 0)


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[Emulator, int]]:
    tape = tape_from("synthetic", "BTCUSDT", seed=3, begin_ns=BEGIN_MS * 1_000_000)
    emulator = Emulator({"BTCUSDT": tape}, start_ns=START_MS * 1_000_000, speed=240)
    yield emulator, await emulator.start()
    await emulator.stop()


async def market_of(port: int) -> Market:
    history = open_history(EXCHANGE, f"http://127.0.0.1:{port}")
    try:
        return (await history.markets())[SYMBOL]
    finally:
        await history.aclose()


@asynccontextmanager
async def feeding(port: int, *, proxy: str | None = None, hindered: list[str] | None = None) -> AsyncIterator[Sink]:
    """Run a feed through ccxt for the length of the block."""
    sink, stop = Sink(), asyncio.Event()
    kind = kind_of(EXCHANGE, ws_url=f"ws://127.0.0.1:{port}", rest_url=f"http://127.0.0.1:{port}", proxy=proxy)
    setting = Setting(
        sink=sink, now_ns=lambda: 7, rng=random.Random(1), log=structlog.get_logger(),
        hindered=(hindered if hindered is not None else []).append,
    )  # fmt: skip
    (markets,) = kind.groups([await market_of(port)], [MINUTE])
    task = asyncio.create_task(kind.feed(markets, [MINUTE], setting).run(stop))
    try:
        yield sink
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await task


async def test_trades_klines_and_mark_prices_are_the_tapes(emulator: tuple[Emulator, int]) -> None:
    venue, port = emulator
    async with feeding(port) as sink:
        await until(lambda: len(sink.of(MarketTrade)) >= 40 and len(sink.of(Kline)) >= 10)
        await until(lambda: len(sink.of(MarkPrice)) >= 10)
        assert sink.edges == ["connected"]
    tape = venue.venue.tapes["BTCUSDT"]
    trades = [event.trade for event in sink.of(MarketTrade)]
    rows = tape.trades_from(trades[0].id, trades[-1].event_time_ns // 1_000_000, len(trades)).tolist()
    market = sink.of(MarketTrade)[0].market
    price, size = 10 ** (market.price_decimals - tape.price_decimals), 10 ** (market.size_decimals - tape.size_decimals)
    assert [(t.id, t.event_time_ns, t.price, t.size, t.taker_is_buyer, t.receive_time_ns) for t in trades] == [
        (r[T.ID], r[T.TIME] * 1_000_000, r[T.PRICE] * price, r[T.SIZE] * size, not r[T.MAKER], 7) for r in rows
    ]
    assert not any(kline.candle.closed for kline in sink.of(Kline))
    assert not sink.of(Malformed)
    marks = sink.of(MarkPrice)
    assert all(mark.event_time_ns // 1_000_000 > START_MS and mark.index_price for mark in marks)


async def test_a_cut_is_told_once_and_the_trades_go_on(emulator: tuple[Emulator, int]) -> None:
    venue, port = emulator
    async with feeding(port) as sink:
        for times in (1, 2):
            await until(lambda: sink.edges.count("connected") == times)  # noqa: B023 (awaited here)
            known = len(sink.of(MarketTrade))
            await venue.cut()
            await until(lambda: sink.edges.count("connected") == times + 1)  # noqa: B023
            await until(lambda: len(sink.of(MarketTrade)) > known + 3)  # noqa: B023
    assert [edge if edge == "connected" else "lost" for edge in sink.edges] == ["connected", "lost"] * 2 + ["connected"]
    ids = [event.trade.id for event in sink.of(MarketTrade)]
    assert ids == sorted(set(ids))


async def test_a_burst_loses_no_trade(emulator: tuple[Emulator, int]) -> None:
    venue, port = emulator
    async with feeding(port) as sink:
        await until(lambda: bool(sink.edges))
        for _ in range(3):
            venue.stall(0.5)
            await asyncio.sleep(0.6)
        await until(lambda: len(sink.of(MarketTrade)) > 100)
    ids = [event.trade.id for event in sink.of(MarketTrade)]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert sink.edges == ["connected"]


async def test_a_burst_beyond_all_bounds_breaks_the_trades_off(
    emulator: tuple[Emulator, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ccxt_feed, "TRADES_MAX", 10)
    venue, port = emulator
    async with feeding(port) as sink:
        await until(lambda: bool(sink.edges))
        while not any("at once" in edge for edge in sink.edges):
            venue.stall(1.0)
            await asyncio.sleep(1.1)
        await until(lambda: sink.edges[-1] == "connected")


async def test_an_exchange_that_will_not_serve_is_left_alone(emulator: tuple[Emulator, int]) -> None:
    venue, port = emulator
    hindered: list[str] = []
    async with feeding(port, hindered=hindered) as sink:
        await until(lambda: bool(sink.edges))
        venue.refuse = 451
        await venue.cut()
        await until(lambda: "refused: HTTP 451" in hindered)
        assert len(sink.edges) == 2
        asked = venue.venue.requests.total()
        await asyncio.sleep(1.0)
        assert venue.venue.requests.total() == asked


@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
async def test_all_of_it_goes_through_the_proxy(emulator: tuple[Emulator, int], kind: type[HttpProxy]) -> None:
    _, port = emulator
    async with kind(credentials=CREDENTIALS) as proxy:
        async with feeding(port, proxy=proxy.url) as sink:
            await until(lambda: len(sink.of(MarketTrade)) > 5)
            assert proxy.connections >= 2
        await asyncio.sleep(0.05)


async def test_a_proxy_that_is_gone_is_named_without_its_password(emulator: tuple[Emulator, int]) -> None:
    _, port = emulator
    async with SocksProxy() as gone:
        pass
    async with feeding(port, proxy=gone.url.replace("127", f"{CREDENTIALS}@127")) as sink:
        await until(lambda: bool(sink.edges))
    assert f"through proxy {gone.url}" in sink.edges[0]
    assert "secret" not in "".join(sink.edges)


async def test_history_is_the_tapes_page_after_page(emulator: tuple[Emulator, int]) -> None:
    venue, port = emulator
    history = open_history(EXCHANGE, f"http://127.0.0.1:{port}")
    tape = venue.venue.tapes["BTCUSDT"]
    try:
        market = (await history.markets())[SYMBOL]
        begin_ns = -(-tape.begin_ms // 60_000) * MINUTE_NS
        end_ns = (START_MS // 60_000 - 1) * MINUTE_NS
        candles = await history.candles(market, MINUTE, start_ns=begin_ns, end_ns=end_ns)
        await history.funding(market, start_ns=begin_ns)
        newest = await history.trades(market, limit=20)
        with pytest.raises(RequestRefused, match="newest trades only"):
            await history.trades(market, from_id=1)
        with pytest.raises(RequestRefused, match="no candles of 7m"):
            await history.candles(market, CandleSpec("7m", MINUTE.kind, MINUTE.amount * 7), start_ns=0, end_ns=1)
        assert await history.mark_candles(market, MINUTE, start_ns=begin_ns, end_ns=begin_ns + MINUTE_NS)
        assert await history.time_ns() >= START_MS * 1_000_000
    finally:
        await history.aclose()
    direct = open_history("binance", f"http://127.0.0.1:{port}")
    try:
        native = (await direct.markets())[SYMBOL]
        raw = await direct.candles(native, MINUTE, start_ns=begin_ns, end_ns=end_ns)
        raw_trades = await direct.trades(native, limit=20)
    finally:
        await direct.aclose()
    assert len(candles) > 150
    assert [figures(candle) for candle in candles] == [figures(candle) for candle in raw]
    assert [trade.event_time_ns for trade in newest] == [trade.event_time_ns for trade in raw_trades]


def figures(candle: Candle) -> tuple[float, ...]:
    return candle.seq, candle.open, candle.high, candle.low, candle.close, candle.volume


async def test_a_server_that_serves_few_rows_a_page_hides_none(
    emulator: tuple[Emulator, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = emulator
    history: Any = open_history(EXCHANGE, f"http://127.0.0.1:{port}")
    try:
        market = (await history.markets())[SYMBOL]
        ask = history._ask

        async def stingy(method: str, wanted: dict[str, Any]) -> Any:
            reply = await ask(method, wanted)
            return reply[:7] if method == "fetch_ohlcv" else reply

        monkeypatch.setattr(history, "_ask", stingy)
        end_ns = (START_MS // 60_000 - 1) * MINUTE_NS
        candles = await history.candles(market, MINUTE, start_ns=end_ns - 40 * MINUTE_NS, end_ns=end_ns)
    finally:
        await history.aclose()
    assert [candle.seq for candle in candles] == list(range(end_ns // MINUTE_NS - 39, end_ns // MINUTE_NS + 1))


def test_what_cannot_be_followed_is_refused() -> None:
    for exchange, said in (
        ("ccxt:binanceusd", "near to it: .*ccxt:binanceusdm"),
        ("ccxt:nothinglikeit", "no websocket for an exchange 'nothinglikeit'$"),
        ("ccxt:bydfi", "no watchTrades"),
        ("elsewhere", "not served .* or ccxt:<id>"),
    ):
        with pytest.raises(RequestRefused, match=said):
            kind_of(exchange)
    with pytest.raises(RequestRefused, match="no fetchTime"):
        open_history("ccxt:krakenfutures")
    with pytest.raises(RequestRefused, match="not an address"):
        open_history(EXCHANGE, "ftp://127.0.0.1")


def test_every_address_is_moved() -> None:
    client = build("ccxt:bybit", pro=True, ws_url="ws://127.0.0.1:1", rest_url="http://127.0.0.1:2")
    found: list[str] = []

    def walk(urls: Any) -> None:
        for url in urls.values():
            walk(url) if isinstance(url, dict) else found.append(url)

    walk(client.urls["api"])
    assert len(found) > 5
    assert {url.split("/")[2] for url in found} == {"127.0.0.1:1", "127.0.0.1:2"}
    assert all(url.startswith("ws://") == ("127.0.0.1:1" in url) for url in found)


def offline() -> tuple[CcxtFeed, Sink]:
    sink = Sink()
    market = Market(exchange=EXCHANGE, symbol=SYMBOL, native="BTCUSDT", price_decimals=2, size_decimals=3)
    feed = CcxtFeed(
        CcxtClient(EXCHANGE), market, [MINUTE], sink=sink, now_ns=lambda: 9, rng=random.Random(1),
        log=structlog.get_logger(),
    )  # fmt: skip
    return feed, sink


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "12", "timestamp": 1000, "price": 0.1, "amount": 2.5, "side": "sell", **changes}


def test_numbers_are_exact_or_rounded_and_counted() -> None:
    feed, sink = offline()
    feed._trades([row(), row(id="a-b", price="0.10", amount=0.30000000000000004, side=None), row(id=None, price=1e-2)])
    first, second, third = (event.trade for event in sink.of(MarketTrade))
    assert (first.id, first.price, first.size, first.taker_is_buyer) == (12, 10, 2500, False)
    assert (second.price, second.size, second.taker_is_buyer) == (10, 300, True)
    assert 0 < second.id < 1 << 63
    assert (third.id, third.price) == (0, 1)
    assert feed.rounded == 1
    assert scaled(123456.7, 1) == (1234567, False)


@pytest.mark.parametrize(
    "changes",
    [{"price": None}, {"price": 0}, {"price": float("nan")}, {"amount": -1}, {"timestamp": None}, {"price": "x"}],
)
def test_rows_that_are_no_trades_are_malformed(changes: dict[str, Any]) -> None:
    feed, sink = offline()
    feed._trades([row(**changes), row()])
    assert [type(event) for event in sink.seen] == [Malformed, MarketTrade]
    feed._klines(MINUTE)([[60_000, 1, 2, 3, 4, 5], [60_000, 1, 4, 1, 2, None], [1]])
    assert [type(event) for event in sink.seen[2:]] == [Malformed, Kline, Malformed]


def test_without_ids_what_a_new_connection_repeats_is_left_out() -> None:
    feed, sink = offline()
    nameless = [row(id=None, timestamp=time_ms) for time_ms in (1000, 1000, 2000)]
    feed._trades(nameless)
    feed._trades([row(id=None, timestamp=2000)])
    assert len(sink.of(MarketTrade)) == 4
    feed._lost("gone")
    feed._trades([*nameless, row(id=None, timestamp=3000)])
    assert [event.trade.event_time_ns // 1_000_000 for event in sink.of(MarketTrade)[4:]] == [3000]
    assert sink.edges == ["connected", "gone", "connected"]


def test_a_candle_may_open_outside_its_range_and_have_no_volume() -> None:
    candle = candle_of([60_000, 5.0, 4.0, 1.0, 2.0, None], MINUTE)
    assert (candle.open, candle.high, candle.volume, candle.seq) == (5.0, 4.0, 0.0, 2)


@pytest.mark.parametrize(
    ("said", "kind"),
    [("451, message='x', url='ws://h'", Forbidden), ("x GET http://h 403 No", Forbidden), ("no", None)],
)
async def test_faults_of_the_library_become_ours(
    monkeypatch: pytest.MonkeyPatch, said: str, kind: type[RemoteError] | None
) -> None:
    from ccxt.base.errors import NetworkError

    client = CcxtClient(EXCHANGE)
    async with client.used(lambda _: None):

        async def fail(_: str) -> None:
            raise NetworkError(said)

        monkeypatch.setattr(client._pro, "watch_trades", fail)
        with pytest.raises(RemoteError) as failed:
            await client.ask("watch_trades", SYMBOL)
    assert isinstance(failed.value, Forbidden) == (kind is Forbidden)
