import numpy as np
import pytest

from training import labels, synthetic
from training.synthetic import PLANTED, RANDOM_WALK


def test_a_market_is_seeded_and_its_candles_are_sane() -> None:
    first, second = (synthetic.market(PLANTED, 500, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.close, second.close)
    assert first.spec == "1m"
    assert (first.low <= np.minimum(first.open, first.close)).all()
    assert (first.high >= np.maximum(first.open, first.close)).all()
    assert not np.array_equal(first.close, synthetic.market(PLANTED, 500, seed=4).close)


def test_the_filter_finds_the_regime_where_it_is_plain() -> None:
    plain = synthetic.Regimes(0.999, (0.0, 0.0), (1e-3, 1e-2))
    run = synthetic.market(plain, 4000, seed=1)
    belief = synthetic.filtered(plain, run.close)
    assert np.allclose(belief.sum(axis=1), 1.0)
    wild = np.abs(np.diff(np.log(run.close), prepend=np.log(run.close[0]))) > 5e-3  # never in the calm regime
    assert belief[wild, 1].min() > 0.99


def test_the_optimum_is_calibrated_on_what_happens() -> None:
    run = synthetic.market(PLANTED, 40_000, seed=5)
    sigma = np.full(len(run), 2e-3)
    made = labels.label(run.high, run.low, run.close, sigma, horizons=(15,), width=1.0)
    rows = np.flatnonzero(made.valid[:, 0])[100:]
    distance = np.full(len(rows), 2e-3 * np.sqrt(15))
    touch, up = synthetic.optimal(
        PLANTED, synthetic.filtered(PLANTED, run.close)[rows], distance, horizon=15, paths=4000
    )
    touched, rose = made.touched[rows, 0], made.up[rows, 0]
    for mine in np.array_split(np.argsort(touch), 3):
        assert touched[mine].mean() == pytest.approx(touch[mine].mean(), abs=0.03)
    assert rose[touched].mean() == pytest.approx(up[touched].mean(), abs=0.03)
    assert up.max() - up.min() > 0.2  # the drift can be seen


def test_nothing_is_optimal_on_a_random_walk_but_the_reflection_principle() -> None:
    belief, distance = np.ones((3, 1)), np.array([2e-3, 3.8e-3, 8e-3])
    touch, up = synthetic.optimal(RANDOM_WALK, belief, distance, horizon=15, paths=20_000)
    assert touch[0] > touch[1] > touch[2]
    np.testing.assert_allclose(up[:2], 0.5, atol=0.02)
