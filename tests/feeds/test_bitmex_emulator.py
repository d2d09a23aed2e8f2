"""BitMEX on loopback: its frames and traps, its history, the feed over cuts, and the replay of a capture."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog
from aiohttp import web

from config.schema import Feed
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.record import record
from daemon.store import Store
from feeds.emulator import Emulator, Tape, tape_from
from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects.base import Wire
from feeds.emulator.dialects.bitmex import PARTIAL_LAG_MS, Bitmex
from feeds.emulator.dialects.bitmex_rest import BIN_LAG_MS, NO_GUID, instrument, iso, number
from feeds.emulator.sources import tape_of_trades
from feeds.emulator.tape import MINUTE_MS, T
from feeds.emulator.venue import Venue
from feeds.errors import FeedError, Forbidden, RateLimited, RemoteError, RequestRefused
from feeds.events import Ack, Kline, MarketTrade, MarkPrice
from feeds.exchanges.bitmex import BitmexCodec, trade_id
from feeds.history import bitmex as bitmex_history
from feeds.history import open_history
from feeds.history.bitmex import BitmexHistory
from feeds.history.client import TokenBucket
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Origin
from feeds.runner import FeedRunner
from inference.engine import Model
from inference.signals import Rules
from tests.daemon.brokers import until
from tests.daemon.lines import small_artifact
from tests.daemon.test_cli import lstmd
from tests.data import shared
from tests.feeds.test_bitmex import XBT, begun, codec_of, instruments, kinds
from tests.feeds.test_lanes import Sink
from tests.feeds.trades import APE, recorded

M1, M5 = CandleSpec.parse("1m"), CandleSpec.parse("5m")
BEGIN_MS = 1_700_000_040_000
HISTORY_MIN = 1500
START_MS = BEGIN_MS + HISTORY_MIN * MINUTE_MS + 31_000
NATIVES = ("XBTUSD", "ETHUSD", "SOLUSDT", "XBTZ26", "ETHZ26")
SYMBOLS = {
    "BTC/USD:BTC": "XBTUSD", "ETH/USD:BTC": "ETHUSD", "SOL/USDT:USDT": "SOLUSDT", "BTC/USD:BTC-261225": "XBTZ26",
    "ETH/BTC:BTC-261225": "ETHZ26",
}  # fmt: skip
TIMEOUT_S = 90.0


class Figures(NamedTuple):
    open: float
    high: float
    low: float
    close: float
    volume: float


@pytest.fixture(autouse=True)
def no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests ask as often as they like; the pace has its own."""
    monkeypatch.setattr(bitmex_history, "_BURST", 1000)


def tape_of(native: str) -> Tape:
    return tape_from("synthetic", native, seed=5, begin_ns=BEGIN_MS * NS_PER_MS)


@contextlib.asynccontextmanager
async def emulated(
    tapes: dict[str, Tape], *, start_ms: int = START_MS, speed: float = 1.0
) -> AsyncIterator[tuple[Emulator, int]]:
    emulator = Emulator(tapes, exchange="bitmex", start_ns=start_ms * NS_PER_MS, speed=speed)
    port = await emulator.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield emulator, port
    finally:
        await emulator.stop()


@contextlib.asynccontextmanager
async def opened(port: int) -> AsyncIterator[BitmexHistory]:
    history = open_history("bitmex", f"http://127.0.0.1:{port}")
    assert isinstance(history, BitmexHistory)
    try:
        yield history
    finally:
        await history.aclose()


def folded(tape: Tape, *, from_ms: int, until_ms: int, step_ms: int = MINUTE_MS) -> dict[int, Figures]:
    """Fold a tape the plain way into candles by open time: they open at the close before, whatever their range is."""
    price, out = 10**tape.price_decimals, {}
    for opens in range(from_ms, until_ms, step_ms):
        rows = tape.trades(opens - 1, opens + step_ms - 1).tolist()
        before = tape.price_at(opens - 1)
        prices = [row[T.PRICE] for row in rows] or [before]
        figures = (before / price, max(prices) / price, min(prices) / price, prices[-1] / price)
        out[opens] = Figures(*figures, float(sum(row[T.SIZE] for row in rows)))
    return out


