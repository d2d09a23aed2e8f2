"""TLS from end to end: a broker and an exchange behind certificates of an authority of the test's own."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from config.load import load
from daemon import app, cli
from daemon.mqtt import BrokerError, BrokerRefused, Credentials, MqttLink
from feeds import transport
from feeds.errors import RemoteError
from inference.artifact import save
from tests.daemon import brokers
from tests.daemon.brokers import Mosquitto
from tests.daemon.certificates import Authority, Certificate, server_context
from tests.daemon.daemons import Daemon, Follower, ape_emulator, config_text, until
from tests.daemon.lines import small_artifact
from tests.daemon.proxy import Proxy

WAIT_S = 120
PASSWORD = "correct-horse-battery"


class Setting(NamedTuple):
    """A broker that wants certificate, name and password, and all that it takes to please it."""

    broker: Mosquitto
    ours: Authority
    other: Authority
    client: Certificate

    @property
    def url(self) -> str:
        return f"mqtts://127.0.0.1:{self.broker.port}"

    def credentials(self) -> Credentials:
        return Credentials("lstmd", PASSWORD, self.ours.cert, self.client.cert, self.client.key)


@asynccontextmanager
async def set_up(folder: Path, *, host: str = "IP:127.0.0.1") -> AsyncIterator[Setting]:
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    ours, other, passwords = Authority(folder, "ours"), Authority(folder, "other"), folder / "passwords"
    server, client = ours.issue("server", host=host), ours.issue("client")
    command = ("mosquitto_passwd", "-c", "-b", str(passwords), "lstmd", PASSWORD)
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=60)
    settings = (
        f"cafile {ours.cert}\ncertfile {server.cert}\nkeyfile {server.key}\nrequire_certificate true\n"
        f"allow_anonymous false\npassword_file {passwords}"
    )
    broker = Mosquitto(folder, settings=settings)
    await broker.start()
    try:
        yield Setting(broker, ours, other, client)
    finally:
        await broker.stop()


async def greet(link: MqttLink) -> None:
    async with asyncio.timeout(WAIT_S), link.connect() as connection:
        await connection.publish("lstmd/x", b"1")


@pytest.mark.parametrize("source", ["credentials", "file", "environment"])
async def test_secrets_reach_the_broker_from_wherever_they_are_kept(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    async with set_up(tmp_path) as setting:
        lines = [f'url = "{setting.url}"']
        files = {"ca_file": setting.ours.cert, "client_cert": setting.client.cert, "client_key": setting.client.key}
        if source == "credentials":
            for name, path in files.items():
                shutil.copy(path, kept / f"mqtt_{name}")
            (kept / "mqtt_username").write_text("lstmd\n")
            (kept / "mqtt_password").write_text(PASSWORD + "\n")
            monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(kept))
        else:
            lines += [f'{name} = "{path}"' for name, path in files.items()] + ['username = "lstmd"']
        if source == "file":
            (kept / "password").write_text(PASSWORD + "\n")
            lines.append(f'password_file = "{kept}/password"')
        if source == "environment":
            monkeypatch.setenv("LSTMD_MQTT__PASSWORD", PASSWORD)
        path = tmp_path / "lstmd.toml"
        feed = '[[feeds]]\nexchange = "binance"\nsymbols = ["BTC/USDT:USDT"]'
        path.write_text("\n".join(["[mqtt]", *lines, feed]))
        config = load(path)
        await greet(app._link(config, None, "boot"))
    assert PASSWORD not in repr(config) + config.model_dump_json()


async def test_who_is_not_trusted_is_refused_and_the_line_says_where_to_look(tmp_path: Path) -> None:
    async with set_up(tmp_path) as setting:
        good = setting.credentials()
        await greet(MqttLink(setting.url, client_id="x", credentials=good))
        stranger = setting.other.issue("stranger")
        untrusted, certificate = r"CERTIFICATE_VERIFY_FAILED.*mqtt\.ca_file", r"hung up.*mqtt\.client_cert"
        for credentials, fault, said in (
            (good._replace(ca_file=setting.other.cert), BrokerError, untrusted),
            (good._replace(ca_file=None), BrokerError, untrusted),
            (good._replace(client_cert=None, client_key=None), BrokerError, certificate),
            (good._replace(client_cert=stranger.cert, client_key=stranger.key), BrokerError, certificate),
            (good._replace(password="wrong"), BrokerRefused, "refuses us"),
        ):
            link = MqttLink(setting.url, client_id="x", credentials=credentials, timeout_s=2)
            with pytest.raises(fault, match=said) as caught:
                await greet(link)
            assert f"127.0.0.1:{setting.broker.port}" in str(caught.value)


async def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    async with set_up(tmp_path, host="DNS:broker.example") as setting:
        with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED"):
            await greet(MqttLink(setting.url, client_id="x", credentials=setting.credentials()))


async def test_an_exchange_is_believed_by_its_certificate_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no switch for it: a private authority is one of the system's, or what SSL_CERT_FILE names."""
    ours = Authority(tmp_path, "ours")
    emulator = ape_emulator(hours=4, history_s=7200, speed=1)
    port = await emulator.start()
    try:
        async with (
            Proxy(port, tls=server_context(ours.issue("exchange"))) as right,
            Proxy(port, tls=server_context(ours.issue("far", host="DNS:far.example"))) as wrong,
        ):
            for proxy, trusted, fine in ((right, False, False), (right, True, True), (wrong, True, False)):
                if trusted:
                    monkeypatch.setenv("SSL_CERT_FILE", str(ours.cert))
                url = f"wss://localhost:{proxy.port}/market/stream"
                if fine:
                    async with transport.connect(url) as connection:
                        await connection.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
                        assert json.loads(await connection.recv())["id"] == 1
                else:
                    with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
                        async with transport.connect(url):
                            pass
    finally:
        await emulator.stop()


