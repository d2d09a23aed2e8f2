import asyncio
import importlib.util
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from itertools import pairwise
from types import ModuleType
from typing import Any, ClassVar

import pytest
import structlog
from structlog.testing import CapturingLogger, LogCapture
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from feeds import runner
from feeds.errors import RequestRefused
from feeds.events import Event, Malformed, MarketTrade, MarkPrice, Reply
from feeds.exchanges.binance import BinanceCodec
from feeds.market import CandleSpec, Market
from feeds.runner import FeedRunner
from feeds.session import State
from feeds.transport import Connection, connect
from tests.data import ROOT
from tests.feeds.test_binance import agg, mark, market, wrapped
from tests.feeds.test_transport import port_of, until

BTC, ETH = market("BTC"), market("ETH")


class Quick(BinanceCodec):
    """Binance with patience for loopback."""

    request_spacing_s: ClassVar[float] = 0.0


class Impatient(Quick):
    silence_s: ClassVar[float] = 1.0
    mark_silence_s: ClassVar[float] = 1.0


class Chatty(Quick):
    """An exchange that wants to be pinged, and that asks for a sign of life itself."""

    ping_every_s: ClassVar[float | None] = 0.05

    def ping(self) -> str:
        return "ping"

    def decode(self, frame: str | bytes, receive_time_ns: int) -> list[Event]:
        if frame == b"alive?":
            return [Reply("alive")]
        return [] if frame == b"pong" else super().decode(frame, receive_time_ns)


class Sink:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.interruptions = 0

    def connected(self) -> None:
        self.calls.append("connected")

    def lost(self, reason: str) -> None:
        self.calls.append(("lost", reason))

    def interrupted(self) -> None:
        self.interruptions += 1

    def rolled_over(self, lost: int) -> None:
        self.calls.append(f"rolled over, {lost} lost")

    def events(self, events: list[Event]) -> None:
        self.calls.extend(events)

    @property
    def ids(self) -> list[int]:
        return [call.trade.id for call in self.calls if isinstance(call, MarketTrade)]

    @property
    def edges(self) -> list[str]:
        """Connections and losses in order, losses by their reason."""
        return [c if isinstance(c, str) else c[1] for c in self.calls if isinstance(c, str | tuple)]

    async def until(self, condition: Callable[["Sink"], bool]) -> None:
        await until(lambda: condition(self))


class Feed:
    def __init__(
        self, url: str, *, codec: type[BinanceCodec], markets: Sequence[Market], sink: Sink, copies: int = 1
    ) -> None:
        self.sink, self.stop, self.logs = sink, asyncio.Event(), LogCapture()
        self.runner = FeedRunner(
            codec_factory=lambda: codec(markets, {m.symbol: [CandleSpec.parse("1m")] for m in markets}),
            url=url,
            sink=sink,
            now_ns=lambda: 7,
            rng=random.Random(1),
            log=structlog.wrap_logger(CapturingLogger(), processors=[self.logs]),
            ack_timeout_s=0.5,
            copies=copies,
        )

    @property
    def logged(self) -> list[str]:
        return [entry["event"] for entry in self.logs.entries]


@asynccontextmanager
async def feeding(
    url: str,
    *,
    codec: type[BinanceCodec] = Quick,
    markets: Sequence[Market] = (BTC,),
    sink: Sink | None = None,
    copies: int = 1,
) -> AsyncIterator[Feed]:
    """Run a feed for the length of the block."""
    feed = Feed(url, codec=codec, markets=markets, sink=sink or Sink(), copies=copies)
    task = asyncio.create_task(feed.runner.run(feed.stop))
    try:
        yield feed
    finally:
        feed.stop.set()
        async with asyncio.timeout(20):
            await task


Script = Callable[[ServerConnection], Awaitable[None]]


