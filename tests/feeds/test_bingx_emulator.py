"""BingX on loopback: its frames and traps, our history and feed against it, and ccxt as a client nobody here wrote."""

import asyncio
import contextlib
import gzip
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import ccxt.pro
import pytest
import structlog
from ccxt.async_support.bingx import bingx

from config.schema import Feed
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.store import Store
from feeds.emulator import Emulator, Tape, tape_from
from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects.base import ABNORMAL, Close, Frame
from feeds.emulator.dialects.bingx import PING_EVERY_S, PONG_WITHIN_S, TOPICS_MAX, Bingx
from feeds.emulator.sources import tape_of_trades
from feeds.emulator.tape import MINUTE_MS, K, T
from feeds.emulator.venue import Venue
from feeds.events import Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal, Reply
from feeds.exchanges import CODECS
from feeds.exchanges.bingx import BingxCodec
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin
from feeds.runner import FeedRunner
from inference.engine import Model
from inference.signals import Rules
from tests.daemon.brokers import until
from tests.daemon.lines import small_artifact
from tests.feeds.emulators import BEGIN_MS, START_MS, invented
from tests.feeds.test_bingx import captured, market
from tests.feeds.trades import APE, recorded

M1, FIVE = CandleSpec.parse("1m"), CandleSpec.parse("5m")
WAIT_S = 90
BTC = market("BTC", price_decimals=1, size_decimals=3)


def wire_of(path: str = "/swap-market", *natives: str) -> Any:
    names = natives or ("BTC-USDT",)
    tapes = {native: invented(native) for native in names}
    return Bingx(Venue(VirtualClock(START_MS * NS_PER_MS), tapes)).connect(path, {}, 0.0)


def request(topic: object, number: str = "1", kind: str = "sub") -> str:
    return json.dumps({"id": number, "reqType": kind, "dataType": topic})


def text_of(frame: Frame) -> str:
    assert isinstance(frame, bytes), frame
    return gzip.decompress(frame).decode()


def bodies(frames: list[Frame]) -> list[dict[str, Any]]:
    return [json.loads(text_of(frame)) for frame in frames]


def shape(node: Any) -> Any:
    """Reduce JSON to its keys in order and the kinds of its values."""
    if isinstance(node, dict):
        return {name: shape(value) for name, value in node.items()}
    return [shape(node[0])] if isinstance(node, list) else type(node)


# ---- frames


def test_frames_have_the_shape_of_the_captured_ones() -> None:
    real = {}
    for name, raw in captured():
        if name.startswith("bingx_swap") and raw.startswith("{"):
            real[name.split()[1]] = json.loads(raw)
    wire = wire_of()
    assert shape(bodies(wire.answer(request("BTC-USDT@trade"), 0.0))[0]) == shape(real["subscribe"])
    assert shape(bodies(wire.answer(request("btc-usdt@trade"), 0.0))[0]) == shape(real["unknown"])
    wire.answer(request("BTC-USDT@markPrice"), 0.0)
    wire.answer(request("BTC-USDT@kline_1m"), 0.0)
    found = {body["dataType"].partition("@")[2]: body for body in bodies(wire.due(START_MS + 20_000))}
    for topic in ("trade", "markPrice", "kline_1m"):
        assert shape(found[topic]) == shape(real[topic])
        assert list(found[topic]) == list(real[topic])


def test_several_trades_share_a_frame_newest_first() -> None:
    wire, tape = wire_of(), invented("BTC-USDT")
    wire.answer(request("BTC-USDT@trade"), 0.0)
    pushes = [body["data"] for body in bodies(wire.due(START_MS + 60_000))]
    assert max(map(len, pushes)) > 1
    assert all(rows == sorted(rows, key=lambda row: -row["T"]) for rows in pushes)
    rows = [row for push in pushes for row in reversed(push)]
    expected = tape.trades(rows[0]["T"] - 1, rows[-1]["T"]).tolist()
    assert [(row["T"], row["p"], row["m"]) for row in rows] == [
        (row[T.TIME], tape.price_text(row[T.PRICE]), bool(row[T.MAKER])) for row in expected
    ]


@pytest.mark.parametrize(
    "topic",
    ["btc-usdt@trade", "BTC-USD@trade", "BTC-USDT@kline_7m", "BTC-USDT@fundingRate", "BTC-USDT", "", "DOGE-USDT@trade"],
)
def test_what_is_not_served_is_refused_at_once(topic: str) -> None:
    (body,) = bodies(wire_of().answer(request(topic, "abc"), 0.0))
    assert (body["id"], body["code"], body["msg"]) == ("abc", 80015, "dataType not support")


