"""Bitget over REST: against the emulated exchange, recorded answers, and answers that are wrong."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web
from ccxt.async_support.bitget import bitget

from feeds.emulator import Emulator
from feeds.emulator.dialects.bitget_rest import BitgetRest, trade_id
from feeds.emulator.tape import MINUTE_MS, T
from feeds.errors import FeedError, RateLimited, RemoteError, RequestRefused
from feeds.history import bitget as bitget_history
from feeds.history import open_history
from feeds.history.bitget import BitgetHistory
from feeds.market import NS_PER_DAY, NS_PER_MS, NS_PER_S, CandleSpec, Market, Origin
from tests.feeds.emulators import BEGIN_MS, invented
from tests.feeds.test_bitget import lines
from tests.feeds.test_bitget_emulator import BTC, M1, by_open, emulated, folded

HISTORY_MIN = 1500
START_MS = BEGIN_MS + HISTORY_MIN * MINUTE_MS + 31_000
SYMBOLS = {"BTC/USDT:USDT": "BTCUSDT", "BTC/USDC:USDC": "BTCPERP", "ETH/USD:ETH": "ETHUSD"}


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the exchange's limit, and the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(bitget, "timeout_on_exit", 0)
    monkeypatch.setitem(bitget_history._PACE, "rateLimit", 0.1)


@contextlib.asynccontextmanager
async def opened(port: int) -> AsyncIterator[BitgetHistory]:
    history = open_history("bitget", f"http://127.0.0.1:{port}")
    assert isinstance(history, BitgetHistory)
    try:
        yield history
    finally:
        await history.aclose()


@contextlib.asynccontextmanager
async def remembering(
    symbol: str = "BTC/USDT:USDT", *, start_ms: int = START_MS
) -> AsyncIterator[tuple[Emulator, BitgetHistory, Market]]:
    tapes = {native: invented(native) for native in SYMBOLS.values()}
    async with emulated(tapes, start_ms=start_ms) as (emulator, port), opened(port) as history:
        yield emulator, history, (await history.markets())[symbol]


@contextlib.asynccontextmanager
async def answering(answer: Callable[[web.Request], Any], status: int = 200) -> AsyncIterator[BitgetHistory]:
    """Serve every path with `answer`, as JSON."""

    async def handle(request: web.Request) -> web.Response:
        return web.json_response(answer(request), status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with opened(runner.addresses[0][1]) as history:
        yield history
    await runner.cleanup()


def body(data: Any, code: str = "00000", message: str = "success") -> dict[str, Any]:
    return {"code": code, "msg": message, "requestTime": 1695865615662, "data": data}


async def test_markets_are_the_perpetuals_that_are_listed() -> None:
    async with remembering() as (emulator, history, btc):
        assert {symbol: market.native for symbol, market in (await history.markets()).items()} == SYMBOLS
        assert (btc.exchange, btc.price_decimals, btc.size_decimals, btc.volume_unit) == ("bitget", 1, 3, "base coin")
        assert (btc.listed_at_ns, btc.max_leverage) == (None, 125.0)
        emulator.venue.halt("BTCUSDT")
        halted = await history.markets()
        assert {symbol: market.trading for symbol, market in halted.items()} == dict.fromkeys(SYMBOLS, True) | {
            "BTC/USDT:USDT": False
        }
        emulator.venue.delist("BTCUSDT")
        assert set(await history.markets()) == {"BTC/USDC:USDC", "ETH/USD:ETH"}
        assert emulator.venue.requests["mix/market/contracts"] == 12


async def test_a_recorded_contract_reads_as_documented() -> None:
    row = {
        "symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT", "priceEndStep": "5", "volumePlace": "3",
        "pricePlace": "1", "sizeMultiplier": "0.0001", "symbolType": "perpetual", "symbolStatus": "normal",
        "launchTime": "1718000000000", "maxLever": "150",
    }  # fmt: skip
    rows = [row, {**row, "symbol": "BTCUSDTZ26", "symbolType": "delivery"}, {**row, "symbolStatus": "off"}]
    async with answering(lambda r: body(rows if r.query["productType"] == "USDT-FUTURES" else None)) as history:
        (btc,) = (await history.markets()).values()
    assert (btc.symbol, btc.price_decimals, btc.size_decimals, btc.max_leverage) == ("BTC/USDT:USDT", 1, 4, 150.0)
    assert btc.listed_at_ns == 1718000000000 * NS_PER_MS


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("edges_count", [True, False])
async def test_candles_are_final_and_the_fold_of_the_tape_whichever_edges_count(
    monkeypatch: pytest.MonkeyPatch, symbol: str, edges_count: bool
) -> None:
    monkeypatch.setattr(BitgetRest, "edges_count", edges_count)
    async with remembering(symbol) as (emulator, history, market):
        tape, span = emulator.venue.tapes[market.native], {"start_ns": 0, "end_ns": 2 * START_MS * NS_PER_MS}
        span["start_ns"] = BEGIN_MS * NS_PER_MS
        candles = await history.candles(market, M1, **span)
        assert by_open(candles) == folded(tape, from_ms=BEGIN_MS, until_ms=BEGIN_MS + HISTORY_MIN * MINUTE_MS)
        assert all(candle.closed and candle.origin is Origin.EXCHANGE for candle in candles)
        assert emulator.venue.requests["mix/market/candles"] == 2
        marks = await history.mark_candles(market, M1, **span)
        assert [(m.open, m.close, m.volume) for m in marks] == [(c.open, c.close, 0.0) for c in candles]


async def test_what_is_older_than_a_month_comes_from_elsewhere_in_shorter_pages() -> None:
    start_ms = BEGIN_MS + 31 * 86_400_000
    async with remembering(start_ms=start_ms) as (emulator, history, market):
        tape = emulator.venue.tapes[market.native]
        until_ms = BEGIN_MS + 10 * 60 * MINUTE_MS
        span = {"start_ns": BEGIN_MS * NS_PER_MS, "end_ns": until_ms * NS_PER_MS}
        for fetched in (history.candles, history.mark_candles):
            candles = await fetched(market, M1, **span)
            bars = tape.candles(MINUTE_MS, start_ms=BEGIN_MS, end_ms=until_ms, now_ms=start_ms)
            assert [(c.open_time_ns // NS_PER_MS, round(c.close * 10)) for c in candles] == [(b[0], b[4]) for b in bars]
        assert emulator.venue.requests["mix/market/history-candles"] == 4
        assert emulator.venue.requests["mix/market/history-mark-candles"] == 4
        assert emulator.venue.requests["mix/market/candles"] == 0
        border_ns = (start_ms - 28 * 86_400_000) * NS_PER_MS
        span = {"start_ns": border_ns - 3 * M1.interval_ns, "end_ns": border_ns + 3 * M1.interval_ns}
        assert len(await history.candles(market, M1, **span)) == 6
        assert emulator.venue.requests["mix/market/candles"] == 0, "a page begins where its first row is"


@pytest.mark.parametrize("text", ["3m", "5m", "15m", "30m", "1h", "4h", "6h", "12h", "1d"])
async def test_longer_candles_begin_with_the_utc_day(text: str) -> None:
    spec = CandleSpec.parse(text)
    start_ms = BEGIN_MS + 53 * 3_600_000
    async with remembering(start_ms=start_ms) as (emulator, history, market):
        first_ms = spec.open_of((BEGIN_MS + 86_400_000) * NS_PER_MS) // NS_PER_MS
        step_ms = spec.interval_ns // NS_PER_MS
        span = {"start_ns": (first_ms - 1) * NS_PER_MS, "end_ns": (first_ms + step_ms) * NS_PER_MS + 1}
        candles = await history.candles(market, spec, **span)
        tape = emulator.venue.tapes[market.native]
        expected = folded(tape, from_ms=first_ms, until_ms=first_ms + 2 * step_ms, step_ms=step_ms)
        now_ns = start_ms * NS_PER_MS - history.settle_ns
        assert by_open(candles) == {t: f for t, f in expected.items() if (t + step_ms) * NS_PER_MS <= now_ns}
        assert candles


async def test_no_request_spans_more_than_ninety_days() -> None:
    asked: list[tuple[int, int]] = []

    def answer(request: web.Request) -> Any:
        if "public/time" in request.path:
            return body({"serverTime": "1800000000000"})
        start, end, limit = (int(request.query[name]) for name in ("startTime", "endTime", "limit"))
        assert limit <= (200 if "history" in request.path else 1000)
        asked.append((start, end))
        return body([])

    async with answering(answer) as history:
        end_ns = 1_800_000_000_000 * NS_PER_MS
        for text in ("4h", "12h", "1d"):
            span = {"start_ns": end_ns - 400 * NS_PER_DAY, "end_ns": end_ns}
            assert await history.candles(BTC, CandleSpec.parse(text), **span) == []
    assert 20 < len(asked) < 30
    assert max(end - start for start, end in asked) <= 90 * 86_400_000


@pytest.mark.parametrize(("after_close_ms", "final"), [(4999, False), (5000, True)])
async def test_a_row_is_final_five_seconds_after_its_close(after_close_ms: int, final: bool) -> None:
    close_ms = BEGIN_MS + 100 * MINUTE_MS
    async with remembering(start_ms=close_ms + after_close_ms) as (_, history, market):
        span = {"start_ns": (close_ms - 3 * MINUTE_MS) * NS_PER_MS, "end_ns": 2 * close_ms * NS_PER_MS}
        got = await history.candles(market, M1, **span)
        assert await history.time_ns() == (close_ms + after_close_ms) * NS_PER_MS
    assert (got[-1].close_time_ns == close_ms * NS_PER_MS) is final


@pytest.mark.parametrize("limit", [10, 1000])
async def test_trades_are_the_newest_oldest_first(limit: int) -> None:
    async with remembering() as (emulator, history, market):
        rows = emulator.venue.tapes["BTCUSDT"].trades(0, START_MS)[-limit:].tolist()
        got = await history.trades(market, limit=limit)
        assert [(t.id, t.event_time_ns // NS_PER_MS, t.price, t.size, t.taker_is_buyer) for t in got] == [
            (trade_id(r), r[T.TIME], r[T.PRICE], r[T.SIZE], not r[T.MAKER]) for r in rows
        ]
        for span in ({"from_id": 5}, {"start_ns": 5}):
            with pytest.raises(RequestRefused, match="newest first only"):
                await history.trades(market, **span)


async def test_funding_is_paged_back_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitget_history, "_FUNDING_ROWS", 4)
    async with remembering(start_ms=BEGIN_MS + 3 * 86_400_000) as (emulator, history, market):
        rates = await history.funding(market, start_ns=BEGIN_MS * NS_PER_MS)
        assert [r.time_ns for r in rates] == [rates[0].time_ns + i * 28_800 * NS_PER_S for i in range(9)]
        assert all(r.time_ns % (28_800 * NS_PER_S) == 0 and 0 < r.rate < 0.001 for r in rates)
        assert emulator.venue.requests["mix/market/history-fund-rate"] == 4, "the last one has nothing new"
        assert await history.funding(market, start_ns=rates[6].time_ns) == rates[6:]
        assert emulator.venue.requests["mix/market/history-fund-rate"] == 5


async def test_what_the_exchange_lacks_is_refused() -> None:
    async with remembering() as (emulator, history, market):
        for text in ("5s", "2h", "8h", "100t"):
            with pytest.raises(RequestRefused, match=text):
                await history.candles(market, CandleSpec.parse(text), start_ns=0, end_ns=START_MS * NS_PER_MS)
        assert emulator.venue.requests["mix/market/candles"] == 0
        stranger = msgspec.structs.replace(market, native="NOPEUSDT")
        with pytest.raises(RequestRefused, match="40034"):
            await history.candles(stranger, M1, start_ns=BEGIN_MS * NS_PER_MS, end_ns=START_MS * NS_PER_MS)
        emulator.faults.limit(1, retry_after_s=7)
        with pytest.raises(RateLimited) as limited:
            await history.time_ns()
        assert limited.value.retry_after_s == 7.0
        emulator.refuse = True
        with pytest.raises(RemoteError, match="503"):
            await history.time_ns()


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        (body(None, "40034", "Parameter X does not exist"), 400, RequestRefused),
        (body(None, "40034", "Parameter X does not exist"), 200, RequestRefused),
        (body(None, "40020", "Parameter limit error"), 400, RequestRefused),
        (body(None, "40808", "Parameter verification exception"), 400, RemoteError),
        (body(None, "45001", "Unknown error"), 200, RemoteError),
        (body(None, "40725", "service return an error"), 200, RemoteError),
        (body(None, "40200", "Server upgrade"), 200, RemoteError),
        (body(None, "429", "Too Many Requests"), 429, RateLimited),
        (body({}), 200, RemoteError),
        (body({"serverTime": "x"}), 200, RemoteError),
        ([], 200, RemoteError),
    ],
)
async def test_who_is_to_blame(said: Any, status: int, error: type[FeedError]) -> None:
    async with answering(lambda _: said, status) as history:
        with pytest.raises(error) as caught:
            await history.time_ns()
    assert type(caught.value) is error


ROW = ["1700000040000", "1.5", "2", "1", "1.5", "10", "15"]


@pytest.mark.parametrize(
    ("column", "text"), [(0, "1700000040001"), (1, "3"), (2, "nan"), (3, "-1"), (4, "x"), (5, "-1"), (5, "inf")]
)
async def test_a_row_that_cannot_be_is_not_believed(column: int, text: str) -> None:
    row = [*ROW[:column], text, *ROW[column + 1 :]]

    def answer(request: web.Request) -> Any:
        return body({"serverTime": "1700000900000"} if "public/time" in request.path else [row])

    async with answering(answer) as history:
        with pytest.raises(RemoteError):
            await history.candles(BTC, M1, start_ns=BEGIN_MS * NS_PER_MS, end_ns=BEGIN_MS * NS_PER_MS + M1.interval_ns)


@pytest.mark.parametrize(("key", "value"), [("price", "64000.55"), ("size", "0"), ("price", "NaN"), ("side", "none")])
async def test_a_trade_that_cannot_be_is_not_believed(key: str, value: Any) -> None:
    row = {"tradeId": "5", "price": "64000.5", "size": "0.010", "side": "Sell", "ts": "1700000040000"}
    async with answering(lambda _: body([row])) as history:
        (trade,) = await history.trades(BTC)
        assert (trade.price, trade.size, trade.taker_is_buyer) == (640_005, 10, False)
    async with answering(lambda _: body([row | {key: value}])) as history:
        with pytest.raises(RemoteError):
            await history.trades(BTC)


async def test_a_captured_answer_is_read() -> None:
    hours = next(r["raw"] for r in lines("live2026/frames.jsonl") if r["channel"].startswith("REST candles"))
    rows = json.loads(hours)["data"]

    def answer(request: web.Request) -> Any:
        return body({"serverTime": "1788350000000"}) if "public/time" in request.path else json.loads(hours)

    hour, first_ns = CandleSpec.parse("1h"), int(rows[0][0]) * NS_PER_MS
    async with answering(answer) as history:
        got = await history.candles(BTC, hour, start_ns=first_ns, end_ns=first_ns + 5 * hour.interval_ns)
    assert by_open(got) == {int(row[0]): tuple(float(text) for text in row[1:6]) for row in rows}
