"""One real day through every way that teaches, scores or serves it: the fit, `evaluate`, a replay and the live path."""

import asyncio
import json
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config.schema import Feed
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.replay import Replay
from daemon.store import Store
from feeds.capture import frames_from_trades
from feeds.market import CandleSpec
from inference import artifact as artifacts
from inference.engine import Model
from inference.features import N_FEATURES
from inference.kernels import reference
from inference.signals import Rules
from tests.daemon.daemons import ape_emulator
from tests.daemon.tapes import APE, ape_trades, folded
from training import dataset, evaluate, fit, trading
from training import recipe as recipes
from training.forecasts import lstm_forecast, rows_of
from training.score import Forecast, Outcome
from training.splits import Role

MODEL = Model(artifacts.load(artifacts.resolve("default")), Rules())
MINUTE = CandleSpec.parse("1m")
TOLERANCE, ROUNDING = 1e-6, 0.51e-6
"""What is published has six decimals."""


class Way(NamedTuple):
    """What one way made of the candles, by ordinal."""

    features: dict[int, np.ndarray]
    outputs: dict[int, np.ndarray]
    """Chances of short, flat and long; expected move and volatility, bps."""


def gap(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> float:
    """Return the greatest difference over the ordinals of both, relative where figures are above one."""
    both = set(one) & set(other)
    return max(float((np.abs(one[seq] - other[seq]) / np.maximum(1.0, np.abs(other[seq]))).max()) for seq in both)


def said(forecast: Forecast, outcome: Outcome) -> dict[int, np.ndarray]:
    """Turn a forecast into what a signal says."""
    assert forecast.p_touch is not None
    assert forecast.p_up is not None
    assert forecast.log_ratio is not None
    volatility = 1e4 * outcome.sigma * np.sqrt(outcome.horizon) * np.exp(0.5 * forecast.log_ratio)
    move = trading.expected_bps(MODEL.artifact, forecast, outcome)
    p_long = forecast.p_touch * forecast.p_up
    columns = (forecast.p_touch - p_long, 1.0 - forecast.p_touch, p_long, move, volatility)
    return dict(zip((outcome.close_time_ns // MINUTE.interval_ns).tolist(), np.column_stack(columns), strict=True))


def published(payload: bytes) -> np.ndarray:
    signal = json.loads(payload)
    return np.array([signal[k] for k in ("p_short", "p_flat", "p_long", "expected_move_bps", "volatility_bps")])


def seen(pipeline: Pipeline) -> tuple[int, np.ndarray]:
    """Return the newest candle that the served model has folded, and its features."""
    engine = pipeline.markets["binance", APE.symbol].channels["1m"].line.engine
    assert engine._current is not None
    return engine._current.seq, engine._x[0].copy()


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the day's candles, folded from its trades with exact decimals, as a stranger would bring them."""
    rows = folded(24, "1m").values()
    figures = {name: [getattr(row, name) for row in rows] for name in ("open", "high", "low", "close", "volume")}
    opened = pa.array([row.open_time_ns // 10**6 for row in rows], pa.timestamp("ms", tz="UTC"))
    path = tmp_path_factory.mktemp("serving") / "APEUSDT_1m.parquet"
    pq.write_table(pa.table({"open_time": opened} | figures), path)
    return path


@pytest.fixture(scope="module")
def taught(candles: Path) -> Way:
    """Fold as the fit does, and answer in torch."""
    recipe = msgspec.structs.replace(recipes.load(recipes.DEFAULT), eras=(), resample=())
    runs = dataset.load([candles])
    epochs = fit.epochs_of(runs, recipe)
    outputs: dict[int, np.ndarray] = {}
    for role in (Role.TRAIN, Role.VALIDATE, Role.TEST):
        rows = rows_of(epochs, runs, recipe.signal_horizon, role)
        outputs |= said(lstm_forecast(MODEL.artifact, epochs, rows), rows.outcome)
    seqs, x = epochs.close_time_ns // MINUTE.interval_ns, epochs.x[:, epochs.warmup :]
    return Way({int(seq): x[n, t] for (n, t), seq in np.ndenumerate(seqs) if seq}, outputs)


@pytest.fixture(scope="module")
def scored(candles: Path) -> Way:
    result = evaluate.assess([candles], artifacts.resolve("default"))
    outputs = said(result.models["lstm"], result.outcome)
    x = result.sample[MODEL.warmup :]
    first = min(outputs)
    return Way({first + t: row for t, row in enumerate(x) if row.any()}, outputs)


@pytest.fixture(scope="module")
def replayed() -> Way:
    player = Replay(MODEL, exchange="binance", symbols=[APE.symbol], specs=[MINUTE], base_topic="lstmd")
    way = Way({}, {})
    for output in player.run(frames_from_trades(APE.native, ape_trades(24))):
        if output.kind == "signal":
            way.outputs[json.loads(output.payload)["seq"]] = published(output.payload)
            way.features.update([seen(player._pipeline)])
    return way


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Way:
    return asyncio.run(follow(tmp_path_factory.mktemp("live") / "store.sqlite"))


async def follow(path: Path) -> Way:
    """Run the daemon's desk against an exchange that plays the day on from 11:40, over the change of epochs."""
    way, enough, stop = Way({}, {}), asyncio.Event(), asyncio.Event()
    pipeline = Pipeline(MODEL, base_topic="lstmd")

    def moved() -> None:
        for _, work in pipeline.take_work():
            way.outputs.update({draft.seq: published(draft.identity) for draft in work.drafts})
            if work.drafts:
                way.features.update([seen(pipeline)])
        if len(way.features) > 60:
            enough.set()

    emulator = ape_emulator(hours=24, history_s=11 * 3600 + 2400, speed=900)
    where = f"127.0.0.1:{await emulator.start()}"
    feed = Feed(exchange="binance", symbols=(APE.symbol,), ws_url=f"ws://{where}", rest_url=f"http://{where}")
    with Store(path) as store:
        task = asyncio.create_task(Desk(0, feed, pipeline, store, Metrics(), moved).run(stop))
        try:
            async with asyncio.timeout(120):
                await enough.wait()
        finally:
            stop.set()
            task.cancel()
            await asyncio.wait([task])
            await emulator.stop()
    return way


def test_features_are_the_same_to_the_bit_on_every_way(taught: Way, scored: Way, replayed: Way, live: Way) -> None:
    for way, least in ((scored, 700), (replayed, 600), (live, 30)):
        assert len(set(way.features) & set(taught.features)) > least
        assert gap(way.features, taught.features) == 0.0
    assert len(next(iter(live.features.values()))) == N_FEATURES


def test_a_replay_and_the_live_path_publish_the_same(replayed: Way, live: Way) -> None:
    both = set(live.outputs) & set(replayed.outputs)
    boundary = min(replayed.outputs) // MODEL.epoch * MODEL.epoch + MODEL.epoch
    assert min(both) < boundary < max(both)
    assert len(both) > 60
    assert gap(live.outputs, replayed.outputs) == 0.0


def test_what_was_scored_is_what_was_published(scored: Way, replayed: Way) -> None:
    assert len(set(scored.outputs) & set(replayed.outputs)) > 700
    assert gap(replayed.outputs, scored.outputs) < ROUNDING


def test_the_network_as_it_was_fitted_says_the_same(taught: Way, scored: Way, replayed: Way, live: Way) -> None:
    assert len(set(taught.outputs) & set(scored.outputs)) > 400  # rows beside a cut have no role in the fit
    assert gap(taught.outputs, scored.outputs) < TOLERANCE
    for way in (replayed, live):
        assert gap(way.outputs, taught.outputs) < TOLERANCE + ROUNDING


def test_the_first_fold_of_a_listed_market_is_the_networks_too(candles: Path, replayed: Way) -> None:
    """Before the day's second epoch the fold begins at the listing, which no fit sees."""
    (run,) = dataset.load([candles])
    x = dataset.fold_features(run.rows(slice(0, MODEL.epoch - 1)))[0]
    raw, _, _ = reference.full_pass(MODEL.weights, x)
    horizon = MODEL.horizon(MINUTE)
    first_seq = int(run.close_time_ns[0]) // MINUTE.interval_ns
    told = [t for t in range(len(x)) if first_seq + t in replayed.outputs]
    assert len(told) > 400
    for t in told:
        expected = MODEL.artifact.expect(raw[t : t + 1], horizon)
        p_long = expected.p_touch * expected.p_up
        chances = np.array([expected.p_touch - p_long, 1.0 - expected.p_touch, p_long])
        assert np.abs(replayed.outputs[first_seq + t][:3] - chances).max() < TOLERANCE + ROUNDING
