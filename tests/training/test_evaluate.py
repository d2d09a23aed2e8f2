import dataclasses
import datetime as dt
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from feeds.market import NS_PER_DAY
from inference import artifact as artifacts
from inference import lstm
from tests.training.test_dataset import write
from tests.training.test_fit import TINY
from training import dataset, evaluate, fit, report, synthetic, table
from training.dataset import CandlesError, Series
from training.forecasts import lstm_forecast, rows_of
from training.splits import Role


def later(run: Series, days: int) -> Series:
    return dataclasses.replace(run, close_time_ns=run.close_time_ns + days * NS_PER_DAY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def taught(folder: Path) -> Path:
    return write(folder / "taught.parquet", synthetic.market(synthetic.PLANTED, 18_000, seed=1))


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Path:
    return write(folder / "fresh.parquet", later(synthetic.market(synthetic.PLANTED, 12_000, seed=9), 17))


@pytest.fixture(scope="module")
def model(folder: Path, taught: Path) -> Path:
    recipe = msgspec.structs.replace(TINY, members=1, passes=5, learning_rate=1e-2)
    return fit.train([taught], folder / "artifact", recipe).folder


@pytest.fixture(scope="module")
def scored(fresh: Path, taught: Path, model: Path) -> evaluate.Scored:
    return evaluate.assess([fresh], model, train=[taught])


def test_the_planted_regimes_are_found_and_the_baselines_stand_beside(scored: evaluate.Scored) -> None:
    skills = scored.result["log_loss_skill_pct"]
    assert set(skills) == {"lstm", "lstm_online", "logistic", "lightgbm", "lightgbm_shrunk"}
    assert all(figure["lo"] < figure["value"] < figure["hi"] for figure in skills.values())
    assert skills["lstm"]["lo"] > 0
    assert set(scored.result["variance_r2"]) == {"lstm", "lstm_online", "lightgbm", "lightgbm_shrunk", "har", "ewma"}
    assert scored.result["verdict"]["direction"] == "skill above the prior"
    assert json.loads(json.dumps(scored.result, allow_nan=False))["rows"] == len(scored.outcome)


def test_without_candles_to_fit_on_the_artifact_brings_its_own_baselines(fresh: Path, model: Path) -> None:
    result = evaluate.evaluate([fresh], model)
    assert set(result["log_loss_skill_pct"]) == {"lstm", "lstm_online"}
    assert set(result["variance_r2"]) == {"lstm", "lstm_online", "har", "ewma"}


def test_what_the_artifact_learnt_from_is_not_scored(taught: Path, model: Path) -> None:
    result = evaluate.evaluate([taught], model)
    own = artifacts.load(model).manifest.report
    assert result["rows"] == own["test"]["all"]["rows"]
    assert result["log_loss_skill_pct"]["lstm"]["value"] == pytest.approx(
        own["test"]["all"]["log_loss_skill_pct"]["value"], rel=1e-4
    )
    assert any("made the artifact" in warning for warning in result["warnings"])


def test_since_leaves_out_what_closed_before(fresh: Path, model: Path) -> None:
    result = evaluate.evaluate([fresh], model, since=dt.date(2025, 1, 20))
    assert result["from"] == "2025-01-20"
    assert result["online"] == {"days": 7, "days_before_the_first": 2}
    assert evaluate.evaluate([fresh], model)["online"]["days_before_the_first"] == 0


def test_baselines_of_later_candles_are_pointed_out(fresh: Path, folder: Path, model: Path) -> None:
    moved = later(synthetic.market(synthetic.PLANTED, 12_000, seed=3), 60)
    result = evaluate.evaluate([fresh], model, train=[write(folder / "late.parquet", moved)])
    assert any("later" in warning for warning in result["warnings"])


def test_the_forecast_is_what_the_live_step_says(fresh: Path, model: Path) -> None:
    loaded = artifacts.load(model)
    run = dataset.read_series(fresh)[0]
    epochs = dataset.epochs_of([run], warmup=256, epoch=720, horizons=(5, 15), width=1.0, folds=None)
    rows = rows_of(epochs, [run], {"1m": 15}, Role.TEST)
    made = lstm_forecast(loaded, epochs, rows)
    h, c, y = loaded.weights.zeros(1), loaded.weights.zeros(1), loaded.weights.answers(1)
    for t in range(976):
        lstm.step(loaded.weights, epochs.x[1, t : t + 1], h, c, y)
        if t < 256:
            continue
        expected = loaded.expect(y, 15)
        at = np.flatnonzero((rows.at[0] == 1) & (rows.at[1] == t - 256))[0]
        assert made.p_touch is not None
        assert made.p_up is not None
        assert made.log_ratio is not None
        assert made.p_touch[at] == pytest.approx(expected.p_touch, abs=1e-5)
        assert made.p_up[at] == pytest.approx(expected.p_up, abs=1e-5)
        assert np.exp(0.5 * made.log_ratio[at]) == pytest.approx(expected.volatility_ratio, rel=1e-5)


def test_another_spec_is_refused(folder: Path, model: Path) -> None:
    hourly = write(folder / "hourly.parquet", synthetic.market(synthetic.PLANTED, 2000, seed=0, interval_s=3600))
    with pytest.raises(CandlesError, match="spec"):
        evaluate.evaluate([hourly], model)


def test_the_page_stands_alone(scored: evaluate.Scored) -> None:
    page = report.page(scored)
    assert not re.search(r"https?://|src=|@import|<script", page)
    assert page.count("<svg") >= 5
    assert "skill above the prior" in page
    for name in scored.result["log_loss_skill_pct"]:
        assert f"<td>{name}</td>" in page


def test_the_table_has_a_line_for_each_model(scored: evaluate.Scored) -> None:
    lines = list(table.rows(scored.result))
    assert [line.split(" | ")[0] for line in lines] == [
        "| ewma", "| har", "| lightgbm", "| lightgbm_shrunk", "| logistic", "| lstm", "| lstm_online",
    ]  # fmt: skip
    assert {line.count("|") for line in lines} == {len(table.HEADS) + 1}
