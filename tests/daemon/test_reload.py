"""A configuration read again says what took effect and what waits for a restart."""

from pathlib import Path

import pytest
import structlog

from config.load import ConfigError, load
from config.schema import Config
from daemon.reload import Reloader

FEED = '[[feeds]]\nexchange = "binance"\nsymbols = ["BTC/USDT:USDT"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lstmd.toml"
    path.write_text(FEED)
    return path


def reloader(file: Path) -> Reloader:
    def read() -> Config:
        return load(file)

    return Reloader(read(), read)


def test_what_can_change_at_once_is_told_from_what_cannot(file: Path) -> None:
    subject = reloader(file)
    assert subject.reload() == {"applied": [], "needs_restart": []}
    file.write_text('[log]\nlevel = "debug"\n[mqtt]\nbase_topic = "other"\n' + FEED.replace("BTC", "ETH"))
    with structlog.testing.capture_logs():
        found = subject.reload()
    assert found == {"applied": ["log.level"], "needs_restart": ["feeds", "mqtt.base_topic"]}
    assert subject.reload()["applied"] == []
    assert subject.reload()["needs_restart"] == ["feeds", "mqtt.base_topic"]


def test_a_configuration_with_a_fault_changes_nothing(file: Path) -> None:
    subject = reloader(file)
    file.write_text('[log]\nlevel = "loud"\n' + FEED)
    with pytest.raises(ConfigError, match=r"log\.level"):
        subject.reload()
    file.write_text(FEED)
    assert subject.reload() == {"applied": [], "needs_restart": []}
