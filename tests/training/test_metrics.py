import numpy as np
import pytest
from sklearn import metrics as reference

from training import metrics

RNG = np.random.default_rng(7)
P = RNG.uniform(0.01, 0.99, 4000)
OUTCOME = RNG.uniform(size=4000) < P**1.3


def test_against_scikit_learn() -> None:
    assert metrics.log_loss(P, OUTCOME).mean() == pytest.approx(reference.log_loss(OUTCOME, P))
    coarse = np.round(P, 1)  # with ties
    assert metrics.auc(coarse, OUTCOME) == pytest.approx(reference.roc_auc_score(OUTCOME, coarse))


def test_the_factorised_loss_is_the_three_class_loss() -> None:
    touch, up = RNG.uniform(0.05, 0.95, 500), RNG.uniform(0.05, 0.95, 500)
    side = RNG.integers(-1, 2, 500)
    classes = np.column_stack((touch * (1 - up), 1 - touch, touch * up))
    expected = reference.log_loss(side, classes, labels=[-1, 0, 1])
    assert metrics.barrier_log_loss(touch, up, side != 0, side == 1).mean() == pytest.approx(expected)
    hot = np.eye(3)[side + 1]
    assert metrics.barrier_brier(touch, up, side != 0, side == 1) == pytest.approx(((classes - hot) ** 2).sum(1).mean())


def test_calibrated_probabilities_have_little_ece_and_shifted_ones_their_shift() -> None:
    outcome = RNG.uniform(size=100_000) < 0.4
    assert metrics.ece(np.full(100_000, 0.4), outcome) < 0.01
    assert metrics.ece(np.full(100_000, 0.5), outcome) == pytest.approx(0.1, abs=0.01)


def test_auc_without_both_outcomes_is_not_a_number() -> None:
    assert np.isnan(metrics.auc(P, np.ones(len(P), dtype=bool)))


def test_qlike_is_zero_for_the_truth_and_positive_elsewhere() -> None:
    truth = RNG.normal(size=100)
    assert metrics.qlike(truth, truth) == 0.0
    assert metrics.qlike(truth + 0.3, truth) > 0.0


def test_the_bootstrap_interval_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        blocks = np.repeat(np.arange(60), 20)
        loss = 1.0 + 0.3 * np.repeat(rng.normal(size=60), 20) + rng.normal(size=1200)  # rows of a day move together
        interval = metrics.skill_interval(blocks, loss, np.ones(1200), seed=seed)
        covered += interval.lo <= 0.0 <= interval.hi
    assert 87 <= covered <= 99


def test_the_bootstrap_is_seeded() -> None:
    blocks, loss = np.repeat(np.arange(10), 400), metrics.log_loss(P, OUTCOME)
    first, second = (metrics.skill_interval(blocks, loss, np.full(4000, 0.69), seed=3) for _ in range(2))
    assert first == second
    assert first.lo < first.value < first.hi
