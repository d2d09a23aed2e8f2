"""The history client against the project's emulator, the judge's exchange where present, and answers that are wrong."""

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from ccxt.async_support.binanceusdm import binanceusdm

from feeds.emulator import Emulator, tape_from
from feeds.errors import FeedError, RateLimited, RemoteError, RequestRefused
from feeds.history import open_history
from feeds.history.binance import BinanceHistory
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Origin, Trade
from tests.data import ROOT, shared

MINUTE = CandleSpec.parse("1m")
FIVE = CandleSpec.parse("5m")
BEGIN_NS = 1_700_000_040 * NS_PER_S
HISTORY_MIN = 2500
START_NS = BEGIN_NS + (HISTORY_MIN * 60 + 31) * NS_PER_S


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(binanceusdm, "timeout_on_exit", 0)


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[BinanceHistory]:
    history = BinanceHistory(f"http://127.0.0.1:{port}")
    try:
        yield history
    finally:
        await history.aclose()


@pytest.fixture
async def emulator() -> AsyncIterator[tuple[Emulator, BinanceHistory]]:
    tapes = {native: tape_from("synthetic", native, seed=5, begin_ns=BEGIN_NS) for native in ("BTCUSDT", "DOGEUSDT")}
    exchange = Emulator(tapes, start_ns=START_NS)
    async with opened(await exchange.start()) as history:
        yield exchange, history
    await exchange.stop()


