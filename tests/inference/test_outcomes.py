"""Forecasts as they are served, and what came of them; that training sees the same is held in tests/training."""

import numpy as np
import pytest

from feeds.market import Candle, Origin
from inference import lstm, outcomes
from inference.artifact import Artifact, Manifest, seal, sizes_of
from inference.features import N_FEATURES, N_INDICATORS, new_state, update
from inference.outcomes import Columns
from inference.recalibrate import Past
from tests.inference import candles as recorded
from tests.inference.ensembles import ensemble

W, E, HORIZONS = 40, 100, (5, 15)
MINUTE_NS = 60 * 10**9


def artifact() -> Artifact:
    weights = ensemble(seed=5, gain=2.0)
    manifest = Manifest(
        name="random", created="2026-01-01T00:00:00Z", sizes=sizes_of(weights), specs=("1m",), warmup=W, epoch=E,
        horizons=HORIZONS, signal_horizon={"1m": 15},
    )  # fmt: skip
    return seal(weights, manifest)


def sol(count: int) -> Columns:
    rows = recorded.read("binance_um/SOLUSDT_1m_2025-05_2025-06.parquet", count)
    return Columns(rows.close_time_ns, rows.open, rows.high, rows.low, rows.close, rows.volume)


def without(candles: Columns, rows: list[int]) -> Columns:
    return Columns._make(np.delete(column, rows) for column in candles)


def equal(mine: Past, theirs: Past) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("folds", [1, 3, 17, 40])
def test_answers_are_the_steps_own_however_many_folds_go_side_by_side(folds: int) -> None:
    weights = artifact().weights
    x = np.random.default_rng(0).normal(size=(folds, 30, N_FEATURES)).astype(np.float32)
    found = outcomes.answer(weights, x, warmup=10)
    for fold in {0, folds // 2, folds - 1}:
        h, c, y = weights.zeros(1), weights.zeros(1), weights.answers(1)
        for t in range(30):
            lstm.step(weights, x[fold, t][None], h, c, y)
            for column, values in zip(found, lstm.combine(y), strict=True):
                assert t < 10 or np.array_equal(column[fold, t - 10], values[0])


def test_candles_are_taken_apart_in_order() -> None:
    made = [
        Candle(
            seq=n, open_time_ns=(n - 1) * MINUTE_NS, close_time_ns=n * MINUTE_NS, open=1.0 * n, high=3.0 * n,
            low=0.5 * n, close=2.0 * n, volume=7.0 * n, trades=1, closed=True, origin=Origin.EXCHANGE,
        )
        for n in (4, 5)
    ]  # fmt: skip
    columns = Columns.of(made)
    assert [column.tolist() for column in columns] == [
        [4 * MINUTE_NS, 5 * MINUTE_NS], [4.0, 5.0], [12.0, 15.0], [2.0, 2.5], [8.0, 10.0], [28.0, 35.0],
    ]  # fmt: skip
    assert [len(column) for column in Columns.of([])] == [0] * 6


def test_each_candle_of_an_epoch_is_judged_once_and_none_without_a_whole_warm_up() -> None:
    model, candles = artifact(), sol(1_000)
    seqs = candles.close_time_ns // MINUTE_NS
    begin = -(-(int(seqs[0]) + W) // E) * E
    for past, horizon in zip(outcomes.past(model, candles, MINUTE_NS), HORIZONS, strict=True):
        assert (past.close_time_ns // MINUTE_NS).tolist() == list(range(begin, int(seqs[-1]) - horizon + 1))
        assert 0.1 < past.touched.mean() < 0.9
        assert np.isfinite(past.realised).all()


def test_what_is_judged_does_not_depend_on_where_the_candles_begin_or_end() -> None:
    model, candles = artifact(), sol(1_000)
    whole = outcomes.past(model, candles, MINUTE_NS)
    part = outcomes.past(model, candles.rows(slice(123, 871)), MINUTE_NS)
    for past, some in zip(whole, part, strict=True):
        assert 400 < len(some.close_time_ns) < len(past.close_time_ns)
        assert equal(past.rows(np.isin(past.close_time_ns, some.close_time_ns)), some)


def test_after_a_hole_a_fold_counts_for_nothing_and_no_outcome_spans_it() -> None:
    model, candles = artifact(), sol(1_000)
    seqs = candles.close_time_ns // MINUTE_NS
    hole = int(np.flatnonzero(seqs % E == 50)[3])  # in the middle of an epoch
    for past, whole, horizon in zip(
        outcomes.past(model, without(candles, [hole]), MINUTE_NS), outcomes.past(model, candles, MINUTE_NS), HORIZONS,
        strict=True,
    ):  # fmt: skip
        lost = range(int(seqs[hole]) - horizon, int(seqs[hole]) + 50)
        kept = ~np.isin(whole.close_time_ns // MINUTE_NS, lost)
        assert (~kept).sum() == len(lost)
        assert equal(past, whole.rows(kept))
    in_the_warm_up = int(np.flatnonzero(seqs % E == E - 10)[3])
    past = outcomes.past(model, without(candles, [in_the_warm_up]), MINUTE_NS)[0]
    lost = range(int(seqs[in_the_warm_up]) - HORIZONS[0], int(seqs[in_the_warm_up]) + 10 + E)
    assert not np.isin(past.close_time_ns // MINUTE_NS, lost).any()


def test_no_candles_are_no_observations() -> None:
    for past in outcomes.past(artifact(), Columns.of([]), MINUTE_NS):
        assert len(past.close_time_ns) == 0
        assert past.touched.dtype == np.bool_


def test_streamed_features_are_those_that_are_judged_on() -> None:
    model, candles = artifact(), sol(400)
    seqs = candles.close_time_ns // MINUTE_NS
    number = int(seqs[0] + W) // E + 1
    first = number * E - W - int(seqs[0])
    state, x, raw = new_state(), np.empty((1, N_FEATURES), np.float32), np.empty(N_INDICATORS)
    h, c, y = model.weights.zeros(1), model.weights.zeros(1), model.weights.answers(1)
    past = outcomes.past(model, candles, MINUTE_NS)[1]
    for row in range(first, first + W + 10):
        o, high, low, close, volume = (float(column[row]) for column in candles[1:])
        update(state, o, high, low, close, volume, int(candles.close_time_ns[row]), MINUTE_NS, x[0], raw)
        lstm.step(model.weights, x, h, c, y)
        if row >= first + W:
            (at,) = np.flatnonzero(past.close_time_ns == candles.close_time_ns[row])
            said = lstm.combine(y)
            assert (past.p_touch[at], past.p_up[at], past.log_variance_ratio[at]) == tuple(v[0, 1] for v in said)
