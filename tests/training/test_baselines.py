import numpy as np
import pytest

from training import baselines, dataset, synthetic
from training.forecasts import rows_of
from training.splits import Role


def folded(run: dataset.Series) -> dataset.Epochs:
    return dataset.epochs_of([run], warmup=256, epoch=720, horizons=(15,), width=1.0, folds=None)


def test_har_and_ewma_foretell_a_volatility_that_lasts() -> None:
    lasting = synthetic.Regimes(0.998, (0.0, 0.0), (1e-3, 4e-3))
    fitted_on, fresh = (synthetic.market(lasting, 20_000, seed=seed) for seed in (1, 2))
    epochs = folded(fitted_on)
    linear = baselines.fit_linear(rows_of(epochs, [fitted_on], {"1m": 15}, Role.TEST), epochs, [fitted_on])
    epochs = folded(fresh)
    rows = rows_of(epochs, [fresh], {"1m": 15}, Role.TEST)
    made = baselines.linear_forecasts(linear, rows, epochs, [fresh])
    truth = rows.outcome.log_ratio + rows.outcome.log_scale
    for name in ("har", "ewma"):
        forecast = made[name].log_ratio
        assert forecast is not None
        assert np.mean((forecast + rows.outcome.log_scale - truth) ** 2) < 0.4 * np.var(truth)


def test_the_baselines_look_back_only() -> None:
    run = synthetic.market(synthetic.PLANTED, 6000, seed=4)
    cut = 4000
    seen = []
    for part in (run, run.rows(slice(0, cut))):
        epochs = folded(part)
        rows = rows_of(epochs, [part], {"1m": 15}, Role.TEST)
        early = epochs.row[rows.at[0], rows.at[1]] < cut - 15
        trailing = baselines.trailing(rows, epochs, [part])
        seen.append((trailing.har[early], trailing.ewma[early], trailing.season[early]))
    for whole, part in zip(*seen, strict=True):
        np.testing.assert_allclose(whole, part, rtol=0, atol=1e-12)


def test_the_season_is_the_half_hour_of_the_day() -> None:
    run = synthetic.market(synthetic.PLANTED, 3000, seed=4)
    epochs = folded(run)
    rows = rows_of(epochs, [run], {"1m": 15}, Role.TEST)
    season = baselines.trailing(rows, epochs, [run]).season
    assert season.min() == 0
    assert season.max() == baselines.SEASON_BINS - 1
    assert season[0] == pytest.approx(rows.outcome.close_time_ns[0] // (1800 * 10**9) % 48)
