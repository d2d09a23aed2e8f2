"""From what the model expects to what is published: side, edge net of costs, stop, leverage and size hints, and why.

Pure functions of the model's outlook, the side held so far and the operator's rules. No claim of profit is made here:
the side is flat unless the expected move pays the round trip.
"""

import hashlib
import math
from enum import StrEnum
from typing import NamedTuple

import msgspec


class Side(StrEnum):
    """The position a signal stands for."""

    SHORT = "short"
    FLAT = "flat"
    LONG = "long"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's numbers; all of them are part of the policy hash."""

    taker_fee_bps: float = 5.0
    """Fee of one side."""
    half_spread_bps: float = 1.0
    """Half the spread, paid on each side."""
    enter_edge_bps: float = 0.0
    """A side is taken when its edge is above this."""
    exit_edge_bps: float = -2.0
    """A side is kept while its edge stays above this; below `enter_edge_bps`, so that a side does not flicker."""
    probability_min: float = 0.0
    """A side is taken when its probability is at least this."""
    stop_multiple: float = 1.5
    """Distance of the stop in predicted standard deviations over the horizon."""
    leverage_cap: float = 20.0
    """Never suggest more than this."""
    maintenance_margin: float = 0.01
    """Share of the position's value at which the exchange liquidates."""
    liquidation_distance: float = 2.0
    """Liquidation lies at least this many stop distances away."""
    volatility_target_bps: float = 10.0
    """Deviation of equity over the horizon that the size hint aims at."""
    cooldown_candles: int | None = None
    """Candles to stay flat after a losing exit; None: no such guard. See `inference.guards`."""
    daily_loss_limit_bps: float | None = None
    """Loss of a UTC day at which to stay flat until it ends; None: no such guard."""

    @property
    def fill_bps(self) -> float:
        """Cost of one fill at market, bps of the position's value."""
        return self.taker_fee_bps + self.half_spread_bps

    @property
    def round_trip_bps(self) -> float:
        """Cost of opening and closing at market, bps of the position's value."""
        return 2.0 * self.fill_bps

    @property
    def guarded(self) -> bool:
        """Whether a guard may overrule the model's side."""
        return self.cooldown_candles is not None or self.daily_loss_limit_bps is not None


class Outlook(msgspec.Struct, frozen=True):
    """What the model expects over the horizon that follows a candle's close."""

    p_touch: float
    """Probability that price touches a barrier at ± `barrier_bps` within the horizon."""
    p_up: float
    """Probability that the upper barrier is the first, given a touch."""
    barrier_bps: float
    volatility_bps: float
    """Predicted standard deviation of the return over the horizon."""
    in_range: bool
    """Whether the features lie in the range the model was trained on."""


class Confirmation(msgspec.Struct, frozen=True):
    """A classic indicator beside the model's opinion; it decides nothing."""

    name: str
    value: float
    leans: Side


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The decided part of a signal; figures are rounded as published."""

    side: Side
    p_short: float
    p_flat: float
    p_long: float
    confidence: float
    """The probability the model gives to the published side."""
    expected_move_bps: float
    volatility_bps: float
    edge_bps: float
    """Expected move in the better direction less round trip and funding."""
    stop_bps: float
    max_leverage: float
    size_hint: float
    """Value of a position as a multiple of equity, for the operator's target of volatility."""
    confirmations: list[Confirmation]
    reasons: list[str]


def _published(value: float) -> float:
    """Round to the six decimals that are published; other CPU families may differ beyond."""
    return round(value, 6) + 0.0


def decide(
    outlook: Outlook,
    *,
    held: Side,
    funding: float,
    rules: Rules,
    confirmations: list[Confirmation],
    contract_leverage: float | None = None,
) -> Decision:
    """Decide on a side.

    `held` is the side of the candle before; `funding` what a long pays within the horizon, as a fraction;
    `contract_leverage` the most that the exchange allows on the contract, where it says.
    """
    choice = _weigh(outlook, held, funding, rules)
    side, p_long, p_short, p_flat = choice.side, choice.p_long, choice.p_short, 1.0 - outlook.p_touch
    stop_bps = rules.stop_multiple * outlook.volatility_bps
    max_leverage = leverage_limit(stop_bps, rules, contract_leverage)
    return Decision(
        side=side,
        p_short=_published(p_short),
        p_flat=_published(p_flat),
        p_long=_published(p_long),
        confidence=_published(p_flat if side is Side.FLAT else p_long if side is Side.LONG else p_short),
        expected_move_bps=_published(choice.move_bps),
        volatility_bps=_published(outlook.volatility_bps),
        edge_bps=_published(choice.edge_bps),
        stop_bps=_published(stop_bps),
        max_leverage=_published(max_leverage),
        size_hint=_published(size_hint(outlook.volatility_bps, rules.volatility_target_bps, max_leverage)),
        confirmations=confirmations,
        reasons=[choice.reason],
    )


