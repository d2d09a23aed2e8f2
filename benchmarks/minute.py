"""How long does it take, when all markets close a candle at once, until the broker has acknowledged every signal?

Caveats first. The exchange, the broker and the daemon's parts share this machine's cores. The exchange is a process
that writes frames made beforehand, so that it costs little more than a real one's network would: of each market its
closed kline, its mark price and the trade that begins the next candle, shuffled. All of a minute's frames are written
at one instant, which no exchange does; the clock runs from that instant, so the time on the wire and in our own queue
is in each figure. Signals go through the store, committed with synchronous=FULL, then at QoS 1, each with its retained
`last`. Provisional signals are on, at their usual pace. Health and availability are not written meanwhile. A minute
lasts some seconds here, and candles are invented: neither decides the time. In the last 256 of an epoch's 720 candles
each step is taken twice; `--late` measures there.

    python -m benchmarks.minute [--markets 500 3000] [--minutes 8] [--late] [--broker embedded] [--profile FILE]
"""

import argparse
import asyncio
import contextlib
import cProfile
import logging
import multiprocessing
import os
import random
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets

from benchmarks.harness import Row, faster, publish
from config.schema import Config
from daemon import clock
from daemon.broker import EmbeddedBroker, free_port
from daemon.committer import Committer
from daemon.line import Line, Ordinal, Snapshot
from daemon.metrics import Metrics
from daemon.mqtt import MqttLink
from daemon.pipeline import Pipeline
from daemon.publisher import Publisher
from daemon.store import Store
from daemon.wires import Wires
from feeds.events import Event, Kline, MarketTrade, MarkPrice
from feeds.exchanges.binance import BinanceCodec
from feeds.kinds import kind_of
from feeds.market import NS_PER_MS, Candle, CandleSpec, Market, Origin
from inference import artifact as artifacts
from inference.engine import Model
from inference.signals import Rules
from inference.stopwatch import Stopwatch

SPEC = CandleSpec.parse("1m")
MINUTE_MS = 60_000
LIMITS_MS = {500: 100.0, 3000: 500.0}
PAUSE_S = 1.0
"""Between two minutes, for what the last one left behind."""
WAIT_S = 60.0


def market(number: int) -> Market:
    """Name the market `number`."""
    name = f"C{number:04d}"
    return Market(
        exchange="binance", symbol=f"{name}/USDT:USDT", native=f"{name}USDT", price_decimals=2, size_decimals=3
    )


# ---- the exchange, a process of its own


def frame(body: str) -> bytes:
    """Dress a text as a server's websocket frame (RFC 6455 §5.2)."""
    raw = body.encode()
    length = bytes([len(raw)]) if len(raw) < 126 else b"\x7e" + struct.pack("!H", len(raw))
    return b"\x81" + length + raw


def minute_of(native: str, seq: int, first: int) -> list[bytes]:
    """Return what one market says as the candle `seq` closes; each candle has one trade, at its open."""
    end_ms, low = seq * MINUTE_MS, native.lower()
    price, following = (f"{100 + (n * 7919 % 200) / 100:.2f}" for n in (seq, seq + 1))
    kline = (
        f'{{"stream":"{low}@kline_1m","data":{{"e":"kline","E":{end_ms + 5},"s":"{native}","k":{{"t":'
        f'{end_ms - MINUTE_MS},"T":{end_ms - 1},"s":"{native}","i":"1m","f":1,"L":1,"o":"{price}","c":"{price}","h":'
        f'"{price}","l":"{price}","v":"1.000","n":1,"x":true,"q":"0","V":"0","Q":"0","B":"0"}}}}}}'
    )
    trade = (
        f'{{"stream":"{low}@aggTrade","data":{{"e":"aggTrade","E":{end_ms + 2},"a":{seq - first + 1},"s":"{native}",'
        f'"p":"{following}","q":"1.000","f":{seq - first + 1},"l":{seq - first + 1},"T":{end_ms + 1},"m":true}}}}'
    )
    return [frame(kline), mark_of(native, end_ms), frame(trade)]


