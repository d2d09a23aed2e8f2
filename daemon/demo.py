"""The whole of lstmd on one machine without a network: invented markets, the real daemon, signals on screen.

The emulated exchange lives in this process; the daemon, with its embedded broker, is a child started by the command
that a user gives; what is shown is what an MQTT subscriber gets.
"""

import asyncio
import os
import pathlib
import signal
import sys
import tempfile

from rich.console import Console

from daemon import clock, watch
from daemon.broker import free_port
from daemon.mqtt import MqttLink
from feeds.emulator.server import Emulator
from feeds.emulator.sources import SYNTHETIC, tape_from
from feeds.market import NS_PER_S

MARKETS = ("BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT")
BEGIN_NS = 1_736_121_600 * NS_PER_S
"""2025-01-06 00:00 UTC: the invented markets' first minute."""
HISTORY_NS = 30 * 3600 * NS_PER_S
"""What has passed when the demo begins: an epoch of 1m candles with its warm-up, and room."""
SEED = 7
START_LIMIT_S = 240.0
"""The first start on a machine compiles the kernels; longer than this is a failure."""
STOP_LIMIT_S = 20.0
_CONFIG = """
[mqtt]
url = "embedded:{broker}"
publish_candles = true
[store]
path = "{folder}/state"
[metrics]
enabled = false
[[feeds]]
exchange = "binance"
symbols = {symbols}
candles = ["1m"]
ws_url = "ws://127.0.0.1:{exchange}"
rest_url = "http://127.0.0.1:{exchange}"
"""


async def demo(*, seconds: float | None, speed: float, console: Console) -> int:
    """Run until Ctrl-C, or for `seconds` from the first signal; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="lstmd-demo-") as name:
        folder, stop = pathlib.Path(name), watch.stop_event()
        emulator = _emulator(speed)
        ports = {"exchange": await emulator.start(), "broker": free_port()}
        try:
            process = await _start_daemon(folder, ports)
            try:
                _introduce(console, ports["broker"], speed)
                await _watch(process, ports["broker"], seconds=seconds, console=console, stop=stop)
            finally:
                code = await _stop_daemon(process)
        finally:
            await emulator.stop()
        if code != 0:
            console.print(f"the daemon ended with {code}; its last words:", style="red", highlight=False)
            console.print(_tail(folder / "daemon.log"), highlight=False, markup=False, soft_wrap=True)
        return 0 if code == 0 else 1


def _emulator(speed: float) -> Emulator:
    natives = [symbol.split(":")[0].replace("/", "") for symbol in MARKETS]
    tapes = {n: tape_from(SYNTHETIC, n, seed=SEED + at, begin_ns=BEGIN_NS) for at, n in enumerate(natives)}
    return Emulator(tapes, start_ns=BEGIN_NS + HISTORY_NS, speed=speed)


async def _start_daemon(folder: pathlib.Path, ports: dict[str, int]) -> asyncio.subprocess.Process:
    config = folder / "lstmd.toml"
    config.write_text(_CONFIG.format(folder=folder, symbols=list(MARKETS), **ports).replace("'", '"'))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LSTMD_")}
    with (folder / "daemon.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "daemon.cli", "run", "--config", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours; we stop the daemon as systemd would
        )


def _introduce(console: Console, port: int, speed: float) -> None:
    for text in (
        f"lstmd demo: three invented markets at {speed:g} times life, an emulated exchange, the shipped model.",
        "Nothing here is a real market. Follow it from another terminal with either of",
        f"  mosquitto_sub -h 127.0.0.1 -p {port} -t 'lstmd/#' -v",
        f"  lstmd watch mqtt://127.0.0.1:{port}",
        "Starting: history is fetched and folded, and the first time kernels are compiled …",
    ):
        console.print(text, highlight=False, soft_wrap=True)


async def _watch(
    process: asyncio.subprocess.Process, port: int, *, seconds: float | None, console: Console, stop: asyncio.Event
) -> None:
    """Show the signals until `stop`, the end of `seconds`, or the daemon's own end."""
    link = MqttLink(f"mqtt://127.0.0.1:{port}", client_id=f"lstmd-demo-{clock.boot_id()}")
    board = watch.Board("lstmd")
    await _until_up(process, port, stop)
    async with asyncio.TaskGroup() as group:
        helpers = [
            group.create_task(_stop_at_end(process, stop), name="demo-process"),
            group.create_task(_stop_after(board, seconds, stop), name="demo-time"),
        ]
        await watch.show(link, board, console=console, stop=stop)
        for helper in helpers:
            helper.cancel()
    markets = ", ".join(sorted(board.markets)) or "none"
    console.print(f"{board.signals} signals from {len(board.markets)} markets: {markets}", highlight=False)


async def _until_up(process: asyncio.subprocess.Process, port: int, stop: asyncio.Event) -> None:
    """Wait until the broker accepts, or there is no more reason to wait."""
    deadline_s = clock.monotonic_s() + START_LIMIT_S
    while process.returncode is None and not stop.is_set() and clock.monotonic_s() < deadline_s:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return


async def _stop_at_end(process: asyncio.subprocess.Process, stop: asyncio.Event) -> None:
    await process.wait()
    stop.set()


async def _stop_after(board: watch.Board, seconds: float | None, stop: asyncio.Event) -> None:
    """Count `seconds` from the first signal; without one, give up after the time a start may take."""
    deadline_s = clock.monotonic_s() + START_LIMIT_S
    while not board.signals and clock.monotonic_s() < deadline_s:  # noqa: ASYNC110 (a display looks often enough)
        await asyncio.sleep(watch.REFRESH_S)
    if not board.signals:
        stop.set()
    elif seconds is not None:
        await asyncio.sleep(seconds)
        stop.set()


async def _stop_daemon(process: asyncio.subprocess.Process) -> int:
    """End the daemon as systemd would; return its exit code, 0 too where it had not begun to listen for our signal."""
    if process.returncode is not None:
        return process.returncode
    process.send_signal(signal.SIGTERM)
    try:
        code = await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
    except TimeoutError:
        process.kill()
        code = await process.wait()
    return 0 if code == -signal.SIGTERM else code


def _tail(path: pathlib.Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
