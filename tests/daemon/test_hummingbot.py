"""What hummingbot's controller reads never names a side that ours does not."""

import json

import pytest

from daemon.hummingbot import prediction
from daemon.topics import encode
from feeds.market import Market

MARKET = Market(exchange="binance", symbol="BTC/USDT:USDT", native="BTCUSDT", price_decimals=1, size_decimals=3)


@pytest.mark.parametrize(
    ("side", "probabilities"),
    [("long", [0.1, 0.2, 0.7]), ("short", [0.1, 0.2, 0.7]), ("flat", [0.0, 1.0, 0.0])],
)
def test_probabilities_follow_the_side(side: str, probabilities: list[float]) -> None:
    signal = {"id": "ab", "side": side, "p_short": 0.1, "p_flat": 0.2, "p_long": 0.7, "volatility_bps": 25.0, "seq": 1}
    topic, payload = prediction(MARKET, json.dumps(signal).encode(), 1_729_209_660_000_000_000)
    assert topic == "hbot/predictions/btc_usdt/ML_SIGNALS"
    assert json.loads(encode(payload)) == {
        "id": "ab", "trading_pair": "BTC-USDT", "probabilities": probabilities, "timestamp": 1_729_209_660_000,
        "target_pct": 0.0025,
    }  # fmt: skip
