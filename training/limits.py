"""What the whole chain can reach: the best possible forecast on planted regimes, and nothing on random walks."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training import dataset, evaluate, fit, metrics, synthetic
from training.dataset import Series
from training.forecasts import lstm_forecast, prior_forecast, prior_of, rows_of
from training.recipe import Recipe
from training.splits import Role
from training.synthetic import Regimes

RECIPE = Recipe(
    name="planted", resample=(), horizons=(15,), signal_horizon={"1m": 15}, members=3, direction_members=0, hidden=32,
    passes=12, batch=16, direction_weight=1.0, weight_decay=0.01, dropout=0.0, mirror=False,
)  # fmt: skip
"""Small and unshrunk: here the direction can be learnt."""


class Gain(NamedTuple):
    """Log-loss gain over the prior on unseen candles of a planted market, nats a candle."""

    optimal: float
    lstm: float

    @property
    def recovered(self) -> float:
        """Share of the best possible gain."""
        return self.lstm / self.optimal


def write(run: Series, path: Path) -> Path:
    """Write a run as a candles file."""
    opened = pa.array((run.close_time_ns - run.interval_ns) // 10**6, pa.timestamp("ms", tz="UTC"))
    figures = {name: getattr(run, name) for name in ("open", "high", "low", "close", "volume")}
    pq.write_table(pa.table({"open_time": opened} | figures), path)
    return path


def planted(
    regimes: Regimes, *, markets: int = 16, candles: int = 24_000, recipe: Recipe = RECIPE, seed: int = 0
) -> Gain:
    """Train on planted markets, forecast another one, and set the gain against the optimum.

    The optimum knows the regimes' figures and filters the returns; the model sees candles only.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [synthetic.market(regimes, candles, seed=seed + i, name=f"m{i}") for i in range(markets)]
        files = [write(run, folder / f"{run.name}.parquet") for run in runs]
        artifact = fit.train(files, folder / "made", recipe).artifact  # scored in torch: it need not be fit to serve
    fresh = synthetic.market(regimes, candles, seed=seed + markets)
    epochs = dataset.epochs_of(
        [fresh],
        warmup=recipe.warmup,
        epoch=recipe.epoch,
        horizons=recipe.horizons,
        width=recipe.barrier_width,
        folds=None,
    )
    rows = rows_of(epochs, [fresh], recipe.signal_horizon, Role.TEST)
    outcome, at = rows.outcome, epochs.row[rows.at[0], rows.at[1]]
    distance = recipe.barrier_width * outcome.sigma * np.sqrt(outcome.horizon)
    belief = synthetic.filtered(regimes, fresh.close)[at]
    best = synthetic.optimal(regimes, belief, distance, horizon=recipe.signal_horizon["1m"])
    model = lstm_forecast(artifact, epochs, rows)
    prior = prior_forecast(prior_of(rows, [fresh]), rows, [fresh])
    assert model.p_touch is not None
    assert model.p_up is not None
    assert prior.p_touch is not None
    assert prior.p_up is not None
    pairs = ((prior.p_touch, prior.p_up), best, (model.p_touch, model.p_up))
    base, optimum, lstm = (metrics.barrier_log_loss(*p, outcome.touched, outcome.up).mean() for p in pairs)
    return Gain(float(base - optimum), float(base - lstm))


def random_walks(artifact: Path, *, walks: int = 20, candles: int = 24_000, seed: int = 1000) -> list[str]:
    """Evaluate an artifact on random walks; return what each report says about direction."""
    said = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(walks):
            run = synthetic.market(synthetic.RANDOM_WALK, candles, seed=seed + number)
            path = write(run, Path(name) / f"walk{number}.parquet")
            said.append(evaluate.evaluate([path], artifact)["verdict"]["direction"])
    return said
