"""What a whole exchange costs: weights as it counts them, settled funding in one list, the clock asked once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from ccxt.async_support.base.exchange import Exchange

from feeds.budget import Budget, Pace, Priority
from feeds.emulator import Emulator
from feeds.emulator.dialects import DIALECTS, binance_rest, bingx_rest, bitget_rest, bitmex_rest, bybit_rest
from feeds.emulator.dialects.binance import Binance
from feeds.emulator.dialects.binance_rest import FUNDING_MAX, USED_HEADER, WEIGHT_MAX, weight_of
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import Tape
from feeds.errors import RateLimited
from feeds.history import PAGE_ROWS, History, open_history
from feeds.history import base as histories
from feeds.market import NS_PER_DAY, NS_PER_MS, NS_PER_S, CandleSpec
from tests.feeds.test_history import BTC, answering

BEGIN_MS = 1_736_121_600_000
START_NS = BEGIN_MS * NS_PER_MS + 2 * NS_PER_DAY + 31 * NS_PER_S
MINUTE = CandleSpec.parse("1m")
HOUR = 3600 * NS_PER_S


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exchange, "timeout_on_exit", 0)


@asynccontextmanager
async def listed(*natives: str, exchange: str = "binance") -> AsyncIterator[tuple[Emulator, History, Budget]]:
    tapes = {native: synthetic_tape(native, seed=1, begin_ms=BEGIN_MS) for native in natives}
    emulator, budget = Emulator(tapes, exchange=exchange, start_ns=START_NS), Budget(lambda: 0)
    history = open_history(exchange, f"http://127.0.0.1:{await emulator.start()}", budget)
    try:
        yield emulator, history, budget
    finally:
        await history.aclose()
        await emulator.stop()


def counted(emulator: Emulator) -> Counter[tuple[str, int]]:
    """Return what the exchange has counted in each of its minutes, or five of them."""
    assert isinstance(emulator._dialect, Binance)
    return emulator._dialect._rest._used


async def test_each_request_weighs_what_the_exchange_says() -> None:
    async with listed("BTCUSDT", "ETHUSDT") as (emulator, history, budget):
        assert isinstance(budget.pace, Pace)
        markets = await history.markets()
        btc = markets["BTC/USDT:USDT"]
        for rows in (1, 99, 100, 499, 500, 1000):
            await history.candles(btc, MINUTE, start_ns=START_NS - (rows + 1) * 60 * NS_PER_S, end_ns=START_NS)
        await history.mark_candles(btc, MINUTE, start_ns=START_NS - HOUR, end_ns=START_NS)
        await history.trades(btc)
        told = int(emulator.venue.headers[USED_HEADER])
        await history.funding(btc, start_ns=0)
        await history.fundings(start_ns=0)
        assert int(emulator.venue.headers[USED_HEADER]) == told
        assert told == emulator.venue.requests["time"] + 1 + (1 + 1 + 2 + 2 + 5 + 5) + 1 + 20
        funding_requests = emulator.venue.requests["fundingRate"]
        assert budget.pace._used == told + funding_requests, "which ccxt gives a weight of one"


@pytest.mark.parametrize(("rows", "weight"), [(1, 1), (99, 1), (100, 2), (499, 2), (500, 5), (1000, 5), (1001, 10)])
def test_klines_weigh_by_their_number(rows: int, weight: int) -> None:
    assert weight_of("klines", {"limit": str(rows)}) == weight
    assert weight_of("klines", {}) == 5


async def test_five_hundred_warm_ups_keep_below_the_weight_of_a_minute() -> None:
    async with listed("BTCUSDT") as (_, _, budget):
        pace = budget.pace
        assert pace.wait_s(0, Priority.REPAIR, 0.0) == 0
        now_s, minute, weights = 0.0, 0, [0.0]
        for _ in range(500):
            while wait_s := pace.wait_s(5, Priority.WARM_UP, now_s):
                now_s += wait_s
            if now_s // 60 > minute:
                minute = int(now_s // 60)
                weights.append(0.0)
            pace._spend(5, now_s)
            weights[-1] += 5
            now_s += 0.02
        assert sum(weights) == 2500
        assert max(weights) + 150 <= WEIGHT_MAX, "and a repair finds room"
        assert len(weights) == 2


async def test_what_is_too_much_is_refused_until_the_minute_is_over_and_others_requests_are_seen() -> None:
    async with listed("BTCUSDT") as (emulator, history, budget):
        counted(emulator)["weight", START_NS // (60 * NS_PER_S)] = WEIGHT_MAX - 1
        await history.time_ns()
        assert budget.pace._used == WEIGHT_MAX, "somebody else behind our address"
        budget.pace._spent.clear()
        with pytest.raises(RateLimited) as limited:
            await history.time_ns()
        assert limited.value.retry_after_s == 29


async def test_all_markets_funding_comes_in_a_few_pages_and_equals_that_of_each() -> None:
    natives = [f"C{n:03}USDT" for n in range(450)]
    async with listed(*natives) as (emulator, history, _):
        together = await history.fundings(start_ns=0)
        assert together is not None
        assert set(together) == set(natives)
        rows = sum(map(len, together.values()))
        assert rows == 450 * 6
        assert emulator.venue.requests["fundingRate"] == 3, "each begins with the time at which the one before ended"
        markets = await history.markets()
        for native in natives[::100]:
            symbol = f"{native.removesuffix('USDT')}/USDT:USDT"
            assert await history.funding(markets[symbol], start_ns=0) == together[native]


async def test_settlements_of_one_millisecond_that_fill_more_than_a_page_are_left_to_each_market() -> None:
    def answer(request: web.Request) -> web.Response:
        start = int(request.query["startTime"])
        rows = [(1000, f"C{n}") for n in range(1200)]
        found = [{"symbol": s, "fundingTime": t, "fundingRate": "0.0001"} for t, s in rows if t >= start][:PAGE_ROWS]
        return web.json_response(found)

    async with answering(answer) as history:
        assert await asyncio.wait_for(history.fundings(start_ns=0), 20) is None


async def test_more_requests_for_funding_than_five_minutes_hold_are_refused() -> None:
    async with listed("BTCUSDT") as (emulator, history, _):
        counted(emulator)["fundingRate", START_NS // (300 * NS_PER_S)] = FUNDING_MAX
        with pytest.raises(RateLimited):
            await history.funding(BTC, start_ns=0)


async def test_the_clock_is_asked_once_for_all_who_need_no_later_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listed("BTCUSDT") as (emulator, history, _):
        asked = emulator.venue.requests
        end_ns = START_NS - 31 * NS_PER_S
        spans = [{"start_ns": end_ns - n * HOUR, "end_ns": end_ns} for n in range(1, 9)]
        found = await asyncio.gather(*(history.candles(BTC, MINUTE, **span) for span in spans))
        assert [len(candles) for candles in found] == [60 * n for n in range(1, 9)]
        assert (asked["time"], asked["klines"]) == (1, 8)
        await history.candles(BTC, MINUTE, start_ns=end_ns, end_ns=end_ns + 60 * NS_PER_S)
        assert asked["time"] == 2, "the reading is from before that minute's close"
        await history.candles(BTC, MINUTE, start_ns=end_ns - HOUR, end_ns=end_ns)
        assert asked["time"] == 2
        monkeypatch.setattr(histories, "CLOCK_REUSE_S", -1.0)
        await history.candles(BTC, MINUTE, start_ns=end_ns - HOUR, end_ns=end_ns)
        assert asked["time"] == 3


async def test_an_earlier_reading_never_makes_a_row_final_too_soon() -> None:
    times, rows = [0, 60_000 + 4_999, 60_000 + 5_000], [[0, "1", "1", "1", "1", "1", 59_999, "1", 1, "1", "1", "0"]]

    def answer(request: web.Request) -> web.Response:
        return web.json_response({"serverTime": times.pop(0)} if request.path.endswith("time") else rows)

    async with answering(answer) as history:
        for found in (0, 0, 1, 1):
            assert len(await history.candles(BTC, MINUTE, start_ns=0, end_ns=60 * NS_PER_S)) == found
    assert not times


STATES = {
    "binance": ("USDT", binance_rest, "_contract", "status", "CLOSE SETTLING", "PENDING_TRADING TRADING_HALT"),
    "bybit": ("USDT", bybit_rest, "contract", "status", "Closed", "Delivering"),
    "bingx": ("-USDT", bingx_rest, "_contract", "status", "0", "5 25"),
    "bitget": ("USDT", bitget_rest, "contract", "symbolStatus", "off", "listed maintain limit_open"),
    "bitmex": ("USDT", bitmex_rest, "instrument", "state", "Settled Unlisted", "Closed"),
}  # fmt: skip


@pytest.mark.parametrize("exchange", DIALECTS)
async def test_what_is_over_is_left_out_and_what_only_rests_is_not(
    exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quote, module, name, key, gone, resting = STATES[exchange]
    whole = getattr(module, name)
    async with listed("SOL" + quote, "ETH" + quote, exchange=exchange) as (_, history, _):
        assert all(market.trading for market in (await history.markets()).values())
        for state in (*gone.split(), *resting.split()):

            def contract(tape: Tape, *more: Any, state: str = state) -> dict[str, Any]:
                told: dict[str, Any] = whole(tape, *more)
                return told | ({key: type(told[key])(state)} if tape.native.startswith("ETH") else {})

            monkeypatch.setattr(module, name, contract)
            found = {symbol: market.trading for symbol, market in (await history.markets()).items()}
            assert found == {"SOL/USDT:USDT": True} | ({} if state in gone.split() else {"ETH/USDT:USDT": False})
