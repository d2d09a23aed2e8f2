"""An exchange that sends recorded trades over a real websocket at a stated pace, and our consumer of it.

The sender is a process of its own: it answers subscriptions as Binance does and then writes frames that were encoded
before, by its clock. The consumer is the daemon's own chain from the socket to the broker; only what a REST history
would give is given to it at the start.
"""

import asyncio
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog
from websockets.asyncio.server import ServerConnection, serve

from benchmarks import models
from config.schema import Config
from daemon import clock
from daemon.committer import Committer
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import MarketPipeline, Pipeline
from daemon.publisher import Publisher
from daemon.store import Store
from daemon.wires import Wires
from feeds.capture import AggTrade, agg_trade_frame, read_agg_trades
from feeds.events import Event
from feeds.exchanges.binance import BinanceCodec
from feeds.kinds import kind_of
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin

TRADES = Path(__file__).parents[2] / "shared" / "data" / "trades" / "binance_um_APEUSDT-aggTrades-2024-10-18.zip"
SPEC = CandleSpec.parse("1m")
BEGIN_MS = 1_729_296_000_000
"""2024-10-19 00:00 UTC, when the sent trades begin; the market counts as listed 300 minutes before."""
WARM = 300
DECIMALS = 4


def native(number: int) -> str:
    return f"C{number:04}USDT"


def market(number: int) -> Market:
    return Market(
        exchange="binance", symbol=f"C{number:04}/USDT:USDT", native=native(number), price_decimals=DECIMALS,
        size_decimals=1, listed_at_ns=(BEGIN_MS - WARM * 60_000) * NS_PER_MS,
    )  # fmt: skip


def frames(ticks: int, markets: int, rate: float) -> Iterator[str]:
    """Yield the recorded trades in turn to each market, numbered and timed anew: `rate` a second in all."""
    for n, row in zip(range(ticks), cycle(read_agg_trades(TRADES)), strict=False):
        number, name = 1 + n // markets, native(n % markets)
        at_ms = BEGIN_MS + int(n * 1e3 / rate)
        yield agg_trade_frame(name, AggTrade(number, row.price, row.size, number, number, at_ms, row.buyer_is_maker))


# ---- the sender


class Plan(NamedTuple):
    """What to send."""

    ticks: int
    markets: int
    rate: float
    """Ticks a second by the exchange's time, and by ours if `paced`."""
    paced: bool
    """False: as fast as the reader takes them."""


_CHUNK = 64


def _wire(text: str) -> bytes:
    """Frame a text as RFC 6455 (§5.2) does, unmasked."""
    body = text.encode()
    head = bytes([0x81, len(body)]) if len(body) < 126 else b"\x81\x7e" + len(body).to_bytes(2, "big")
    return head + body


def send(plan: Plan, pipe: Pipe) -> None:
    """Run the exchange: send the port, then to each that subscribes all frames, until told to stop."""
    asyncio.run(_send(plan, pipe))


async def _send(plan: Plan, pipe: Pipe) -> None:
    wired = [_wire(text) for text in frames(plan.ticks, plan.markets, plan.rate)]

    async def talk(peer: ServerConnection) -> None:
        asked: list[str] = []
        async for raw in peer:
            request = msgspec.json.decode(raw)
            asked += request.get("params", [])
            is_list = request["method"] == "LIST_SUBSCRIPTIONS"
            await peer.send(msgspec.json.encode({"result": asked if is_list else None, "id": request["id"]}).decode())
            # Our codec asks for a list at last; ccxt never does.
            if is_list or not any("markPrice" in name for name in asked):
                break
        await (_paced(peer, wired, plan.rate) if plan.paced else _flat_out(peer, wired))
        await peer.wait_closed()

    async with serve(talk, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _paced(peer: ServerConnection, wired: list[bytes], rate: float) -> None:
    began_s, sent = time.perf_counter(), 0
    while sent < len(wired):
        due = min(len(wired), int((time.perf_counter() - began_s) * rate) + 1)
        if due > sent:
            peer.transport.write(b"".join(wired[sent:due]))
            sent = due
        await asyncio.sleep(max(0.0, began_s + sent / rate - time.perf_counter()))


async def _flat_out(peer: ServerConnection, wired: list[bytes]) -> None:
    for start in range(0, len(wired), _CHUNK):
        peer.transport.write(b"".join(wired[start : start + _CHUNK]))
        while peer.transport.get_write_buffer_size() > 1 << 16:  # noqa: ASYNC110
            await asyncio.sleep(0.0005)


@contextmanager
def exchange(plan: Plan) -> Iterator[int]:
    """Run the sender; give its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=send, args=(plan, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        process.join(10)


# ---- what a consumer tells


class Told(NamedTuple):
    """What a consumer used for its ticks, the first of them left out."""

    cpu_s: float
    wall_s: float
    ticks: int
    outputs: int


class Meter:
    """Counts from the tick `after` on to the tick `upto`."""

    def __init__(self, after: int, upto: int) -> None:
        self.ticks = self.outputs = 0
        self.done = asyncio.Event()
        self._after, self._upto = after, upto
        self._began: tuple[float, float, int, int] | None = None
        self.told = Told(0.0, 0.0, 0, 0)

    def tick(self, count: int = 1) -> None:
        self.ticks += count
        if self._began is None and self.ticks >= self._after:
            self._began = (time.process_time(), time.perf_counter(), self.ticks, self.outputs)
        elif self._began is not None and self.ticks >= self._upto and not self.done.is_set():
            now = (time.process_time(), time.perf_counter(), self.ticks, self.outputs)
            self.told = Told(*(b - a for a, b in zip(self._began, now, strict=True)))  # type: ignore[arg-type]
            self.done.set()


def apart(consumer: Callable[..., Told], *args: object) -> Told:
    """Run a consumer in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, consumer, args))
    process.start()
    theirs.close()  # or the end of a consumer that fails would go unnoticed
    told: Told = ours.recv()
    process.join()
    return told