def by_open(candles: Iterable[Candle]) -> dict[int, Figures]:
    return {c.open_time_ns // NS_PER_MS: Figures(c.open, c.high, c.low, c.close, c.volume) for c in candles}


# ---- the websocket's manners


def wired(*natives: str, start_ms: int = START_MS, **query: str) -> tuple[Venue, Wire]:
    venue = Venue(VirtualClock(start_ms * NS_PER_MS), {native: tape_of(native) for native in natives})
    return venue, Bitmex(venue).connect("/realtime", query, 0.0)


def asked(wire: Wire, *args: str, op: str = "subscribe") -> list[dict[str, Any]]:
    return loaded(wire.answer(json.dumps({"op": op, "args": args}), 0.0))


def loaded(frames: Iterable[Any]) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in frames if isinstance(frame, str)]


def played(wire: Wire, seconds: float, *, from_ms: int = START_MS, step_ms: int = 20) -> list[dict[str, Any]]:
    times = range(from_ms, from_ms + round(seconds * 1000), step_ms)
    return loaded(frame for at in times for frame in wire.due(at))


def captured(channel: str) -> Any:
    rows = [json.loads(line) for line in shared("live2026/frames.jsonl").read_text().splitlines()]
    return next(json.loads(r["raw"]) for r in rows if r["venue"] == "bitmex" and r["channel"].startswith(channel))


def fixture(name: str) -> Any:
    return json.loads((shared("nautilus/bitmex") / name).read_text())


def shape(value: dict[str, Any]) -> list[tuple[str, bool]]:
    """Say which keys in which order hold numbers; 77500.0 and 77500 are one to JSON."""
    return [(key, isinstance(of, int | float) and not isinstance(of, bool)) for key, of in value.items()]


def test_frames_have_the_shape_of_those_captured() -> None:
    _, wire = wired("XBTUSD")
    (welcome,) = loaded(wire.hello())
    assert shape(welcome) == shape(captured("welcome"))
    (ack, *_) = asked(wire, "trade:XBTUSD", "tradeBin1m:XBTUSD", "instrument:XBTUSD", "funding:XBTUSD")
    assert shape(ack) == shape(captured("subscribe ack"))
    frames = played(wire, 90)
    begin = next(f for f in frames if f["table"] == "trade" and f["action"] == "partial")
    real = captured("trade partial")
    assert list(real) == [key for key in begin if key != "types"]
    assert list(begin["filter"]) == list(real["filter"])
    insert = next(f for f in frames if f["table"] == "trade" and f["action"] == "insert")
    assert list(insert) == ["table", "action", "data"]
    for row in (begin["data"][0], insert["data"][0]):
        assert shape(row) == shape(fixture("ws_trade.json"))
    closed = next(
        f for f in frames if f["table"] == "tradeBin1m" and f["action"] == "insert" and f["data"][0]["volume"]
    )
    assert shape(closed["data"][0]) == shape(fixture("ws_trade_bin_1m.json"))
    (full,) = next(f for f in frames if f["table"] == "instrument" and f["action"] == "partial")["data"]
    known = dict(shape(fixture("http_get_instrument_xbtusd.json")))
    assert dict(shape(full)).items() <= known.items()
    update = next(f for f in frames if f["table"] == "instrument" and f["action"] == "update")
    assert 2 < len(update["data"][0]) < len(full)
    (funding,) = next(f for f in frames if f["table"] == "funding")["data"]
    assert shape(funding) == shape(fixture("ws_funding_rate.json"))


def test_instruments_of_every_kind_are_described_as_in_the_capture() -> None:
    real = {row["symbol"]: row for row in instruments()}
    names = ("typ", "underlying", "quoteCurrency", "settlCurrency", "isQuanto", "isInverse", "multiplier")
    for native, like in (("XBTUSD", "XBTUSD"), ("ETHUSD", "ETHUSD"), ("XBTZ26", "XBTU21"), ("ETHZ26", "ETHU21")):
        ours = json.loads(msgspec.json.encode(instrument(tape_of(native), START_MS)))
        expected = {name: real[like][name] for name in names}
        if native == "ETHZ26":
            expected["multiplier"] = 10**8
        assert {name: ours[name] for name in names} == expected


