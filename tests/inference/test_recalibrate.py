from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.market import NS_PER_DAY
from inference import recalibrate
from inference.artifact import Affine, Calibration
from inference.lstm import F64
from inference.recalibrate import Past

MINUTE_NS = 60 * 10**9
HORIZON_NS = 15 * MINUTE_NS
OWN = Calibration(touch=Affine(a=0.9, b=0.1), direction=Affine(a=1.3, b=-0.02), log_variance=Affine(a=1.05, b=0.03))


def logistic(x: F64) -> F64:
    return 1.0 / (1 + np.exp(-x))


def some(history: Past, rows: Any) -> Past:
    return Past(*(getattr(history, name)[rows] for name in Past._fields))


def past(days: int, *, shift: float = 0.0, drift: float = 0.0, error: float = 0.0, seed: int = 0) -> Past:
    """A minute each, ending at the midnight of day 100; touches follow the own calibration but for `shift`."""
    rng = np.random.default_rng(seed)
    n = days * 1440
    x, u = rng.normal(0, 0.8, n), rng.normal(0, 0.2, n)
    ratio = rng.normal(-0.2, 0.5, n)
    return Past(
        close_time_ns=100 * NS_PER_DAY - (n - np.arange(n)) * MINUTE_NS,
        p_touch=logistic(x),
        p_up=logistic(u),
        log_variance_ratio=ratio,
        touched=rng.uniform(size=n) < logistic(OWN.touch.a * x + OWN.touch.b + shift),
        up=rng.uniform(size=n) < logistic(OWN.direction.a * u + OWN.direction.b + drift),
        realised=OWN.log_variance.a * ratio + OWN.log_variance.b + error + rng.normal(0, 0.6, n),
    )


def revised(history: Past) -> Calibration:
    return recalibrate.revise(OWN, history, horizon_ns=HORIZON_NS)


def test_only_what_had_matured_within_the_days_before_counts() -> None:
    history = past(10)
    kept = history.before(98 * NS_PER_DAY, horizon_ns=HORIZON_NS)
    assert kept.close_time_ns.min() == 91 * NS_PER_DAY
    assert kept.close_time_ns.max() == 98 * NS_PER_DAY - HORIZON_NS
    assert len(kept.touched) == recalibrate.DAYS * 1440 - 14
    assert len(history.before(98 * NS_PER_DAY, horizon_ns=HORIZON_NS, days=1).up) == 1440 - 14


def test_without_history_the_own_calibration_stays() -> None:
    assert revised(past(1).before(50 * NS_PER_DAY, horizon_ns=HORIZON_NS)) == OWN


def test_a_long_history_moves_touch_and_variance_where_they_are() -> None:
    found = revised(past(200, shift=0.5, error=0.4))
    assert found.touch.b == pytest.approx(OWN.touch.b + 0.5, abs=0.03)
    assert found.touch.a == pytest.approx(OWN.touch.a, abs=0.03)
    assert found.log_variance.b == pytest.approx(OWN.log_variance.b + 0.4, abs=0.02)
    assert found.log_variance.a == OWN.log_variance.a


def test_a_short_history_moves_them_less() -> None:
    moves = [revised(past(days, shift=0.5)).touch.b - OWN.touch.b for days in (1, 7, 60)]
    assert 0 < moves[0] < moves[1] < moves[2] < 0.55
    few = past(1, shift=0.5)
    assert abs(revised(some(few, slice(20))).touch.b - OWN.touch.b) < 0.2


def test_a_drift_does_not_shift_the_direction() -> None:
    found = revised(past(60, drift=0.5))
    assert found.direction.b / found.direction.a == pytest.approx(OWN.direction.b / OWN.direction.a, abs=1e-4)


def test_a_direction_that_is_wrong_way_round_is_silenced() -> None:
    history = past(200)
    assert revised(history._replace(up=~history.up)).direction.a == 0.0


@given(st.floats(0.1, 5), st.floats(-4, 4), st.integers(0, 100))
def test_whatever_the_forecasts_the_revision_is_no_worse_than_none(stretch: float, lift: float, seed: int) -> None:
    history = past(2, seed=seed)
    z = stretch * np.log(history.p_touch / (1 - history.p_touch)) + lift

    def objective(scale: float, shift: float) -> float:
        logits = scale * (OWN.touch.a * z + OWN.touch.b) + shift
        loss = np.logaddexp(0, logits) - history.touched * logits
        n = recalibrate.observations(history.close_time_ns, HORIZON_NS)
        return float(n * loss.mean() + ((scale - 1) ** 2 + shift**2) / (2 * recalibrate.DEVIATION**2))

    found = revised(history._replace(p_touch=logistic(z))).touch
    scale = found.a / OWN.touch.a
    reached = objective(scale, found.b - scale * OWN.touch.b)
    assert reached <= objective(1.0, 0.0) + 1e-6
    if scale > 0.01:
        for nudge in (-0.02, 0.02):
            assert reached <= objective(scale + nudge, found.b - scale * OWN.touch.b) + 1e-6
            assert reached <= objective(scale, found.b - scale * OWN.touch.b + nudge) + 1e-6


@given(st.integers(2, 5), st.integers(0, 1000))
def test_rows_of_the_same_moments_add_no_certainty(copies: int, seed: int) -> None:
    one = past(1, shift=0.3, seed=seed)
    pooled = some(one, np.tile(np.arange(len(one.up)), copies))
    first, second = revised(one), revised(pooled)
    assert second.touch.a == pytest.approx(first.touch.a, abs=2e-6)
    assert second.touch.b == pytest.approx(first.touch.b, abs=2e-6)
    assert second.log_variance.b == pytest.approx(first.log_variance.b, abs=2e-6)


def test_the_order_of_markets_does_not_show() -> None:
    history = past(3, shift=0.2, error=0.1)
    order = np.random.default_rng(1).permutation(len(history.up))
    assert revised(some(history, order)) == revised(history)
