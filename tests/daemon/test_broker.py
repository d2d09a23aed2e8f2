"""The embedded broker: starts, keeps what it acknowledged, says why it does not start, ends with us."""

import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from daemon.broker import EmbeddedBroker, binary, free_port
from daemon.mqtt import BrokerError, BrokerRefused, MqttLink
from tests.daemon.brokers import running, until

WAIT_S = 30


def gone(pid: int) -> bool:
    """Whether no process, or only a dead one nobody collected, has this id."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def listening(pid: int) -> set[str]:
    """Return the addresses, in the kernel's hexadecimal, that a process listens on."""
    own = set()
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            own.add(os.readlink(fd))
    tables = [pathlib.Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


def test_the_binary_is_the_wheels_own() -> None:
    out = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert out.startswith("nats-server: v")


async def test_what_was_acknowledged_survives_a_kill(tmp_path: pathlib.Path) -> None:
    port = free_port()
    broker = EmbeddedBroker(tmp_path, port=port)
    await broker.start()
    async with MqttLink(broker.url, client_id="x").connect() as connection:
        await connection.publish("lstmd/status", b"kept", retain=True)
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    with pytest.raises(BrokerError, match="ended with code -9"):
        await asyncio.wait_for(broker.watch(), WAIT_S)
    again = EmbeddedBroker(tmp_path, port=port)
    await again.start()
    try:
        async with MqttLink(again.url, client_id="y").follow("lstmd/#") as messages, asyncio.timeout(WAIT_S):
            assert (await anext(messages)).payload == b"kept"
    finally:
        await again.stop()


async def test_a_client_nobody_here_wrote_sees_the_messages(tmp_path: pathlib.Path) -> None:
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("mosquitto_sub is not installed")
    async with running("embedded", tmp_path) as broker:
        link = MqttLink(broker.url, client_id="x")
        async with link.connect() as connection:
            await connection.publish("lstmd/binance/BTC-USDT-PERP/1m/last", b'{"seq":1}', retain=True)
            process = await asyncio.create_subprocess_exec(
                *(
                    "mosquitto_sub",
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(broker.port),
                    "-t",
                    "lstmd/#",
                    "-q",
                    "1",
                    "-v",
                    "-C",
                    "2",
                ),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            async with asyncio.timeout(WAIT_S):
                first = await process.stdout.readline()  # retained: it is subscribed
                await connection.publish("lstmd/binance/BTC-USDT-PERP/1m/signal", b'{"seq":2}')
                rest = await process.stdout.read()
                await process.wait()
    assert first == b'lstmd/binance/BTC-USDT-PERP/1m/last {"seq":1}\n'
    assert rest == b'lstmd/binance/BTC-USDT-PERP/1m/signal {"seq":2}\n'


async def test_it_listens_on_loopback_only(tmp_path: pathlib.Path) -> None:
    async with running("embedded", tmp_path) as broker:
        assert isinstance(broker, EmbeddedBroker)
        assert broker.pid is not None
        assert listening(broker.pid) == {"0100007F"}


async def test_a_port_in_use_is_said_in_one_line(tmp_path: pathlib.Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerRefused, match=rf"^mqtt.url: .*:{port} \(Address already in use\).*embedded:PORT"):
            await EmbeddedBroker(tmp_path, port=port).start()


async def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerRefused, match=r"^store.path: "):
        await EmbeddedBroker(tmp_path / "file" / "broker", port=0).start()


async def test_a_server_that_cannot_start_says_its_last_words(tmp_path: pathlib.Path) -> None:
    (tmp_path / "jetstream").write_text("in the way of a folder")
    with pytest.raises(BrokerError, match=r"did not start: .*(jetstream|JetStream)"):
        await EmbeddedBroker(tmp_path, port=0).start()


async def test_stop_ends_it_and_may_be_called_again(tmp_path: pathlib.Path) -> None:
    broker = EmbeddedBroker(tmp_path, port=0)
    await broker.stop()
    await broker.start()
    pid = broker.pid
    assert pid is not None
    await broker.stop()
    assert broker.pid is None
    assert gone(pid)
    await broker.stop()


async def test_it_does_not_outlive_us(tmp_path: pathlib.Path) -> None:
    code = (
        "import asyncio, pathlib, sys\nfrom daemon.broker import EmbeddedBroker\n"
        "async def main():\n"
        "    broker = EmbeddedBroker(pathlib.Path(sys.argv[1]), port=0)\n"
        "    await broker.start(); print(broker.pid, flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), WAIT_S))
    assert not gone(pid)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(WAIT_S):
        await until(lambda: gone(pid))
