"""Faults of real processes and links: killed, stopped, stalled, cut, a disk that is full. No follower notices.

What one process alone can meet is in `test_app`; `LONG=1` stops the daemon for a whole minute.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from daemon.broker import EmbeddedBroker
from feeds.emulator.server import Emulator
from inference.engine import Model
from tests.daemon.brokers import Mosquitto
from tests.daemon.daemons import Daemon, Follower, ape_emulator, config_text, following, until
from tests.daemon.lines import small_artifact
from tests.daemon.proxy import Proxy
from tests.daemon.test_app import ask, saved, undisturbed, whole

WAIT_S = 180
SPEED = 600.0
HOURS = 16
STOPPED_S = 60.0 if os.environ.get("LONG") else 4.0
SIGNALS = "lstmd/binance/APE-USDT-PERP/1m/signal"


class Company:
    """Exchange, broker, daemon and follower, with a proxy on each of the daemon's ways."""

    def __init__(self, model: Model, emulator: Emulator, exchange: Proxy, mqtt: Proxy) -> None:
        self.model, self.emulator, self.exchange, self.mqtt = model, emulator, exchange, mqtt
        self.daemon: Daemon
        self.follower: Follower

    async def more(self, count: int = 5) -> None:
        """Wait for signals that nobody has seen yet."""
        wanted = self.follower.count() + count
        await until(lambda: self.follower.count() >= wanted, self.daemon)

    def assert_unnoticed(self) -> None:
        """Hold what was told to be gapless and, but for the context, that of a run without a fault."""
        told = self.follower.signals["1m"]
        assert whole(self.follower), sorted(told)
        assert told == undisturbed(self.model, HOURS, min(told), max(told))

    async def ask_for_all(self) -> None:
        """Ask again for everything: what a broker had taken and not passed on may have died with it."""
        known = min(self.follower.signals["1m"])
        while not whole(self.follower):
            answer = await ask(self.follower, self.daemon, "replay", topic=SIGNALS, from_seq=known)
            assert answer["ok"]
            await asyncio.sleep(0.2)


@asynccontextmanager
async def at_work(folder: Path, url: str, port: int, *, state: Path | None = None) -> AsyncIterator[Company]:
    """Run all of it until the block ends, and the daemon politely."""
    artifact, model = saved(small_artifact("1m", warmup=64, epoch=720), folder / "artifact")
    emulator = ape_emulator(hours=HOURS, history_s=2 * 3600, speed=SPEED)
    try:
        async with asyncio.timeout(WAIT_S), Proxy(await emulator.start()) as exchange, Proxy(port) as mqtt:
            company = Company(model, emulator, exchange, mqtt)
            text = config_text(folder, mqtt=mqtt.url, port=exchange.port, artifact=artifact)
            if state:
                text = text.replace(f'path = "{folder}/state"', f'path = "{state}"')
            company.daemon = Daemon(folder, text)
            async with following(url) as company.follower, company.daemon:
                await company.more(3)
                yield company
                await company.more()
                await company.ask_for_all()
                assert await company.daemon.end() == 0, company.daemon.log.read_text()[-3000:]
            company.assert_unnoticed()
    finally:
        await emulator.stop()


@asynccontextmanager
async def mosquitto(folder: Path) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(folder)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


async def test_a_daemon_killed_again_and_again(tmp_path: Path) -> None:
    """At any moment, also while it recovers from the last time."""
    rng = random.Random(0)
    async with mosquitto(tmp_path) as broker, at_work(tmp_path, broker.url, broker.port) as company:
        for _ in range(4):
            await company.daemon.end(signal.SIGKILL)
            await company.daemon.start()
            await asyncio.sleep(rng.uniform(0.5, 2.0))


async def test_links_cut_and_stalled_on_both_sides_at_once(tmp_path: Path) -> None:
    rng = random.Random(1)
    async with mosquitto(tmp_path) as broker, at_work(tmp_path, broker.url, broker.port) as company:
        for turn in range(3):
            for proxy in (company.exchange, company.mqtt):
                proxy.hold_answers(True)
            await asyncio.sleep(rng.uniform(0.2, 0.8))
            for proxy in (company.exchange, company.mqtt):
                if turn % 2:
                    proxy.cut()
                proxy.hold_answers(False)
            await company.more(3)


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_a_broker_that_ends_and_comes_back(kind: str, tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path) if kind == "mosquitto" else EmbeddedBroker(tmp_path / "broker", port=0)
    await broker.start()
    try:
        async with at_work(tmp_path, broker.url, broker.port) as company:
            for number in (signal.SIGKILL, signal.SIGTERM):
                assert broker._process is not None
                connections = company.follower.connections
                broker._process.send_signal(number)
                await broker._process.wait()
                await asyncio.sleep(0.5)
                await broker.start()
                await until(lambda seen=connections: company.follower.connections > seen, company.daemon)  # type: ignore[misc]
                await company.more(3)
    finally:
        await broker.stop()


async def test_a_daemon_that_is_stopped_for_a_while(tmp_path: Path) -> None:
    """As by a debugger, a laptop's lid or a hypervisor: it goes on behind a hole that it must notice and fill."""
    async with mosquitto(tmp_path) as broker, at_work(tmp_path, broker.url, broker.port) as company:
        assert company.daemon.process is not None
        company.daemon.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        company.daemon.process.send_signal(signal.SIGCONT)
        await company.more(int(STOPPED_S * SPEED / 60))


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """Mount a disk of a size of its own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("mount is not installed")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True, timeout=60)


async def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The daemon ends loudly, and again each time it is started, until there is room; then nothing is missing."""
    with small_disk(tmp_path / "disk", 4096) as disk:
        async with (
            mosquitto(tmp_path) as broker,
            at_work(tmp_path, broker.url, broker.port, state=disk / "state") as company,
        ):
            assert company.daemon.process is not None
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            assert await company.daemon.process.wait() == 1
            said = [json.loads(line) for line in company.daemon.log.read_text().splitlines() if line.startswith("{")]
            assert [line["reason"] for line in said if line["event"] == "store_failed"] == ["database or disk is full"]
            await company.daemon.start()
            assert await company.daemon.process.wait() != 0
            filler.unlink()
            await company.daemon.start()
            await company.more()
        assert company.follower.newest["lstmd/info"]["stores_set_aside"] == []
