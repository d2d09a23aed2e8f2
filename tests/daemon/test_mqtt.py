"""Links to real brokers: both protocols, order, loss, refusal. Every kind passes the same checks."""

import asyncio
import contextlib
import pathlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from daemon.broker import EmbeddedBroker, free_port
from daemon.mqtt import BrokerError, BrokerRefused, Credentials, MqttLink, Received, Will
from tests.daemon.brokers import Mosquitto, running

WAIT_S = 30
VANISHES = """
import asyncio, sys
from daemon.mqtt import MqttLink, Will
async def main():
    link = MqttLink(sys.argv[1], client_id="vanishes", will=Will("lstmd/status", b"offline"))
    async with link.connect() as connection:
        await connection.publish("lstmd/status", b"here", retain=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(params=["mosquitto", "embedded"])
async def broker(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> AsyncIterator[Mosquitto | EmbeddedBroker]:
    async with running(request.param, tmp_path) as started:
        yield started


async def take(messages: AsyncIterator[Received], count: int) -> list[Received]:
    async with asyncio.timeout(WAIT_S):
        return [await anext(messages) for _ in range(count)]


async def test_a_window_of_messages_arrives_in_order(broker: Mosquitto | EmbeddedBroker) -> None:
    link = MqttLink(broker.url, client_id="writer", inflight_max=20)
    async with MqttLink(broker.url, client_id="reader").follow("lstmd/#") as messages, link.connect() as connection:
        pending = [connection.submit("lstmd/x/signal", str(i).encode(), expiry_s=60) for i in range(300)]
        seen = await take(messages, 300)
        await asyncio.gather(*pending)
    assert [int(m.payload) for m in seen] == list(range(300))
    assert {m.topic for m in seen} == {"lstmd/x/signal"}


async def test_the_newest_protocol_the_broker_knows_is_kept(broker: Mosquitto | EmbeddedBroker) -> None:
    link = MqttLink(broker.url, client_id="writer")
    newest = 5 if isinstance(broker, Mosquitto) else 4  # paho's number for 3.1.1
    for _ in range(2):
        async with link.connect() as connection:
            await connection.publish("lstmd/x", b"1")
        assert int(link.protocol) == newest


async def test_retained_messages_wait_for_whoever_comes_later(broker: Mosquitto | EmbeddedBroker) -> None:
    async with MqttLink(broker.url, client_id="writer").connect() as connection:
        await connection.publish("lstmd/a", b"kept", retain=True)
        await connection.publish("lstmd/b", b"gone")
    async with MqttLink(broker.url, client_id="reader").follow("lstmd/+") as messages:
        assert await take(messages, 1) == [Received("lstmd/a", b"kept", True)]


async def test_the_will_speaks_when_we_vanish_and_not_when_we_leave(broker: Mosquitto | EmbeddedBroker) -> None:
    link = MqttLink(broker.url, client_id="polite", will=Will("lstmd/status", b"offline"))
    async with MqttLink(broker.url, client_id="reader").follow("lstmd/#") as messages:
        async with link.connect() as connection:
            await connection.publish("lstmd/status", b"left", retain=True)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", VANISHES, broker.url)
        assert [m.payload for m in await take(messages, 2)] == [b"left", b"here"]
        process.kill()
        await process.wait()
        assert [m.payload for m in await take(messages, 1)] == [b"offline"]


async def test_a_lost_connection_fails_what_is_pending_and_what_comes_after(tmp_path: pathlib.Path) -> None:
    async with running("embedded", tmp_path) as broker, asyncio.timeout(WAIT_S):
        link = MqttLink(broker.url, client_id="writer")
        async with link.connect() as connection:
            pending = [connection.submit("lstmd/x", bytes(1000)) for _ in range(2000)]
            await pending[0]
            await broker.stop()
            await connection.lost.wait()
            outcomes = await asyncio.gather(*pending, return_exceptions=True)
            with pytest.raises(BrokerError):
                await connection.publish("lstmd/x", b"after")
        acknowledged = [o is None for o in outcomes]
        assert acknowledged == sorted(acknowledged, reverse=True), "acknowledged in order, up to the loss"
        assert all(o is None or isinstance(o, BrokerError) for o in outcomes)
        with pytest.raises(BrokerError, match=link.where):
            async with link.connect():
                pass


async def test_a_reader_learns_of_the_loss(tmp_path: pathlib.Path) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        running("embedded", tmp_path) as broker,
        MqttLink(broker.url, client_id="reader").follow("lstmd/#") as messages,
    ):
        await broker.stop()
        with pytest.raises(BrokerError):
            await anext(messages)


async def test_leaving_fails_what_is_pending(broker: Mosquitto | EmbeddedBroker) -> None:
    async with MqttLink(broker.url, client_id="writer").connect() as connection:
        future = connection.submit("lstmd/x", b"1")
    with pytest.raises(BrokerError, match="closed"):
        await asyncio.wait_for(future, WAIT_S)


async def test_nobody_there_is_a_fault_to_try_again() -> None:
    with pytest.raises(BrokerError):
        async with MqttLink(f"mqtt://127.0.0.1:{free_port()}", client_id="x").connect():
            pass


async def test_a_broker_that_never_answers_times_out() -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(BrokerError):
            async with MqttLink(f"mqtt://127.0.0.1:{port}", client_id="x", timeout_s=0.2).connect():
                pass


async def test_a_broker_that_hangs_up_is_not_waited_for() -> None:
    """As what stands before a broker does while the broker is away."""

    async def rude(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, asyncio.timeout(WAIT_S):
        for _ in range(3):
            with pytest.raises(BrokerError, match="hung up"):
                async with MqttLink(f"mqtt://127.0.0.1:{port}", client_id="x", timeout_s=600).connect():
                    pass


@pytest.mark.parametrize("version", ["V5", "V311"])
async def test_a_refused_password_is_the_operators(version: str, tmp_path: pathlib.Path) -> None:
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    passwords = tmp_path / "passwords"
    run("mosquitto_passwd", "-c", "-b", str(passwords), "lstmd", "right")
    broker = Mosquitto(tmp_path, settings=f"allow_anonymous false\npassword_file {passwords}")
    said = rf"^127.0.0.1:{broker.port} refuses us: [\w ]+$"
    await broker.start()
    try:
        for word, expected in (
            ("right", contextlib.nullcontext()),
            ("wrong", pytest.raises(BrokerRefused, match=said)),
        ):
            link = MqttLink(broker.url, client_id="x", credentials=Credentials("lstmd", word))
            link.protocol = type(link.protocol)[version]
            with expected:
                async with link.connect() as connection:
                    await connection.publish("lstmd/x", b"1")
    finally:
        await broker.stop()


async def test_tls_is_spoken_to_a_broker_we_trust_only(tmp_path: pathlib.Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
    )
    broker = Mosquitto(tmp_path, settings=f"allow_anonymous true\ncertfile {cert}\nkeyfile {key}")
    await broker.start()
    try:
        url = f"mqtts://127.0.0.1:{broker.port}"
        async with MqttLink(url, client_id="x", credentials=Credentials(ca_file=cert)).connect() as connection:
            await connection.publish("lstmd/x", b"1")
        with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED"):
            async with MqttLink(url, client_id="x").connect():
                pass
    finally:
        await broker.stop()


def test_a_certificate_that_cannot_be_read_is_the_operators(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(BrokerRefused, match="TLS"):
        MqttLink("mqtts://127.0.0.1:8883", client_id="x", credentials=Credentials(ca_file=tmp_path / "ca.pem"))
