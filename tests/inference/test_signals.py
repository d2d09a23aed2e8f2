import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.signals import (
    Confirmation,
    Decision,
    Outlook,
    Rules,
    Side,
    confirm,
    decide,
    leverage_limit,
    market_policy,
    size_hint,
)

OUTLOOK = Outlook(p_touch=0.8, p_up=0.75, barrier_bps=50.0, volatility_bps=40.0, in_range=True)
RULES = Rules()


def decided(
    outlook: Outlook = OUTLOOK, *, held: Side = Side.FLAT, funding: float = 0.0, rules: Rules = RULES,
    contract_leverage: float | None = None,
) -> Decision:  # fmt: skip
    return decide(
        outlook, held=held, funding=funding, rules=rules, confirmations=[], contract_leverage=contract_leverage
    )


def test_an_example_computed_by_hand() -> None:
    """p_long 0.6, p_short 0.2: move 0.4 × 50 = 20 bps; round trip 2 × (5 + 1) = 12 bps; funding 3 bps; size 10 / 40."""
    decision = decided(funding=0.0003)
    assert decision == Decision(
        side=Side.LONG, p_short=0.2, p_flat=0.2, p_long=0.6, confidence=0.6, expected_move_bps=20.0,
        volatility_bps=40.0, edge_bps=5.0, stop_bps=60.0, max_leverage=20.0, size_hint=0.25, confirmations=[],
        reasons=["edge_above_cost"],
    )  # fmt: skip


def test_funding_is_paid_by_longs_and_earned_by_shorts() -> None:
    down = msgspec.structs.replace(OUTLOOK, p_up=0.25)
    assert (decided(funding=0.0003).edge_bps, decided(down, funding=0.0003).edge_bps) == (5.0, 11.0)
    assert (decided(funding=-0.0003).edge_bps, decided(down, funding=-0.0003).edge_bps) == (11.0, 5.0)
    assert decided(funding=0.0009).side is Side.FLAT
    assert decided(funding=0.0035).side is Side.SHORT, "the funding alone pays"


outlooks = st.builds(
    Outlook,
    p_touch=st.floats(0, 1), p_up=st.floats(0, 1), barrier_bps=st.floats(0.1, 1000),
    volatility_bps=st.floats(0.1, 1000), in_range=st.booleans(),
)  # fmt: skip
fundings = st.floats(-0.01, 0.01)


@given(outlooks, st.sampled_from(Side), fundings)
def test_probabilities_sum_to_one_and_figures_are_rounded_as_published(
    outlook: Outlook, held: Side, funding: float
) -> None:
    d = decided(outlook, held=held, funding=funding)
    assert d.p_short + d.p_flat + d.p_long == pytest.approx(1.0, abs=1.6e-6)
    assert all(0.0 <= p <= 1.0 for p in (d.p_short, d.p_flat, d.p_long))
    assert d.confidence == {Side.SHORT: d.p_short, Side.FLAT: d.p_flat, Side.LONG: d.p_long}[d.side]
    numbers = {name: value for name, value in msgspec.structs.asdict(d).items() if isinstance(value, float)}
    assert len(numbers) == 10
    assert all(value == round(value, 6) and str(value) != "-0.0" for value in numbers.values())


@given(outlooks, st.sampled_from(Side), fundings)
def test_a_side_is_taken_above_one_edge_and_kept_above_a_lower_one(
    outlook: Outlook, held: Side, funding: float
) -> None:
    d = decided(outlook, held=held, funding=funding)
    move = outlook.p_touch * (2 * outlook.p_up - 1) * outlook.barrier_bps
    edge = {Side.LONG: move - 12 - funding * 1e4, Side.SHORT: -move - 12 + funding * 1e4}
    best = max(edge.values())
    margins = (abs(best - RULES.enter_edge_bps), *(abs(e - RULES.exit_edge_bps) for e in edge.values()))
    if min(margins) < 1e-6:
        return  # within rounding of a threshold
    assert d.edge_bps == pytest.approx(best, abs=1e-6)
    if not outlook.in_range:
        assert (d.side, d.reasons) == (Side.FLAT, ["outside_training_range"])
    elif best > RULES.enter_edge_bps:
        assert edge[d.side] == pytest.approx(best, abs=1e-9)
    elif held is not Side.FLAT and edge[held] > RULES.exit_edge_bps:
        assert (d.side, d.reasons) == (held, ["held_until_exit_edge"])
    else:
        assert (d.side, d.reasons) == (Side.FLAT, ["edge_below_cost"])