def test_an_array_of_topics_is_not_answered_and_nonsense_is_refused() -> None:
    wire = wire_of()
    assert wire.answer(request(["BTC-USDT@trade"]), 0.0) == []
    assert wire.due(START_MS + 60_000) == []
    assert [body["code"] for body in bodies(wire.answer("{", 0.0))] == [100400]


def test_a_topic_asked_for_twice_is_acknowledged_twice_and_sent_once() -> None:
    wire = wire_of()
    answers = [body for number in "12" for body in bodies(wire.answer(request("BTC-USDT@markPrice", number), 0.0))]
    assert [(body["id"], body["code"]) for body in answers] == [("1", 0), ("2", 0)]
    assert len(wire.due(START_MS + 1000)) == 1
    assert bodies(wire.answer(request("BTC-USDT@markPrice", "3", "unsub"), 0.0))[0]["code"] == 0
    assert wire.due(START_MS + 60_000) == []


def test_one_topic_too_many_is_refused_and_leaks_one_push() -> None:
    names = [f"C{number}-USDT" for number in range(TOPICS_MAX // 2 + 1)]
    tapes = dict.fromkeys(names, invented("BTC-USDT"))
    wire = Bingx(Venue(VirtualClock(START_MS * NS_PER_MS), tapes)).connect("/swap-market", {}, 0.0)
    topics = [f"{name}@{variant}" for name in names for variant in ("markPrice", "kline_1d")]
    answers = [body["code"] for topic in topics[:TOPICS_MAX] for body in bodies(wire.answer(request(topic), 0.0))]
    assert answers == [0] * TOPICS_MAX
    (answer,) = wire.answer(request(topics[TOPICS_MAX], "201"), 0.0)
    refusal = Refusal(201, 80403, "your topic num over max 200")
    assert CODECS["bingx"]([BTC], {}).decode(text_of(answer), 7) == [refusal]
    pushed = [body["dataType"] for at in (1000, 2000, 3000) for body in bodies(wire.due(START_MS + at))]
    assert pushed.count(topics[TOPICS_MAX]) == 1
    assert pushed.count(topics[0]) == 3


def test_heartbeats_and_the_end_without_them() -> None:
    wire = wire_of()
    sent = {second: wire.idle(second) for second in (4.9, 5.0, 9.9, 10.1, 15.2, 20.3, 25.4, 30.4, 30.6)}
    assert [second for second, frames in sent.items() if frames] == [5.0, 10.1, 15.2, 20.3, 25.4, 30.4, 30.6]
    assert text_of(sent[5.0][0]) == "Ping"
    assert sent[30.6] == [Close(ABNORMAL)]
    alive = wire_of()
    for second in range(200):
        if alive.idle(float(second)):
            assert alive.answer("Pong", float(second)) == []
    assert PING_EVERY_S < PONG_WITHIN_S < 200


def test_spot_says_the_same_topic_in_another_shape_which_is_refused() -> None:
    (real,) = [json.loads(raw) for name, raw in captured() if "spot" in name]
    wire, codec = wire_of("/market"), CODECS["bingx"]([BTC], {})
    wire.answer(request("BTC-USDT@trade"), 0.0)
    frames = wire.due(START_MS + 20_000)
    body = json.loads(text_of(frames[0]))
    assert shape(body) == shape(real)
    for frame in frames:
        assert [event.kind for event in codec.decode(frame, 7) if isinstance(event, Malformed)] == ["type"]
    (beat,) = wire.idle(6.0)
    (reply,) = codec.decode(beat, 7)
    assert isinstance(reply, Reply)
    assert wire.answer(reply.text, 6.0) == []
    assert wire.idle(31.0) != [Close(ABNORMAL)]


# ---- the exchange at work


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(bingx, "timeout_on_exit", 0)


@contextlib.asynccontextmanager
async def emulated(
    tapes: dict[str, Tape], *, start_ms: int = START_MS, **options: Any
) -> AsyncIterator[tuple[Emulator, int]]:
    emulator = Emulator(tapes, exchange="bingx", start_ns=start_ms * NS_PER_MS, **options)
    port = await emulator.start()
    try:
        async with asyncio.timeout(WAIT_S):
            yield emulator, port
    finally:
        await emulator.stop()


def figures(candle: Candle) -> tuple[float, ...]:
    return candle.open_time_ns // NS_PER_MS, candle.open, candle.high, candle.low, candle.close, candle.volume


def tape_figures(tape: Tape, step_ms: int, start_ms: int, end_ms: int) -> list[tuple[float, ...]]:
    price, size = 10**tape.price_decimals, 10**tape.size_decimals
    bars = tape.candles(step_ms, start_ms=start_ms, end_ms=end_ms, now_ms=end_ms)
    prices = (K.OPEN, K.HIGH, K.LOW, K.CLOSE)
    return [(bar[0], *(bar[column] / price for column in prices), bar[K.VOLUME] / size) for bar in bars]


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


class Quick(BingxCodec):
    """BingX with patience for loopback."""

    request_spacing_s: ClassVar[float] = 0.11


class Mute(Quick):
    """A client that never answers the heartbeat."""

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        return [event for event in super().decode(frame, receive_time_ns) if not isinstance(event, Reply)]


@contextlib.asynccontextmanager
async def feeding(port: int, *markets: Market, codec: type[BingxCodec] = Quick, path: str = "") -> AsyncIterator[Sink]:
    sink, stop = Sink(), asyncio.Event()
    made = codec(markets, {one.symbol: [M1] for one in markets})
    runner = FeedRunner(
        codec_factory=lambda: codec(markets, {one.symbol: [M1] for one in markets}),
        url=made.url(f"ws://127.0.0.1:{port}").replace("/swap-market", path or "/swap-market"),
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


async def test_a_feed_gets_every_trade_once_in_order_and_lives_on_heartbeats() -> None:
    tape = invented("BTC-USDT")
    async with (
        emulated({"BTC-USDT": tape}, speed=60.0, keepalive_speed=12.0) as (emulator, port),
        feeding(port, BTC) as sink,
    ):
        await until(lambda: sum(isinstance(event, MarketTrade) for event in sink.all) >= 100)
        trades = [event.trade for event in sink.all if isinstance(event, MarketTrade)]
        first_ms, last_ms = (trades[at].event_time_ns // NS_PER_MS for at in (0, -1))
        rows = tape.trades(first_ms - 1, last_ms).tolist()
        assert [(t.event_time_ns // NS_PER_MS, t.price, t.size) for t in trades] == [
            (row[T.TIME], row[T.PRICE], row[T.SIZE]) for row in rows
        ]
        # At twelve seconds of the exchange's patience in one, all of it has passed.
        await until(lambda: emulator.now_ns() // NS_PER_MS > START_MS + 190_000)
        seen = Counter(type(event) for event in sink.all)
        assert set(seen) == {MarketTrade, MarkPrice, Kline}
        assert min(seen.values()) > 5
        assert sink.edges == ["connected"]
        assert emulator.venue.requests["websocket"] == 1


async def test_without_pongs_the_connection_breaks_again_and_again() -> None:
    async with (
        emulated({"BTC-USDT": invented("BTC-USDT")}, keepalive_speed=60.0) as (_, port),
        feeding(port, BTC, codec=Mute) as sink,
    ):
        await until(lambda: len(sink.edges) >= 2)
        assert sink.edges[0] == "connected"
        assert "no close frame" in sink.edges[1]


async def test_a_refused_topic_ends_the_connection_with_its_reason() -> None:
    async with emulated({"BTC-USDT": invented("BTC-USDT")}) as (_, port), feeding(port, market("NOPE")) as sink:
        await until(lambda: bool(sink.edges))
        assert sink.edges == ["lost: refused: 80015 dataType not support"]


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
    feed = Feed(exchange="bingx", symbols=(symbol,), candles=("1m",), ws_url=f"ws://{url}", rest_url=f"http://{url}")
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
    first_ms, last_ms = (seqs[0] - 1) * MINUTE_MS, seqs[-1] * MINUTE_MS
    assert [figures(candles[seq]) for seq in seqs] == tape_figures(tape, MINUTE_MS, first_ms, last_ms)


def test_a_kline_without_a_time_of_its_own_does_not_vouch_for_the_minute_it_opened_in() -> None:
    pipeline = Pipeline(Model(small_artifact("1m"), Rules()), base_topic="lstmd").add(BTC, BingxCodec.traits)
    pipeline.add(M1, Model(small_artifact("1m"), Rules()), has_kline=True, by_exchange=False)
    codec = CODECS["bingx"]([BTC], {BTC.symbol: [M1]})
    closer = pipeline.channels["1m"].closer
    open_ms = 1761327420000
    frames = {
        kind: json.dumps({"code": 0, "dataType": f"BTC-USDT@{kind}", "data": data})
        for kind, data in (
            ("kline_1m", [{"c": "1", "o": "1", "h": "1", "l": "1", "v": "2", "T": open_ms}]),
            ("trade", [{"q": "1", "p": "1", "T": open_ms + 40_000, "m": False, "s": "BTC-USDT"}]),
            ("markPrice", {"e": "markPriceUpdate", "E": open_ms + 42_000, "s": "BTC-USDT", "p": "1"}),
        )
    }
    pipeline.clock.set(open_ms * NS_PER_MS)
    pipeline.connected()
    for kind, frame in frames.items():
        for event in codec.decode(frame, 7):
            assert isinstance(event, MarketTrade | MarkPrice | Kline)
            pipeline.handle(event)
        assert not closer.complete, kind
    assert closer.forming() is not None


async def test_real_trades_over_cuts_fold_into_the_tapes_candles(tmp_path: Path) -> None:
    tape = tape_of_trades("APE-USDT", recorded(APE))
    begun_ms = tape.begin_ms + 4 * 3_600_000
    async with (
        emulated({"APE-USDT": tape}, start_ms=begun_ms, speed=240.0) as (emulator, port),
        at_desk(port, tmp_path, "APE/USDT:USDT") as (desk, candles),
    ):
        for number in (1, 2):
            await until(lambda: desk.live)
            reached = max(candles, default=0)
            await until(lambda: max(candles, default=0) > reached + 4)  # noqa: B023 (awaited here)
            await emulator.cut()
            await until(lambda: desk.reconnects == number)  # noqa: B023
        await until(lambda: desk.live and max(candles) > begun_ms // MINUTE_MS + 22)
    assert_candles_are_the_tapes(candles, tape)
    origins = Counter(candle.origin for seq, candle in candles.items() if seq > begun_ms // MINUTE_MS + 1)
    assert origins[Origin.TRADES] > 6
    assert sum(origins.values()) - origins[Origin.TRADES] >= 2, "one at least for each cut"


async def test_a_quiet_market_closes_on_mark_prices(tmp_path: Path) -> None:
    rows = recorded(APE)
    begun_ms = rows[0].time_ms + 3_600_000
    one = next(row for row in rows if row.time_ms > begun_ms + 2 * MINUTE_MS)
    tape = tape_of_trades("APE-USDT", [*rows[:50], one, rows[-1]])
    async with (
        emulated({"APE-USDT": tape}, start_ms=begun_ms, speed=120.0) as (_, port),
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
    client = ccxt.pro.bingx({"timeout_on_exit": 0, "options": {"defaultType": "swap"}})
    for name in client.urls["api"]:
        if name != "ws":
            client.urls["api"][name] = f"http://127.0.0.1:{port}/openApi"
    client.urls["api"]["ws"]["linear"] = f"ws://127.0.0.1:{port}/swap-market"
    try:
        yield client
    finally:
        await client.close()


async def test_ccxt_pro_gets_the_tape() -> None:
    tape = tape_from("synthetic", "ETH-USDT", seed=11, begin_ns=BEGIN_MS * NS_PER_MS)
    async with emulated({"ETH-USDT": tape}, speed=60.0) as (_, port), ccxt_client(port) as client:

        async def trades() -> list[dict[str, Any]]:
            seen: list[dict[str, Any]] = []
            while len(seen) < 60:
                seen += await client.watch_trades("ETH/USDT:USDT", params={})
            return seen

        async def candles() -> list[list[float]]:
            seen: dict[int, list[float]] = {}
            while len(seen) <= 2:
                seen |= {row[0]: list(row) for row in await client.watch_ohlcv("ETH/USDT:USDT", "1m")}
            return [seen[opened] for opened in sorted(seen)[1:-1]]

        told, bars = await asyncio.gather(trades(), candles())
    price, size = 10**tape.price_decimals, 10**tape.size_decimals
    rows = tape.trades(told[0]["timestamp"] - 1, told[-1]["timestamp"]).tolist()
    real = Counter((r[T.TIME], r[T.PRICE] / price, r[T.SIZE] / size, "sell" if r[T.MAKER] else "buy") for r in rows)
    ours = Counter((one["timestamp"], one["price"], one["amount"], one["side"]) for one in told)
    assert ours == real
    assert [tuple(bar) for bar in bars] == tape_figures(tape, MINUTE_MS, int(bars[0][0]), int(bars[-1][0]) + MINUTE_MS)


async def test_ccxt_reads_markets_candles_trades_and_funding() -> None:
    tapes = {name: invented(name) for name in ("BTC-USDT", "ETH-USDT")}
    async with emulated(tapes) as (emulator, port), ccxt_client(port) as client:
        assert set(await client.load_markets()) == {"BTC/USDT:USDT", "ETH/USDT:USDT"}
        now_ms = emulator.now_ns() // NS_PER_MS
        candles = await client.fetch_ohlcv("ETH/USDT:USDT", "5m", limit=20)
        start_ms = int(candles[0][0])
        assert [tuple(bar) for bar in candles] == tape_figures(tapes["ETH-USDT"], 5 * MINUTE_MS, start_ms, now_ms)
        trades = await client.fetch_trades("ETH/USDT:USDT", limit=50)
        assert len(trades) == 50
        assert trades[-1]["price"] == candles[-1][4]
        funding = await client.fetch_funding_rate("ETH/USDT:USDT")
        assert funding["markPrice"] == candles[-1][4]
        (last,) = (await client.fetch_funding_rate_history("ETH/USDT:USDT"))[-1:]
        assert 0 < last["fundingRate"] < 0.001
        assert await client.fetch_time() == now_ms
