"""Bitget on loopback: its frames and traps, our feed against it, and ccxt as a client nobody here wrote."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import ccxt.pro
import pytest
import structlog
from ccxt.async_support.bitget import bitget

from config.schema import Feed
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.store import Store
from feeds.emulator import Emulator, Tape
from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects.base import ABNORMAL, Close, Frame, Wire
from feeds.emulator.dialects.bitget import REQUESTS_MAX, TRADES_SNAPSHOT, Bitget
from feeds.emulator.dialects.bitget_rest import trade_id
from feeds.emulator.sources import tape_of_trades
from feeds.emulator.tape import MINUTE_MS, T
from feeds.emulator.venue import Venue
from feeds.events import Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal
from feeds.exchanges.bitget import BitgetCodec
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin
from feeds.runner import FeedRunner
from feeds.sequence import Verdict, sequence_of
from inference.engine import Model
from inference.signals import Rules
from tests.daemon.brokers import until
from tests.daemon.lines import small_artifact
from tests.feeds.emulators import START_MS, invented
from tests.feeds.test_bitget import lines, market
from tests.feeds.trades import APE, recorded

M1 = CandleSpec.parse("1m")
BTC = market("BTC/USDT:USDT", size_decimals=3)
WAIT_S = 90
Figures = tuple[float, float, float, float, float]


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(bitget, "timeout_on_exit", 0)


@contextlib.asynccontextmanager
async def emulated(
    tapes: dict[str, Tape], *, start_ms: int = START_MS, **options: Any
) -> AsyncIterator[tuple[Emulator, int]]:
    emulator = Emulator(tapes, exchange="bitget", start_ns=start_ms * NS_PER_MS, **options)
    port = await emulator.start()
    try:
        async with asyncio.timeout(WAIT_S):
            yield emulator, port
    finally:
        await emulator.stop()


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


# ---- frames


def wired(*natives: str) -> tuple[Venue, Wire]:
    venue = Venue(VirtualClock(START_MS * NS_PER_MS), {name: invented(name) for name in natives or ("BTCUSDT",)})
    return venue, Bitget(venue).connect("/v2/ws/public", {}, 0.0)


def arg(channel: str, native: str = "BTCUSDT", product: str = "USDT-FUTURES") -> dict[str, str]:
    return {"instType": product, "channel": channel, "instId": native}


def bodies(frames: list[Frame]) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in frames if isinstance(frame, str)]


def asked(wire: Wire, *args: dict[str, str], op: str = "subscribe") -> list[dict[str, Any]]:
    return bodies(wire.answer(json.dumps({"op": op, "args": args}), 0.0))


def played(wire: Wire, seconds: float, *, begin_ms: int = START_MS, step_ms: int = 20) -> list[dict[str, Any]]:
    times = range(begin_ms, begin_ms + round(seconds * 1000), step_ms)
    return [body for at in times for body in bodies(wire.due(at))]


def captured(channel: str) -> Any:
    rows = lines("live2026/frames.jsonl")
    return next(json.loads(r["raw"]) for r in rows if r["venue"].startswith("bitget") and channel in r["channel"])


def shape(node: Any) -> Any:
    """Reduce JSON to its keys and the kinds of its values."""
    if isinstance(node, dict):
        return {name: shape(value) for name, value in node.items()}
    return [shape(node[0])] if isinstance(node, list) else type(node)


def test_frames_have_the_shape_of_the_captured_ones() -> None:
    _, wire = wired()
    acks = asked(wire, arg("trade"), arg("candle1m"), arg("ticker"))
    assert shape(acks[1]) == shape(captured("candle1m subscribe ack"))
    assert [ack["arg"]["channel"] for ack in acks] == ["trade", "candle1m", "ticker"]
    updates = {f"{f['action']} {f['arg']['channel']}": f for f in played(wire, 60)}
    assert shape(updates["update trade"]) == shape(captured("trade update"))
    assert shape(updates["update candle1m"]) == shape(captured("candle1m update"))
    old = [json.loads(r["raw"]) for r in lines("jkorf/bitget.jsonl") if '"ticker"' in r["raw"] and "data" in r["raw"]]
    old[0]["data"][0]["symbolType"] = "1"
    assert shape(updates["snapshot ticker"]) == shape(old[0])
    (error,) = asked(wire, arg("trade", "NOPEUSDT"))
    assert shape(error) == shape(captured("unknown instId error"))
    assert error["code"] == 30001


def test_each_channel_is_answered_for_itself_and_wrong_ones_with_their_code() -> None:
    _, wire = wired("BTCUSDT", "BTCPERP")
    wrong = ("markPrice", "candle1h", "candle1D", "candle3m", "candle1M", "")
    answers = asked(wire, arg("trade"), *(arg(channel) for channel in wrong), arg("ticker", "ETHUSDT"))
    assert [answer["event"] for answer in answers] == ["subscribe", *["error"] * 7]
    assert [answer["code"] for answer in answers[1:]] == [30016] * 6 + [30001]
    assert {frame["arg"]["channel"] for frame in played(wire, 60)} == {"trade"}


@pytest.mark.parametrize("product", ["USDC-FUTURES", "SPOT", "usdt-futures", "mc"])
def test_a_wrong_product_type_is_acknowledged_and_silent(product: str) -> None:
    _, wire = wired()
    assert [a["event"] for a in asked(wire, arg("trade", product=product), arg("ticker", product=product))] == [
        "subscribe", "subscribe",
    ]  # fmt: skip
    assert played(wire, 60) == []


def test_a_subscription_begins_with_a_snapshot_newest_first_and_so_does_the_next() -> None:
    venue, wire = wired()
    tape = venue.tapes["BTCUSDT"]
    for begin_ms in (START_MS, START_MS + 900_000):
        asked(wire, arg("trade"))
        pushes = played(wire, 900, begin_ms=begin_ms, step_ms=500)
        (at,) = (n for n, push in enumerate(pushes) if push["action"] == "snapshot")
        snapshot, updates = pushes[at], pushes[at + 1 :]
        assert len(snapshot["data"]) == TRADES_SNAPSHOT
        assert {frame["action"] for frame in updates} == {"update"}
        frames = [[int(row["tradeId"]) for row in frame["data"]] for frame in (snapshot, *updates)]
        assert all(ids == sorted(ids, reverse=True) for ids in frames)
        assert max(len(ids) for ids in frames[1:]) > 1
        ids = sorted({number for ids in frames for number in ids})
        first_ms = int(snapshot["data"][-1]["ts"])
        expected = [trade_id(row) for row in tape.trades(first_ms - 1, begin_ms + 900_000).tolist()]
        assert ids == expected[expected.index(ids[0]) :][: len(ids)]
        assert len(ids) > TRADES_SNAPSHOT + 10


def test_candles_begin_with_history_oldest_first_and_never_say_that_they_are_closed() -> None:
    venue, wire = wired()
    asked(wire, arg("candle1m"))
    snapshot, *updates = played(wire, 200, step_ms=100)
    begun = [int(row[0]) for row in snapshot["data"]]
    assert snapshot["action"] == "snapshot"
    assert begun == list(range(begun[0], begun[0] + len(begun) * MINUTE_MS, MINUTE_MS))
    assert begun[-1] == START_MS // MINUTE_MS * MINUTE_MS
    told = {int(row[0]): tuple(map(float, row[1:6])) for frame in (snapshot, *updates) for row in frame["data"]}
    expected = folded(venue.tapes["BTCUSDT"], from_ms=begun[0], until_ms=begun[-1] + 3 * MINUTE_MS)
    assert {opened: told[opened] for opened in expected} == expected
    assert {len(row) for frame in (snapshot, *updates) for row in frame["data"]} == {8}
    assert all(later["ts"] - earlier["ts"] >= 200 for earlier, later in pairwise(updates))


def test_a_connection_that_does_not_ping_for_two_minutes_is_ended_while_data_flows() -> None:
    _, wire = wired()
    asked(wire, arg("ticker"))
    assert len(played(wire, 10)) > 50
    assert wire.answer("ping", 100.0) == ["pong"]
    assert [second for second in range(0, 300, 10) if wire.idle(float(second))] == list(range(240, 300, 10))
    assert wire.idle(250.0) == [Close(ABNORMAL)]


def test_requests_too_long_or_too_many_end_the_connection() -> None:
    _, wire = wired()
    (error, close) = wire.answer(json.dumps({"op": "subscribe", "args": [arg("trade")] * 60}), 0.0)
    assert close == Close(ABNORMAL)
    (refusal,) = BitgetCodec([BTC], {}).decode(str(error), 7)
    assert refusal == Refusal(None, 30007, "request over limit,connection close")
    _, wire = wired()
    assert all(len(asked(wire, arg("ticker"))) == 1 for _ in range(REQUESTS_MAX))
    assert wire.answer(json.dumps({"op": "subscribe", "args": [arg("trade")]}), 0.0)[-1] == Close(ABNORMAL)


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", 30002), ("[]", 30002), ('{"op":"dance"}', 30003), ('{"op":"subscribe","args":[{}]}', 30002)],
)
def test_nonsense_is_answered_with_an_error_without_an_argument(text: str, code: int) -> None:
    (body,) = bodies(wired()[1].answer(text, 0.0))
    assert (body["event"], body["code"], "arg" in body) == ("error", code, False)


def test_unsubscribed_channels_fall_silent() -> None:
    _, wire = wired()
    asked(wire, arg("trade"), arg("ticker"))
    assert played(wire, 5)
    assert [a["event"] for a in asked(wire, arg("trade"), arg("ticker"), op="unsubscribe")] == ["unsubscribe"] * 2
    assert played(wire, 60, begin_ms=START_MS + 5000) == []


# ---- the feed


class Sink:
    def __init__(self) -> None:
        self.all: list[Event] = []
        self.edges: list[str] = []

    def connected(self) -> None:
        self.edges.append("connected")

    def lost(self, reason: str) -> None:
        self.edges.append(f"lost: {reason}")

    def interrupted(self) -> None:
        pass

    def rolled_over(self, lost: int) -> None:
        self.edges.append(f"rolled over: {lost}")

    def events(self, events: list[Event]) -> None:
        self.all += events


class Quick(BitgetCodec):
    """Bitget with patience for loopback."""

    request_spacing_s: ClassVar[float] = 0.11
    ping_every_s: ClassVar[float | None] = 0.5


class Mute(Quick):
    """A client that never pings."""

    ping_every_s: ClassVar[float | None] = None


class Astray(Quick):
    """A client that names the wrong product type."""

    silence_s: ClassVar[float] = 1.0

    def subscribe(self) -> list[tuple[int, str]]:
        return [(number, frame.replace("USDT-FUTURES", "USDC-FUTURES")) for number, frame in super().subscribe()]

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        text = frame if isinstance(frame, str) else frame.decode()
        return super().decode(text.replace("USDC-FUTURES", "USDT-FUTURES"), receive_time_ns)


@contextlib.asynccontextmanager
async def feeding(port: int, *markets: Market, codec: type[BitgetCodec] = Quick) -> AsyncIterator[Sink]:
    sink, stop = Sink(), asyncio.Event()
    runner = FeedRunner(
        codec_factory=lambda: codec(markets, {one.symbol: [M1] for one in markets}),
        url=codec(markets, {}).url(f"ws://127.0.0.1:{port}"),
        sink=sink,
        now_ns=lambda: 7,
        rng=random.Random(1),
        log=structlog.get_logger(),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(runner.run(stop))
        try:
            yield sink
        finally:
            stop.set()


async def test_a_feed_gets_every_trade_once_in_order_through_repetitions_and_lives_on_pings() -> None:
    tape = invented("BTCUSDT")
    async with (
        emulated({"BTCUSDT": tape}, speed=120.0, keepalive_speed=80.0) as (emulator, port),
        feeding(port, BTC) as sink,
    ):
        emulator.faults.duplicate = 0.2
        # At eighty seconds of patience in one, the exchange's has passed more than once.
        await until(lambda: emulator.now_ns() // NS_PER_MS > START_MS + 400_000)
        assert sink.edges == ["connected"]
        assert emulator.venue.requests["websocket"] == 1
    assert set(map(type, sink.all)) == {MarketTrade, MarkPrice, Kline}
    told = [event.trade for event in sink.all if isinstance(event, MarketTrade)]
    sequence = sequence_of(BitgetCodec.traits)
    taken = [trade for trade in told if sequence.take(trade) is Verdict.NEXT]
    assert len(told) > len(taken) > 100
    rows = tape.trades(0, taken[-1].event_time_ns // NS_PER_MS).tolist()
    rows = [row for row in rows if trade_id(row) >= taken[0].id]
    assert [(t.id, t.event_time_ns // NS_PER_MS, t.price, t.size, t.taker_is_buyer) for t in taken] == [
        (trade_id(row), row[T.TIME], row[T.PRICE], row[T.SIZE], not row[T.MAKER]) for row in rows[: len(taken)]
    ]


async def test_without_pings_the_connection_breaks_while_data_flows() -> None:
    async with (
        emulated({"BTCUSDT": invented("BTCUSDT")}, keepalive_speed=130.0) as (_, port),
        feeding(port, BTC, codec=Mute) as sink,
    ):
        await until(lambda: len(sink.edges) >= 2)
        assert sink.edges[0] == "connected"
        assert "no close frame" in sink.edges[1]


async def test_a_feed_leaves_a_connection_that_acknowledged_and_is_silent() -> None:
    async with emulated({"BTCUSDT": invented("BTCUSDT")}) as (_, port), feeding(port, BTC, codec=Astray) as sink:
        await until(lambda: len(sink.edges) >= 2)
        assert sink.edges[0] == "connected"
        assert sink.edges[1].startswith("lost: no market data for")


async def test_a_refused_channel_ends_the_connection_with_its_reason() -> None:
    wrong = market("NOPE/USDT:USDT")
    async with emulated({"BTCUSDT": invented("BTCUSDT")}) as (_, port), feeding(port, wrong) as sink:
        await until(lambda: bool(sink.edges))
        assert sink.edges[0].startswith("lost: refused: 30001 instType:USDT-FUTURES,channel:trade,instId:NOPEUSDT")


# ---- candles of the whole feed


@contextlib.asynccontextmanager
async def at_desk(port: int, folder: Path, symbol: str) -> AsyncIterator[tuple[Desk, dict[int, Candle]]]:
    """Run one market of the daemon's feed; candles as they are committed, by ordinal."""
    pipeline = Pipeline(Model(small_artifact("1m"), Rules()), base_topic="lstmd")
    candles: dict[int, Candle] = {}

    def moved() -> None:
        for _, work in pipeline.take_work():
            candles.update((row.candle.seq, row.candle) for row in work.rows if row.candle)

    url = f"127.0.0.1:{port}"
    feed = Feed(exchange="bitget", symbols=(symbol,), candles=("1m",), ws_url=f"ws://{url}", rest_url=f"http://{url}")
    desk, stop = Desk(0, feed, pipeline, Store(folder / "s.sqlite"), Metrics(), moved), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.run(stop))
        try:
            yield desk, candles
        finally:
            stop.set()
            task.cancel()


