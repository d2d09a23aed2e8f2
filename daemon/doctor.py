"""Look at the installation and at the broker, and say what is wrong with them."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from config.schema import Config
from daemon import broker, clock
from daemon.mqtt import BrokerError, BrokerRefused, Credentials, MqttLink
from inference import artifact as artifacts
from inference.artifact import ArtifactError

PACKAGES = ("lstmd", "aiomqtt", "ccxt", "msgspec", "numba", "numpy", "safetensors", "torch", "websockets")
OURS = ("config", "daemon", "feeds", "inference", "training")


class Finding(NamedTuple):
    """One thing looked at."""

    name: str
    ok: bool | None
    """None: no fault; worth knowing, or with an advice worth doing something about."""
    detail: str
    advice: str = ""
    """What to do about it, one line."""
    about: str = ""
    """Which exchange and market; empty for this installation."""

    @property
    def verdict(self) -> str:
        """Put it in a word."""
        return {True: "ok", False: "FAIL", None: "warn" if self.advice else ""}[self.ok]

    def told(self) -> dict[str, str | bool | None]:
        """Return it for machines."""
        return {**self._asdict(), "verdict": self.verdict}

    def __str__(self) -> str:
        """Write it for people: a line, and one more where there is an advice."""
        where = f"{self.about} {self.name}".lstrip()
        said = f"{self.verdict:<4} {where:<{38 if self.about else 16}} {self.detail}"
        return f"{said}\n     → {self.advice}" if self.advice else said


class Report:
    """Takes findings as they are made: prints them for people, or keeps them for machines."""

    def __init__(self, *, as_json: bool) -> None:
        self.findings: list[Finding] = []
        self._as_json = as_json
        self._is_watched = sys.stderr.isatty() and not as_json
        self._progress: dict[str, str] = {}
        self._shown = ""

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return any(finding.ok is False for finding in self.findings)

    def tell(self, finding: Finding) -> None:
        """Take a finding."""
        self.findings.append(finding)
        if not self._as_json:
            self._show("")
            print(finding, flush=True)

    def progress(self, who: str, how_far: str) -> None:
        """Show how far something is that takes long, on a terminal."""
        self._progress[who] = f"{who}: {how_far}" if how_far else ""
        self._show("; ".join(filter(None, self._progress.values())))

    def _show(self, text: str) -> None:
        if self._is_watched and text != self._shown:
            sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
            self._shown = text


def ports_of(config: Config) -> dict[str, int]:
    """Return the ports that a daemon of this configuration listens on, by what they are for."""
    ports = {"embedded broker": config.mqtt.embedded_port or 0}
    if config.metrics.enabled:
        ports["metrics"] = int(config.metrics.listen.rpartition(":")[2])
    return {purpose: port for purpose, port in ports.items() if port}


def examine(ports: dict[str, int]) -> Iterator[Finding]:
    """Look at everything, one finding after the other; `ports` by what they are for."""
    yield Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} in {sys.prefix}")
    yield from _versions()
    yield _clash()
    yield _timed("broker binary", _broker)
    yield _kernel_cache()
    yield _timed("artifact", _artifact)
    for purpose, port in ports.items():
        yield _port(purpose, port)


def _versions() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed")


def _clash() -> Finding:
    """Find other distributions that install a package by one of our names; python-daemon is the usual one."""
    owners = importlib.metadata.packages_distributions()
    foreign = {f"{owner} installs {name}" for name in OURS for owner in owners.get(name, []) if owner != "lstmd"}
    return Finding("package names", not foreign, "; ".join(sorted(foreign)) or "nobody else uses ours")


def _timed(name: str, look: Callable[[], str]) -> Finding:
    began = time.monotonic()
    try:
        detail = look()
    except (ArtifactError, BrokerRefused, OSError, subprocess.SubprocessError) as error:
        return Finding(name, False, str(error))
    return Finding(name, True, f"{detail} ({1000 * (time.monotonic() - began):.0f} ms)")


def _broker() -> str:
    path = broker.binary()
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    return f"{done.stdout.strip()} at {path}"


def _artifact() -> str:
    return artifacts.load(artifacts.resolve("default")).model_id


def _kernel_cache() -> Finding:
    """Tell where numba keeps compiled kernels; without a place to write, each start compiles anew."""
    place = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(artifacts.__file__).parent)
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return Finding("kernel cache", False, f"{place} cannot be written: {error.strerror}; set NUMBA_CACHE_DIR")
    return Finding("kernel cache", True, str(place))


def _port(purpose: str, port: int) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    return Finding(f"port {port}", None, f"{purpose}: {'something listens there' if taken else 'free'}")


async def examine_broker(url: str, embedded_port: int | None, credentials: Credentials) -> Finding:
    """Connect to the broker as the daemon does; an embedded one that does not run is started for it and stopped."""
    try:
        if embedded_port is None:
            said = await _knock(url, credentials)
        else:
            said = await _embedded(embedded_port, credentials)
    except (BrokerError, BrokerRefused) as error:
        advice = "look at mqtt.url, user name, password and certificates, and whether the broker runs"
        return Finding("broker", False, str(error), advice, "mqtt")
    return Finding("broker", True, said, about="mqtt")


async def _knock(url: str, credentials: Credentials) -> str:
    began_s = time.monotonic()
    link = MqttLink(url, client_id=f"lstmd-doctor-{clock.boot_id()}", credentials=credentials)
    async with link.connect():
        return f"{link.where} takes us ({1000 * (time.monotonic() - began_s):.0f} ms)"


async def _embedded(port: int, credentials: Credentials) -> str:
    if port:
        try:
            return f"embedded, it runs already: {await _knock(f'mqtt://127.0.0.1:{port}', credentials)}"
        except BrokerError:
            pass  # nobody is there unless a daemon runs
    with tempfile.TemporaryDirectory(prefix="lstmd-doctor-") as folder:
        server = broker.EmbeddedBroker(Path(folder), port=port)
        await server.start()
        try:
            return f"embedded, started for this: {await _knock(server.url, credentials)}"
        finally:
            await server.stop()
