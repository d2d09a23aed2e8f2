"""The doctor finds what is wrong, and says what it is."""

import asyncio
import json
import pathlib
import re
import socket
import sys

import pytest
from typer.testing import CliRunner

from config.schema import Config
from daemon import broker, cli, doctor
from daemon.broker import free_port
from daemon.mqtt import BrokerRefused, Credentials
from inference import artifact
from tests.daemon.brokers import Mosquitto
from tests.daemon.test_cli import LSTMD, environment
from tests.daemon.test_examine import BTC, Venue, open_venue

WAIT_S = 120


def named(name: str, ports: dict[str, int] | None = None) -> doctor.Finding:
    (finding,) = (f for f in doctor.examine(ports or {}) if f.name == name)
    return finding


def test_a_package_of_our_name_from_elsewhere_is_a_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"daemon": ["lstmd", "python-daemon"], "feeds": ["lstmd"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: owners)
    finding = named("package names")
    assert finding.ok is False
    assert finding.detail == "python-daemon installs daemon"


def test_a_broker_that_is_missing_or_does_not_run_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    def missing() -> pathlib.Path:
        raise BrokerRefused("no binary")

    monkeypatch.setattr(broker, "binary", missing)
    assert named("broker binary") == doctor.Finding("broker binary", False, "no binary")
    broken = tmp_path / "nats-server"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(broker, "binary", lambda: broken)
    assert named("broker binary").ok is False


def test_an_artifact_that_cannot_be_used_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(artifact, "resolve", lambda _: tmp_path)
    finding = named("artifact")
    assert finding.ok is False
    assert "manifest.json" in finding.detail


def test_a_port_is_worth_knowing_and_no_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert named(f"port {port}", {"mqtt": port}) == doctor.Finding(
            f"port {port}", None, "mqtt: something listens there"
        )
    assert named(f"port {port}", {"mqtt": port}).detail == "mqtt: free"


def test_a_place_for_compiled_kernels_that_cannot_be_written_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert named("kernel cache").ok is True
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    assert named("kernel cache").ok is False


def test_a_finding_is_a_line_and_an_advice_for_people_and_an_object_for_machines() -> None:
    sound = doctor.Finding("REST", True, "answers", about="binance")
    assert str(sound).split() == ["ok", "binance", "REST", "answers"]
    warning = doctor.Finding("clock", None, "2000 ms ahead", "set it", "binance")
    assert [line.strip() for line in str(warning).splitlines()][1] == "→ set it"
    assert (warning.verdict, doctor.Finding("port 1", None, "free").verdict) == ("warn", "")
    assert doctor.Finding("REST", False, "no").told()["verdict"] == "FAIL"


def test_a_report_prints_as_it_goes_or_keeps_still(capsys: pytest.CaptureFixture[str]) -> None:
    loud, still = doctor.Report(as_json=False), doctor.Report(as_json=True)
    for report in (loud, still):
        report.progress("binance", "3 s of at most 130 s heard")  # no terminal: not shown
        report.tell(doctor.Finding("REST", True, "answers"))
        assert not report.failed
    loud.tell(doctor.Finding("clock", False, "stands"))
    assert loud.failed
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(finding) for finding in loud.findings]
    assert captured.err == ""


def test_a_terminal_is_shown_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report = doctor.Report(as_json=False)
    for _ in range(3):
        report.progress("binance", "3 s heard")
    report.progress("bybit", "1 s heard")
    report.progress("binance", "")
    assert [text for text in re.split(r"\r\x1b\[K", capsys.readouterr().err) if text] == [
        "binance: 3 s heard",
        "binance: 3 s heard; bybit: 1 s heard",
        "bybit: 1 s heard",
    ]


def test_the_ports_are_those_of_the_configuration() -> None:
    feed = {"exchange": "binance", "symbols": [BTC]}
    config = Config(feeds=[feed], mqtt={"url": "embedded:1999"}, metrics={"listen": "127.0.0.1:9999"})
    assert doctor.ports_of(config) == {"embedded broker": 1999, "metrics": 9999}
    assert doctor.ports_of(Config(feeds=[feed], mqtt={"url": "mqtt://x:1"}, metrics={"enabled": False})) == {}


async def test_the_embedded_broker_is_started_and_stopped() -> None:
    port = free_port()
    started = await doctor.examine_broker("embedded", port, Credentials())
    assert (started.ok, started.detail.startswith("embedded, started for this: ")) == (True, True)
    assert named(f"port {port}", {"mqtt": port}).detail == "mqtt: free", "it was stopped again"


async def test_a_broker_that_runs_is_entered_only_with_the_right_password(tmp_path: pathlib.Path) -> None:
    server = Mosquitto(tmp_path, settings="allow_anonymous false")
    await server.start()
    try:
        finding = await doctor.examine_broker(server.url, None, Credentials("bot", "wrong"))
    finally:
        await server.stop()
    assert finding.ok is False
    assert f"127.0.0.1:{server.port} refuses us: " in finding.detail
    assert "password" in finding.advice
    gone = await doctor.examine_broker(server.url, None, Credentials())
    assert (gone.ok, "whether the broker runs" in gone.advice) == (False, True)
    running = Mosquitto(tmp_path)
    await running.start()
    try:
        assert (await doctor.examine_broker(running.url, None, Credentials())).detail.startswith(
            f"127.0.0.1:{running.port} takes us ("
        )
        at_home = await doctor.examine_broker("embedded", running.port, Credentials())
        assert at_home.detail.startswith("embedded, it runs already: ")
    finally:
        await running.stop()


async def lstmd_doctor(folder: pathlib.Path, text: str, *args: str) -> tuple[int, str, str]:
    config = folder / "lstmd.toml"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        *(*LSTMD, "doctor", "-c", str(config), *args),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def text_of(venue: Venue, *symbols: str) -> str:
    url = f"127.0.0.1:{venue.port}"
    return f"""
[mqtt]
url = "embedded:{free_port()}"
[metrics]
enabled = false
[[feeds]]
exchange = "{venue.exchange}"
symbols = {list(symbols)}
ws_url = "ws://{url}"
rest_url = "http://{url}"
"""


async def test_the_command_examines_what_a_configuration_names(tmp_path: pathlib.Path) -> None:
    async with open_venue(Venue("binance", ("BTC",))) as venue:
        code, out, err = await lstmd_doctor(tmp_path, text_of(venue, BTC, "BTX/USDT:USDT"), "--json")
    assert (code, err) == (1, "")
    found = {(one["about"], one["name"]): one for one in json.loads(out)}
    assert [key for key, one in found.items() if one["ok"] is False] == [("binance BTX/USDT:USDT", "market")]
    assert found["binance BTX/USDT:USDT", "market"]["advice"] == f"did you mean {BTC}?"
    for sound in ((f"binance {BTC}", "candles"), ("mqtt", "broker"), ("", "python")):
        assert found[sound]["verdict"] == "ok"


async def test_the_command_says_what_is_wrong_with_a_configuration(tmp_path: pathlib.Path) -> None:
    text = '[[feeds]]\nexchange = "bitmex"\nsymbols = ["BTC/USD:BTC"]\n'
    code, out, err = await lstmd_doctor(tmp_path, text)
    assert (code, out) == (78, "")
    assert err.startswith("lstmd: feeds[0].ws_url: BitMEX closed on 2026-09-23: name a server that speaks its protocol")
    done = CliRunner().invoke(cli.app, ["doctor", "--json", "-c", str(tmp_path / "lstmd.toml")])
    (finding, *_) = json.loads(done.stdout)
    assert (done.exit_code, finding["name"], finding["ok"]) == (78, "configuration", False)
