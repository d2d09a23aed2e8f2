"""Look at the installation and say what is wrong with it."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from daemon import broker
from daemon.mqtt import BrokerRefused
from inference import artifact as artifacts
from inference.artifact import ArtifactError

PACKAGES = ("lstmd", "aiomqtt", "ccxt", "msgspec", "numba", "numpy", "safetensors", "torch", "websockets")
OURS = ("config", "daemon", "feeds", "inference", "training")


class Finding(NamedTuple):
    """One thing looked at. `ok` None: worth knowing, no fault."""

    name: str
    ok: bool | None
    detail: str


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