def mark_of(native: str, time_ms: int) -> bytes:
    """Return a mark price."""
    return frame(
        f'{{"stream":"{native.lower()}@markPrice@1s","data":{{"e":"markPriceUpdate","E":{time_ms},"s":"{native}","p":'
        f'"101.00","P":"101.00","i":"101.01","r":"0.00010000","T":{time_ms + 3_600_000}}}}}'
    )


class Exchange:
    """Accepts subscriptions, and writes minutes when it is told to."""

    def __init__(self) -> None:
        self.names: dict[ServerConnection, list[str]] = {}

    async def serve(self, connection: ServerConnection) -> None:
        """Answer requests until the client leaves."""
        streams = self.names.setdefault(connection, [])
        async for text in connection:
            request = msgspec.json.decode(text)
            streams += request.get("params", [])
            result = streams if request["method"] == "LIST_SUBSCRIPTIONS" else None
            await connection.send(msgspec.json.encode({"result": result, "id": request["id"]}).decode())

    def prepare(self, seq: int, first: int) -> list[tuple[ServerConnection, bytes]]:
        """Make a minute's frames, in any order; say the mark prices of the second before."""
        chance, prepared = random.Random(seq), []
        for connection, streams in self.names.items():
            natives = [s.partition("@")[0].upper() for s in streams if s.endswith("@aggTrade")]
            connection.transport.write(b"".join(mark_of(native, seq * MINUTE_MS - 1000) for native in natives))
            frames = [f for native in natives for f in minute_of(native, seq, first)]
            chance.shuffle(frames)
            prepared.append((connection, b"".join(frames)))
        return prepared


async def _exchange(pipe: Pipe) -> None:
    exchange = Exchange()
    async with serve_websockets(exchange.serve, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        pipe.send(next(iter(server.sockets)).getsockname()[1])
        while (order := await asyncio.to_thread(pipe.recv)) is not None:
            prepared = exchange.prepare(*order)
            pipe.send(0)
            await asyncio.to_thread(pipe.recv)
            began_ns = time.monotonic_ns()
            for connection, frames in prepared:
                connection.transport.write(frames)
            pipe.send(began_ns)


def exchange_process(pipe: Pipe) -> None:
    """Run the exchange until it is told None."""
    asyncio.run(_exchange(pipe))


# ---- the daemon's parts


class Acks(Publisher):
    """A publisher that keeps the time of each acknowledgement."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.at_ns: list[int] = []

    def _settled(self, done: "asyncio.Future[None]", row: int, topic: str) -> None:
        super()._settled(done, row, topic)
        self.at_ns.append(time.monotonic_ns())


class Ear:
    """Takes what the connections tell, as a feed's desk does."""

    def __init__(self, pipeline: Pipeline, committer: Committer) -> None:
        self._pipeline, self._committer = pipeline, committer

    def connected(self) -> None:
        """Pass over it."""

    def lost(self, reason: str) -> None:
        """Say so: the measurement is spoilt."""
        sys.exit(f"connection lost: {reason}")

    def hindered(self, reason: str) -> None:
        """Pass over it."""

    def interrupted(self) -> None:
        """Pass over it."""

    def rolled_over(self, lost: int) -> None:
        """Pass over it."""

    def events(self, events: list[Event]) -> None:
        """Pass market events on."""
        self._pipeline.handle([event for event in events if isinstance(event, MarketTrade | MarkPrice | Kline)])
        self._committer.moved()


def history(model: Model, last: int) -> tuple[list[Ordinal], Snapshot]:
    """Fold one market up to the candle `last`; return the journal of that fold, and the state."""
    pipeline = Pipeline(model, base_topic="lstmd").add(market(0), BinanceCodec.traits)
    pipeline.settle_funding([], 1 << 62)
    line = pipeline.add(SPEC, model, has_kline=True, by_exchange=False)
    first = line.first_needed(last, last - 1)
    closes = 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 1e-3, last - first + 2)))
    rows = []
    for at, seq in enumerate(range(first, last + 1)):
        opened, closed = float(closes[at]), float(closes[at + 1])
        rows.append(
            Ordinal(
                seq,
                Candle(
                    seq=seq, open_time_ns=(seq - 1) * SPEC.interval_ns, close_time_ns=seq * SPEC.interval_ns,
                    open=opened, high=max(opened, closed) + 0.1, low=min(opened, closed) - 0.1, close=closed,
                    volume=12.345, trades=321, closed=True, origin=Origin.EXCHANGE,
                ),
            )
        )  # fmt: skip
    line.begin(newest_seq=last, stream_seq=last - 1, journal=rows)
    return rows, Snapshot(last, line.engine.snapshot())


