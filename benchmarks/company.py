"""What the benchmarks of the whole daemon share: an exchange in a process of its own, the daemon, and a follower.

All markets tell the same invented prices, at the same times: the exchange's cost is small then, and neither decides
what is measured.
"""

import asyncio
import contextlib
import multiprocessing
import statistics
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from daemon import mqtt
from daemon.mqtt import BrokerError, MqttLink
from feeds.emulator import Emulator
from feeds.emulator.dialects.binance_rest import USED_HEADER
from feeds.emulator.tape import MINUTE_MS, Block, T, Tape
from tests.daemon.daemons import Daemon

BEGIN_MS = 1_736_121_600_000
DAY_MS = 86_400_000
POLL_S = 0.05
UNBOUNDED = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0"
"""Of mosquitto: it is not to drop what a follower is slow to take."""
CONFIG = """
[mqtt]
url = "{url}"
[store]
path = "{folder}/state"
[metrics]
enabled = false
[[feeds]]
exchange = "binance"
symbols = "all"
candles = ["1m"]
ws_url = "ws://127.0.0.1:{port}"
rest_url = "http://127.0.0.1:{port}"
"""


def days(count: int, trades_per_minute: int) -> list[Block]:
    """Invent days of evenly spread trades; markets share them."""
    rng, blocks, price = np.random.default_rng(1), list[Block](), 10_000.0
    for day in range(count):
        size = 1440 * trades_per_minute
        path = price * np.exp(np.cumsum(rng.normal(0, 4e-4, size)))
        number = day * size + np.arange(1, size + 1)
        rows = np.empty((size, len(T)), np.int64)
        rows[:, T.ID] = rows[:, T.FIRST] = rows[:, T.LAST] = number
        rows[:, T.TIME] = BEGIN_MS + day * DAY_MS + np.arange(size) * MINUTE_MS // trades_per_minute
        rows[:, T.PRICE], rows[:, T.SIZE], rows[:, T.MAKER] = np.rint(path), rng.integers(1, 900, size), number % 2
        blocks.append(Block(BEGIN_MS + (day + 1) * DAY_MS, rows))
        price = float(path[-1])
    return blocks


class Asked(NamedTuple):
    """What the exchange was asked for, and the weight of it by minute."""

    requests: dict[str, int]
    weights: list[int]


class Exchange:
    """A Binance on loopback, in a process of its own; it may close and open again at another time."""

    def __init__(self, markets: int, *, days: int, trades_per_minute: int = 2, speed: float = 1.0) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, markets, days, trades_per_minute, speed), daemon=True
        )
        self._process.start()

    async def open(self, at_ms: int) -> int:
        """Open when its clock says `at_ms`; return the port."""
        self._pipe.send(at_ms)
        return int(await asyncio.to_thread(self._pipe.recv))

    async def close(self) -> Asked:
        """Close; tell what was asked for since it opened."""
        self._pipe.send(None)
        found: Asked = await asyncio.to_thread(self._pipe.recv)
        return found

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _serve(pipe: Pipe, markets: int, count: int, trades_per_minute: int, speed: float) -> None:
    shared = days(count, trades_per_minute)
    none = np.empty((0, len(T)), np.int64)
    names = [f"C{number:04d}USDT" for number in range(markets)]
    tapes = {name: Tape(name, none, price_decimals=2, size_decimals=0, more=iter(shared)) for name in names}
    while True:
        at_ms = pipe.recv()
        for tape in tapes.values():
            tape.price_at(at_ms)  # make the past now: it is not what is measured
        asyncio.run(_open(pipe, Emulator(tapes, start_ns=at_ms * 1_000_000, speed=speed)))


async def _open(pipe: Pipe, emulator: Emulator) -> None:
    pipe.send(await emulator.start())
    used = dict[int, int]()
    while not pipe.poll():
        await asyncio.sleep(POLL_S)
        used[emulator.venue.clock.now_ms() // MINUTE_MS] = int(emulator.venue.headers.get(USED_HEADER, "0"))
    pipe.recv()
    await emulator.stop()
    pipe.send(Asked(dict(emulator.venue.requests), list(used.values())))


class Context(msgspec.Struct):
    late: bool = False
    latency_us: int | None = None


class Message(msgspec.Struct):
    """What is kept of a durable message."""

    kind: str
    seq: int
    context: Context
    from_seq: int | None = None


class Standing(msgspec.Struct):
    state: str


mqtt.RECEIVE_QUEUE_MAX = 10_000_000  # nothing of what the follower is to judge is dropped on the way to it


class Follower:
    """Reads every durable message, and how things stand."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Message]] = {}
        """By topic, each ordinal once, as it first came."""
        self.states: dict[str, str] = {}
        self.repeated = 0
        self.connected = asyncio.Event()
        self._message, self._standing = msgspec.json.Decoder(Message), msgspec.json.Decoder(Standing)
        self._known = set[tuple[str, int]]()

    async def run(self, url: str) -> None:
        """Follow until cancelled; a broker that goes comes back."""
        filters = ("lstmd/+/+/+/signal", "lstmd/+/+/availability", "lstmd/status")
        while True:
            with contextlib.suppress(BrokerError):
                async with MqttLink(url, client_id="follower").follow(*filters) as messages:
                    self.connected.set()
                    async for message in messages:
                        self._take(message.topic, message.payload)
            await asyncio.sleep(POLL_S)

    def _take(self, topic: str, payload: bytes) -> None:
        if not topic.endswith("/signal"):
            self.states[topic] = self._standing.decode(payload).state
            return
        message = self._message.decode(payload)
        if (topic, message.seq) in self._known:
            self.repeated += 1
            return
        self._known.add((topic, message.seq))
        self.streams.setdefault(topic, []).append(message)

    @property
    def online(self) -> int:
        """How many markets are online."""
        return sum(state == "online" for topic, state in self.states.items() if topic.endswith("availability"))

    @property
    def count(self) -> int:
        return sum(map(len, self.streams.values()))

    @property
    def newest(self) -> int:
        """The newest ordinal of any stream."""
        return max((stream[-1].seq for stream in self.streams.values()), default=0)

    def out_of_order(self) -> int:
        """Count messages that came after a later one of their topic, and ordinals that none speaks of."""
        return sum(
            message.seq <= before.seq or (message.from_seq or message.seq) != before.seq + 1
            for stream in self.streams.values()
            for before, message in pairwise(stream)
        )


@contextlib.asynccontextmanager
async def following(url: str) -> AsyncIterator[Follower]:
    follower = Follower()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run(url))
        await follower.connected.wait()
        yield follower
        task.cancel()


class Memory:
    """The resident set of a process, watched."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._status = Path(f"/proc/{daemon.process.pid}/status")

    def now_mb(self) -> float:
        return self._read("VmRSS")

    def peak_mb(self) -> float:
        return self._read("VmHWM")

    def _read(self, name: str) -> float:
        lines: Iterator[str] = iter(self._status.read_text().splitlines())
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def p50_p99_ms(latencies_us: Sequence[float]) -> tuple[float, float]:
    """Return median and 99th percentile."""
    return statistics.median(latencies_us) / 1e3, float(np.quantile(latencies_us, 0.99)) / 1e3
