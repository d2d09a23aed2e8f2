"""The doctor finds what is wrong, and says what it is."""

import pathlib
import socket

import pytest

from daemon import broker, doctor
from daemon.mqtt import BrokerRefused
from inference import artifact


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
