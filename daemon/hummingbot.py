"""The format that hummingbot's `ai_livestream` controller consumes. Pure.

The controller takes any side whose probability is above its threshold and knows nothing of costs. So where our side is
flat, no side gets a probability here.
"""

import msgspec

from daemon.topics import HummingbotSignal
from feeds.market import Market
from inference.signals import Side

TOPIC = "hbot/predictions/{pair}/ML_SIGNALS"


class _Signal(msgspec.Struct):
    """The fields of a signal that go into it."""

    id: str
    side: Side
    p_short: float
    p_flat: float
    p_long: float
    volatility_bps: float


def prediction(market: Market, identity: bytes, close_time_ns: int) -> tuple[str, HummingbotSignal]:
    """Turn a signal's identity (JSON) into the controller's topic and payload.

    `target_pct` scales the controller's triple barrier: the predicted standard deviation, as a fraction.
    """
    signal = msgspec.json.decode(identity, type=_Signal)
    pair = market.symbol.partition(":")[0].replace("/", "-")
    flat = signal.side is Side.FLAT
    return TOPIC.format(pair=pair.replace("-", "_").lower()), HummingbotSignal(
        id=signal.id,
        trading_pair=pair,
        probabilities=(0.0, 1.0, 0.0) if flat else (signal.p_short, signal.p_flat, signal.p_long),
        timestamp=close_time_ns // 1_000_000,
        target_pct=round(signal.volatility_bps / 1e4, 8),
    )