def test_a_table_begins_some_time_after_its_acknowledgement_and_what_comes_before_means_nothing() -> None:
    """Whoever takes the acknowledgement for the beginning misses the trades between it and the partial."""
    named = Counter[bool]()
    for traded in tape_of("XBTUSD").trades(START_MS, START_MS + 600_000)[::15, T.TIME].tolist():
        start_ms = traded - 100
        venue, wire = wired("XBTUSD", start_ms=start_ms)
        (ack,) = asked(wire, "trade:XBTUSD")
        frames, codec = played(wire, 30, from_ms=start_ms), codec_of(XBT)
        at = next(i for i, frame in enumerate(frames) if frame["action"] == "partial")
        assert at > 0
        assert [codec.decode(json.dumps(frame), 0) for frame in (ack, *frames[:at])] == [[]] * (at + 1)
        (*_, last) = venue.tapes["XBTUSD"].trades(0, start_ms + PARTIAL_LAG_MS - 12).tolist()
        assert frames[at]["data"][-1]["price"] * 10 == last[T.PRICE]
        is_named = frames[at]["data"][0]["trdMatchID"] != NO_GUID
        named[is_named] += 1
        events = [event for frame in frames[at:] for event in codec.decode(json.dumps(frame), 0)]
        sizes = sum(event.trade.size for event in events if isinstance(event, MarketTrade))
        rows = venue.tapes["XBTUSD"].trades(last[T.TIME], start_ms + 30_000 - 32).tolist()
        assert sizes - sum(row[T.SIZE] for row in rows) == is_named * last[T.SIZE]
    assert min(named.values()) > 1


@pytest.mark.parametrize("start_ms", [START_MS, START_MS + 7 * MINUTE_MS])
def test_the_rows_of_one_order_add_up_to_the_tapes_trades(start_ms: int) -> None:
    venue, wire = wired("XBTUSD", start_ms=start_ms)
    asked(wire, "trade:XBTUSD")
    frames = [f for f in played(wire, 600, from_ms=start_ms) if f["action"] == "insert"]
    rows = [row for frame in frames for row in frame["data"]]
    assert len({row["trdMatchID"] for row in rows}) == len(rows)
    assert any(len(frame["data"]) > 1 for frame in frames)
    assert all(len({row["timestamp"] for row in frame["data"]}) == 1 for frame in frames)
    sums = Counter[tuple[str, float, str]]()
    for row in rows:
        sums[row["timestamp"], row["price"], row["side"]] += row["size"]
    tape, expected = venue.tapes["XBTUSD"], Counter[tuple[str, float, str]]()
    for row in tape.trades(start_ms - 12, start_ms + 600_000 - 32).tolist():
        expected[iso(row[T.TIME]), row[T.PRICE] / 10, "Sell" if row[T.MAKER] else "Buy"] += row[T.SIZE]
    assert sums == expected


def test_bins_come_late_and_closed_under_the_time_of_their_end_and_open_at_the_close_before() -> None:
    venue, wire = wired("ETHUSD")
    asked(wire, "tradeBin1m:ETHUSD")
    tape, found, outside = venue.tapes["ETHUSD"], dict[int, Figures](), 0
    for at_ms in range(START_MS, START_MS + 3_600_000, 500):
        for frame in loaded(wire.due(at_ms)):
            (row,) = frame["data"]
            (kline,) = begun(ETHUSD).decode(json.dumps(frame), 0)
            assert isinstance(kline, Kline)
            end_ms = kline.candle.close_time_ns // NS_PER_MS
            if frame["action"] == "insert":
                assert BIN_LAG_MS <= at_ms - end_ms < BIN_LAG_MS + 500
            assert (row["vwap"] is None) == (row["volume"] == 0)
            outside += not row["low"] <= row["open"] <= row["high"]
            found |= by_open([kline.candle])
    assert found == folded(tape, from_ms=min(found), until_ms=max(found) + MINUTE_MS)
    assert len(found) == 61
    assert outside > 3


ETHUSD = msgspec.structs.replace(XBT, symbol="ETH/USD:BTC", native="ETHUSD", price_decimals=2)


def test_a_halted_market_has_empty_bins() -> None:
    venue, wire = wired("XBTUSD")
    venue.halt("XBTUSD")
    asked(wire, "tradeBin1m:XBTUSD")
    (*_, last) = played(wire, 200, step_ms=500)
    (row,) = last["data"]
    assert (row["volume"], row["trades"], row["vwap"], row["lastSize"]) == (0, 0, None, None)
    assert row["open"] == row["high"] == row["low"] == row["close"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"op":"subscribe","args":["trade:NOPE"]}', "Unknown or expired symbol."),
        ('{"op":"subscribe","args":"nonsense:XBTUSD"}', "Unknown table: nonsense"),
        ('{"op":"dance"}', "Unknown operation: dance"), ("{", "Unrecognized request."),
        ("null", "Unrecognized request."),
    ],
)  # fmt: skip
def test_nonsense_is_answered_with_an_error(text: str, said: str) -> None:
    (error,) = loaded(wired("XBTUSD")[1].answer(text, 0.0))
    assert (error["status"], error["error"]) == (400, said)


