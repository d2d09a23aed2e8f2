"""Settings: types, bounds, defaults."""

import pathlib
from typing import Any

import pytest
from pydantic import ValidationError

from config.schema import Config, default_state_folder

FEED = {"exchange": "binance", "symbols": ["BTC/USDT:USDT"]}


def make(**sections: Any) -> Config:
    return Config(**{"feeds": [FEED], **sections})


def test_defaults_stand_where_nothing_is_said() -> None:
    config = make()
    assert config.mqtt.url == "embedded"
    assert config.mqtt.base_topic == "lstmd"
    assert config.feeds[0].candles == ("1m",)
    assert config.decision.taker_fee_bps == 5.0
    assert config.model.artifact == "default"


@pytest.mark.parametrize(
    ("url", "port"), [("embedded", 1883), ("embedded:1884", 1884), ("embedded:0", 0), ("mqtt://h:1", None)]
)
def test_the_embedded_broker_has_a_port(url: str, port: int | None) -> None:
    assert make(mqtt={"url": url}).mqtt.embedded_port == port


@pytest.mark.parametrize(
    "url",
    [
        "http://h:1",
        "mqtt://",
        "mqtt//h",
        "mqtt://user:word@h",
        "mqtt://h:99999",
        "mqtt://h/path",
        "embedded:99999",
        "embedded:x",
        "",
    ],
)
def test_a_wrong_broker_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        make(mqtt={"url": url})


@pytest.mark.parametrize("text", ["all", "*/USDT:USDT", "BTC/USD:BTC-261225", "1000PEPE/USDT:USDT"])
def test_symbols_may_be_contracts_globs_or_all(text: str) -> None:
    assert make(feeds=[{"exchange": "binance", "symbols": text}]).feeds[0].symbols == (text,)


@pytest.mark.parametrize("text", ["BTCUSDT", "BTC/USDT", "", "BTC USDT:USDT"])
def test_other_symbols_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        make(feeds=[{"exchange": "binance", "symbols": [text]}])


def test_markets_to_calibrate_on_are_a_fixed_list() -> None:
    assert make(feeds=[FEED]).feeds[0].calibrate_on == ()
    assert make(feeds=[{**FEED, "calibrate_on": "BTC/USDT:USDT"}]).feeds[0].calibrate_on == ("BTC/USDT:USDT",)
    for wrong in (["all"], ["*/USDT:USDT"], ["BTCUSDT"], ["BTC/USDT:USDT", "BTC/USDT:USDT"]):
        with pytest.raises(ValidationError):
            make(feeds=[{**FEED, "calibrate_on": wrong}])


@pytest.mark.parametrize("text", ["1s", "5s", "1m", "4h", "1d", "100t", "50v", "0.5v", "1000000$"])
def test_candle_specs(text: str) -> None:
    assert make(feeds=[{**FEED, "candles": text}]).feeds[0].candles == (text,)


@pytest.mark.parametrize("texts", [["0m"], ["1x"], ["m"], ["1.5m"], [], ["1m", "1m"]])
def test_wrong_candle_specs_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValidationError):
        make(feeds=[{**FEED, "candles": texts}])


@pytest.mark.parametrize("name", ["binance", "bybit", "bingx", "bitget", "bitmex", "ccxt:kraken"])
def test_exchanges(name: str) -> None:
    assert make(feeds=[{**FEED, "exchange": name}]).feeds[0].exchange == name


@pytest.mark.parametrize("text", ["http://127.0.0.1:3128", "socks5://u:secret@[::1]:1080/", "socks5h://tor:9050"])
def test_proxies(text: str) -> None:
    config = make(feeds=[{**FEED, "proxy": text}])
    assert config.feeds[0].proxy is not None
    assert config.feeds[0].proxy.get_secret_value() == text.rstrip("/")
    assert "secret" not in f"{config} {config!r} {config.model_dump_json()}"


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:3128", "ftp://secret@h:1", "http://u:secret@h", "http://u:secret@h:99999", "http://u:secret@h:1/path",
        "socks5://secret@h:1", "socks4://u:secret@h:1", "http://u:secret@:1",
    ],
)  # fmt: skip
def test_wrong_proxies_are_refused_without_their_password(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        make(feeds=[{**FEED, "proxy": text}])
    error = next(error for error in refused.value.errors() if error["loc"] == ("feeds", 0, "proxy"))
    assert "secret" not in error["msg"]


@pytest.mark.parametrize(
    "sections",
    [
        {"feeds": [FEED, FEED]},
        {"feeds": []},
        {"feeds": [{**FEED, "ws_url": "http://x:1"}]},
        {"feeds": [{**FEED, "rest_url": "ws://x:1"}]},
        {"mqtt": {"base_topic": "a/#"}},
        {"mqtt": {"base_topic": "/a"}},
        {"mqtt": {"base_topic": "a b"}},
        {"mqtt": {"client_cert": __file__}},
        {"mqtt": {"password": "a", "password_file": __file__}},
        {"decision": {"enter_edge_bps": 1, "exit_edge_bps": 2}},
        {"decision": {"cooldown_candles": 0}},
        {"decision": {"daily_loss_limit_bps": 0}},
        {"decision": {"volatility_target_bps": 0}},
        {"metrics": {"listen": "9464"}},
        {"store": {"journal_keep": 10}},
    ],
)
def test_what_does_not_fit_together_is_refused(sections: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**sections)


def test_state_lies_where_systemd_or_the_user_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_folder() == tmp_path / "lstmd"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/lstmd:/var/lib/other")
    assert make().store.path == pathlib.Path("/var/lib/lstmd")


def test_the_fingerprint_follows_the_settings_but_no_secret() -> None:
    plain = make().fingerprint()
    assert plain == make().fingerprint()
    assert plain != make(mqtt={"base_topic": "x"}).fingerprint()
    words = [make(mqtt={"password": word}).fingerprint() for word in ("one", "two")]
    assert words[0] == words[1]