class Stage:
    """A websocket server that plays one script per connection; the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts, self.count, self.codes = scripts, 0, list[int | None]()

    async def __call__(self, websocket: ServerConnection) -> None:
        script = self.scripts[min(self.count, len(self.scripts) - 1)]
        self.count += 1
        try:
            await script(websocket)
            await websocket.wait_closed()
        except ConnectionClosed:
            pass
        self.codes.append(websocket.close_code)


@asynccontextmanager
async def staged(*scripts: Script, **options: Any) -> AsyncIterator[tuple[Stage, str, Server]]:
    stage = Stage(*scripts)
    async with serve(stage, "127.0.0.1", 0, **options) as server:
        yield stage, f"ws://127.0.0.1:{port_of(server)}/market/stream", server


async def accept(websocket: ServerConnection, *, absent: str = "", before_list: Sequence[str] = ()) -> None:
    """Answer all requests as the exchange does, `before_list` pushed between the acknowledgement and the list."""
    names: list[str] = []
    while True:
        request = json.loads(await websocket.recv())
        if request["method"] == "LIST_SUBSCRIPTIONS":
            for frame in before_list:
                await websocket.send(frame)
            await websocket.send(json.dumps({"result": [n for n in names if n != absent], "id": request["id"]}))
            return
        names += request["params"]
        await websocket.send(json.dumps({"result": None, "id": request["id"]}))


def trades(*ids: int) -> Script:
    async def script(websocket: ServerConnection) -> None:
        await accept(websocket)
        for number in ids:
            await websocket.send(wrapped(agg(a=number)))

    return script


def cut_after(script: Script) -> Script:
    async def cutting(websocket: ServerConnection) -> None:
        await script(websocket)
        await asyncio.sleep(0.05)
        websocket.transport.abort()

    return cutting


async def test_events_come_in_order_also_before_the_streams_are_confirmed() -> None:
    async def script(websocket: ServerConnection) -> None:
        await accept(websocket, before_list=[wrapped(agg(a=1)), wrapped(mark()), wrapped(agg(a=2))])
        await websocket.send(wrapped(agg(a=3)))

    async with staged(script) as (stage, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: 3 in sink.ids)
        assert [c if isinstance(c, str) else type(c) for c in feed.sink.calls] == [
            MarketTrade, MarkPrice, MarketTrade, "connected", MarketTrade,
        ]  # fmt: skip
        assert feed.sink.ids == [1, 2, 3]
        assert feed.runner.state is State.LIVE
    assert feed.logged == ["feed_connected"]
    assert stage.codes == [1000]


async def test_a_request_without_acknowledgement_makes_a_new_connection() -> None:
    async def deaf(websocket: ServerConnection) -> None:
        await websocket.recv()

    async with staged(deaf, trades(1)) as (_, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: bool(sink.ids))
        assert feed.sink.edges == ["no answer to request (1,)", "connected"]
    assert feed.logged == ["feed_lost", "feed_restored"]


async def test_a_list_without_an_answer_makes_a_new_connection() -> None:
    async def forgetful(websocket: ServerConnection) -> None:
        await websocket.send(json.dumps({"result": None, "id": json.loads(await websocket.recv())["id"]}))

    async with staged(forgetful, trades(1)) as (_, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: bool(sink.ids))
        assert feed.sink.edges == ["no answer to request (2,)", "connected"]


async def test_a_stream_missing_from_the_list_is_named_and_the_connection_redone() -> None:
    async def short(websocket: ServerConnection) -> None:
        await accept(websocket, absent="btcusdt@kline_1m")

    async with staged(short, trades(1)) as (_, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: bool(sink.ids))
        assert feed.sink.edges == ["not subscribed: btcusdt@kline_1m", "connected"]
    assert feed.logs.entries[0]["reason"] == "not subscribed: btcusdt@kline_1m"


async def test_a_root_that_acknowledges_and_stays_silent_is_left() -> None:
    async with staged(accept, trades(1)) as (_, url, _), feeding(url, codec=Impatient) as feed:
        await feed.sink.until(lambda sink: bool(sink.ids))
        assert feed.sink.edges[:3] == ["connected", "no market data for 1 s", "connected"]


async def test_a_market_whose_mark_price_never_comes_costs_one_connection_only() -> None:
    async def half(websocket: ServerConnection) -> None:
        await accept(websocket)
        for number in range(10_000):
            await websocket.send(wrapped(mark()))
            await websocket.send(wrapped(agg(a=number)))
            await asyncio.sleep(0.02)

    async with staged(half) as (stage, url, _), feeding(url, codec=Impatient, markets=(BTC, ETH)) as feed:
        await feed.sink.until(lambda sink: sink.edges[-1:] == ["connected"] and sink.ids[-1] > 80)
        reason = "no mark price while others flow: ETH/USDT:USDT"
        assert feed.sink.edges == ["connected", reason, "connected"]
        assert stage.count == 2


async def test_a_cut_is_told_once_and_what_follows_is_delivered() -> None:
    async with staged(cut_after(trades(1, 2)), trades(5)) as (_, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: 5 in sink.ids)
        assert feed.sink.ids == [1, 2, 5]
        first, reason, last = feed.sink.edges
        assert (first, last) == ("connected", "connected")
        assert "connection ended" in reason
    assert feed.logged == ["feed_connected", "feed_lost", "feed_restored"]
    assert feed.logs.entries[-1]["outage_s"] < 20


async def test_many_failures_of_one_outage_are_one_loss() -> None:
    refusals = 3

    def refuse_at_first(connection: ServerConnection, _: object) -> Any:
        nonlocal refusals
        refusals -= 1
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "") if refusals >= 0 else None

    async with staged(trades(1), process_request=refuse_at_first) as (stage, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: bool(sink.ids))
        assert feed.sink.edges == ["cannot connect: HTTP 503", "connected"]
        assert (refusals, stage.count) == (-1, 1)
    assert feed.logged == ["feed_lost", "feed_restored"]


async def test_a_rate_limit_is_waited_out() -> None:
    asked: list[float] = []

    def limit_at_first(connection: ServerConnection, _: object) -> Any:
        asked.append(asyncio.get_running_loop().time())
        response = connection.respond(HTTPStatus.TOO_MANY_REQUESTS, "")
        response.headers["Retry-After"] = "1"
        return response if len(asked) == 1 else None

    async with staged(trades(1), process_request=limit_at_first) as (_, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: bool(sink.ids))
    assert asked[1] - asked[0] >= 1.0


async def test_a_refused_request_makes_a_new_connection() -> None:
    async def refuse(websocket: ServerConnection) -> None:
        await websocket.send(json.dumps({"error": {"code": 2, "msg": "Invalid request"}, "id": 1}))

    async with staged(refuse, trades(1)) as (_, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: bool(sink.ids))
        assert feed.sink.edges == ["refused: 2 Invalid request", "connected"]


async def test_garbage_is_handed_on_logged_once_a_kind_and_changes_nothing_else() -> None:
    good = wrapped(agg(a=9))

    async def garbage(websocket: ServerConnection) -> None:
        await accept(websocket)
        for frame in ("Ping", "{}", good[:-3], "x" * (2 << 20), wrapped(agg(p="-1")), wrapped(agg(q=None)), ""):
            await websocket.send(frame)
        await websocket.send(b"\xff\xfe", text=True)
        await websocket.send(good)

    async with staged(garbage) as (stage, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: 9 in sink.ids)
        kinds = [event.kind for event in feed.sink.calls if isinstance(event, Malformed)]
        assert kinds == ["json", "type", "json", "size", "value", "type", "json", "encoding"]
        assert (feed.sink.edges, feed.sink.ids, stage.count) == (["connected"], [9], 1)
    logged = [entry["kind"] for entry in feed.logs.entries if entry["event"] == "feed_malformed"]
    assert logged == ["json", "type", "size", "value", "encoding"]


async def test_a_connection_lost_before_it_was_confirmed_interrupts_what_it_has_told() -> None:
    """Its trades prove an order that its end makes doubtful again, though the outage is told only once."""

    async def unconfirmed(websocket: ServerConnection) -> None:
        await websocket.send(wrapped(agg(a=2)))
        await until(lambda: 2 in feed.sink.ids)
        websocket.transport.abort()

    scripts = cut_after(trades(1)), unconfirmed, trades(9)
    async with staged(*scripts) as (_, url, _), feeding(url) as feed:
        await feed.sink.until(lambda sink: 1 in sink.ids and sink.interruptions == 1)
        await feed.sink.until(lambda sink: 2 in sink.ids and sink.interruptions == 2)
        await feed.sink.until(lambda sink: 9 in sink.ids)
        assert feed.sink.edges == ["connected", feed.sink.edges[1], "connected"]


class Short(Quick):
    lifetime_s: ClassVar[float] = 4.0


async def test_a_connection_is_replaced_before_it_is_too_old_and_nothing_is_lost() -> None:
    began_s = asyncio.get_running_loop().time()

    def newest() -> int:
        return int((asyncio.get_running_loop().time() - began_s) * 100)

    async def stream(websocket: ServerConnection) -> None:
        await accept(websocket)
        told = newest()
        while True:  # all that happens while the connection is there, neither more nor less
            for number in range(told, newest()):
                await websocket.send(wrapped(agg(a=number)))
                told = number + 1
            await asyncio.sleep(0.005)

    async with staged(stream) as (stage, url, _), feeding(url, codec=Short) as feed:
        await feed.sink.until(lambda sink: sink.edges.count("rolled over, 0 lost") == 2)
        await until(lambda: len(stage.codes) >= 2)
        assert set(stage.codes) == {1000}
        assert feed.sink.edges == ["connected", "rolled over, 0 lost", "rolled over, 0 lost"]
    told = list(dict.fromkeys(feed.sink.ids))  # a few may come again as the old one leaves: the sequence knows them
    assert told == list(range(told[0], told[-1] + 1))
    assert feed.logged == ["feed_connected", "feed_rolled_over", "feed_rolled_over"]


async def test_an_old_connection_that_is_slow_to_close_hides_nothing_of_its_replacement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing, closed = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow_to_close(url: str, **options: Any) -> AsyncIterator[Connection]:
        async with connect(url, **options) as connection:
            try:
                yield connection
            finally:
                closing.set()
                await closed.wait()

    async def replacement(websocket: ServerConnection) -> None:
        await accept(websocket)
        await closing.wait()
        await websocket.send(wrapped(mark()))
        await until(lambda: any(isinstance(call, MarkPrice) for call in feed.sink.calls))
        websocket.transport.abort()

    monkeypatch.setattr(runner, "connect", slow_to_close)
    async with staged(trades(1), replacement, trades(2)) as (_, url, _), feeding(url, codec=Short) as feed:
        await feed.sink.until(lambda sink: len(sink.edges) == 2)
        assert feed.sink.edges[1].startswith("connection ended"), "nothing is live while the old one is closing"
        closed.set()
        await feed.sink.until(lambda sink: sink.edges[-1] == "connected" and 2 in sink.ids)
        assert feed.sink.edges.count("connected") == 2


async def test_a_replacement_that_fails_is_tried_again_while_the_old_connection_goes_on() -> None:
    async def drop(websocket: ServerConnection) -> None:
        websocket.transport.abort()

    async with staged(trades(1), drop, trades(2)) as (stage, url, _), feeding(url, codec=Short) as feed:
        await feed.sink.until(lambda sink: "rolled over, 0 lost" in sink.edges)
        assert stage.count >= 3
        assert feed.sink.edges == ["connected", "rolled over, 0 lost"]


async def test_two_copies_tell_each_trade_once_and_one_may_die() -> None:
    scripts = cut_after(trades(1, 2, 3)), trades(1, 2, 3, 4, 5)
    async with staged(*scripts) as (_, url, _), feeding(url, copies=2) as feed:
        await feed.sink.until(lambda sink: 5 in sink.ids)
        assert feed.sink.ids == [1, 2, 3, 4, 5]
        assert feed.sink.edges == ["connected"]


async def test_signs_of_life_are_given_when_due_and_when_asked_for() -> None:
    heard: list[str] = []

    async def curious(websocket: ServerConnection) -> None:
        await accept(websocket)
        await websocket.send("alive?")
        async for text in websocket:
            heard.append(str(text))
            await websocket.send("pong")

    async with staged(curious) as (_, url, _), feeding(url, codec=Chatty) as feed:
        await until(lambda: heard.count("ping") >= 2)
        assert "alive" in heard
        assert feed.sink.edges == ["connected"]


async def test_two_attempts_are_never_close_together() -> None:
    times: list[float] = []

    async def drop(websocket: ServerConnection) -> None:
        times.append(asyncio.get_running_loop().time())
        websocket.transport.abort()

    async with staged(drop) as (_, url, _), feeding(url):
        await until(lambda: len(times) >= 4)
    # Measured from one acceptance to the next, so the handshake's own time may make it a little less.
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.1


async def test_a_burst_leaves_the_loop_its_turns() -> None:
    frames = 3000

    async def burst(websocket: ServerConnection) -> None:
        await accept(websocket)
        for number in range(frames):
            await websocket.send(wrapped(agg(a=number)))

    per_turn: Counter[int] = Counter()
    turn = 0

    class Counting(Sink):
        def events(self, events: list[Event]) -> None:
            per_turn[turn] += len(events)
            super().events(events)

    async def tick() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    async with staged(burst) as (_, url, _), feeding(url, sink=Counting()) as feed:
        await feed.sink.until(lambda sink: len(sink.ids) == frames)
        assert feed.sink.ids == list(range(frames))
    ticker.cancel()
    assert max(per_turn.values()) <= 200


@pytest.mark.parametrize("where", ["handshake", "subscribing", "waiting"])
async def test_it_stops_promptly_wherever_it_is(where: str) -> None:
    met, loop = asyncio.Event(), asyncio.get_running_loop()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        if where == "handshake":
            await reader.read()
        writer.close()

    async def deaf(websocket: ServerConnection) -> None:
        await websocket.recv()

    if where == "subscribing":
        async with staged(deaf) as (stage, url, _), feeding(url) as feed:
            await until(lambda: feed.runner.state is State.SUBSCRIBING)
            stopped_s = loop.time()
        assert stage.codes == [1000]
    else:
        server = await asyncio.start_server(never, "127.0.0.1", 0)
        expected = State.CONNECTING if where == "handshake" else State.CLOSED
        async with server, feeding(f"ws://127.0.0.1:{port_of(server)}") as feed:
            await until(lambda: met.is_set() and feed.runner.state is expected)
            stopped_s = loop.time()
    assert loop.time() - stopped_s < 1.0


async def test_cancelled_anywhere_it_leaves_nothing_behind() -> None:
    async with staged(trades(1)) as (_, url, server):
        before = asyncio.all_tasks()
        for turns in [*range(0, 30, 3), 60, 120]:
            feed = Feed(url, codec=Quick, markets=(BTC,), sink=Sink())
            task = asyncio.create_task(feed.runner.run(feed.stop))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await until(lambda: not server.connections and asyncio.all_tasks() == before)


async def test_our_own_bugs_and_a_bad_address_propagate_bare() -> None:
    class Broken(Sink):
        def events(self, events: list[Event]) -> None:
            raise ZeroDivisionError

    async with staged(trades(1)) as (_, url, _):
        feed = Feed(url, codec=Quick, markets=(BTC,), sink=Broken())
        with pytest.raises(ZeroDivisionError):
            await feed.runner.run(feed.stop)
    with pytest.raises(RequestRefused):
        await Feed("http://x", codec=Quick, markets=(BTC,), sink=Sink()).runner.run(asyncio.Event())


def exchange_module() -> ModuleType:
    path = ROOT / "accept" / "exchange.py"
    if not path.exists():
        pytest.skip("the stand-in exchange is not present beside the project")
    spec = importlib.util.spec_from_file_location("accept_exchange", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def test_against_an_exchange_written_apart() -> None:
    theirs = exchange_module()
    start_ms, seconds = 1_729_209_600_000, 3600
    tape = [
        theirs.TapeTrade(n, f"{100 + n % 7}.50", "0.125", start_ms + n * 500, bool(n % 2))
        for n in range(1, 2 * seconds)
    ]
    exchange = theirs.Exchange({"BTCUSDT": tape}, start_ms=start_ms, speed=600.0)
    server = await exchange.serve(0)
    try:
        port = server.addresses[0][1]
        async with feeding(f"ws://127.0.0.1:{port}/market/stream") as feed:
            await feed.sink.until(lambda sink: len(sink.ids) > 500)
            await exchange.cut()
            await feed.sink.until(lambda sink: sink.edges.count("connected") == 2 and sink.ids[-1] > 3000)
        assert feed.sink.ids == sorted(set(feed.sink.ids)), "in order, nothing twice"
        assert sum(b - a > 1 for a, b in pairwise(feed.sink.ids)) <= 1, "but for the cut"
        async with feeding(f"ws://127.0.0.1:{port}/stream") as feed:
            await feed.sink.until(lambda sink: bool(sink.edges))
        assert feed.sink.edges[0].startswith("not subscribed: btcusdt@aggTrade")
        assert not feed.sink.ids
    finally:
        await server.cleanup()