class Trusted(Follower):
    """A follower who knows the broker's authority."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.url, "lstmd/#")
        self._credentials = setting.credentials()

    def link_for(self, name: str) -> MqttLink:
        return MqttLink(self._url, client_id=name, credentials=self._credentials)


async def test_the_whole_daemon_over_tls_tells_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    save(small_artifact("1m", warmup=64, epoch=720), folder)
    emulator = ape_emulator(hours=4, history_s=7200, speed=120)
    port = await emulator.start()
    try:
        async with (
            asyncio.timeout(WAIT_S),
            set_up(tmp_path) as setting,
            Proxy(port, tls=server_context(setting.ours.issue("exchange"))) as exchange,
        ):
            mqtt = f'{setting.url}"\nusername = "lstmd"\nclient_cert = "{setting.client.cert}"\n'
            mqtt += f'client_key = "{setting.client.key}"\nca_file = "'
            text = config_text(tmp_path, mqtt=mqtt + str(setting.ours.cert), port=port, artifact=folder)
            text = text.replace(f'ws_url = "ws://127.0.0.1:{port}"', f'ws_url = "wss://localhost:{exchange.port}"')
            environment = {"LSTMD_MQTT__PASSWORD": PASSWORD, "SSL_CERT_FILE": str(setting.ours.cert)}
            distrusting = text.replace(str(setting.ours.cert), str(setting.other.cert))
            async with Daemon(tmp_path, distrusting, environment=environment) as daemon:
                await until(lambda: "CERTIFICATE_VERIFY_FAILED" in daemon.log.read_text(), daemon)
                (lost,) = (line for line in daemon.log.read_text().splitlines() if '"broker_lost"' in line)
                assert "mqtt.ca_file" in json.loads(lost)["reason"]
                assert await daemon.end() == 0
            daemon = Daemon(tmp_path, text, environment=environment)
            follower = Trusted(setting)
            async with asyncio.TaskGroup() as group, daemon:
                following = group.create_task(follower.run())
                await brokers.until(lambda: follower.connections > 0)
                await until(lambda: follower.count() >= 5, daemon)
                assert await daemon.end() == 0
                following.cancel()
            checked = check_config(tmp_path / "lstmd.toml", environment)
    finally:
        await emulator.stop()
    said = daemon.log.read_text() + checked + "".join(str(payload) for _, payload in follower.raw)
    assert PASSWORD not in said
    assert '"broker_connected"' in said


def check_config(path: Path, environment: dict[str, str]) -> str:
    """Check a configuration that is fine, and one with a fault beside the secret; return all that was printed."""
    said = ""
    for more, code in (("", 0), ('[log]\nlevel = "loud"\n', 78)):
        path.write_text(path.read_text() + more)
        done = CliRunner().invoke(cli.app, ["check-config", "--json", "-c", str(path)], env=environment)
        assert done.exit_code == code, done.output
        said += done.output
    return said
