"""File, environment and credentials become one configuration, or a list of faults."""

import pathlib

import pytest

from config import load as subject
from config.load import ConfigError, load, shipped

FEED = '[[feeds]]\nexchange = "binance"\nsymbols = ["BTC/USDT:USDT"]\n'


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("LSTMD_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "lstmd.toml"
    path.write_text(FEED)
    return path


def faults(path: pathlib.Path, text: str) -> dict[str, subject.Problem]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return {problem.key: problem for problem in caught.value.problems}


def test_the_shipped_file_is_binance_live_with_a_broker_of_its_own() -> None:
    config = load()
    assert config == load(shipped())
    assert config.mqtt.embedded_port == 1883
    assert config.feeds[0].exchange == "binance"
    assert config.feeds[0].symbols == ("BTC/USDT:USDT", "ETH/USDT:USDT")
    assert config.feeds[0].ws_url is None


def test_the_environment_goes_before_the_file(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[mqtt]\nurl = "mqtt://a:1"\nbase_topic = "b"\n' + FEED)
    monkeypatch.setenv("LSTMD_MQTT__URL", "mqtt://c:2")
    monkeypatch.setenv("LSTMD_LIVE__MIN_INTERVAL_MS", "7")
    config = load(file)
    assert (config.mqtt.url, config.mqtt.base_topic, config.live.min_interval_ms) == ("mqtt://c:2", "b", 7)


def test_secrets_come_from_the_credentials_directory(
    file: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mqtt_password").write_text("hunter2\n")
    (tmp_path / "mqtt_username").write_text("name")
    (tmp_path / "mqtt_ca_file").write_text("PEM")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    mqtt = load(file).mqtt
    assert mqtt.password is not None
    assert mqtt.password.get_secret_value() == "hunter2"
    assert mqtt.username == "name"
    assert mqtt.ca_file == tmp_path / "mqtt_ca_file"
    assert "hunter2" not in repr(mqtt)


def test_a_password_may_lie_in_a_file(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret").write_text("word\n")
    file.write_text(f'[mqtt]\npassword_file = "{tmp_path}/secret"\n' + FEED)
    password = load(file).mqtt.password
    assert password is not None
    assert password.get_secret_value() == "word"
    found = faults(file, '[mqtt]\npassword_file = "/does/not/exist"\n' + FEED)
    assert set(found) == {"mqtt.password_file"}


def test_every_fault_is_named_at_once_with_the_nearest_key(file: pathlib.Path) -> None:
    found = faults(
        file,
        '[mqtt]\nulr = "x"\nkeepalive_s = "soon"\n[stor]\npath = "x"\n[store]\nurl = "x"\n[log]\nlevel = "warn"\n'
        '[[feeds]]\nexchange = "binanse"\nsymbols = ["BTC"]\ncandels = ["1m"]\nclose = "trade"\n',
    )
    assert {key: p.nearest for key, p in found.items()} == {
        "mqtt.ulr": "mqtt.url",
        "mqtt.keepalive_s": None,
        "stor": "store",
        "store.url": "mqtt.url",
        "log.level": "warning",
        "feeds[0].exchange": None,
        "feeds[0].symbols[0]": None,
        "feeds[0].candels": "feeds[0].candles",
        "feeds[0].close": "trades",
    }
    assert str(found["mqtt.ulr"]) == "mqtt.ulr: unknown key; did you mean mqtt.url?"
    assert all("\n" not in str(problem) for problem in found.values())


def test_a_configuration_without_feeds_says_so(file: pathlib.Path) -> None:
    assert "at least one [[feeds]]" in faults(file, "")["feeds"].reason


@pytest.mark.parametrize("text", ["[mqtt", "a = ", "\xff"])
def test_what_is_not_toml_is_one_fault(file: pathlib.Path, text: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not TOML"):
        load(file)


def test_a_missing_file_is_one_fault(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml")


def test_a_section_that_is_no_table_is_a_fault(file: pathlib.Path) -> None:
    assert set(faults(file, "mqtt = 3\n" + FEED)) == {"mqtt"}


def test_variables_of_unknown_sections_are_faults(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMD_MQT__URL", "mqtt://a:1")
    monkeypatch.setenv("LSTMD_SEED", "1")
    found = faults(file, FEED)
    assert str(found["LSTMD_MQT__URL"]) == "LSTMD_MQT__URL: no such section; did you mean LSTMD_MQTT__…?"
    assert len(found) == 1


def test_variables_that_are_not_json_where_a_list_is_meant_are_faults(
    file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSTMD_FEEDS", "[{")
    assert "feeds" in faults(file, FEED)["environment"].reason
