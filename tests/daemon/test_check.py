"""What a configuration asks for is held against what the parts can do."""

from typing import Any

import pytest

from config.load import ConfigError
from config.schema import Config
from daemon.check import check


def config(*, model: str = "default", **feed: Any) -> Config:
    whole = {"exchange": "binance", "symbols": ["BTC/USDT:USDT"], "candles": ["1m"], **feed}
    return Config(feeds=[whole], model={"artifact": model})


def problems(**feed: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        check(config(**feed))
    return {problem.key: problem.reason for problem in caught.value.problems}


def test_the_shipped_artifact_serves_the_candles_it_was_made_for() -> None:
    artifact = check(config(candles=["1m", "5m"]))
    assert set(artifact.manifest.specs) == {"1m", "5m"}


def test_candles_the_artifact_does_not_serve_are_named() -> None:
    found = problems(candles=["1m", "4h"])
    assert list(found) == ["feeds[0].candles[1]"]
    assert found["feeds[0].candles[1]"].endswith("serves 1m, 5m, not 4h")


def test_an_exchange_that_this_version_does_not_serve_is_named() -> None:
    assert "not served" in problems(exchange="ccxt:kraken")["feeds[0].exchange"]


def test_candles_below_a_minute_need_a_trade_history() -> None:
    found = problems(exchange="ccxt:kraken", candles=["5s", "100t"])
    assert "too little trade history" in found["feeds[0].candles[0]"]
    assert "too little trade history" in found["feeds[0].candles[1]"]


def test_a_spec_that_does_not_divide_the_day_is_refused() -> None:
    assert "divides the UTC day" in problems(candles=["7m"])["feeds[0].candles[0]"]


def test_globs_are_left_to_the_exchanges_own_list() -> None:
    assert check(config(symbols=["*/USDT:USDT", "all"]))


def test_a_symbol_that_no_topic_can_be_made_of_is_named() -> None:
    assert set(problems(symbols=["BTC/USDT:USDT-26"])) == {"feeds[0].symbols[0]"}


def test_an_artifact_that_is_not_there_is_named_with_the_other_faults() -> None:
    assert set(problems(model="/no/such", candles=["7m"])) == {"model.artifact", "feeds[0].candles[0]"}