def test_topics_are_asked_for_in_the_address_or_by_request_and_only_once() -> None:
    _, wire = wired("XBTUSD", subscribe="trade:XBTUSD,tradeBin1m:XBTUSD")
    assert [frame.get("subscribe") for frame in loaded(wire.hello())] == [None, "trade:XBTUSD", "tradeBin1m:XBTUSD"]
    (error,) = asked(wire, "trade:XBTUSD")
    assert error["error"].startswith("You are already subscribed")
    assert wire.answer("ping", 0.0) == ["pong"]
    assert [f["unsubscribe"] for f in asked(wire, "trade:XBTUSD", "tradeBin1m:XBTUSD", op="unsubscribe")]
    assert played(wire, 120) == []


@pytest.mark.parametrize(
    ("scaled", "decimals", "text"),
    [
        (774545, 1, "77454.5"), (774540, 1, "77454"), (500, 0, "500"), (18190, 10, "0.000001819"),
        (1642, 10, "1.642e-7"), (1, 8, "1e-8"), (10, 8, "1e-7"), (100, 8, "0.000001"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_json_has_them(scaled: int, decimals: int, text: str) -> None:
    assert bytes(number(scaled, decimals)) == text.encode()
    assert round(float(text) * 10**decimals) == scaled


# ---- history


async def test_markets_are_named_as_ccxt_named_them_and_say_what_a_contract_is() -> None:
    async with emulated({native: tape_of(native) for native in NATIVES}) as (emulator, port), opened(port) as history:
        markets = await history.markets()
        assert {symbol: market.native for symbol, market in markets.items()} == SYMBOLS
        assert {symbol: BitmexCodec.native_of(symbol) for symbol in markets} == SYMBOLS
        assert {symbol: market.volume_unit for symbol, market in markets.items()} == {
            "BTC/USD:BTC": "contracts of 1 USD", "ETH/USD:BTC": "contracts of 0.000001 BTC per USD",
            "SOL/USDT:USDT": "contracts of 0.01 SOL", "BTC/USD:BTC-261225": "contracts of 1 USD",
            "ETH/BTC:BTC-261225": "contracts of 1 ETH",
        }  # fmt: skip
        btc = markets["BTC/USD:BTC"]
        assert (btc.exchange, btc.size_decimals, btc.max_leverage) == ("bitmex", 0, 100.0)
        assert btc.listed_at_ns == emulator.venue.tapes["XBTUSD"].begin_ms * NS_PER_MS
        emulator.venue.halt("XBTUSD")
        halted = await history.markets()
        assert set(halted) == set(SYMBOLS)
        assert [symbol for symbol, market in halted.items() if not market.trading] == ["BTC/USD:BTC"]
        emulator.venue.delist("XBTUSD")
        assert set(await history.markets()) == set(SYMBOLS) - {"BTC/USD:BTC"}


def test_the_instruments_of_a_capture_and_a_fixture() -> None:
    rows = [*instruments(), json.loads(json.dumps(fixture("http_get_instrument_xbtusd.json")), parse_float=str)]
    markets = [bitmex_history._market(row) for row in rows]
    units = {market.native: market.volume_unit for market in markets}
    assert len(markets) == 35
    assert {BitmexCodec.native_of(market.symbol) for market in markets} | {"ALTMEXUSD"} >= set(units)
    assert (units["XBTUSD"], units["XBTEUR"], units["XRPU21"]) == (
        "contracts of 1 USD", "contracts of 1 EUR", "contracts of 1 XRP",
    )  # fmt: skip
    assert (units["XRPUSD"], units["DOGEUSDT"]) == (
        "contracts of 0.0002 BTC per USD", "contracts of 0.001 BTC per USDT",
    )  # fmt: skip
    assert markets[-1].price_decimals == 3
    assert markets[-1].listed_at_ns == 1463140800 * NS_PER_S
    future = bitmex_history._market({**rows[-1], "listing": "2200-02-01T00:00:00.000Z"})
    assert future.listed_at_ns is None


@pytest.mark.parametrize("symbol", ["BTC/USD:BTC", "SOL/USDT:USDT"])
async def test_candles_are_paged_final_and_equal_the_fold_of_the_tape(symbol: str) -> None:
    async with emulated({native: tape_of(native) for native in NATIVES}) as (emulator, port), opened(port) as history:
        market = (await history.markets())[symbol]
        tape, end_ns = emulator.venue.tapes[market.native], 2 * START_MS * NS_PER_MS
        candles = await history.candles(market, M1, start_ns=BEGIN_MS * NS_PER_MS, end_ns=end_ns)
        last_ms = BEGIN_MS + HISTORY_MIN * MINUTE_MS
        assert by_open(candles) == folded(tape, from_ms=BEGIN_MS, until_ms=last_ms)
        assert emulator.venue.requests["trade/bucketed"] == 2
        assert any(not c.low <= c.open <= c.high for c in candles)
        (one,) = await history.candles(
            market, M1, start_ns=candles[7].open_time_ns, end_ns=candles[7].close_time_ns
        )  # fmt: skip
        assert one == candles[7]
        (five,) = await history.candles(
            market, M5, start_ns=BEGIN_MS * NS_PER_MS, end_ns=(BEGIN_MS + 6 * MINUTE_MS) * NS_PER_MS
        )
        start_ms = five.open_time_ns // NS_PER_MS
        assert by_open([five]) == folded(tape, from_ms=start_ms, until_ms=start_ms + 1, step_ms=5 * MINUTE_MS)
        assert await history.mark_candles(market, M1, start_ns=BEGIN_MS * NS_PER_MS, end_ns=end_ns) == []


@pytest.mark.parametrize(("after_close_ms", "final"), [(29_500, False), (30_000, True)])
async def test_a_bin_is_final_thirty_seconds_after_its_end(after_close_ms: int, final: bool) -> None:
    close_ms = BEGIN_MS + 100 * MINUTE_MS
    start_ms = close_ms + after_close_ms
    async with emulated({"XBTUSD": tape_of("XBTUSD")}, start_ms=start_ms) as (_, port), opened(port) as history:
        span = {"start_ns": (close_ms - 3 * MINUTE_MS) * NS_PER_MS, "end_ns": 2 * close_ms * NS_PER_MS}
        got = await history.candles(XBT, M1, **span)
        assert await history.time_ns() == start_ms * NS_PER_MS
    assert (got[-1].close_time_ns == close_ms * NS_PER_MS) is final


async def test_trades_are_served_from_a_time_on_or_the_newest() -> None:
    async with emulated({"XBTUSD": tape_of("XBTUSD")}) as (emulator, port), opened(port) as history:
        market = (await history.markets())["BTC/USD:BTC"]
        tape = emulator.venue.tapes["XBTUSD"]
        newest = await history.trades(market)
        since = await history.trades(market, start_ns=newest[0].event_time_ns + NS_PER_MS)
        assert len(newest) == 1000
        assert since == [trade for trade in newest if trade.event_time_ns > newest[0].event_time_ns]
        times = [trade.event_time_ns for trade in newest]
        assert times == sorted(times)
        rows = tape.trades(times[0] // NS_PER_MS, START_MS - 12).tolist()
        assert sum(trade.size for trade in since) == sum(row[T.SIZE] for row in rows)
        (*_, last) = rows
        assert newest[-1].price == last[T.PRICE] * 10 ** (market.price_decimals - 1)
        assert newest[-1].taker_is_buyer is not bool(last[T.MAKER])
        assert len({trade.id for trade in newest}) == 1000
        with pytest.raises(RequestRefused, match="not from an id"):
            await history.trades(market, from_id=5)


async def test_the_ids_of_rest_and_stream_are_the_same() -> None:
    _, wire = wired("XBTUSD")
    asked(wire, "trade:XBTUSD")
    streamed = {trade_id(r["trdMatchID"]) for f in played(wire, 60) if f["action"] == "insert" for r in f["data"]}
    start_ms = START_MS + 70_000
    async with emulated({"XBTUSD": tape_of("XBTUSD")}, start_ms=start_ms) as (_, port), opened(port) as history:
        fetched = await history.trades((await history.markets())["BTC/USD:BTC"], start_ns=START_MS * NS_PER_MS)
    assert streamed <= {trade.id for trade in fetched}


async def test_funding_is_paged_and_futures_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmex_history, "_FUNDING_ROWS", 2)
    monkeypatch.setattr(bitmex_history, "_FUNDING_FEW", 2)
    tapes = {native: tape_of(native) for native in ("XBTUSD", "XBTZ26")}
    start_ms = BEGIN_MS + 3 * 86_400_000
    async with emulated(tapes, start_ms=start_ms) as (emulator, port), opened(port) as history:
        markets = await history.markets()
        rates = await history.funding(markets["BTC/USD:BTC"], start_ns=BEGIN_MS * NS_PER_MS)
        assert [r.time_ns for r in rates] == [rates[0].time_ns + i * 28_800 * NS_PER_S for i in range(9)]
        assert all(0 < r.rate < 0.001 for r in rates)
        assert emulator.venue.requests["funding"] == 5
        assert await history.funding(markets["BTC/USD:BTC"], start_ns=rates[4].time_ns) == rates[4:]
        assert await history.funding(markets["BTC/USD:BTC-261225"], start_ns=0) == []


async def test_what_the_exchange_lacks_is_refused_and_its_limits_are_kept() -> None:
    async with emulated({"XBTUSD": tape_of("XBTUSD")}) as (emulator, port), opened(port) as history:
        for text in ("5s", "15m", "100t"):
            with pytest.raises(RequestRefused, match=text):
                await history.candles(XBT, CandleSpec.parse(text), start_ns=0, end_ns=START_MS * NS_PER_MS)
        stranger = msgspec.structs.replace(XBT, native="NOPE")
        span = {"start_ns": BEGIN_MS * NS_PER_MS, "end_ns": START_MS * NS_PER_MS}
        assert await history.candles(stranger, M1, **span) == []
        emulator.faults.limit(1, retry_after_s=7)
        with pytest.raises(RateLimited, match="429") as limited:
            await history.time_ns()
        emulator.faults.limit(1, retry_after_s=9, banned=True)
        with pytest.raises(RateLimited, match="403") as banned:
            await history.time_ns()
        assert (limited.value.retry_after_s, banned.value.retry_after_s) == (7.0, 9.0)
    with pytest.raises(RequestRefused, match="not an address"):
        open_history("bitmex", "127.0.0.1")


WRONG = '{"error":{"message":"Invalid symbol","name":"HTTPError"}}'


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, WRONG, RequestRefused), (404, WRONG, RequestRefused), (401, WRONG, RequestRefused),
        (403, "", RateLimited), (429, "", RateLimited), (451, "", Forbidden),
        (500, WRONG, RemoteError), (503, "overloaded", RemoteError), (302, "", RemoteError),
        (200, "<html>", RemoteError), (200, "[]", RemoteError), (200, "{}", RemoteError),
        (200, '[{"symbol":"XBTUSD"}]', RemoteError), (200, '[{"symbol":"XBTUSD","timestamp":"soon"}]', RemoteError),
        (200, '[{"symbol":"XBTUSD","timestamp":5}]', RemoteError), (200, "[1]", RemoteError),
        (200, "null", RemoteError),
    ],
)  # fmt: skip
async def test_who_is_to_blame(status: int, body: str, error: type[FeedError]) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

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
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after_s == 60.0


