"""BingX over REST: against the emulated exchange, captured rows, and answers that are wrong."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from ccxt.async_support.bingx import bingx

from feeds.emulator import Emulator
from feeds.emulator.tape import MINUTE_MS, T
from feeds.errors import RateLimited, RemoteError, RequestRefused
from feeds.history import open_history
from feeds.history.bingx import BingxHistory
from feeds.market import NS_PER_MS, NS_PER_S, CandleSpec, Market, Origin
from tests.feeds.emulators import BEGIN_MS, invented
from tests.feeds.test_bingx import captured
from tests.feeds.test_bingx_emulator import BTC, M1, emulated, figures, tape_figures

FIVE = CandleSpec.parse("5m")


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(bingx, "timeout_on_exit", 0)


@contextlib.asynccontextmanager
async def opened(port: int) -> AsyncIterator[BingxHistory]:
    history = open_history("bingx", f"http://127.0.0.1:{port}")
    assert isinstance(history, BingxHistory)
    try:
        yield history
    finally:
        await history.aclose()


@contextlib.asynccontextmanager
async def remembering(days: int = 2) -> AsyncIterator[tuple[Emulator, BingxHistory, Market]]:
    tape = invented("BTC-USDT")
    async with (
        emulated({"BTC-USDT": tape}, start_ms=BEGIN_MS + days * 86_400_000 + 17_123) as (emulator, port),
        opened(port) as history,
    ):
        yield emulator, history, (await history.markets())["BTC/USDT:USDT"]


@contextlib.asynccontextmanager
async def answering(answer: Callable[[web.Request], Any]) -> AsyncIterator[BingxHistory]:
    """Serve every path with `answer`, as JSON."""

    async def handle(request: web.Request) -> web.Response:
        return web.json_response(answer(request))

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with opened(runner.addresses[0][1]) as history:
        yield history
    await runner.cleanup()


async def test_markets_are_those_that_are_listed() -> None:
    tapes = {name: invented(name) for name in ("BTC-USDT", "ETH-USDT", "DOGE-USDC")}
    async with emulated(tapes) as (emulator, port), opened(port) as history:
        emulator.venue.halt("ETH-USDT")
        markets = await history.markets()
        assert {symbol: market.trading for symbol, market in markets.items()} == {
            "BTC/USDT:USDT": True, "ETH/USDT:USDT": False, "DOGE/USDC:USDC": True
        }  # fmt: skip
        assert markets["BTC/USDT:USDT"] == Market(
                exchange="bingx", symbol="BTC/USDT:USDT", native="BTC-USDT", price_decimals=1, size_decimals=3,
                listed_at_ns=invented("BTC-USDT").begin_ms * NS_PER_MS, max_leverage=100.0,
            )  # fmt: skip
        assert dict(emulator.venue.requests) == {"swap/v2/quote/contracts": 1}
        emulator.venue.retick("BTC-USDT", price_decimals=2)
        emulator.venue.delist("ETH-USDT")
        markets = await history.markets()
        assert set(markets) == {"BTC/USDT:USDT", "DOGE/USDC:USDC"}
        assert markets["BTC/USDT:USDT"].price_decimals == 2


async def test_candles_are_paged_final_and_equal_the_tapes() -> None:
    async with remembering() as (emulator, history, market):
        end_ns = emulator.now_ns() + 10**15
        candles = await history.candles(market, M1, start_ns=BEGIN_MS * NS_PER_MS, end_ns=end_ns)
        last_ms = (emulator.now_ns() // NS_PER_MS - 10_000) // MINUTE_MS * MINUTE_MS
        expected = tape_figures(emulator.venue.tapes["BTC-USDT"], MINUTE_MS, BEGIN_MS, last_ms)
        assert len(candles) == 2880
        assert [figures(candle) for candle in candles] == expected
        assert all(
            c.closed and c.origin is Origin.EXCHANGE and c.seq * M1.interval_ns == c.close_time_ns for c in candles
        )
        assert emulator.venue.requests["swap/v3/quote/klines"] == 3
        start_ns = FIVE.open_of(candles[100].open_time_ns)
        five = await history.candles(market, FIVE, start_ns=start_ns + 1, end_ns=start_ns + 3 * FIVE.interval_ns + 1)
        assert [c.open_time_ns for c in five] == [start_ns + i * FIVE.interval_ns for i in (1, 2, 3)]
        with pytest.raises(RequestRefused, match="no klines of 5s"):
            await history.candles(market, CandleSpec.parse("5s"), start_ns=start_ns, end_ns=end_ns)


async def test_a_candle_is_final_ten_seconds_after_its_close() -> None:
    for after_ms, final in ((9_999, 0), (10_000, 1)):
        start_ms = BEGIN_MS + 10 * MINUTE_MS + after_ms
        async with (
            emulated({"BTC-USDT": invented("BTC-USDT")}, start_ms=start_ms) as (_, port),
            opened(port) as history,
        ):
            span = {"start_ns": (BEGIN_MS + 9 * MINUTE_MS) * NS_PER_MS, "end_ns": 1 << 61}
            assert len(await history.candles(BTC, M1, **span)) == final


async def test_mark_candles_have_no_volume() -> None:
    async with remembering(1) as (emulator, history, market):
        span = {"start_ns": BEGIN_MS * NS_PER_MS, "end_ns": emulator.now_ns()}
        marks = await history.mark_candles(market, M1, **span)
        candles = await history.candles(market, M1, **span)
        assert [figures(one)[:5] for one in marks] == [figures(one)[:5] for one in candles]
        assert len(marks) == 1440
        assert {one.volume for one in marks} == {0.0}


async def test_the_newest_trades_in_order_and_no_others() -> None:
    async with remembering(1) as (emulator, history, market):
        trades = await history.trades(market, limit=40)
        tape, now_ms = emulator.venue.tapes["BTC-USDT"], emulator.now_ns() // NS_PER_MS
        rows = tape.trades(now_ms - 3_600_000, now_ms)[-40:].tolist()
        assert [(t.event_time_ns // NS_PER_MS, t.price, t.size, not t.taker_is_buyer) for t in trades] == [
            (row[T.TIME], row[T.PRICE], row[T.SIZE], bool(row[T.MAKER])) for row in rows
        ]
        assert {(t.id, t.fills) for t in trades} == {(0, 1)}
        for older in ({"from_id": 1}, {"start_ns": 1}):
            with pytest.raises(RequestRefused, match="newest trades only"):
                await history.trades(market, **older)


async def test_funding_of_months_comes_whole_and_once() -> None:
    async with remembering(100) as (emulator, history, market):
        settled = await history.funding(market, start_ns=0)
        times = [one.time_ns for one in settled]
        assert times == sorted(set(times))
        assert len(times) == 300
        assert all(0 < one.rate < 0.001 for one in settled)
        assert await history.funding(market, start_ns=times[7]) == settled[7:]
        assert await history.funding(market, start_ns=times[7] + 1) == settled[8:]
        assert await history.funding(market, start_ns=emulator.now_ns() + NS_PER_S) == []


async def test_refusals_and_limits_say_who_is_to_blame() -> None:
    async with remembering(1) as (emulator, history, market):
        with pytest.raises(RequestRefused, match="109425"):
            await history.funding(
                Market(exchange="bingx", symbol="X", native="X-USDT", price_decimals=1, size_decimals=1), start_ns=0
            )
        emulator.faults.limit(1, retry_after_s=7)
        with pytest.raises(RateLimited) as limited:
            await history.time_ns()
        assert limited.value.retry_after_s == 7.0
        assert await history.time_ns() > 0
        emulator.faults.refuse = True
        with pytest.raises(RemoteError):
            await history.candles(market, M1, start_ns=0, end_ns=1 << 61)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ({"code": 109400, "msg": "Invalid parameters", "data": {}}, RequestRefused),
        ({"code": 100410, "msg": "rate limited", "data": {}}, RateLimited),
        ({"code": 100500, "msg": "The current system is busy", "data": {}}, RemoteError),
        ({"code": 0, "msg": ""}, RemoteError), ({"code": 0, "data": {"serverTime": "x"}}, RemoteError),
        ([], RemoteError),
    ],
)  # fmt: skip
async def test_replies_that_are_none(reply: Any, error: type[Exception]) -> None:
    async with answering(lambda _: reply) as history:
        with pytest.raises(RemoteError if error is not RequestRefused else error) as raised:
            await history.time_ns()
        assert type(raised.value) is error


@pytest.mark.parametrize("shaped", ["objects", "arrays", "numbers"])
async def test_captured_klines_are_read_in_every_shape(shaped: str) -> None:
    (raw,) = [json.loads(raw) for name, raw in captured() if "REST" in name]
    now_ms = raw["data"][0]["time"] + 10 * 3_600_000
    columns = ("time", "open", "high", "low", "close", "volume")
    rows = raw["data"]
    if shaped != "objects":
        rows = [[row[name] for name in columns] + ["0"] for row in rows]
    if shaped == "numbers":
        rows = [[row[0], *map(float, row[1:])] for row in rows]
    replies = {"time": {"code": 0, "data": {"serverTime": now_ms}}, "klines": {**raw, "data": rows}}
    client = bingx()
    async with answering(lambda request: replies[request.path.rpartition("/")[2]]) as history:
        start_ns = rows[-1][0] if shaped != "objects" else rows[-1]["time"]
        span = {"start_ns": start_ns * NS_PER_MS, "end_ns": now_ms * NS_PER_MS}
        candles = await history.candles(BTC, CandleSpec.parse("1h"), **span)
    theirs = sorted(client.parse_ohlcv(row) for row in raw["data"])
    assert [list(figures(candle)) for candle in candles] == theirs
    assert len(candles) == 5