def side_of(outlook: Outlook, *, held: Side, funding: float, rules: Rules) -> Side:
    """Return the side that `decide` would, where nothing else of a decision is wanted."""
    return _weigh(outlook, held, funding, rules).side


class _Choice(NamedTuple):
    """Which way, and why."""

    side: Side
    reason: str
    p_long: float
    p_short: float
    move_bps: float
    edge_bps: float
    """Of the better side."""


def _weigh(outlook: Outlook, held: Side, funding: float, rules: Rules) -> _Choice:
    p_long = outlook.p_touch * outlook.p_up
    p_short = outlook.p_touch - p_long
    move_bps = (p_long - p_short) * outlook.barrier_bps
    cost_bps = rules.round_trip_bps
    long = _Bet(Side.LONG, move_bps - cost_bps - funding * 1e4, p_long)
    short = _Bet(Side.SHORT, -move_bps - cost_bps + funding * 1e4, p_short)
    best = long if long.edge_bps >= short.edge_bps else short
    if outlook.in_range:
        side, reason = _choose(best, long if held is Side.LONG else short, held, rules)
    else:
        side, reason = Side.FLAT, "outside_training_range"
    return _Choice(side, reason, p_long, p_short, move_bps, best.edge_bps)


class _Bet(NamedTuple):
    """What a side promises."""

    side: Side
    edge_bps: float
    probability: float


def _choose(best: _Bet, kept: _Bet, held: Side, rules: Rules) -> tuple[Side, str]:
    """Pick a side with hysteresis: entering asks for more edge than staying; `kept` is the side held, if one is."""
    pays = best.edge_bps > rules.enter_edge_bps
    if pays and best.probability >= rules.probability_min:
        return best.side, "edge_above_cost"
    if held is not Side.FLAT and kept.edge_bps > rules.exit_edge_bps:
        return held, "held_until_exit_edge"
    return Side.FLAT, "probability_below_min" if pays else "edge_below_cost"


def leverage_limit(stop_bps: float, rules: Rules, contract_leverage: float | None = None) -> float:
    """Return the most leverage at which liquidation lies `liquidation_distance` stops away, within the caps.

    An isolated position of leverage L is liquidated after an adverse move of about 1/L less the maintenance margin.
    """
    cap = rules.leverage_cap if contract_leverage is None else min(rules.leverage_cap, contract_leverage)
    distance = rules.liquidation_distance * stop_bps / 1e4 + rules.maintenance_margin
    bound = math.floor(10.0 / distance) / 10.0 if distance > 0.0 else cap
    return max(1.0, min(cap, bound))


def size_hint(volatility_bps: float, target_bps: float, max_leverage: float) -> float:
    """Return the position's value, as a multiple of equity, whose predicted deviation is `target_bps` of equity.

    Never above `max_leverage`. Volatility targeting: exposure in inverse proportion to predicted volatility.
    """
    return min(max_leverage, target_bps / volatility_bps) if volatility_bps > 0.0 else max_leverage


def market_policy(policy: str, contract_leverage: float | None) -> str:
    """Return a market's policy: the model's, and a contract's own cap on leverage where one is known."""
    if contract_leverage is None:
        return policy
    return hashlib.blake2b(f"{policy}|{contract_leverage!r}".encode(), digest_size=8).hexdigest()


def confirm(*, rsi: float, macd_hist: float, adx: float, percent_b: float, trend: float) -> list[Confirmation]:
    """Read the classic indicators as their inventors did.

    RSI 14 above 70 is overbought and below 30 oversold (Wilder 1978); the MACD histogram's sign is the momentum
    (Appel); ADX 14 above 25 speaks of a trend (Wilder), in the direction of `trend`, the fast over the slow EMA less
    one; Bollinger %b above 1 or below 0 is an excursion expected to revert.
    """
    return [
        Confirmation("rsi_14", _published(rsi), _lean(30.0 - rsi, rsi - 70.0)),
        Confirmation("macd_histogram", _published(macd_hist), _lean(macd_hist, -macd_hist)),
        Confirmation("adx_14", _published(adx), _lean(trend, -trend) if adx > 25.0 else Side.FLAT),
        Confirmation("bollinger_percent_b", _published(percent_b), _lean(-percent_b, percent_b - 1.0)),
        Confirmation("ema_trend", _published(trend), _lean(trend, -trend)),
    ]


def _lean(long: float, short: float) -> Side:
    return Side.LONG if long > 0 else Side.SHORT if short > 0 else Side.FLAT