async def test_an_exchange_that_is_not_there_is_a_remote_fault() -> None:
    async with emulated({"XBTUSD": tape_of("XBTUSD")}) as (_, port):
        pass
    async with opened(port) as history:
        with pytest.raises(RemoteError):
            await history.time_ns()


def test_the_pace_is_a_bucket_of_tokens() -> None:
    pace = TokenBucket(burst=3, per_s=0.5)
    assert [pace.take(10.0) for _ in range(5)] == [0.0, 0.0, 0.0, 2.0, 4.0]
    assert pace.take(20.0) == 0.0, "two were owed, and five have come back"
    assert [pace.take(1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]


# ---- the feed


@contextlib.asynccontextmanager
async def at_desk(port: int, folder: Path, symbol: str) -> AsyncIterator[tuple[Desk, dict[int, Candle]]]:
    """Run one market of the daemon's feed; candles as they are committed, by ordinal."""
    pipeline = Pipeline(Model(small_artifact("1m"), Rules()), base_topic="lstmd")
    candles: dict[int, Candle] = {}

    def moved() -> None:
        for _, work in pipeline.take_work():
            candles.update((row.candle.seq, row.candle) for row in work.rows if row.candle)

    url = f"127.0.0.1:{port}"
    feed = Feed(exchange="bitmex", symbols=(symbol,), candles=("1m",), ws_url=f"ws://{url}", rest_url=f"http://{url}")
    desk, stop = Desk(0, feed, pipeline, Store(folder / "s.sqlite"), Metrics(), moved), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.run(stop))
        try:
            yield desk, candles
        finally:
            stop.set()
            task.cancel()