def take_up(pipeline: Pipeline, model: Model, count: int, last: int) -> list[Line]:
    """Set `count` markets up, each where it was left after the candle `last`."""
    rows, state = history(model, last)
    lines = []
    for number in range(count):
        one = pipeline.add(market(number), BinanceCodec.traits)
        one.clock.set(last * SPEC.interval_ns)
        one.settle_funding([], 1 << 62)
        line = one.add(SPEC, model, has_kline=True, by_exchange=False)
        line.begin(newest_seq=last, stream_seq=last, journal=rows, snapshots=[state])
        lines.append(line)
    return lines


@contextlib.asynccontextmanager
async def broker_of(kind: str, folder: Path) -> AsyncIterator[str]:
    """Run a broker; give its address."""
    if kind == "embedded":
        embedded = EmbeddedBroker(folder / "broker", port=0)
        await embedded.start()
        try:
            yield embedded.url
        finally:
            await embedded.stop()
        return
    port, conf = free_port(), folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    conf.write_text(f"listener {port} 127.0.0.1\n{user}allow_anonymous true\nmax_queued_messages 0\n")
    path = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        sys.exit("mosquitto is not installed; try --broker embedded")
    process = await asyncio.create_subprocess_exec(path, "-c", str(conf), stderr=asyncio.subprocess.DEVNULL)
    try:
        await asyncio.sleep(0.5)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def until(true: Any, what: str) -> None:
    """Wait for what has no event to wait for."""
    began_s = time.monotonic()
    while not true():
        if time.monotonic() - began_s > WAIT_S:
            sys.exit(f"{what} took more than {WAIT_S:.0f} s")
        await asyncio.sleep(0.02)


