"""The demo is the whole thing: three markets' signals on screen, exit 0, nothing left behind."""

import asyncio
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.daemon.brokers import until

WAIT_S = 240


@asynccontextmanager
async def demo(folder: pathlib.Path, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemon.cli", "demo", *args),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def children_of(folder: pathlib.Path) -> list[str]:
    """Return the command lines of running processes that name the folder."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command and str(os.getpid()) != entry.parent.name:
            found.append(command)
    return found


async def test_it_shows_signals_of_three_markets_and_ends_by_itself(tmp_path: pathlib.Path) -> None:
    async with asyncio.timeout(WAIT_S), demo(tmp_path, "--seconds", "2", "--speed", "120") as process:
        output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    lines = output.splitlines()
    assert any(line.strip().startswith("mosquitto_sub -h 127.0.0.1 -p ") for line in lines)
    assert "signals from 3 markets: BTC-USDT-PERP, ETH-USDT-PERP, SOL-USDT-PERP" in lines[-1]
    for market in ("BTC", "ETH", "SOL"):
        seqs = [
            int(line.split(" seq ")[1].split()[0])
            for line in lines
            if f"{market}-USDT-PERP" in line and " seq " in line
        ]
        assert len(seqs) >= 2
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    assert os.listdir(tmp_path) == []


async def test_ctrl_c_ends_it_cleanly_even_while_it_starts(tmp_path: pathlib.Path) -> None:
    async with asyncio.timeout(WAIT_S), demo(tmp_path) as process:
        assert process.stdout is not None
        while b"Starting" not in await process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert process.returncode == 0
        assert os.listdir(tmp_path) == []
        await until(lambda: not children_of(tmp_path))