async def test_a_feed_is_connected_once_its_tables_have_begun_and_hands_on_what_they_began_with() -> None:
    rows = tape_of("XBTUSD").trades(START_MS, START_MS + 1_800_000).tolist()
    quiet = (row for row, after in pairwise(rows) if row[T.ID] % 2 == 0 and after[T.TIME] > row[T.TIME] + 15_000)
    last = next(quiet)  # whose id a partial tells
    start_ms = last[T.TIME] + 500
    async with emulated({"XBTUSD": tape_of("XBTUSD")}, start_ms=start_ms) as (emulator, port):
        sink, stop = Sink(), asyncio.Event()
        runner = FeedRunner(
            codec_factory=lambda: codec_of(XBT), url=codec_of(XBT).url(f"ws://127.0.0.1:{port}"), sink=sink,
            now_ns=emulator.now_ns, rng=random.Random(1), log=structlog.get_logger(),
        )  # fmt: skip
        task = asyncio.create_task(runner.run(stop))
        await until(lambda: bool(sink.edges))
        stop.set()
        await task
    assert sink.edges[0][0] == "connected"
    began = sink.events_seen[: sink.edges[0][1]]
    assert {type(event) for event in began} == {MarketTrade, MarkPrice, Kline}
    trades = [event.trade for event in began if isinstance(event, MarketTrade)]
    assert sum(trade.size for trade in trades) == last[T.SIZE]
    assert {trade.event_time_ns for trade in trades} == {last[T.TIME] * NS_PER_MS}


