import dataclasses

import numpy as np
import pytest
import torch

from inference.artifact import PARITY_CANDLES_MIN, PARITY_MAX_ABS
from inference.features import N_FEATURES
from inference.kernels import reference
from inference.lstm import Weights
from tests.data import shared
from training import parity, synthetic
from training.dataset import Series, read_series


@pytest.fixture(scope="module")
def runs() -> list[Series]:
    made = [synthetic.market(synthetic.PLANTED, 12_000, seed=seed, name=f"m{seed}") for seed in (1, 2)]
    quiet = np.arange(12_000) % 3000 > 1500
    still = dataclasses.replace(made[1], volume=np.where(quiet, 0.0, made[1].volume))
    return [made[0], still]


def networks(layers: int = 1) -> reference.Models:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [(torch.nn.LSTM(N_FEATURES, 16, layers), torch.nn.Linear(16, 6)) for _ in range(2)]


def packed(models: reference.Models) -> Weights:
    zeros, ones = np.zeros(N_FEATURES, np.float32), np.ones(N_FEATURES, np.float32)
    return reference.from_torch(models, mean=zeros, inv_std=ones, clip=5.0)


@pytest.mark.parametrize("layers", [1, 2])
def test_it_measures_outputs_and_the_whole_state_over_each_run(runs: list[Series], layers: int) -> None:
    found = parity.measure(packed(networks(layers)), runs)
    assert found.runs == 2
    assert found.candles >= 2 * parity.CANDLES >= PARITY_CANDLES_MIN
    assert found.candles % 976 == 0
    for figure in (found.step_vs_torch_max_abs, found.h_max_abs, found.c_max_scaled):
        assert 0 < figure < PARITY_MAX_ABS
    assert found.features_max_abs == 0.0


def test_another_network_is_seen_in_each_figure(runs: list[Series]) -> None:
    weights, models = packed(networks()), networks()
    models[1][1].bias.data[2] += 1e-3
    found = parity.measure(weights, runs, models=models)
    assert found.step_vs_torch_max_abs == pytest.approx(1e-3, rel=1e-2)
    assert found.h_max_abs < PARITY_MAX_ABS
    dict(models[1][0].named_parameters())["bias_ih_l0"].data[20] += 1e-3  # a forget gate
    found = parity.measure(weights, runs, models=models)
    assert found.h_max_abs > PARITY_MAX_ABS
    assert found.c_max_scaled > PARITY_MAX_ABS


def test_folds_lie_where_the_live_state_starts(runs: list[Series]) -> None:
    folds = parity._folds(runs[0], 256, 720)
    assert {len(fold) for fold in folds} == {976}
    assert all((int(fold.close_time_ns[256]) // fold.interval_ns) % 720 == 0 for fold in folds)


def test_the_emptiest_and_the_busiest_are_among_those_chosen() -> None:
    chosen = parity._spread([0.2, 0.0, 0.9, 0.4, 0.1], 3, float)
    assert chosen == [0.9, 0.2, 0.0]
    assert parity._spread([0.3], 3, float) == [0.3]


def test_a_run_with_empty_stretches_is_compared_where_it_is_empty() -> None:
    run = read_series(shared("ohlcv/binance_um/USDCUSDT_1m_2023-07_2023-08.parquet"))[0]
    folds = parity._folds(run, 256, 720)
    chosen = parity._spread(folds, 11, parity._idle)
    assert parity._idle(chosen[0]) == max(map(parity._idle, folds)) > 0.3
