"""Real brokers for tests: mosquitto where it is installed, and the embedded one."""

import asyncio
import contextlib
import os
import pathlib
import shutil
from collections.abc import AsyncIterator, Callable

import pytest

from daemon.broker import EmbeddedBroker, free_port


class Mosquitto:
    """A mosquitto on loopback, with its state kept over a restart."""

    def __init__(self, folder: pathlib.Path, *, settings: str = "allow_anonymous true") -> None:
        if shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip("mosquitto is not installed")
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._conf = folder / "mosquitto.conf"
        # Started by root, mosquitto becomes another user: it runs as root here, so that it may read the test's folder.
        user = "user root\n" if os.geteuid() == 0 else ""
        self._conf.write_text(f"listener {self.port} 127.0.0.1\n{user}{settings}\n")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        path = f"{os.environ['PATH']}:/usr/sbin"
        self._process = await asyncio.create_subprocess_exec(
            "mosquitto", "-c", str(self._conf), env={**os.environ, "PATH": path}, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    stop = kill


async def until(true: Callable[[], bool]) -> None:
    """Wait for what has no event to wait for, such as another process's end."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(kind: str, folder: pathlib.Path) -> AsyncIterator[Mosquitto | EmbeddedBroker]:
    """Run a broker of `kind`, ``mosquitto`` or ``embedded``."""
    broker = Mosquitto(folder) if kind == "mosquitto" else EmbeddedBroker(folder / "broker", port=0)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()