def assert_candles_are_the_tapes(candles: dict[int, Candle], tape: Tape) -> None:
    seqs = sorted(candles)
    assert seqs == list(range(seqs[0], seqs[-1] + 1))
    span = {"from_ms": (seqs[0] - 1) * MINUTE_MS, "until_ms": seqs[-1] * MINUTE_MS}
    assert by_open(candles[seq] for seq in seqs) == folded(tape, **span)


async def test_real_trades_over_cuts_and_repetitions_fold_into_the_tapes_candles(tmp_path: Path) -> None:
    tape = tape_of_trades("APEUSDT", recorded(APE))
    begun_ms = tape.begin_ms + 4 * 3_600_000
    async with (
        emulated({"APEUSDT": tape}, start_ms=begun_ms, speed=480.0) as (emulator, port),
        at_desk(port, tmp_path, "APE/USDT:USDT") as (desk, candles),
    ):
        emulator.faults.duplicate = 0.05
        for number in range(1, 3):
            await until(lambda: desk.live)
            reached = max(candles, default=0)
            await until(lambda: max(candles, default=0) > reached + 5)  # noqa: B023 (awaited here)
            await emulator.cut()
            await until(lambda: desk.reconnects == number)  # noqa: B023
        await until(lambda: desk.live and max(candles) > begun_ms // MINUTE_MS + 30)
    assert_candles_are_the_tapes(candles, tape)
    origins = Counter(candle.origin for seq, candle in candles.items() if seq > begun_ms // MINUTE_MS + 1)
    assert origins[Origin.TRADES] > 15
    assert sum(origins.values()) - origins[Origin.TRADES] >= 2, "one at least for each cut"


async def test_a_quiet_market_closes_on_its_bins(tmp_path: Path) -> None:
    rows = recorded(APE)
    begun_ms = rows[0].time_ms + 3_600_000
    one = next(row for row in rows if row.time_ms > begun_ms + 2 * MINUTE_MS)
    tape = tape_of_trades("APEUSDT", [*rows[:50], one, rows[-1]])
    async with (
        emulated({"APEUSDT": tape}, start_ms=begun_ms, speed=360.0) as (_, port),
        at_desk(port, tmp_path, "APE/USDT:USDT") as (_, candles),
    ):
        last = one.time_ms // MINUTE_MS + 1
        await until(lambda: max(candles, default=0) > last + 4)
    assert_candles_are_the_tapes(candles, tape)
    assert {candles[seq].volume for seq in range(last + 1, last + 4)} == {0.0}


# ---- captures


def test_a_capture_is_replayed_into_the_tapes_candles(tmp_path: Path) -> None:
    """The emulator's frames in the format of a foreign capture, over two connections."""
    venue, wire = wired("XBTUSD")
    lines: list[str] = []
    ((_, request),) = codec_of(XBT).subscribe()
    for from_ms, until_ms in ((START_MS, START_MS + 600_000), (START_MS + 600_000, START_MS + 1_500_000)):
        frames = [(from_ms, frame) for frame in (*wire.hello(), *wire.answer(request, 0.0))]
        frames += [(at, frame) for at in range(from_ms, until_ms, 100) for frame in wire.due(at)]
        lines += [f"{at / 1000}: {frame}\n" for at, frame in frames if isinstance(frame, str)]
        wire = Bitmex(venue).connect("/realtime", {}, 0.0)
        wire.due(until_ms)
    tape = tmp_path / "capture"
    tape.write_text("".join(lines))
    done = lstmd("replay", str(tape), "--symbol", "BTC/USD:BTC", "--exchange", "bitmex", "--kind", "candle")
    assert done.returncode == 0, done.stderr
    candles = [json.loads(line)["payload"] for line in done.stdout.splitlines()]
    assert len(candles) >= 20
    got = {ms_of(c["open_time"]): tuple(c[name] for name in Figures._fields) for c in candles}
    whole = {opens: figures for opens, figures in got.items() if opens > START_MS}
    expected = folded(venue.tapes["XBTUSD"], from_ms=min(whole), until_ms=max(whole) + MINUTE_MS)
    assert whole.items() <= expected.items()
    assert len(expected) - len(whole) <= 1, "the minute of the second connection may be unknown"


def ms_of(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def test_a_real_capture_is_replayed() -> None:
    tape = shared("cryptofeed/BITMEX.ws.1.0.gz")
    done = lstmd(
        "replay", str(tape), "--symbol", "BTC/USD:BTC", "--exchange", "bitmex", "--kind", "candle", "--candles", "5s"
    )
    assert done.returncode == 0, done.stderr
    candles = [json.loads(line)["payload"] for line in done.stdout.splitlines()]
    traded = {c["open_time"][11:19]: (c["open"], c["high"], c["low"], c["close"], c["volume"]) for c in candles}
    assert traded["22:36:10"] == (32175.0, 32180.5, 32180.5, 32180.5, 1000.0)
    assert traded["22:36:20"] == (32180.5, 32182.5, 32182.5, 32182.5, 400.0)
    assert traded["22:36:25"] == (32182.5, 32182.5, 32182.5, 32182.5, 0.0)


async def test_what_record_wrote_says_the_same_as_the_tape(tmp_path: Path) -> None:
    tapes = {native: tape_of(native) for native in ("XBTUSD",)}
    async with emulated(tapes, speed=240.0) as (emulator, port):
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(2.0, stop.set)
        where = f"127.0.0.1:{port}"
        await record(
            tmp_path / "r", exchange="bitmex", symbols=["BTC/USD:BTC"], specs=[M1], max_bytes=1 << 30,
            ws_url=f"ws://{where}", rest_url=f"http://{where}", stop=stop,
        )  # fmt: skip
        done = await asyncio.to_thread(lstmd, "replay", str(tmp_path / "r"), "--kind", "candle")
        assert done.returncode == 0, done.stderr
        candles = [json.loads(line)["payload"] for line in done.stdout.splitlines()]
        opens = [ms_of(candle["open_time"]) for candle in candles]
        assert len(opens) > 3
        expected = folded(emulator.venue.tapes["XBTUSD"], from_ms=opens[0], until_ms=opens[-1] + MINUTE_MS)
        assert [tuple(c[name] for name in Figures._fields) for c in candles] == list(expected.values())


# ---- the exchange is closed


@pytest.mark.parametrize(
    "command",
    [
        ("history", "--symbol", "BTC/USD:BTC", "--since", "2026-01-01", "--out", "x"),
        ("record", "x", "--symbol", "BTC/USD:BTC"),
        ("record", "x", "--symbol", "BTC/USD:BTC", "--rest-url", "http://127.0.0.1:9"),
        ("record", "x", "--symbol", "BTC/USD:BTC", "--ws-url", "ws://127.0.0.1:9"),
    ],
)
def test_commands_say_that_the_exchange_is_closed(command: tuple[str, ...]) -> None:
    done = lstmd(*command, "--exchange", "bitmex")
    assert done.returncode == 78
    assert "BitMEX closed on 2026-09-23" in done.stderr


def test_the_codec_understands_every_frame_of_an_hour() -> None:
    _, wire = wired("XBTUSD")
    ((_, request),) = codec_of(XBT).subscribe()
    frames = [frame for frame in (*wire.hello(), *wire.answer(request, 0.0)) if isinstance(frame, str)]
    for at in range(START_MS, START_MS + 3_600_000, 250):
        frames += [frame for frame in wire.due(at) if isinstance(frame, str)]
    codec = codec_of(XBT)
    events = [event for frame in frames for event in codec.decode(frame, 0)]
    assert kinds(events) == []
    count = Counter(type(event) for event in events)
    assert count[Ack] == 1
    assert count[Kline] == 61
    assert count[MarkPrice] > 5000
