import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.outcomes import LOG_RATIO_FLOOR
from training.labels import Labels, label

SIGMA = 0.01


def run(closes: list[float], highs: dict[int, float], lows: dict[int, float], *, horizons: tuple[int, ...]) -> Labels:
    close = np.array(closes, dtype=np.float64)
    high, low = close.copy(), close.copy()
    for i, price in highs.items():
        high[i] = price
    for i, price in lows.items():
        low[i] = price
    return label(high, low, close, np.full(len(close), SIGMA), horizons=horizons, width=1.0)


def test_the_first_barrier_reached_counts() -> None:
    made = run([100, 100, 100, 100, 100], {2: 102.1}, {3: 90.0}, horizons=(4,))  # barriers at about ±2 %
    assert made.touched[0, 0]
    assert made.up[0, 0]


def test_a_touch_after_the_horizon_does_not_count() -> None:
    made = run([100] * 6, {5: 150.0}, {}, horizons=(4, 5))
    assert made.touched[0].tolist() == [False, True]


def test_a_candle_that_reaches_both_counts_on_the_side_of_its_close() -> None:
    made = run([100, 100, 99, 100], {2: 105.0}, {2: 95.0}, horizons=(2,))
    assert made.touched[0, 0]
    assert not made.up[0, 0]


def test_the_candle_itself_is_not_in_its_own_label() -> None:
    made = run([100] * 6, {0: 200.0}, {0: 50.0}, horizons=(4,))
    assert not made.touched[0, 0]


def test_labels_that_reach_past_the_end_are_not_valid() -> None:
    made = run([100] * 6, {}, {}, horizons=(2, 4))
    assert made.valid[:, 0].tolist() == [True] * 4 + [False] * 2
    assert made.valid[:, 1].tolist() == [True] * 2 + [False] * 4


def test_variance_ratio_and_return_by_hand() -> None:
    close = 100 * np.exp(np.array([0.0, 0.01, 0.03, 0.02]))
    made = label(close, close, close, np.full(4, SIGMA), horizons=(2,), width=1.0)
    assert made.log_ratio[0, 0] == pytest.approx(np.log((0.01**2 + 0.02**2) / (2 * SIGMA**2)), rel=1e-6)
    assert made.log_return[1, 0] == pytest.approx(0.01, rel=1e-5)


def test_empty_minutes_are_floored() -> None:
    assert run([100] * 4, {}, {}, horizons=(2,)).log_ratio[0, 0] == LOG_RATIO_FLOOR


@given(st.integers(0, 2**32 - 1), st.integers(30, 80))
@settings(max_examples=30, deadline=None)
def test_a_label_does_not_see_past_its_horizon(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, SIGMA, size)))
    high, low, sigma = close * 1.002, close * 0.998, np.full(size, SIGMA)
    whole = label(high, low, close, sigma, horizons=(3, 7), width=1.0)
    cut = size - 10
    part = label(high[:cut], low[:cut], close[:cut], sigma[:cut], horizons=(3, 7), width=1.0)
    assert part.valid.sum() == 2 * cut - 10
    for field in ("touched", "up", "log_ratio", "log_return"):
        np.testing.assert_array_equal(getattr(whole, field)[:cut][part.valid], getattr(part, field)[part.valid])


def test_mirrored_prices_mirror_the_side() -> None:
    rng = np.random.default_rng(1)
    path = np.cumsum(rng.normal(0, SIGMA, 300))
    sigma = np.full(300, SIGMA)
    up = label(np.exp(path + 0.001), np.exp(path - 0.001), np.exp(path), sigma, horizons=(8,), width=0.8).side()
    down = label(np.exp(0.001 - path), np.exp(-path - 0.001), np.exp(-path), sigma, horizons=(8,), width=0.8).side()
    np.testing.assert_array_equal(up, -down)
    assert set(np.unique(up)) == {-1, 0, 1}
