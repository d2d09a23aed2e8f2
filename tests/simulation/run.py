"""One seed, one run: the whole daemon in a world of our own, its lives and deaths, and whether its followers notice."""

import contextlib
import functools
import json
import random
import signal
import sqlite3
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import structlog

from config.schema import Config
from daemon import app, clock, keeper
from daemon import health as reporting
from daemon.mqtt import BrokerRefused, MqttLink
from daemon.reload import Reloader
from daemon.store import StoreError
from tests.daemon.lines import small_artifact
from tests.simulation.broker import Broker, Client
from tests.simulation.disk import Disk, Medium
from tests.simulation.exchange import NATIVES, SPAN_S, TAPES, Exchange, Rest
from tests.simulation.loop import Killed, VirtualLoop, fresh_numbers
from tests.simulation.schedule import Fault, arm, schedule
from tests.simulation.world import START_NS, World

SPECS = {"1m": 60, "5s": 5}
FAULTS_END_S = 14 * 60.0
LIVENESS_S = 240.0
"""So long after the last fault has ended, everything is told and every market online."""
FAREWELL_S = 30.0
"""So long may a polite end take."""
WARMUP, EPOCH = 8, 80
ARTIFACT = small_artifact(*SPECS, warmup=WARMUP, epoch=EPOCH)
TOPICS = {
    f"lstmd/binance/{native[:-4]}-USDT-PERP/{spec}/signal": step for native in NATIVES for spec, step in SPECS.items()
}


MEMORY = Path("/dev/shm")
"""Where files cost nothing."""
LAST: list[Any] = []
"""What happened in the newest run that failed."""


class Diverged(AssertionError):
    """The followers of a run noticed, or the daemon did what nobody had planned."""


class Outcome(msgspec.Struct):
    """What became of one run."""

    seed: int
    streams: dict[str, dict[int, str]]
    """Per topic and ordinal: everything but the context."""
    fired: Counter[str]
    lives: int
    whole_after_s: float
    """How long after the end of the faults all was whole."""