def test_hysteresis_keeps_a_side_between_the_two_edges_and_turns_it_over_for_a_better_one() -> None:
    def with_move(bps: float, held: Side) -> Side:
        return decided(Outlook(1.0, 0.5 + bps / 200, 100.0, 50.0, in_range=True), held=held).side

    assert [with_move(bps, Side.FLAT) for bps in (11.9, 12.1, -11.9, -12.1)] == [
        Side.FLAT, Side.LONG, Side.FLAT, Side.SHORT,
    ]  # fmt: skip
    assert [with_move(bps, Side.LONG) for bps in (12.1, 10.1, 9.9, -12.1)] == [
        Side.LONG, Side.LONG, Side.FLAT, Side.SHORT,
    ]  # fmt: skip


def test_the_stop_and_the_leverage_that_survives_two_of_them() -> None:
    """Stop 60 bps; liquidation at 2 × 60 bps + 1 % = 2.2 %: 45.4 times, capped at 20; ten times the volatility: 7.6."""
    assert leverage_limit(60.0, msgspec.structs.replace(RULES, leverage_cap=100.0)) == 45.4
    assert decided().max_leverage == 20.0
    wild = decided(msgspec.structs.replace(OUTLOOK, volatility_bps=400.0))
    assert (wild.stop_bps, wild.max_leverage) == (600.0, 7.6)


def test_an_improbable_side_is_not_taken_and_a_held_one_is_kept() -> None:
    picky = msgspec.structs.replace(RULES, probability_min=0.7)
    assert (decided(rules=picky).side, decided(rules=picky).reasons) == (Side.FLAT, ["probability_below_min"])
    assert decided(rules=picky, held=Side.LONG).reasons == ["held_until_exit_edge"]
    assert decided(rules=picky, held=Side.SHORT).side is Side.FLAT, "of a short nothing is left to hold"
    assert decided(rules=msgspec.structs.replace(RULES, probability_min=0.6)).side is Side.LONG, "at least"
    unpaid = decided(msgspec.structs.replace(OUTLOOK, p_up=0.5), rules=picky)
    assert unpaid.reasons == ["edge_below_cost"]


@given(outlooks, st.one_of(st.none(), st.floats(1, 200)), st.floats(0.01, 10_000))
def test_the_size_hint_aims_at_the_target_and_never_above_the_leverage(
    outlook: Outlook, contract: float | None, target: float
) -> None:
    aim = msgspec.structs.replace(RULES, volatility_target_bps=target)
    d = decided(outlook, rules=aim, contract_leverage=contract)
    assert 0.0 <= d.size_hint <= d.max_leverage <= (20.0 if contract is None else min(20.0, round(contract, 6)))
    deviation_bps = d.size_hint * outlook.volatility_bps
    assert deviation_bps <= target + 1e-6 * outlook.volatility_bps
    if d.size_hint < d.max_leverage:
        assert deviation_bps == pytest.approx(target, abs=1e-6 * outlook.volatility_bps)
    assert msgspec.structs.replace(d, size_hint=0.25, max_leverage=1.0) == msgspec.structs.replace(
        decided(outlook), size_hint=0.25, max_leverage=1.0
    ), "neither decides a side"


def test_sizes_by_hand() -> None:
    assert size_hint(40.0, 10.0, 20.0) == 0.25
    assert size_hint(0.1, 10.0, 20.0) == 20.0, "a calm market is no reason for more than the leverage allows"
    assert size_hint(0.0, 10.0, 20.0) == 20.0