def assert_candles_are_the_tapes(candles: dict[int, Candle], tape: Tape) -> None:
    seqs = sorted(candles)
    assert seqs == list(range(seqs[0], seqs[-1] + 1))
    span = {"from_ms": (seqs[0] - 1) * MINUTE_MS, "until_ms": seqs[-1] * MINUTE_MS}
    assert by_open(candles[seq] for seq in seqs) == folded(tape, **span)


async def test_real_trades_over_cuts_and_repetitions_fold_into_the_tapes_candles(tmp_path: Path) -> None:
    tape = tape_of_trades("APEUSDT", recorded(APE))
    begun_ms = tape.begin_ms + 4 * 3_600_000
    async with (
        emulated({"APEUSDT": tape}, start_ms=begun_ms, speed=360.0) as (emulator, port),
        at_desk(port, tmp_path, "APE/USDT:USDT") as (desk, candles),
    ):
        emulator.faults.duplicate = 0.05
        for number in range(1, 4):
            await until(lambda: desk.live)
            reached = max(candles, default=0)
            await until(lambda: max(candles, default=0) > reached + 5)  # noqa: B023 (awaited here)
            await emulator.cut()
            await until(lambda: desk.reconnects == number)  # noqa: B023
        await until(lambda: desk.live and max(candles) > begun_ms // MINUTE_MS + 26)
    assert_candles_are_the_tapes(candles, tape)
    origins = Counter(candle.origin for seq, candle in candles.items() if seq > begun_ms // MINUTE_MS + 1)
    assert origins[Origin.TRADES] > 15
    assert sum(origins.values()) - origins[Origin.TRADES] >= 3, "one at least for each cut"


async def test_a_quiet_market_closes_on_tickers(tmp_path: Path) -> None:
    rows = recorded(APE)
    begun_ms = rows[0].time_ms + 3_600_000
    one = next(row for row in rows if row.time_ms > begun_ms + 2 * MINUTE_MS)
    tape = tape_of_trades("APEUSDT", [*rows[:50], one, rows[-1]])
    async with (
        emulated({"APEUSDT": tape}, start_ms=begun_ms, speed=240.0) as (_, port),
        at_desk(port, tmp_path, "APE/USDT:USDT") as (_, candles),
    ):
        last = one.time_ms // MINUTE_MS + 1
        await until(lambda: max(candles, default=0) > last + 4)
    assert_candles_are_the_tapes(candles, tape)
    assert {candles[seq].origin for seq in range(last, last + 4)} == {Origin.TRADES}
    assert {candles[seq].volume for seq in range(last + 1, last + 4)} == {0.0}


# ---- ccxt


@contextlib.asynccontextmanager
async def ccxt_client(port: int) -> AsyncIterator[Any]:
    client = ccxt.pro.bitget({"timeout_on_exit": 0, "options": {"fetchMarkets": {"types": ["swap"]}}})
    client.has["fetchCurrencies"] = False
    for part in ("mix", "common"):
        client.urls["api"][part] = f"http://127.0.0.1:{port}"
    client.urls["api"]["ws"]["public"] = f"ws://127.0.0.1:{port}/v2/ws/public"
    try:
        yield client
    finally:
        await client.close()


async def test_ccxt_pro_gets_the_tape() -> None:
    tape = invented("ETHUSDT")
    async with emulated({"ETHUSDT": tape}, speed=150.0) as (_, port), ccxt_client(port) as client:

        async def trades() -> list[dict[str, Any]]:
            seen: dict[str, dict[str, Any]] = {}
            while len(seen) < TRADES_SNAPSHOT + 60:
                seen |= {one["id"]: one for one in await client.watch_trades("ETH/USDT:USDT", params={})}
            return list(seen.values())

        async def candles() -> dict[int, Figures]:
            seen: dict[int, Any] = {}
            while len(seen) <= 3:
                seen |= {int(row[0]): tuple(row[1:]) for row in await client.watch_ohlcv("ETH/USDT:USDT", "1m")}
            return {opened: seen[opened] for opened in sorted(seen)[:-1]}

        told, bars = await asyncio.gather(trades(), candles())
    price, size = 10**tape.price_decimals, 10**tape.size_decimals
    ids = {int(one["id"]) for one in told}
    rows = [
        row for row in tape.trades(told[0]["timestamp"] - 1, told[-1]["timestamp"]).tolist() if trade_id(row) in ids
    ]
    assert len(rows) == len(told)
    assert [(t["id"], t["timestamp"], t["price"], t["amount"], t["side"]) for t in told] == [
        (str(trade_id(r)), r[T.TIME], r[T.PRICE] / price, r[T.SIZE] / size, "sell" if r[T.MAKER] else "buy")
        for r in rows
    ]
    assert bars == folded(tape, from_ms=min(bars), until_ms=max(bars) + MINUTE_MS)


async def test_ccxt_reads_markets_candles_trades_and_funding() -> None:
    tapes = {name: invented(name) for name in ("BTCUSDT", "ETHUSDT", "BTCPERP", "BTCUSD")}
    async with emulated(tapes) as (emulator, port), ccxt_client(port) as client:
        symbols = {symbol: of["id"] for symbol, of in (await client.load_markets()).items()}
        assert symbols == {symbol: BitgetCodec.native_of(symbol) for symbol in symbols}
        assert set(symbols.values()) == set(tapes)
        now_ms = emulator.now_ns() // NS_PER_MS
        span = {"since": now_ms - 20 * 5 * MINUTE_MS, "limit": 10}
        bars = {int(row[0]): tuple(row[1:]) for row in await client.fetch_ohlcv("ETH/USDT:USDT", "5m", **span)}
        assert (
            bars.items()
            <= folded(tapes["ETHUSDT"], from_ms=min(bars), until_ms=max(bars) + 1, step_ms=5 * MINUTE_MS).items()
        )
        trades = await client.fetch_trades("ETH/USDT:USDT", limit=50)
        rows = tapes["ETHUSDT"].trades(0, now_ms)[-50:].tolist()
        assert [int(one["id"]) for one in trades] == [trade_id(row) for row in rows]
        (last,) = (await client.fetch_funding_rate_history("ETH/USDT:USDT"))[-1:]
        assert 0 < last["fundingRate"] < 0.001
        assert abs(await client.fetch_time() - now_ms) < 1


def test_malformed_is_never_what_the_emulator_says() -> None:
    venue, wire = wired("BTCUSDT", "BTCPERP", "BTCUSD")
    symbols = ("BTC/USDT:USDT", "BTC/USDC:USDC", "BTC/USD:BTC")
    tape = venue.tapes["BTCUSDT"]
    markets = [market(s, price_decimals=8, size_decimals=tape.size_decimals + 3) for s in symbols]
    specs = [CandleSpec.parse(text) for text in ("1m", "1h", "6h", "1d")]
    codec = BitgetCodec(markets, dict.fromkeys(symbols, specs))
    frames = [frame for _, request in codec.subscribe() for frame in wire.answer(request, 0.0)]
    frames += [frame for at in range(START_MS, START_MS + 90_000, 500) for frame in wire.due(at)]
    events = [event for frame in frames if isinstance(frame, str) for event in codec.decode(frame, 7)]
    assert not any(isinstance(event, Malformed) for event in events)
    pushed = Counter((type(e), e.market.symbol) for e in events if isinstance(e, MarketTrade | MarkPrice | Kline))
    assert len(pushed) == 9
