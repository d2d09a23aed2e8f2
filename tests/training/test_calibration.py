import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import calibration

RNG = np.random.default_rng(11)


@given(st.floats(0.4, 1.8), st.floats(-0.8, 0.8))
@settings(max_examples=8, deadline=None)
def test_it_undoes_a_known_distortion(scale: float, shift: float) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1.2, 40_000)
    outcome = rng.uniform(size=40_000) < calibration.logistic(scale * x + shift)
    found = calibration.fit_probability(calibration.logistic(x), outcome)
    assert found == pytest.approx((scale, shift), abs=0.06)


def test_a_forecast_that_is_wrong_way_round_becomes_the_prior() -> None:
    x = RNG.normal(0, 1, 20_000)
    outcome = RNG.uniform(size=20_000) < calibration.logistic(0.4 - x)
    scale, shift = calibration.fit_probability(calibration.logistic(x), outcome)
    assert scale == 0.0
    assert calibration.logistic(np.array([shift]))[0] == pytest.approx(outcome.mean(), abs=1e-6)


def test_noise_is_shrunk_to_the_prior() -> None:
    x, outcome = RNG.normal(0, 0.3, 50_000), RNG.uniform(size=50_000) < 0.3
    scale, shift = calibration.fit_probability(calibration.logistic(x), outcome)
    assert abs(scale) < 0.1
    assert calibration.logistic(np.array([shift]))[0] == pytest.approx(0.3, abs=0.01)


def test_sharpening_is_bounded() -> None:
    x = RNG.normal(0, 0.2, 20_000)
    outcome = RNG.uniform(size=20_000) < calibration.logistic(8 * x)
    assert calibration.fit_probability(calibration.logistic(x), outcome)[0] == calibration.SCALE_MAX


def test_too_few_rows_teach_nothing() -> None:
    assert calibration.fit_probability(np.full(50, 0.3), np.ones(50, bool)) == calibration.IDENTITY
    assert calibration.fit_line(np.zeros(50), np.ones(50)) == calibration.IDENTITY


def test_a_line_is_least_squares() -> None:
    x = RNG.normal(0, 1, 5000)
    assert calibration.fit_line(x, 0.5 * x - 2.0) == pytest.approx((0.5, -2.0))
    assert calibration.fit_line(x, -x) == pytest.approx((0.0, -x.mean()), abs=1e-9)