@asynccontextmanager
async def answering(answer: Callable[[web.Request], web.Response]) -> AsyncIterator[BinanceHistory]:
    """Serve every path with `answer`."""

    async def handle(request: web.Request) -> web.Response:
        return answer(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with opened(runner.addresses[0][1]) as history:
        yield history
    await runner.cleanup()


BTC = Market(exchange="binance", symbol="BTC/USDT:USDT", native="BTCUSDT", price_decimals=1, size_decimals=3)


def folded(trades: list[Trade], market: Market, spec: CandleSpec) -> dict[int, tuple[float, ...]]:
    """Fold trades the plain way: one division at the end."""
    out: dict[int, list[Trade]] = {}
    for trade in trades:
        out.setdefault(spec.open_of(trade.event_time_ns), []).append(trade)
    unit, lot = 10**market.price_decimals, 10**market.size_decimals
    return {
        opened: (
            part[0].price / unit,
            max(t.price for t in part) / unit,
            min(t.price for t in part) / unit,
            part[-1].price / unit,
            sum(t.size for t in part) / lot,
            sum(t.fills for t in part),
        )
        for opened, part in out.items()
    }


def figures(candle: Candle) -> tuple[float, ...]:
    return candle.open, candle.high, candle.low, candle.close, candle.volume, candle.trades


async def all_trades(history: BinanceHistory, market: Market, start_ns: int) -> list[Trade]:
    found = await history.trades(market, start_ns=start_ns)
    while page := await history.trades(market, from_id=found[-1].id + 1):
        found += page
    return found


async def test_markets_are_named_as_ccxt_names_them(emulator: tuple[Emulator, BinanceHistory]) -> None:
    exchange, history = emulator
    markets = await history.markets()
    assert set(markets) == {"BTC/USDT:USDT", "DOGE/USDT:USDT"}
    btc = markets["BTC/USDT:USDT"]
    assert (btc.exchange, btc.native, btc.price_decimals, btc.size_decimals) == ("binance", "BTCUSDT", 1, 3)
    assert btc.listed_at_ns is not None
    assert BEGIN_NS <= btc.listed_at_ns < BEGIN_NS + 60 * NS_PER_S
    assert dict(exchange.venue.requests) == {"exchangeInfo": 1}


async def test_a_halted_market_is_listed_and_one_that_is_gone_is_not(
    emulator: tuple[Emulator, BinanceHistory],
) -> None:
    exchange, history = emulator
    exchange.venue.halt("BTCUSDT")
    listed = await history.markets()
    assert {symbol: market.trading for symbol, market in listed.items()} == {
        "BTC/USDT:USDT": False, "DOGE/USDT:USDT": True
    }  # fmt: skip
    exchange.venue.resume("BTCUSDT")
    exchange.venue.delist("DOGEUSDT")
    assert {symbol: market.trading for symbol, market in (await history.markets()).items()} == {"BTC/USDT:USDT": True}


async def test_candles_are_paged_final_and_equal_the_fold_of_the_trades(
    emulator: tuple[Emulator, BinanceHistory],
) -> None:
    exchange, history = emulator
    market = (await history.markets())["BTC/USDT:USDT"]
    candles = await history.candles(market, MINUTE, start_ns=BEGIN_NS, end_ns=START_NS + 10**15)
    assert [c.open_time_ns for c in candles] == [BEGIN_NS + i * MINUTE.interval_ns for i in range(HISTORY_MIN)]
    assert all(c.closed and c.origin is Origin.EXCHANGE for c in candles)
    assert all(c.seq * MINUTE.interval_ns == c.close_time_ns for c in candles)
    assert exchange.venue.requests["klines"] == 3
    since = START_NS - 600 * 60 * NS_PER_S
    expected = folded(await all_trades(history, market, since), market, MINUTE)
    compared = [c for c in candles if c.open_time_ns > since]
    assert len(compared) > 590
    assert all(figures(c) == expected[c.open_time_ns] for c in compared)


async def test_mark_candles_are_paged_and_have_no_volume(emulator: tuple[Emulator, BinanceHistory]) -> None:
    exchange, history = emulator
    market = (await history.markets())["BTC/USDT:USDT"]
    marks = await history.mark_candles(market, MINUTE, start_ns=BEGIN_NS, end_ns=START_NS)
    assert len(marks) == HISTORY_MIN
    assert exchange.venue.requests["markPriceKlines"] == 3
    candles = await history.candles(market, MINUTE, start_ns=BEGIN_NS, end_ns=START_NS)
    assert [figures(mark)[:4] for mark in marks] == [figures(candle)[:4] for candle in candles]
    assert {(mark.volume, mark.trades, mark.closed) for mark in marks} == {(0.0, 0, True)}


async def test_longer_candles_and_unaligned_bounds(emulator: tuple[Emulator, BinanceHistory]) -> None:
    _, history = emulator
    market = (await history.markets())["BTC/USDT:USDT"]
    start = FIVE.open_of(START_NS) - 50 * FIVE.interval_ns
    got = await history.candles(market, FIVE, start_ns=start + 1, end_ns=start + 3 * FIVE.interval_ns + 1)
    assert [c.open_time_ns for c in got] == [start + i * FIVE.interval_ns for i in (1, 2, 3)]
    assert await history.candles(market, FIVE, start_ns=start, end_ns=start) == []


@pytest.mark.parametrize(("after_close_ms", "final"), [(4999, False), (5000, True)])
async def test_a_row_is_final_five_seconds_after_its_close(after_close_ms: int, final: bool) -> None:
    close_ns = BEGIN_NS + 100 * MINUTE.interval_ns
    tapes = {"BTCUSDT": tape_from("synthetic", "BTCUSDT", seed=5, begin_ns=BEGIN_NS)}
    exchange = Emulator(tapes, start_ns=close_ns + after_close_ms * NS_PER_MS)
    async with opened(await exchange.start()) as history:
        market = (await history.markets())["BTC/USDT:USDT"]
        got = await history.candles(market, MINUTE, start_ns=BEGIN_NS, end_ns=close_ns + 10**15)
    await exchange.stop()
    assert (got[-1].close_time_ns == close_ns) is final
    assert len(got) == 99 + final


async def test_trades_come_from_a_time_from_an_id_or_newest(emulator: tuple[Emulator, BinanceHistory]) -> None:
    _, history = emulator
    market = (await history.markets())["BTC/USDT:USDT"]
    newest = await history.trades(market, limit=10)
    assert len(newest) == 10
    assert newest[-1].event_time_ns <= START_NS
    assert await history.trades(market, from_id=newest[3].id) == newest[3:]
    page = await history.trades(market, start_ns=START_NS - 3600 * NS_PER_S + 1)
    assert len(page) == 1000
    assert [t.id for t in page] == list(range(page[0].id, page[0].id + 1000))
    assert page[0].event_time_ns > START_NS - 3600 * NS_PER_S
    assert {t.taker_is_buyer for t in page} == {True, False}
    assert max(t.fills for t in page) > 1


async def test_funding_is_ascending_and_from_the_time_asked(emulator: tuple[Emulator, BinanceHistory]) -> None:
    _, history = emulator
    market = (await history.markets())["BTC/USDT:USDT"]
    rates = await history.funding(market, start_ns=BEGIN_NS)
    assert len(rates) == HISTORY_MIN // 480
    assert all(r.time_ns % (28_800 * NS_PER_S) == 0 and 0 < r.rate < 0.001 for r in rates)
    assert await history.funding(market, start_ns=rates[1].time_ns) == rates[1:]


async def test_funding_pages_until_nothing_new() -> None:
    step = 28_800_000
    asked: list[int] = []

    def answer(request: web.Request) -> web.Response:
        start = int(request.query["startTime"])
        asked.append(start)
        times = range(-(-start // step) * step, 2500 * step, step)[:1000]
        return web.json_response([{"symbol": "BTCUSDT", "fundingTime": t, "fundingRate": "0.00010000"} for t in times])

    async with answering(answer) as history:
        got = await history.funding(BTC, start_ns=step * NS_PER_MS)
    assert [s.time_ns for s in got] == [i * step * NS_PER_MS for i in range(1, 2500)]
    assert len(asked) == 3


async def test_intervals_the_exchange_lacks_are_refused(emulator: tuple[Emulator, BinanceHistory]) -> None:
    exchange, history = emulator
    market = (await history.markets())["BTC/USDT:USDT"]
    for text in ("5s", "100t", "24m"):
        with pytest.raises(RequestRefused, match=text):
            await history.candles(market, CandleSpec.parse(text), start_ns=BEGIN_NS, end_ns=START_NS)
    assert exchange.venue.requests["klines"] == 0


async def test_unknown_market_is_refused_and_an_outage_is_remote(emulator: tuple[Emulator, BinanceHistory]) -> None:
    exchange, history = emulator
    stranger = msgspec.structs.replace(BTC, native="NOPEUSDT")
    with pytest.raises(RequestRefused, match="-1121"):
        await history.candles(stranger, MINUTE, start_ns=BEGIN_NS, end_ns=START_NS)
    exchange.refuse = True
    with pytest.raises(RemoteError, match="503"):
        await history.time_ns()
    exchange.refuse = False
    assert await history.time_ns() == START_NS // NS_PER_MS * NS_PER_MS


async def test_nobody_there_is_remote() -> None:
    async with opened(1) as history:
        with pytest.raises(RemoteError):
            await history.time_ns()


def _json(status: int, body: Any, **headers: str) -> Callable[[web.Request], web.Response]:
    return lambda _: web.json_response(body, status=status, headers=headers)


LIMIT = {"code": -1003, "msg": "Too many requests."}


@pytest.mark.parametrize(
    ("answer", "error", "wait_s"),
    [
        (_json(429, LIMIT, **{"Retry-After": "17"}), RateLimited, 17.0),
        (_json(418, LIMIT), RateLimited, 60.0),
        (_json(400, LIMIT), RateLimited, 60.0),
        (_json(400, {"code": -1130, "msg": "Data sent for parameter 'limit' is not valid."}), RequestRefused, None),
        (_json(400, {"code": -4166, "msg": "Search window is restricted"}), RequestRefused, None),
        (_json(503, {"code": -1001, "msg": "Internal error"}), RemoteError, None),
        (_json(200, {"hello": 1}), RemoteError, None),
        (_json(200, [1, 2]), RemoteError, None),
        (lambda _: web.Response(text="<html>down</html>", content_type="text/html"), RemoteError, None),
    ],
)
async def test_who_is_to_blame(
    answer: Callable[[web.Request], web.Response], error: type[FeedError], wait_s: float | None
) -> None:
    async with answering(answer) as history:
        with pytest.raises(error) as caught:
            await history.time_ns()
    assert type(caught.value) is error
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after_s == wait_s


ROW: list[Any] = [1_700_000_040_000, "1.5", "2", "1", "1.5", "10", 1_700_000_099_999, "15", 3, "5", "7", "0"]


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, ROW[0] + 1), (0, ROW[0] + 60_000), (1, "3"), (2, "nan"), (3, "-1"), (4, "x"), (5, "-1"), (5, "inf")],
)
async def test_a_row_that_cannot_be_is_not_believed(column: int, value: Any) -> None:
    row = [*ROW[:column], value, *ROW[column + 1 :]]

    def answer(request: web.Request) -> web.Response:
        times = request.path.endswith("/time")
        return web.json_response({"serverTime": 1_800_000_000_000} if times else [row])

    async with answering(answer) as history:
        with pytest.raises(RemoteError):
            await history.candles(BTC, MINUTE, start_ns=BEGIN_NS, end_ns=BEGIN_NS + MINUTE.interval_ns)