class Simulation:
    """One run."""

    def __init__(self, seed: int, faults: list[Fault], folder: Path, *, tape: int, redundant: bool) -> None:
        fresh_numbers()
        self.world = World(seed)
        self.exchange, self.broker = Exchange(self.world, tape), Broker(self.world)
        self.medium = Medium(self.world, folder / "state")
        self.medium.killed = self._vanish
        self.chance = self.world.chance("supervisor")
        self.faults = faults
        self.lives = 0
        self.whole_s = 0.0
        self.ending = False
        self.failure: str | None = None
        self.config = _config(folder / "state", redundant=redundant)

    # ---- the supervisor

    def run(self) -> Outcome:
        """Play it through.

        Raises:
            Diverged: the followers noticed.

        """
        last_s = max((fault.at_s + fault.for_s for fault in self.faults), default=0.0)
        self.faults_end_s = max(FAULTS_END_S, last_s)
        for fault in self.faults:
            arm(fault, self)
        self.world.timeline.at(self.faults_end_s, self._look)
        with self._ports():
            while not self.ending:
                self._live()
                self._raise_failure()
                if not self.ending:
                    pause_s = 2.0 + (self.chance.uniform(0, 20) if self.chance.random() < 0.3 else 0.0)
                    self.world.timeline.pass_until(self.world.now_s + pause_s)
        self._judge_end()
        return Outcome(
            seed=self.world.seed, streams=self.broker.follower.streams, fired=self.world.fired, lives=self.lives,
            whole_after_s=round(self.whole_s - self.faults_end_s, 1),
        )  # fmt: skip

    def _raise_failure(self) -> None:
        if failure := self.failure or self.broker.follower.objection:
            raise Diverged(failure)

    def _live(self) -> None:
        """Run one process until it ends or is killed."""
        world = self.world
        self.lives += 1
        world.planted.clear()
        loop = world.process = VirtualLoop(world.timeline)
        world.note("start", life=self.lives)
        try:
            loop.run_until_complete(app._main(self.config, Reloader(self.config, lambda: self.config)))
            world.note("ended")
        except Killed:
            world.note("killed")
            loop.bury()
            self.medium.restore()
            return
        except BaseException as error:
            world.note("crashed", error=repr(error), planted=sorted(world.planted))
            world.note("trace", lines="".join(traceback.format_exception(error))[-3000:])
            self._explain(error)
        finally:
            world.process = None
            if loop.complaints and not self.failure:
                self.failure = f"asyncio complains: {loop.complaints[0]}"
            if not loop.is_closed():
                loop.close()
        self._judge_status()
        self._vanish()
        self.medium.save()  # to other files: what an error's trace still holds open is no lock on these
        self.medium.restore()

    def _explain(self, error: BaseException) -> None:
        """Let a process die of what was done to it, and of nothing else."""
        excuses: dict[type[BaseException], tuple[str, ...]] = {
            ZeroDivisionError: ("exception",),
            sqlite3.OperationalError: ("enospc", "eio", "readonly"),
            StoreError: ("enospc", "eio", "readonly"),
            BrokerRefused: ("broker_auth",),
        }
        for leaf in _leaves(error):
            if not set(excuses.get(type(leaf), ())) & self.world.planted:
                self.failure = f"the daemon died of {leaf!r}"
                return

    def kill(self) -> None:
        """End the process as SIGKILL does."""
        if self.world.process is not None and self.world.process.alive:
            self.medium.save()
            self._vanish()

    def _vanish(self) -> None:
        """Close the sockets of a process that is no more, as the operating system does."""
        if self.world.process is not None:
            self.world.process.kill()
        self.world.timeline.frozen_until_s = 0.0
        self.exchange.break_all("process gone")
        self.broker.cut_all("process gone")

    # ---- the judge

    def _look(self) -> None:
        """See whether all is whole again; then end the daemon politely."""
        world = self.world
        if self.whole_s or self.failure:
            return
        missing = self._missing()
        if not missing:
            self.whole_s = world.now_s
            world.timeline.after(7.0, self._end)
        elif world.now_s > self.faults_end_s + LIVENESS_S:
            self.failure = f"not whole {LIVENESS_S:.0f} s after the last fault: {missing}"
            self.kill()
        else:
            world.timeline.after(1.0, self._look)

    def _missing(self) -> str:
        for topic, step in TOPICS.items():
            due, newest = (
                (START_NS // 10**9 + int(self.faults_end_s)) // step,
                self.broker.follower.newest.get(topic, 0),
            )
            if newest < due:
                return f"{topic} ends at {newest}, not at {due}"
        for topic, payload in self.broker.retained.items():
            if topic.endswith("availability") and json.loads(payload)["state"] != "online":
                return f"{topic}: {payload.decode()}"
        if b'"online"' not in self.broker.retained.get("lstmd/status", b""):
            return "status is not online"
        return ""

    def _judge_status(self) -> None:
        """See whether a process that ended by itself has left word, or its last will."""
        boot, retained = f'"life-{self.lives}"'.encode(), self.broker.retained.get("lstmd/status", b"")
        connected = any(link.will and boot in link.will.payload for link in self.broker.sessions.values())
        left = any(boot in will for will in self.broker.mute_farewells)
        if not connected and left and b'"online"' in retained and boot in retained:
            self.failure = self.failure or "the daemon is gone, and its status says online for ever"

    def _end(self) -> None:
        self.ending = True
        self.world.active.clear()
        if self.world.process is not None:
            self.world.process.send_signal(signal.SIGTERM)
        self.world.timeline.after(FAREWELL_S, self._overdue)

    def _overdue(self) -> None:
        if self.world.process is not None:
            self.failure = f"still there {FAREWELL_S:.0f} s after SIGTERM"
            self.kill()

    def _judge_end(self) -> None:
        """Look at what is left: nothing unsent, goodbye said, `last` the last, everything retained anew."""
        with contextlib.closing(sqlite3.connect(self.medium.folder / app.STORE_FILE)) as db:
            (unsent,) = db.execute("SELECT COUNT(*) FROM outbox WHERE acknowledged=0").fetchone()
        if unsent:
            raise Diverged(f"{unsent} messages unsent after a polite end")
        retained, streams = self.broker.retained, self.broker.follower.streams
        if b'"offline"' not in retained["lstmd/status"]:
            raise Diverged(f"status after the end: {retained['lstmd/status'].decode()}")
        for topic in TOPICS:
            last = json.loads(retained[topic.removesuffix("signal") + "last"])
            del last["context"]
            if json.dumps(last, sort_keys=True) != streams[topic][max(streams[topic])]:
                raise Diverged(f"{topic}: last is {last['seq']}, the stream's {max(streams[topic])}")
        wanted = {"lstmd/info", "lstmd/health"} | {topic.rsplit("/", 2)[0] + "/availability" for topic in TOPICS}
        if not wanted <= retained.keys():
            raise Diverged(f"not retained: {sorted(wanted - retained.keys())}")

    # ---- ports

    @contextlib.contextmanager
    def _ports(self) -> Iterator[None]:
        """Put the world in the place of clock, network, broker and disk."""
        world, broker = self.world, self.broker
        chances = iter(range(1 << 62))

        def make(link: MqttLink, suffix: str, with_will: bool) -> Client:
            return Client(
                broker, link._client_id + suffix, link._will if with_will else None,
                timeout_s=link._timeout_s, keepalive_s=link._keepalive_s,
            )  # fmt: skip

        patches: list[Any] = [
            mock.patch.multiple(
                clock,
                now_ns=lambda: world.wall_ns,
                monotonic_s=lambda: world.monotonic_s,
                rng=lambda: random.Random(f"{world.seed} daemon {next(chances)}"),
                boot_id=lambda: f"life-{self.lives}",
            ),
            mock.patch("daemon.check.check", return_value=ARTIFACT),
            mock.patch.object(MqttLink, "_make", make),
            mock.patch("daemon.mqtt._outlet", Client.outlet),
            mock.patch.object(keeper, "REPAIR_POLL_S", 0.5),
            mock.patch.object(reporting, "TICK_S", 2.0),
            mock.patch("feeds.runner.connect", self.exchange.connect),
            mock.patch(
                "ccxt.async_support.binanceusdm.binanceusdm", type("Rest", (Rest,), {"exchange": self.exchange})
            ),
            mock.patch("sqlite3.connect", self._connect(sqlite3.connect)),
        ]
        before = structlog.get_config()
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            structlog.configure(processors=[self._log])
            stack.callback(structlog.configure, **before)
            yield

    def _connect(self, real: Any) -> Any:
        disk = type("Disk", (Disk,), {"medium": self.medium})
        return lambda path, **more: real(path, factory=disk, **more)

    def _log(self, _logger: Any, method: str, event: Any) -> Any:
        self.world.note("log " + method, **event)
        raise structlog.DropEvent


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


def _config(folder: Path, *, redundant: bool) -> Config:
    return Config.model_validate(
        {
            "mqtt": {"url": "mqtt://broker:1883"},
            "store": {"path": str(folder)},
            "metrics": {"enabled": False},
            "live": {"min_interval_ms": 5000},
            "feeds": [
                {
                    "exchange": "binance",
                    "symbols": [f"{native[:-4]}/USDT:USDT" for native in NATIVES],
                    "candles": list(SPECS),
                    "redundant": redundant,
                }
            ],
        }
    )


def simulate(seed: int, faults: list[Fault] | None = None) -> Outcome:
    """Run a seed and hold it against the unfaulted run on the same tape.

    Raises:
        Diverged: the followers noticed.

    """
    chance = random.Random(f"{seed} run")
    tape, redundant = chance.randrange(TAPES), chance.random() < 0.3
    found = play(seed, schedule(seed) if faults is None else faults, tape, redundant=redundant)
    compare(found.streams, reference(tape))
    return found


def play(seed: int, faults: list[Fault], tape: int, *, redundant: bool = False) -> Outcome:
    """Run one schedule."""
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        simulation = Simulation(seed, faults, Path(folder), tape=tape, redundant=redundant)
        try:
            return simulation.run()
        except BaseException:
            LAST[:] = simulation.world.trace
            raise


@functools.cache
def reference(tape: int) -> dict[str, dict[int, str]]:
    """Return the streams of a run in which nothing goes wrong, longer than any other."""
    undisturbed = Fault("none", 0.0, SPAN_S - 120.0)
    return play(-1, [undisturbed], tape).streams


def compare(streams: dict[str, dict[int, str]], wanted: dict[str, dict[int, str]]) -> None:
    """Hold the streams of a run against those of the undisturbed one.

    Raises:
        Diverged: they are not the same.

    """
    if streams.keys() != TOPICS.keys():
        raise Diverged(f"topics: {sorted(streams)}")
    for topic, stream in streams.items():
        for seq, identity in stream.items():
            if wanted[topic].get(seq) != identity:
                raise Diverged(
                    f"{topic}: {seq} is not what the undisturbed run says:\n{identity}\n{wanted[topic].get(seq)}"
                )
