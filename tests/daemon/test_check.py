"""What a configuration asks for is held against what the parts can do."""

from typing import Any

import msgspec
import pytest

from config.load import ConfigError
from config.schema import Config, Decision
from daemon.app import rules_of
from daemon.check import check
from inference.signals import Rules


def config(*, model: str = "default", sections: dict[str, Any] | None = None, **feed: Any) -> Config:
    whole = {"exchange": "binance", "symbols": ["BTC/USDT:USDT"], "candles": ["1m"], **feed}
    return Config(feeds=[whole], model={"artifact": model}, **(sections or {}))


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


@pytest.mark.parametrize(
    ("exchange", "said"),
    [
        ("ccxt:binanceusd", "near to it: ccxt:binanceus"),
        ("ccxt:nothinglikeit", "no websocket for an exchange 'nothinglikeit'"),
        ("ccxt:bydfi", "ccxt has no watchTrades, no fetchTime for it"),
        ("ccxt:krakenfutures", "ccxt has no fetchTime for it"),
    ],
)
def test_an_exchange_that_cannot_be_followed_is_named(exchange: str, said: str) -> None:
    assert said in problems(exchange=exchange)["feeds[0].exchange"]


def test_any_other_exchange_is_followed_through_ccxt() -> None:
    assert check(config(exchange="ccxt:gate", close="exchange"))
    assert "one connection" in problems(exchange="ccxt:gate", redundant=True)["feeds[0].redundant"]


def test_candles_below_a_minute_need_a_trade_history() -> None:
    found = problems(exchange="ccxt:gate", candles=["5s", "100t"])
    assert "too little trade history" in found["feeds[0].candles[0]"]
    assert "too little trade history" in found["feeds[0].candles[1]"]


def test_candles_that_the_exchange_has_no_klines_of_need_one_too() -> None:
    assert "too little trade history" in problems(exchange="bybit", candles=["8h"])["feeds[0].candles[0]"]


@pytest.mark.parametrize("spec", ["5s", "100t"])
def test_a_daily_calibration_needs_candles_that_exchanges_keep_for_days(spec: str) -> None:
    assert "calibrate_on" not in problems(candles=[spec])["feeds[0].candles[0]"]
    assert (
        "calibrate_on looks back over 7 days"
        in problems(candles=[spec], calibrate_on=["BTC/USDT:USDT"])["feeds[0].candles[0]"]
    )


def test_markets_to_calibrate_on_are_contracts() -> None:
    assert check(config(calibrate_on=["BTC/USDT:USDT", "ETH/USDT:USDT"]))
    assert set(problems(calibrate_on=["BTC/USDT:USDT-26"])) == {"feeds[0].calibrate_on[0]"}


def test_a_spec_that_does_not_divide_the_day_is_refused() -> None:
    assert "divides the UTC day" in problems(candles=["7m"])["feeds[0].candles[0]"]


def test_globs_are_left_to_the_exchanges_own_list() -> None:
    assert check(config(symbols=["*/USDT:USDT", "all"]))


def test_a_symbol_that_no_topic_can_be_made_of_is_named() -> None:
    assert set(problems(symbols=["BTC/USDT:USDT-26"])) == {"feeds[0].symbols[0]"}


def test_every_number_of_the_operator_reaches_the_rules() -> None:
    said = {
        "taker_fee_bps": 2.0, "half_spread_bps": 0.5, "enter_edge_bps": 6.0, "exit_edge_bps": 1.0,
        "probability_min": 0.4, "volatility_target_bps": 20.0, "cooldown_candles": 5, "daily_loss_limit_bps": 100.0,
    }  # fmt: skip
    whole = config(sections={"decision": said})
    assert said.keys() == set(Decision.model_fields)
    artifact = check(whole)
    assert msgspec.structs.asdict(rules_of(whole, artifact.manifest)).items() >= said.items()
    assert rules_of(config(), artifact.manifest) == Rules(), "the shipped artifact's are the defaults"


@pytest.mark.parametrize("guard", [{"cooldown_candles": 5}, {"daily_loss_limit_bps": 100.0}])
def test_a_guard_needs_a_journal_that_reaches_back_to_midnight(guard: dict[str, float]) -> None:
    def sections(keep: int) -> dict[str, Any]:
        return {"decision": guard, "store": {"journal_keep": keep}}

    assert check(config(candles=["1m", "5m"], sections={"decision": guard}))
    assert check(config(candles=["1m"], sections=sections(3136)))
    found = problems(candles=["5m", "1m"], sections=sections(3135))
    assert list(found) == ["feeds[0].candles[1]"]
    assert "1m candles need a store.journal_keep of 3136, not 3135" in found["feeds[0].candles[1]"]
    assert check(config(sections={"store": {"journal_keep": 2000}})), "without a guard two epochs do"


def test_an_artifact_that_is_not_there_is_named_with_the_other_faults() -> None:
    assert set(problems(model="/no/such", candles=["7m"])) == {"model.artifact", "feeds[0].candles[0]"}


def test_an_exchange_that_is_closed_needs_a_server_in_its_place() -> None:
    feed: dict[str, Any] = {"exchange": "bitmex", "symbols": ["BTC/USD:BTC"]}
    found = problems(**feed)
    assert set(found) == {"feeds[0].ws_url", "feeds[0].rest_url"}
    assert all(reason.startswith("BitMEX closed on 2026-09-23") for reason in found.values())
    assert set(problems(**feed, ws_url="ws://127.0.0.1:9000")) == {"feeds[0].rest_url"}
    assert check(config(**feed, ws_url="ws://127.0.0.1:9000", rest_url="http://127.0.0.1:9000"))
    refused = problems(**feed, candles=["15m"], ws_url="ws://127.0.0.1:9000", rest_url="http://127.0.0.1:9000")
    assert "too little trade history" in refused["feeds[0].candles[0]"]