@pytest.mark.parametrize(("key", "value"), [("p", "64000.55"), ("q", "0"), ("p", "NaN"), ("q", None)])
async def test_a_trade_that_cannot_be_is_not_believed(key: str, value: Any) -> None:
    row = {"a": 1, "p": "64000.5", "q": "0.010", "f": 1, "l": 1, "T": 1_700_000_040_000, "m": False}
    async with answering(lambda _: web.json_response([row])) as history:
        (trade,) = await history.trades(BTC)
        assert (trade.price, trade.size, trade.taker_is_buyer) == (640_005, 10, True)
    async with answering(lambda _: web.json_response([row | {key: value}])) as history:
        with pytest.raises(RemoteError):
            await history.trades(BTC)


def test_other_exchanges_and_addresses_are_refused() -> None:
    with pytest.raises(RequestRefused, match="kraken"):
        open_history("kraken")
    with pytest.raises(RequestRefused, match="ws://"):
        open_history("binance", "ws://127.0.0.1:1")


async def test_against_the_independent_exchange() -> None:
    path = ROOT / "accept" / "exchange.py"
    if not path.exists():
        pytest.skip("the independent exchange is not present beside the project")
    spec = importlib.util.spec_from_file_location("independent_exchange", path)
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = judge
    spec.loader.exec_module(judge)
    tape = judge.read_agg_trades_zip(str(shared("trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip")))
    exchange = judge.Exchange({"APEUSDT": tape}, start_ms=tape[0].time_ms + 5 * 3_600_000)
    app = web.Application()
    app.router.add_get("/fapi/v1/{what}", exchange.rest)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with opened(runner.addresses[0][1]) as history:
        market = (await history.markets())["APE/USDT:USDT"]
        now = await history.time_ns()
        candles = await history.candles(market, MINUTE, start_ns=now - 3600 * NS_PER_S, end_ns=now)
        trades = await all_trades(history, market, now - 3600 * NS_PER_S)
        assert len(await history.funding(market, start_ns=now - 86_400 * NS_PER_S)) == 3
    await runner.cleanup()
    expected = folded(trades, market, MINUTE)
    assert len(candles) == 58  # the clock stands 4 s past a minute: that candle is not final
    assert all(figures(c)[:5] == expected[c.open_time_ns][:5] for c in candles if c.trades)
    path = shared("trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip")
    emulator = Emulator({"APEUSDT": tape_from(path, "APEUSDT")}, start_ns=now)
    async with opened(await emulator.start()) as history:
        (ours,) = (await history.markets()).values()
        again = await history.candles(ours, MINUTE, start_ns=now - 3600 * NS_PER_S, end_ns=now)
        assert all(a.same_figures(b) for a, b in zip(again, candles, strict=True))
        assert (ours.symbol, ours.listed_at_ns) == (market.symbol, market.listed_at_ns)
    await emulator.stop()
