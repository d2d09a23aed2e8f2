"""Bybit on loopback: its traps, its history, and the feed through cuts; ccxt follows it too."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import ccxt.pro
import msgspec
import pytest
import structlog
from aiohttp import web
from ccxt.async_support.bybit import bybit
from structlog.testing import CapturingLogger, LogCapture

from feeds.closing import Closer
from feeds.emulator import Emulator, Tape, tape_from
from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects import bybit_rest
from feeds.emulator.dialects.base import ABNORMAL, Close, Wire
from feeds.emulator.dialects.bybit import ARGS_MAX_CHARACTERS, Bybit
from feeds.emulator.dialects.bybit_rest import contract, executions
from feeds.emulator.tape import T
from feeds.emulator.venue import Venue
from feeds.errors import FeedError, RateLimited, RemoteError, RequestRefused
from feeds.events import Event, Kline, Malformed, MarketTrade, MarkPrice
from feeds.exchanges.bybit import BybitCodec, trade_id
from feeds.history import bybit as bybit_history
from feeds.history import open_history
from feeds.history.bybit import BybitHistory
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Origin
from feeds.runner import FeedRunner
from feeds.sequence import Verdict, sequence_of
from tests.data import shared
from tests.feeds.emulators import joined
from tests.feeds.test_transport import until

MINUTE, FIVE = CandleSpec.parse("1m"), CandleSpec.parse("5m")
MINUTE_MS = 60_000
BEGIN_MS = 1_700_000_040_000
HISTORY_MIN = 1500
START_MS = BEGIN_MS + HISTORY_MIN * MINUTE_MS + 31_000
NATIVES = ("BTCUSDT", "BTCPERP", "BTCUSD", "BTC-26DEC25", "ETHUSDT-2JAN26", "ETHUSDZ25")
SYMBOLS = {
    "BTC/USDT:USDT": "BTCUSDT", "BTC/USDC:USDC": "BTCPERP", "BTC/USD:BTC": "BTCUSD", "BTC/USDC:USDC-251226":
    "BTC-26DEC25", "ETH/USDT:USDT-260102": "ETHUSDT-2JAN26", "ETH/USD:ETH-251226": "ETHUSDZ25",
}  # fmt: skip
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(bybit, "timeout_on_exit", 0)


def tape_of(native: str) -> Tape:
    return tape_from("synthetic", native, seed=5, begin_ns=BEGIN_MS * NS_PER_MS)


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[BybitHistory]:
    history = open_history("bybit", f"http://127.0.0.1:{port}")
    assert isinstance(history, BybitHistory)
    try:
        yield history
    finally:
        await history.aclose()


@asynccontextmanager
async def emulated(*natives: str, speed: float = 1.0, start_ms: int = START_MS) -> AsyncIterator[tuple[Emulator, int]]:
    tapes = {native: tape_of(native) for native in natives}
    emulator = Emulator(tapes, exchange="bybit", start_ns=start_ms * NS_PER_MS, speed=speed)
    port = await emulator.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield emulator, port
    finally:
        await emulator.stop()


Figures = tuple[float, float, float, float, float]


def folded(tape: Tape, *, from_ms: int, until_ms: int, step_ms: int = MINUTE_MS) -> dict[int, Figures]:
    """Fold a tape the plain way into candles that open at the close before, by open time."""
    price, size = 10**tape.price_decimals, 10**tape.size_decimals
    out: dict[int, Figures] = {}
    for opens in range(from_ms, until_ms, step_ms):
        rows = tape.trades(opens - 1, opens + step_ms - 1).tolist()
        first = tape.price_at(opens - 1)
        prices = [first, *(row[T.PRICE] for row in rows)]
        volume = sum(row[T.SIZE] for row in rows) / size
        out[opens] = (first / price, max(prices) / price, min(prices) / price, prices[-1] / price, volume)
    return out


def by_open(candles: Iterable[Candle]) -> dict[int, Figures]:
    return {c.open_time_ns // NS_PER_MS: (c.open, c.high, c.low, c.close, c.volume) for c in candles}


# ---- the websocket's manners


def wired(*natives: str, category: str = "linear") -> tuple[Venue, Wire]:
    venue = Venue(VirtualClock(START_MS * NS_PER_MS), {native: tape_of(native) for native in natives})
    return venue, Bybit(venue).connect(f"/v5/public/{category}", {}, 0.0)


def asked(wire: Wire, *args: str, op: str = "subscribe", **more: str) -> list[dict[str, Any]]:
    frames = wire.answer(json.dumps({"op": op, "args": args, **more}), 0.0)
    return [json.loads(frame) for frame in frames if isinstance(frame, str)]


def played(wire: Wire, seconds: float, step_ms: int = 20) -> list[dict[str, Any]]:
    times = range(START_MS, START_MS + round(seconds * 1000), step_ms)
    return [json.loads(frame) for at in times for frame in wire.due(at) if isinstance(frame, str)]


def captured(venue: str, channel: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in shared("live2026/frames.jsonl").read_text().splitlines()]
    found: dict[str, Any] = next(json.loads(r["raw"]) for r in rows if (r["venue"], r["channel"]) == (venue, channel))
    return found


def shape(value: Any) -> Any:
    """Say which keys in which order hold values of which types."""
    if isinstance(value, dict):
        return [(key, shape(of)) for key, of in value.items()]
    return shape(value[0]) if isinstance(value, list) else type(value).__name__


def test_frames_have_the_shape_of_those_captured() -> None:
    _, wire = wired("BTCUSDT")
    ack, snapshot = asked(wire, "publicTrade.BTCUSDT", "kline.1.BTCUSDT", "tickers.BTCUSDT")
    pushes = played(wire, 30)
    trade = next(frame for frame in pushes if frame["topic"].startswith("publicTrade"))
    kline = next(frame for frame in pushes if frame["topic"].startswith("kline"))
    delta = next(frame for frame in pushes if frame["topic"].startswith("tickers"))
    assert shape(ack) == shape(captured("bybit_linear", "subscribe ack"))
    assert shape(trade) == shape(captured("bybit_linear", "publicTrade"))
    assert shape(kline) == shape(captured("bybit_linear", "kline.1 forming"))
    real, real_delta = captured("bybit_linear", "tickers snapshot"), captured("bybit_linear", "tickers delta")
    assert list(snapshot) == list(real) == list(delta) == list(real_delta)
    assert dict(shape(real["data"])).items() >= dict(shape(snapshot["data"])).items()
    (pong,) = asked(wire, op="ping")
    assert shape(pong) == shape(captured("bybit_linear", "pong"))
    (refusal,) = asked(wire, "publicTrade.NOPE")
    failure = json.loads(shared("nautilus/bybit/ws_subscription_failure.json").read_text())
    assert set(refusal) - {"req_id"} == set(failure)


def test_one_bad_topic_fails_a_request_as_a_whole() -> None:
    _, wire = wired("BTCUSDT", "BTCUSD")
    for bad in ("publicTrade.BTCUSD", "kline.7.BTCUSDT", "publicTrade.5.BTCUSDT", "nonsense", "orderbook.1.BTCUSDT"):
        (refusal,) = asked(wire, "tickers.BTCUSDT", bad, req_id="5")
        assert (refusal["success"], refusal["req_id"]) == (False, "5")
        assert refusal["ret_msg"] == f"error:handler not found,topic:{bad}"
    assert played(wire, 10) == []
    assert asked(wire, "tickers.BTCUSDT")[0]["req_id"] == ""
    assert asked(wire, "tickers.BTCUSDT")[0]["ret_msg"].startswith("error:already subscribed")
    assert asked(wire, "tickers.BTCUSDT", op="unsubscribe")[0]["success"]
    assert played(wire, 10) == []


def test_a_connection_takes_so_many_characters_of_topics() -> None:
    natives = [f"C{n:03}USDT" for n in range(400)]
    venue, wire = wired("BTCUSDT")
    venue.tapes = dict.fromkeys(natives, venue.tapes["BTCUSDT"])
    topics = [f"{kind}.{native}" for native in natives for kind in ("publicTrade", "kline.1", "kline.5", "kline.15")]
    fitting, used = 0, 0
    for topic in topics:
        used += len(topic)
        fitting += used <= ARGS_MAX_CHARACTERS
    assert asked(wire, *topics[: fitting + 1])[0]["ret_msg"] == "error:args size >21000"
    assert asked(wire, *topics[:fitting])[0]["success"]
    assert not asked(wire, topics[fitting])[0]["success"]


@pytest.mark.parametrize("text", ["{", "[]", '{"op":5}', '{"op":"dance"}', '{"op":"subscribe","args":"x"}', "null"])
def test_nonsense_is_answered_with_an_error(text: str) -> None:
    (frame,) = wired("BTCUSDT")[1].answer(text, 0.0)
    assert isinstance(frame, str)
    assert json.loads(frame)["success"] is False


def test_a_connection_without_a_word_of_the_client_is_ended_after_ten_minutes() -> None:
    _, wire = wired("BTCUSDT")
    wire.answer('{"op":"ping"}', 100.0)
    assert [at for at in range(0, 740, 10) if wire.idle(float(at))] == [720]
    assert wire.idle(750.0) == [Close(ABNORMAL)]


def test_tickers_are_told_once_and_then_by_their_changes() -> None:
    _, wire = wired("BTCUSDT", "BTC-26DEC25")
    _, full, dated = asked(wire, "tickers.BTCUSDT", "tickers.BTC-26DEC25")
    assert (full["type"], dated["data"]["fundingRate"], dated["data"]["nextFundingTime"]) == ("snapshot", "", "0")
    known, deltas = dict(full["data"]), [f for f in played(wire, 60) if f["topic"] == "tickers.BTCUSDT"]
    assert {frame["type"] for frame in deltas} == {"delta"}
    for frame in deltas:
        changes = {key: value for key, value in frame["data"].items() if key != "symbol"}
        assert changes
        assert all(known[key] != value for key, value in changes.items())
        known |= changes
    assert any("markPrice" not in frame["data"] for frame in deltas)
    assert any("markPrice" in frame["data"] for frame in deltas)


def test_trades_are_those_of_the_tape_with_block_trades_between() -> None:
    venue, wire = wired("BTCUSDT")
    asked(wire, "publicTrade.BTCUSDT")
    frames = played(wire, 900)
    tape = venue.tapes["BTCUSDT"]
    rows = [row for frame in frames for row in frame["data"]]
    taped = tape.trades(START_MS - 1, rows[-1]["T"]).tolist()
    got = [(r["T"], r["p"], r["v"], r["S"] == "Sell") for r in rows if not r["BT"]]
    assert got == [
        (r[T.TIME], tape.price_text(r[T.PRICE]) + "0", tape.size_text(r[T.SIZE]), bool(r[T.MAKER])) for r in taped
    ]
    assert len({row["i"] for row in rows}) == len(rows)
    assert any(row["BT"] for row in rows)
    assert any(row["RPI"] for row in rows)
    assert len({frame["data"][0]["seq"] for frame in frames}) < len(frames)
    assert all(len({row["seq"] for row in frame["data"]}) == 1 for frame in frames)


def test_candles_are_confirmed_once_open_at_the_close_before_and_have_no_zeros_at_the_end() -> None:
    venue, wire = wired("BTCUSD", category="inverse")
    asked(wire, "kline.1.BTCUSD")
    bars = [frame["data"][0] for frame in played(wire, 400, step_ms=100)]
    closed = {bar["start"]: bar for bar in bars if bar["confirm"]}
    assert len(closed) == sum(bar["confirm"] for bar in bars) == 7
    expected = folded(venue.tapes["BTCUSD"], from_ms=min(closed), until_ms=max(closed) + MINUTE_MS)
    assert {
        start: tuple(float(bar[name]) for name in ("open", "high", "low", "close", "volume"))
        for start, bar in closed.items()
    } == expected
    assert all(bar["end"] == bar["start"] + MINUTE_MS - 1 for bar in bars)
    texts = [bar[name] for bar in bars for name in ("open", "high", "low", "close", "volume", "turnover")]
    assert not any("." in text and text.endswith("0") for text in texts)
    for bar in closed.values():
        assert float(bar["low"]) <= float(bar["volume"]) / float(bar["turnover"]) <= float(bar["high"])


# ---- history


async def test_markets_are_named_as_ccxt_names_them() -> None:
    async with emulated(*NATIVES) as (emulator, port), opened(port) as history:
        markets = await history.markets()
        assert {symbol: market.native for symbol, market in markets.items()} == SYMBOLS
        client = bybit({"options": {"fetchMarkets": {"types": ["linear", "inverse"]}}})
        client.urls["api"]["public"] = f"http://127.0.0.1:{port}"
        assert {symbol: of["id"] for symbol, of in (await client.load_markets()).items()} == SYMBOLS
        await client.close()
        linear, inverse = markets["BTC/USDT:USDT"], markets["BTC/USD:BTC"]
        assert (linear.exchange, linear.volume_unit, linear.max_leverage) == ("bybit", "base coin", 100.0)
        assert inverse.volume_unit == "contracts of 1 USD"
        assert linear.listed_at_ns == emulator.venue.tapes["BTCUSDT"].begin_ms * NS_PER_MS
        assert {symbol: BybitCodec.native_of(symbol) for symbol in markets} == SYMBOLS
        emulator.venue.halt("BTCUSDT")
        halted = await history.markets()
        assert set(halted) == set(SYMBOLS)
        assert [symbol for symbol, market in halted.items() if not market.trading] == ["BTC/USDT:USDT"]
        emulator.venue.delist("BTCUSDT")
        assert set(await history.markets()) == set(SYMBOLS) - {"BTC/USDT:USDT"}


async def test_instruments_are_paged_by_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bybit_rest, "INSTRUMENTS_MAX", 1)
    async with emulated(*NATIVES) as (emulator, port), opened(port) as history:
        assert {symbol: market.native for symbol, market in (await history.markets()).items()} == SYMBOLS
        being_delivered = 2  # asked for once of either kind, and none are
        assert emulator.venue.requests["market/instruments-info"] == len(NATIVES) + being_delivered


@pytest.mark.parametrize("symbol", ["BTC/USDT:USDT", "BTC/USD:BTC"])
async def test_candles_are_paged_final_and_equal_the_fold_of_the_tape(symbol: str) -> None:
    async with emulated(*NATIVES) as (emulator, port), opened(port) as history:
        market = (await history.markets())[symbol]
        tape = emulator.venue.tapes[market.native]
        candles = await history.candles(market, MINUTE, start_ns=BEGIN_MS * NS_PER_MS, end_ns=2 * START_MS * NS_PER_MS)
        last_ms = BEGIN_MS + HISTORY_MIN * MINUTE_MS
        assert by_open(candles) == folded(tape, from_ms=BEGIN_MS, until_ms=last_ms)
        assert emulator.venue.requests["market/kline"] == 2
        (span,) = await history.candles(
            market, FIVE, start_ns=BEGIN_MS * NS_PER_MS, end_ns=(BEGIN_MS + 6 * MINUTE_MS) * NS_PER_MS
        )
        start_ms = span.open_time_ns // NS_PER_MS
        assert by_open([span]) == folded(tape, from_ms=start_ms, until_ms=start_ms + 1, step_ms=5 * MINUTE_MS)
        marks = await history.mark_candles(market, MINUTE, start_ns=BEGIN_MS * NS_PER_MS, end_ns=START_MS * NS_PER_MS)
        assert [(m.open, m.close, m.volume) for m in marks] == [(c.open, c.close, 0.0) for c in candles]


@pytest.mark.parametrize(("after_close_ms", "final"), [(4999, False), (5000, True)])
async def test_a_row_is_final_five_seconds_after_its_close(after_close_ms: int, final: bool) -> None:
    close_ms = BEGIN_MS + 100 * MINUTE_MS
    async with emulated("BTCUSDT", start_ms=close_ms + after_close_ms) as (_, port), opened(port) as history:
        market = (await history.markets())["BTC/USDT:USDT"]
        span = {"start_ns": (close_ms - 3 * MINUTE_MS) * NS_PER_MS, "end_ns": 2 * close_ms * NS_PER_MS}
        got = await history.candles(market, MINUTE, **span)
        assert await history.time_ns() == (close_ms + after_close_ms) * NS_PER_MS
    assert (got[-1].close_time_ns == close_ms * NS_PER_MS) is final


async def test_trades_are_the_newest_without_block_trades() -> None:
    async with emulated("BTCUSDT") as (emulator, port), opened(port) as history:
        market = (await history.markets())["BTC/USDT:USDT"]
        tape, got = emulator.venue.tapes["BTCUSDT"], await history.trades(market)
        rows = tape.trades(START_MS - 86_400_000, START_MS)[-1000:].tolist()
        said = [one for one in executions(tape, rows)[-1000:] if not one["isBlockTrade"]]
        assert 950 < len(said) < 1000
        assert [(t.id, t.event_time_ns // NS_PER_MS) for t in got] == [
            (trade_id(s["execId"]), int(s["time"])) for s in said
        ]
        assert [t.price / 10**market.price_decimals for t in got] == [float(s["price"]) for s in said]
        assert [t.size / 10**market.size_decimals for t in got] == [float(s["size"]) for s in said]
        assert [t.taker_is_buyer for t in got] == [s["side"] == "Buy" for s in said]
        for span in ({"from_id": 5}, {"start_ns": 5}):
            with pytest.raises(RequestRefused, match="newest trades only"):
                await history.trades(market, **span)


async def test_funding_is_paged_back_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bybit_history, "_FUNDING_PAGE", 2)
    start_ms = BEGIN_MS + 3 * 86_400_000
    async with emulated("BTCUSDT", "BTC-26DEC25", start_ms=start_ms) as (emulator, port), opened(port) as history:
        markets = await history.markets()
        rates = await history.funding(markets["BTC/USDT:USDT"], start_ns=BEGIN_MS * NS_PER_MS)
        assert [r.time_ns for r in rates] == [rates[0].time_ns + i * 28_800 * NS_PER_S for i in range(9)]
        assert all(r.time_ns % (28_800 * NS_PER_S) == 0 and 0 < r.rate < 0.001 for r in rates)
        assert emulator.venue.requests["market/funding/history"] == 5
        assert await history.funding(markets["BTC/USDT:USDT"], start_ns=rates[4].time_ns) == rates[4:]
        assert await history.funding(markets["BTC/USDC:USDC-251226"], start_ns=0) == []


async def test_what_the_exchange_lacks_is_refused() -> None:
    async with emulated("BTCUSDT") as (emulator, port), opened(port) as history:
        market = (await history.markets())["BTC/USDT:USDT"]
        for text in ("5s", "8h", "100t"):
            with pytest.raises(RequestRefused, match=text):
                await history.candles(market, CandleSpec.parse(text), start_ns=0, end_ns=START_MS * NS_PER_MS)
        stranger = msgspec.structs.replace(market, native="NOPEUSDT")
        with pytest.raises(RequestRefused, match="Symbol Invalid"):
            await history.candles(stranger, MINUTE, start_ns=BEGIN_MS * NS_PER_MS, end_ns=START_MS * NS_PER_MS)
        emulator.faults.limit(1)
        with pytest.raises(RateLimited, match="Too many visits") as limited:
            await history.time_ns()
        emulator.faults.limit(1, banned=True)
        with pytest.raises(RateLimited, match="access too frequent") as banned:
            await history.time_ns()
        assert (limited.value.retry_after_s, banned.value.retry_after_s) == (60.0, 600.0)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"retCode": 10016, "retMsg": "Internal error"}, RemoteError), ({"retCode": 10000}, RemoteError),
        ({"retCode": 10001, "retMsg": "params error"}, RequestRefused), ({"retCode": 10018}, RateLimited),
        ({"retCode": 0, "result": {}}, RemoteError), ({"retCode": 0, "result": {"timeNano": "x"}}, RemoteError),
        ([], RemoteError),
    ],
)  # fmt: skip
async def test_who_is_to_blame(body: Any, error: type[FeedError]) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.json_response(body)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with opened(runner.addresses[0][1]) as history:
        with pytest.raises(error) as caught:
            await history.time_ns()
    await runner.cleanup()
    assert type(caught.value) is error


async def test_without_a_limit_two_hundred_rows_come_whatever_is_asked_for() -> None:
    async with emulated("BTCUSDT") as (_, port), opened(port) as history:
        ask = {"category": "linear", "symbol": "BTCUSDT", "interval": "1", "start": BEGIN_MS}
        rows = (await history.call("publicGetV5MarketKline", ask))["result"]["list"]
        assert [int(row[0]) for row in rows] == [BEGIN_MS + i * MINUTE_MS for i in reversed(range(200))]
        ask = {"category": "linear", "symbol": "BTCUSDT", "interval": "1", "limit": 5}
        rows = (await history.call("publicGetV5MarketKline", ask))["result"]["list"]
        assert int(rows[0][0]) == BEGIN_MS + HISTORY_MIN * MINUTE_MS, "the first row is the open candle"


def test_a_dated_contract_expires_on_its_day_or_on_the_last_friday_of_its_month() -> None:
    times = [int(contract(tape_of(native))["deliveryTime"]) for native in NATIVES]
    assert times == [0, 0, 0, 1766736000000, 1767340800000, 1766736000000]


# ---- ccxt


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[Any]:
    exchange = ccxt.pro.bybit({"timeout_on_exit": 0, "options": {"fetchMarkets": {"types": ["linear", "inverse"]}}})
    exchange.urls["api"]["public"] = f"http://127.0.0.1:{port}"
    for category in ("linear", "inverse"):
        exchange.urls["api"]["ws"]["public"][category] = f"ws://127.0.0.1:{port}/v5/public/{category}"
    try:
        yield exchange
    finally:
        await exchange.close()


async def watched_trades(client: Any, symbol: str, count: int) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while len(seen) < count:
        seen += await client.watch_trades(symbol)
    return [trade for trade in seen if not trade["info"]["BT"]]


async def watched_candles(client: Any, symbol: str, count: int) -> list[list[float]]:
    seen: dict[int, list[float]] = {}
    while len(seen) <= count:
        seen |= {candle[0]: candle for candle in await client.watch_ohlcv(symbol, "1m")}
    return [seen[opens] for opens in sorted(seen)[:-1]]


async def test_ccxt_pro_gets_the_tape() -> None:
    symbol = "BTC/USDT:USDT"
    async with emulated("BTCUSDT", "BTCUSD", speed=120.0) as (emulator, port), client_of(port) as client:
        trades, candles, inverse = await asyncio.gather(
            watched_trades(client, symbol, 60),
            watched_candles(client, symbol, 2),
            watched_trades(client, "BTC/USD:BTC", 20),
        )
        for native, got in (("BTCUSDT", trades), ("BTCUSD", inverse)):
            tape = emulator.venue.tapes[native]
            price, size = 10**tape.price_decimals, 10**tape.size_decimals
            rows = tape.trades(got[0]["timestamp"] - 1, got[-1]["timestamp"]).tolist()[: len(got)]
            assert [(t["timestamp"], t["price"], t["amount"], t["side"]) for t in got] == [
                (r[T.TIME], r[T.PRICE] / price, r[T.SIZE] / size, "sell" if r[T.MAKER] else "buy") for r in rows
            ]
        tape, first, last = emulator.venue.tapes["BTCUSDT"], int(candles[0][0]), int(candles[-1][0])
        expected = folded(tape, from_ms=first, until_ms=last + 1)
        assert {int(c[0]): tuple(c[1:]) for c in candles} == expected
        fetched = await client.fetch_ohlcv(symbol, "1m", since=BEGIN_MS, limit=300)
        until = BEGIN_MS + 300 * MINUTE_MS
        assert {int(c[0]): tuple(c[1:]) for c in fetched} == folded(tape, from_ms=BEGIN_MS, until_ms=until)


# ---- the feed


class Prompt(BybitCodec):
    """Bybit on loopback, with a life short enough to see its end."""

    request_spacing_s: ClassVar[float] = 0.0
    lifetime_s: ClassVar[float] = 2.5


class Follower:
    """What the pipeline does with one market's events: sequence, closer, and what the exchange says of closed ones."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.sequence = sequence_of(BybitCodec.traits)
        self.closer = Closer(market, MINUTE, BybitCodec.traits, has_kline=True, by_exchange=False)
        self.candles: dict[int, Candle] = {}
        self.trades: list[int] = []
        self.official: dict[int, Candle] = {}
        self.marks = self.rolled = self.losses = 0
        self.malformed: list[Malformed] = []
        self.seen = False

    def connected(self) -> None:
        self.seen = True

    def lost(self, reason: str) -> None:
        self.seen, self.losses = False, self.losses + 1

    def interrupted(self) -> None:
        self.closer.doubt()

    def rolled_over(self, lost: int) -> None:
        assert lost == 0
        self.rolled += 1

    def events(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, MarketTrade):
                if self.sequence.take(event.trade) is Verdict.NEXT:
                    self.trades.append(event.trade.id)
                    self._keep(self.closer.trade(event.trade))
            elif isinstance(event, MarkPrice | Kline):
                self._witness(event)
            elif isinstance(event, Malformed):
                self.malformed.append(event)

    def _witness(self, event: MarkPrice | Kline) -> None:
        if isinstance(event, Kline) and event.candle.closed:
            self.official[event.candle.open_time_ns // NS_PER_MS] = event.candle
            if event.candle.seq not in self.candles:
                self._keep(self.closer.kline(event.candle))
            return
        self.marks += isinstance(event, MarkPrice)
        if self.seen:
            self.closer.see(event.event_time_ns)
        self._keep(self.closer.time(event.event_time_ns))

    def _keep(self, closed: list[Candle]) -> None:
        for candle in closed:
            assert candle.seq not in self.candles, "told twice"
            self.candles[candle.seq] = candle


async def followed(emulator: Emulator, port: int, market: Market) -> Follower:
    """Follow a market over two cuts and at least one rollover, for nine candles or more."""
    follower, stop = Follower(market), asyncio.Event()
    runner = FeedRunner(
        codec_factory=lambda: Prompt([market], {market.symbol: [MINUTE]}),
        url=Prompt([market], {}).url(f"ws://127.0.0.1:{port}"),
        sink=follower,
        now_ns=emulator.now_ns,
        rng=random.Random(1),
        log=structlog.wrap_logger(CapturingLogger(), processors=[LogCapture()]),
    )
    task = asyncio.create_task(runner.run(stop))
    await until(lambda: len(follower.candles) >= 3 and follower.seen)
    await emulator.cut()
    await until(lambda: follower.losses >= 1 and follower.seen)
    await until(lambda: len(follower.candles) >= 9 and follower.rolled > 0)
    stop.set()
    await task
    return follower


async def test_candles_equal_the_fold_of_the_tape_over_cuts_rollovers_and_repetitions() -> None:
    async with emulated("BTCUSDT", "BTCUSD", speed=120.0) as (emulator, port), opened(port) as history:
        emulator.faults.duplicate = 0.05
        markets = (await history.markets()).values()
        for follower in await asyncio.gather(*(followed(emulator, port, market) for market in markets)):
            tape, got = emulator.venue.tapes[follower.market.native], by_open(follower.candles.values())
            expected = folded(tape, from_ms=min(got), until_ms=max(got) + MINUTE_MS)
            span = {"start_ns": min(got) * NS_PER_MS, "end_ns": (max(got) + MINUTE_MS) * NS_PER_MS}
            repaired = by_open(await history.candles(follower.market, MINUTE, **span))
            assert repaired | got == expected
            official = by_open(follower.official.values())
            until_ms = max(official) + MINUTE_MS
            assert official.items() <= folded(tape, from_ms=min(official), until_ms=until_ms).items()
            assert len(set(follower.trades)) == len(follower.trades)
            assert follower.malformed == []
            assert follower.marks > 50
            assert {candle.origin for candle in follower.candles.values()} == {Origin.TRADES, Origin.EXCHANGE}


async def test_a_refused_topic_is_told_with_its_reason() -> None:
    wrong = Market(exchange="bybit", symbol="NOPE/USDT:USDT", native="NOPEUSDT", price_decimals=2, size_decimals=2)
    async with emulated("BTCUSDT") as (_, port), joined(port, "/v5/public/linear") as socket:
        ((_, request),) = BybitCodec([wrong], {}).subscribe()
        await socket.send(request)
        (event,) = BybitCodec([wrong], {}).decode(await socket.recv(), 0)
        assert "handler not found,topic:publicTrade.NOPEUSDT" in str(event)