def test_a_contracts_own_cap_is_respected_and_tells_policies_apart() -> None:
    assert leverage_limit(60.0, RULES, 12.5) == 12.5
    assert leverage_limit(60.0, RULES, 125.0) == 20.0, "ours is the lower"
    assert leverage_limit(600.0, RULES, 12.5) == 7.6, "the stop's is the lower"
    assert decided(contract_leverage=5.0) == msgspec.structs.replace(decided(), max_leverage=5.0)
    assert market_policy("abc", None) == "abc"
    assert len({market_policy(policy, cap) for policy in ("abc", "abd") for cap in (None, 20.0, 50.0)}) == 6


rules = st.builds(
    Rules,
    leverage_cap=st.floats(1, 125),
    maintenance_margin=st.floats(0.001, 0.2),
    liquidation_distance=st.floats(0, 10),
)


@given(st.floats(0, 1e5), st.floats(0, 1e5), rules, st.one_of(st.none(), st.floats(1, 200)))
def test_a_wider_stop_never_allows_more_leverage(
    one: float, other: float, rules: Rules, contract: float | None
) -> None:
    tight, wide = sorted((one, other))
    assert leverage_limit(tight, rules, contract) >= leverage_limit(wide, rules, contract) >= 1.0
    limit = leverage_limit(one, rules, contract)
    assert limit <= min(rules.leverage_cap, contract or rules.leverage_cap)
    distance = rules.liquidation_distance * one / 1e4 + rules.maintenance_margin
    assert limit == 1.0 or 1.0 / limit >= distance * (1 - 1e-12), "liquidation lies beyond the stops"


@pytest.mark.parametrize(
    ("reading", "leans"),
    [
        ({"rsi": 71.0}, ("rsi_14", Side.SHORT)), ({"rsi": 29.0}, ("rsi_14", Side.LONG)),
        ({"rsi": 70.0}, ("rsi_14", Side.FLAT)), ({"rsi": 30.0}, ("rsi_14", Side.FLAT)),
        ({"macd_hist": 0.1}, ("macd_histogram", Side.LONG)), ({"macd_hist": -0.1}, ("macd_histogram", Side.SHORT)),
        ({"adx": 26.0, "trend": 0.1}, ("adx_14", Side.LONG)), ({"adx": 26.0, "trend": -0.1}, ("adx_14", Side.SHORT)),
        ({"adx": 25.0, "trend": 0.1}, ("adx_14", Side.FLAT)),
        ({"percent_b": 1.1}, ("bollinger_percent_b", Side.SHORT)),
        ({"percent_b": -0.1}, ("bollinger_percent_b", Side.LONG)),
        ({"percent_b": 1.0}, ("bollinger_percent_b", Side.FLAT)),
        ({"trend": 0.1}, ("ema_trend", Side.LONG)), ({"trend": -0.1}, ("ema_trend", Side.SHORT)),
    ],
)  # fmt: skip
def test_indicators_lean_as_their_inventors_read_them(reading: dict[str, float], leans: tuple[str, Side]) -> None:
    neutral = {"rsi": 50.0, "macd_hist": 0.0, "adx": 0.0, "percent_b": 0.5, "trend": 0.0}
    calm = confirm(**neutral)
    assert [c.leans for c in calm] == [Side.FLAT] * 5
    assert Confirmation(leans[0], round(reading[next(iter(reading))], 6), leans[1]) in confirm(**{**neutral, **reading})


def test_confirmations_decide_nothing() -> None:
    contrary = [Confirmation("rsi_14", 99.0, Side.SHORT)]
    decision = decide(OUTLOOK, held=Side.FLAT, funding=0.0, rules=RULES, confirmations=contrary)
    assert decision == msgspec.structs.replace(decided(), confirmations=contrary)
    assert math.isclose(RULES.round_trip_bps, 12.0)
