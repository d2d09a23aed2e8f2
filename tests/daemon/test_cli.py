"""Commands as a user gives them: output, exit codes, and one line for what is the user's to mend."""

import asyncio
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from tests.daemon.brokers import running

FEED = '[[feeds]]\nexchange = "binance"\nsymbols = ["BTC/USDT:USDT"]\n'
LSTMD = (sys.executable, "-m", "daemon.cli")
WAIT_S = 120


def environment(**extra: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("LSTMD_")} | extra


def lstmd(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LSTMD, *args], capture_output=True, text=True, timeout=WAIT_S, check=False, env=env or environment()
    )


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "lstmd.toml"
    path.write_text(FEED)
    return path


DAEMON = ("run", "check-config", "demo", "watch", "schema", "doctor")
OFFLINE = ("emulate", "record", "replay", "history", "train", "evaluate")


@pytest.mark.parametrize("command", [*DAEMON, *OFFLINE])
def test_every_command_explains_itself(command: str) -> None:
    done = lstmd(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_a_wrong_option_is_usage() -> None:
    assert lstmd("run", "--no-such-option").returncode == 2
    assert lstmd("no-such-command").returncode == 2
    assert lstmd("schema", "nothing").returncode == 2


def test_check_config_finds_nothing_wrong_with_the_shipped_one() -> None:
    done = lstmd("check-config")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fine; artifact default-")
    assert json.loads(lstmd("check-config", "--json").stdout) == {"ok": True, "problems": []}


@pytest.mark.parametrize("command", ["check-config", "run", "watch"])
def test_a_bad_configuration_is_78_and_a_line_for_each_fault(command: str, config: pathlib.Path) -> None:
    config.write_text('[mqtt]\nulr = "x"\n[log]\nlevel = "warn"\n' + FEED)
    done = lstmd(command, "--config", str(config))
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "lstmd: mqtt.ulr: unknown key; did you mean mqtt.url?",
        "lstmd: log.level: input should be 'debug', 'info', 'warning' or 'error'; did you mean warning?",
    ]


def test_check_config_tells_machines_too(config: pathlib.Path) -> None:
    config.write_text('[mqtt]\nulr = "x"\n' + FEED)
    done = lstmd("check-config", "-c", str(config), "--json")
    assert done.returncode == 78
    assert json.loads(done.stdout) == {
        "ok": False,
        "problems": [{"key": "mqtt.ulr", "reason": "unknown key", "nearest": "mqtt.url"}],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[model]\nartifact = "/no/such/folder"\n',
            "lstmd: model.artifact: /no/such/folder/manifest.json: No such file",
        ),
        (
            '[mqtt]\nurl = "embedded:{taken}"\n',
            "lstmd: mqtt.url: the embedded broker cannot listen on 127.0.0.1:{taken}",
        ),
        (
            '[mqtt]\nurl = "embedded:0"\n[metrics]\nlisten = "127.0.0.1:{taken}"\n',
            "lstmd: metrics.listen: cannot listen on",
        ),
        ('[mqtt]\nurl = "embedded:0"\n[store]\npath = "{file}/x"\n', "lstmd: "),
    ],
)
def test_what_keeps_the_daemon_from_starting_is_one_line(text: str, said: str, config: pathlib.Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"taken": taken.getsockname()[1], "file": config}
        head = "" if "[store]" in text else f'[store]\npath = "{config.parent}/state"\n'
        head += "" if "[metrics]" in text else "[metrics]\nenabled = false\n"
        config.write_text(text.format(**names) + head + FEED)
        done = lstmd("run", "--config", str(config))
    plain = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == 78, done.stderr
    assert len(plain) == 1, done.stderr
    assert plain[0].startswith(said.format(**names))


def test_schema_prints_what_it_says() -> None:
    payloads = json.loads(lstmd("schema").stdout)
    assert {"Signal", "Void", "Live", "Health"} <= payloads.keys()
    api = json.loads(lstmd("schema", "asyncapi", "--base", "x").stdout)
    assert api["channels"]["status"]["address"] == "x/status"
    assert "feeds" in json.loads(lstmd("schema", "config").stdout)["properties"]


def test_doctor_finds_this_installation_sound() -> None:
    done = lstmd("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert [f for f in findings.values() if f["ok"] is False] == []
    assert done.returncode == 0
    assert {"python", "package names", "broker binary", "artifact", "port 1883"} <= findings.keys()
    assert "artifact" in lstmd("doctor").stdout


async def test_watch_prints_json_lines_from_a_broker(tmp_path: pathlib.Path) -> None:
    from daemon.mqtt import MqttLink

    async with running("embedded", tmp_path) as broker, asyncio.timeout(WAIT_S):
        async with MqttLink(broker.url, client_id="w").connect() as connection:
            await connection.publish("own/status", b'{"state":"online"}', retain=True)
        process = await asyncio.create_subprocess_exec(
            *(*LSTMD, "watch", broker.url, "--base", "own", "--json"), stdout=asyncio.subprocess.PIPE, env=environment()
        )
        assert process.stdout is not None
        line = await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert json.loads(line) == {"topic": "own/status", "retained": True, "payload": {"state": "online"}}
