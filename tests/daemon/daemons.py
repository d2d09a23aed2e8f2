"""A daemon as a process of its own, its service manager, and a follower of everything it says."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from daemon import topics
from daemon.mqtt import BrokerError, MqttLink
from feeds.emulator.server import Emulator
from feeds.emulator.sources import tape_of_trades
from tests.daemon import brokers
from tests.daemon.tapes import APE, ape_trades

WAIT_S = 180
PATTERNS = {pattern.rsplit("/", 1)[-1]: kind for pattern, kind in topics.PAYLOADS.items()}


def ape_emulator(*, hours: int, history_s: int, speed: float) -> Emulator:
    """Play a recorded day on, from where it has passed for `history_s`."""
    trades = ape_trades(hours)
    begin_ns = trades[0].time_ms * 1_000_000
    return Emulator(
        {APE.native: tape_of_trades(APE.native, trades)}, start_ns=begin_ns + history_s * 10**9, speed=speed
    )


def config_text(
    folder: Path, *, mqtt: str, port: int, artifact: Path | str, candles: str = '["1m"]', more: str = ""
) -> str:
    return f"""
[mqtt]
url = "{mqtt}"
publish_candles = true
[store]
path = "{folder}/state"
[model]
artifact = "{artifact}"
[metrics]
listen = "127.0.0.1:0"
[[feeds]]
exchange = "binance"
symbols = ["{APE.symbol}"]
candles = {candles}
ws_url = "ws://127.0.0.1:{port}"
rest_url = "http://127.0.0.1:{port}"
{more}
"""


class Manager:
    """The service manager's side of sd_notify."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        self.heard: list[str] = []
        asyncio.get_running_loop().add_reader(self._socket, self._listen)

    def _listen(self) -> None:
        self.heard += self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


class Daemon:
    """`lstmd run` on one configuration; may be ended and started again."""

    def __init__(self, folder: Path, text: str, *, environment: dict[str, str] | None = None) -> None:
        self._config, self.log = folder / "lstmd.toml", folder / "log.jsonl"
        self._config.write_text(text)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("LSTMD_")}
        self._environment = clean | (environment or {})
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "daemon.cli", "run", "-c", str(self._config)),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
            )  # fmt: skip

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def alive(self) -> None:
        """Fail with the daemon's last words if it has ended."""
        assert self.process is not None
        assert self.process.returncode is None, self.log.read_text()[-3000:]


class Follower:
    """Subscribes to everything, again after each loss, and holds every payload against its type."""

    def __init__(self, url: str, *filters: str) -> None:
        self._url, self._filters = url, filters
        self.raw: list[tuple[str, bytes]] = []
        self.signals: dict[str, dict[int, str]] = {}
        """Per spec and ordinal: everything but the context."""
        self.order: dict[str, list[int]] = {}
        """Per spec: ordinals as they first came; those sent on request are left out."""
        self.contexts: list[dict[str, Any]] = []
        self.candles: dict[str, list[dict[str, Any]]] = {}
        self.newest: dict[str, dict[str, Any]] = {}
        """The newest payload of each topic."""
        self.states: list[str] = []
        """What `status` has said, each change."""
        self.connections = 0

    def link_for(self, name: str) -> MqttLink:
        return MqttLink(self._url, client_id=name)

    async def run(self) -> None:
        while True:
            try:
                async with self.link_for("follower").follow(*self._filters) as messages:
                    self.connections += 1
                    async for message in messages:
                        self._take(message.topic, message.payload)
            except BrokerError:
                await asyncio.sleep(0.05)

    def _take(self, topic: str, raw: bytes) -> None:
        self.raw.append((topic, raw))
        if topic.startswith("lstmd/a/"):
            return  # no signals but numbered messages of a test
        payload = json.loads(raw)
        leaf = topic.rsplit("/", 1)[-1]
        if topic.startswith("lstmd/request/"):
            return
        kind = PATTERNS["{command}"] if topic.startswith("lstmd/response/") else PATTERNS[leaf]
        if leaf in ("signal", "last") and payload["kind"] != "signal":
            kind = topics.Void
        msgspec.json.decode(raw, type=kind, strict=True)
        assert set(payload) == set(kind.__struct_fields__)
        self.newest[topic] = payload
        if topic == "lstmd/status" and self.states[-1:] != [payload["state"]]:
            self.states.append(payload["state"])
        elif leaf == "candle":
            self.candles.setdefault(payload["spec"], []).append(payload)
        elif leaf == "signal":
            self._signal(payload)

    def _signal(self, payload: dict[str, Any]) -> None:
        context, spec, seq = payload.pop("context"), payload["spec"], payload["seq"]
        self.contexts.append(context)
        identity = json.dumps(payload, sort_keys=True)
        known = self.signals.setdefault(spec, {}).setdefault(seq, identity)
        assert known == identity, "one ordinal, one message"
        order = self.order.setdefault(spec, [])
        if not context.get("replayed") and seq not in order:
            order.append(seq)

    def of(self, topic: str) -> list[bytes]:
        """Return the payloads of a topic as they came."""
        return [payload for name, payload in self.raw if name == topic]

    def count(self, spec: str = "1m") -> int:
        return len(self.signals.get(spec, {}))


@asynccontextmanager
async def following(url: str, *filters: str) -> AsyncIterator[Follower]:
    """Follow meanwhile; a payload that is not as it should be ends the test at once."""
    follower = Follower(url, *(filters or ("lstmd/#",)))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        try:
            await brokers.until(lambda: follower.connections > 0)
            yield follower
        finally:
            task.cancel()


async def until(true: Callable[[], bool], daemon: Daemon) -> None:
    """Wait while the daemon lives."""
    while not true():
        daemon.alive()
        await asyncio.sleep(0.05)
