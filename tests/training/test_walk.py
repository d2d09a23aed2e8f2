import dataclasses
from pathlib import Path

import numpy as np
import pytest

from feeds.market import NS_PER_DAY, NS_PER_S
from inference import artifact as artifacts
from tests.training.test_dataset import write
from training import evaluate, synthetic, unseen, walk
from training.dataset import CandlesError, Epochs, Series
from training.forecasts import Rows, rows_of
from training.splits import Role

DEFAULT = artifacts.resolve("default")
MODEL = artifacts.load(DEFAULT)
LONGEST = max(MODEL.manifest.horizons)
Market = tuple[Series, Epochs, Rows]


def folded(run: Series) -> Market:
    epochs = unseen.epochs_of(MODEL, [unseen.Run(run, None)], since_ns=0)
    return run, epochs, rows_of(epochs, [run], {"1m": 15}, Role.TEST)


@pytest.fixture(scope="module")
def market() -> Market:
    return folded(synthetic.market(synthetic.PLANTED, 9_000, seed=2, name="m_1m"))


def test_folds_cut_the_span_at_midnights_and_share_out_every_row(market: Market) -> None:
    rows = market[2]
    folds = walk.folds_of(rows, 3)
    assert (np.sum([fold.mine for fold in folds], axis=0) == 1).all()
    assert folds[0].until_ns == rows.outcome.close_time_ns.min()
    for fold in folds[1:]:
        assert fold.until_ns % NS_PER_DAY == 0
        assert fold.until_ns <= rows.outcome.close_time_ns[fold.mine].min() < fold.until_ns + 60 * NS_PER_S
    assert len(walk.folds_of(rows, 1000)) == len(np.unique(rows.outcome.day))


def test_rows_within_the_longest_horizon_of_a_cut_are_not_scored(market: Market) -> None:
    run, _, rows = market
    folds = walk.folds_of(rows, 3)
    kept = walk.embargo(rows, folds, [run], LONGEST)
    assert (~kept).sum() == LONGEST + 1 + 2 * (LONGEST + 1)  # a candle closes at each cut
    for fold in folds:
        assert rows.outcome.close_time_ns[fold.mine & kept].min() > fold.until_ns + LONGEST * run.interval_ns


def test_a_fold_knows_nothing_of_what_came_after_its_cut(market: Market, tmp_path: Path) -> None:
    """Whatever follows the cut, the baselines fitted for it say the same."""
    run, epochs, rows = market
    fold = walk.folds_of(rows, 3)[1]
    after = run.close_time_ns > fold.until_ns
    noise = np.where(after, np.random.default_rng(0).uniform(0.5, 2.0, len(run)), 1.0)
    prices = {name: getattr(run, name) * noise for name in ("open", "high", "low", "close")}
    other = dataclasses.replace(run, **prices)
    said = [
        walk.Teacher(MODEL, [write(tmp_path / f"{n}_1m.parquet", taught)]).forecasts(
            fold.until_ns, rows.part(fold.mine), epochs, [run], 0
        )
        for n, taught in enumerate((run, other))
    ]
    assert set(said[0]) == {"prior", "har", "ewma", "logistic", "lightgbm", "lightgbm_shrunk"}
    for name, forecast in said[0].items():
        for field in ("p_touch", "p_up", "log_ratio"):
            np.testing.assert_array_equal(getattr(forecast, field), getattr(said[1][name], field))


def test_walked_folds_are_pooled_in_the_order_of_the_rows(market: Market, tmp_path: Path) -> None:
    run, epochs, rows = market
    teacher = walk.Teacher(MODEL, [write(tmp_path / "m_1m.parquet", run)])
    folds = walk.folds_of(rows, 3)[1:]
    mine = folds[0].mine | folds[1].mine
    rows, folds = rows.part(mine), [fold.part(mine) for fold in folds]
    parts = [(fold, teacher.forecasts(fold.until_ns, rows.part(fold.mine), epochs, [run], 0)) for fold in folds]
    whole = walk.joined(parts)["lightgbm"]
    for fold, said in parts:
        assert whole.p_touch is not None
        np.testing.assert_array_equal(whole.p_touch[fold.mine], said["lightgbm"].p_touch)
    assert walk.joined(parts)["har"].p_touch is None


def test_nothing_before_the_cut_is_said_so(market: Market, tmp_path: Path) -> None:
    run, epochs, rows = market
    file = write(tmp_path / "m_1m.parquet", run)
    for until, said in ((run.span[0], "closed before 2025-01-0"), (run.span[0] + 800 * run.interval_ns, "too few")):
        with pytest.raises(CandlesError, match=said):
            walk.Teacher(MODEL, [file]).forecasts(until, rows, epochs, [run], 0)


def test_evaluate_says_what_each_fold_scored(market: Market, tmp_path: Path) -> None:
    run = market[0]
    split = int(np.searchsorted(run.close_time_ns, (run.close_time_ns[0] // NS_PER_DAY + 3) * NS_PER_DAY))
    taught, fresh = write(tmp_path / "a.parquet", run), write(tmp_path / "b.parquet", run.rows(slice(split, None)))
    result = evaluate.evaluate([fresh], DEFAULT, train=[taught], folds=2)
    first, second = result["folds"]
    assert first["rows"] + second["rows"] == result["rows"]
    assert first["taught_until"] <= first["from"] <= first["to"] < second["taught_until"] == second["from"]
    assert set(first["log_loss_skill_pct"]) == set(result["log_loss_skill_pct"])
    assert not any("later" in warning for warning in result["warnings"])
    assert "folds" not in evaluate.evaluate([fresh], DEFAULT)
