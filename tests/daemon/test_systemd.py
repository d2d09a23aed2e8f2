"""Notifications reach a socket, the watchdog's interval is read, and the unit is one that systemd takes."""

import os
import pathlib
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from daemon import systemd

UNIT = pathlib.Path(__file__).parents[2] / "deploy" / "lstmd.service"


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@lstmd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name[0] == "@" else name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_the_manager_gets_each_field_on_a_line(manager: socket.socket) -> None:
    assert systemd.notify("READY=1", "STATUS=2 markets")
    assert manager.recv(1000) == b"READY=1\nSTATUS=2 markets"


@pytest.mark.parametrize("address", [None, "", "relative", "/nobody/listens"])
def test_without_a_manager_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("30000000", "", 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("x", "", None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    usec: str, pid: str, interval: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert systemd.watchdog_interval_s() == interval


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([tool, *args], capture_output=True, text=True, timeout=60, check=False)


def local_unit(folder: pathlib.Path) -> pathlib.Path:
    """Copy the unit with a program that exists here, as `verify` looks for it."""
    copy = folder / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/lstmd/.venv/bin/lstmd", "/bin/true"))
    return copy


def test_systemd_takes_the_unit(tmp_path: pathlib.Path) -> None:
    done = analyze("verify", "--man=no", str(local_unit(tmp_path)))
    about_us = [line for line in done.stderr.splitlines() if "lstmd.service" in line]
    assert not about_us, done.stderr
    assert done.returncode == 0, done.stderr


def test_the_unit_is_locked_down(tmp_path: pathlib.Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=25", str(local_unit(tmp_path)))
    if "Unknown option" in done.stderr or "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit offline")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr


def test_the_unit_keeps_the_daemons_side_of_the_contract() -> None:
    lines = UNIT.read_text().splitlines()
    for line in (
        "Type=notify",
        "Restart=on-failure",
        "RestartPreventExitStatus=2 78",
        "DynamicUser=yes",
        "StateDirectory=lstmd",
    ):
        assert line in lines
    assert any(line.startswith("WatchdogSec=") for line in lines)
    assert not any(line.startswith("MemoryDenyWriteExecute=yes") for line in lines)