async def measure(
    count: int, minutes: int, model: Model, options: argparse.Namespace, pipe: Pipe, port: int
) -> tuple[list[list[float]], float]:
    """Close `minutes` candles of `count` markets; return each minute's latencies and the CPU time of one, ms."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        async with broker_of(options.broker, folder) as url:
            return await _measure(count, minutes, model, options, pipe, port, folder, url)


async def _measure(
    count: int, minutes: int, model: Model, options: argparse.Namespace, pipe: Pipe, port: int, folder: Path, url: str
) -> tuple[list[list[float]], float]:
    epoch = 28_000_000 // model.epoch * model.epoch
    last = epoch + (model.epoch - minutes - 5 if options.late else 200)
    config = Config(feeds=[{"exchange": "binance", "symbols": [market(0).symbol]}], store={"path": folder})
    metrics, store = Metrics(), Store(folder / "lstmd.sqlite")
    pipeline = Pipeline(model, base_topic="lstmd", watch=Stopwatch(clock.now_ns), journal=store.journal)
    take_up(pipeline, model, count, last)
    acks = Acks(
        MqttLink(url, client_id="minute", inflight_max=config.mqtt.inflight_max), store, status_topic="lstmd/status",
        online=b"{}", offline=b"{}", stamp=lambda: b'"boot_id":"0123456789ab"',
        inflight_max=config.mqtt.inflight_max, rng=clock.rng(0),
    )  # fmt: skip
    committer = Committer(config, pipeline, store, acks, metrics)
    log = structlog.get_logger()
    wires = Wires(kind_of("binance", ws_url=f"ws://127.0.0.1:{port}"), [SPEC], Ear(pipeline, committer), log, copies=1)
    stop, profile = asyncio.Event(), cProfile.Profile() if options.profile else None
    found, cpu_ms = [], []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(committer.run()), group.create_task(committer.live())]
        group.create_task(acks.run(stop))
        wires.connect(list(pipeline.markets.values()), group)
        await until(lambda: wires.live and acks.connected, "connecting")
        for number in range(minutes + 1):
            pipe.send((last + 1 + number, last))
            await asyncio.to_thread(pipe.recv)
            await asyncio.sleep(PAUSE_S)
            acks.at_ns.clear()
            if profile and number == minutes:
                profile.enable()
            began_s = time.process_time()
            pipe.send(0)
            await until(lambda: len(acks.at_ns) == count, "a minute")
            cpu_ms.append(1e3 * (time.process_time() - began_s))
            if profile:
                profile.disable()
            began_ns = pipe.recv()
            if number:  # the first meets candles whose begin was not seen
                found.append([(at - began_ns) / NS_PER_MS for at in acks.at_ns])
        wires.stop()
        for task in tasks:
            task.cancel()
        stop.set()
    store.close()
    if profile:
        profile.dump_stats(options.profile)
    return found, statistics.median(cpu_ms[1:])


def rows_of(count: int, found: Sequence[Sequence[float]], cpu_ms: float) -> list[Row]:
    """Set the median minute's p50 and p99 beside the limit; markets without one are set beside 500's, in proportion."""
    limit_ms = LIMITS_MS.get(count, LIMITS_MS[500] * count / 500)
    reach = 1.0 if count in LIMITS_MS else None
    p50, p99 = (statistics.median(float(np.quantile(minute, q)) for minute in found) for q in (0.5, 0.99))
    worst = max(max(minute) for minute in found)
    text = f"{count} candles closed at once → PUBACK"
    return [
        faster(f"minute.{count}.p50", f"{text}, p50", p50, limit_ms, "the limit", "ms"),
        faster(f"minute.{count}.p99", f"{text}, p99 of the median minute", p99, limit_ms, "the limit", "ms", reach),
        faster(f"minute.{count}.cpu", f"{count} candles, our CPU time", cpu_ms, limit_ms, "the limit", "ms"),
        faster(f"minute.{count}.max", f"{text}, the slowest of all minutes", worst, limit_ms, "the limit", "ms"),
    ]


def main() -> None:
    """Measure each number of markets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markets", type=int, nargs="+", default=[500, 3000])
    parser.add_argument("--minutes", type=int, default=8)
    parser.add_argument("--late", action="store_true", help="measure where an epoch changes over: two folds a market")
    parser.add_argument("--broker", choices=("mosquitto", "embedded"), default="mosquitto")
    parser.add_argument("--folder", type=Path, default=None, help="where the store lies; it decides which disk is used")
    parser.add_argument("--profile", help="write a profile of the last minute here (cProfile; it slows things down)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    model, rows = Model(artifacts.load(artifacts.resolve("default")), Rules()), []
    for count in options.markets:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=exchange_process, args=(theirs,), daemon=True)
        process.start()
        found, cpu_ms = asyncio.run(measure(count, options.minutes, model, options, ours, ours.recv()))
        rows += rows_of(count, found, cpu_ms)
        ours.send(None)
        process.join()
    caveats = [
        f"{os.cpu_count()} cores with {options.broker} and the exchange beside it; all frames written at one instant",
        "the clock runs from that instant; store with synchronous=FULL; signal and retained last at QoS 1; live on",
    ]
    publish("minute", "Closed candle to PUBACK when all markets close at once", caveats, rows)


if __name__ == "__main__":
    main()