def _answer(pipe: Pipe, consumer: Callable[..., Told], args: tuple[object, ...]) -> None:
    pipe.send(consumer(*args))


# ---- our consumer


class Ours(NamedTuple):
    """How we consume."""

    port: int
    plan: Plan
    size: str
    """``shipped`` or ``2x64``."""
    min_interval_ms: int
    broker: str | None = None
    """Address of a broker at which each provisional signal is published at QoS 1; None: it ends as bytes."""
    loop: str = "asyncio"


class _Counting(Publisher):
    """Counts provisional signals, and publishes them at QoS 1."""

    meter: Meter

    def volatile(self, topic: str, payload: bytes, *, qos: int = 0) -> None:  # noqa: ARG002 (that is the point)
        self.meter.outputs += topic.endswith("live")
        super().volatile(topic, payload, qos=1)


def warm(one: MarketPipeline) -> None:
    """Give a market the candles of a quiet drift from its listing on, as its history would have."""
    line = one.channels[SPEC.text].line
    first = SPEC.seq_at(BEGIN_MS * NS_PER_MS) - WARM + 1
    line.begin(newest_seq=first, stream_seq=None, journal=[])
    prices = 0.75 + 0.01 * np.cumsum(np.random.default_rng(2).normal(size=WARM + 1)) / 10
    for n in range(WARM):
        low, high = sorted(prices[n : n + 2].tolist())
        seq = first + n
        line.backfill([
            Candle(
                seq=seq, open_time_ns=(seq - 1) * SPEC.interval_ns, close_time_ns=seq * SPEC.interval_ns,
                open=float(prices[n]), high=high, low=low, close=float(prices[n + 1]), volume=1000.0 + n, trades=50,
                closed=True, origin=Origin.EXCHANGE,
            )
        ], (seq, seq), seq * SPEC.interval_ns, by_hand=False)  # fmt: skip


def consume(how: Ours) -> Told:
    """Run our chain against the sender until all ticks are through."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if how.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_consume(how))


async def _consume(how: Ours) -> Told:
    pipeline, metrics, meter = (
        Pipeline(models.of(how.size), base_topic="lstmd"),
        Metrics(),
        Meter(how.plan.ticks // 5, how.plan.ticks),
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "lstmd.sqlite")
        url = f"ws://127.0.0.1:{how.port}"
        config = Config.model_validate({
            "feeds": [{"exchange": "binance", "symbols": ["all"], "ws_url": url}],
            "live": {"min_interval_ms": how.min_interval_ms},
        })  # fmt: skip
        link = MqttLink(how.broker or "mqtt://127.0.0.1:9", client_id="ours", inflight_max=1000)
        publisher = _Counting(
            link, store, status_topic="status", online=b"{}", offline=b"{}", stamp=bytes, inflight_max=100,
            rng=clock.rng(0),
        )  # fmt: skip
        publisher.meter = meter
        committer = Committer(config, pipeline, store, publisher, metrics)
        desk = Desk(0, config.feeds[0], pipeline, store, metrics, committer.moved)
        ones = [pipeline.add(market(n), BinanceCodec.traits) for n in range(how.plan.markets)]
        for one in ones:
            one.clock.set((BEGIN_MS - 1) * NS_PER_MS)
            one.settle_funding([], 1 << 62)
            one.add(SPEC, pipeline.model, has_kline=True, by_exchange=False)
            warm(one)
        committer.flush()
        taken = desk.events

        def events(found: list[Event]) -> None:
            taken(found)
            meter.tick(len(found))

        desk.events = events  # type: ignore[method-assign,assignment]
        wires = Wires(kind_of("binance", ws_url=url), [SPEC], desk, structlog.get_logger(), copies=1)
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[Any]] = [group.create_task(committer.run()), group.create_task(committer.live())]
            stop = asyncio.Event()
            if how.broker:
                tasks.append(group.create_task(publisher.run(stop)))
                await publisher.greeted.wait()
            wires.connect(ones, group)
            await meter.done.wait()
            wires.stop()
            for task in tasks:
                task.cancel()
        store.close()
    return meter.told
