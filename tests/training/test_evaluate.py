import dataclasses
import datetime as dt
import json
import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from daemon.cli import app
from feeds.market import NS_PER_DAY
from inference import artifact as artifacts
from inference import lstm
from tests.training.test_dataset import write
from tests.training.test_fit import TINY
from training import dataset, evaluate, fit, plot, report, score, synthetic, table
from training.dataset import CandlesError, Series
from training.forecasts import lstm_forecast, rows_of
from training.metrics import Interval
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
    with pytest.raises(CandlesError, match="serves candles of 1m; given: 1h"):
        evaluate.evaluate([hourly], model)


def test_the_page_stands_alone(scored: evaluate.Scored) -> None:
    page = report.page(scored)
    assert not re.search(r"https?://|src=|@import|<script", page)
    assert page.count("<svg") >= 5
    assert page.count("<svg") == page.count('role="img" aria-label=')
    assert "skill above the prior" in page
    assert "walk-forward" not in page  # what is scored is later than all that taught
    assert "all of the scored candles are later" in page
    for name in scored.result["log_loss_skill_pct"]:
        assert f"<td>{name}</td>" in page


def test_what_shows_nothing_is_called_no_edge() -> None:
    nothing = score.plain(Interval(0.1, -0.2, 0.4))
    assert score.verdict(nothing) == "no edge: the interval covers zero"
    assert report._worded(nothing, "no edge") == "0.10 [-0.20, 0.40] no edge"
    assert report._worded(score.plain(Interval(0.3, 0.2, 0.4)), "no edge") == "0.30 [0.20, 0.40]"
    assert "no edge" in plot.intervals([plot.Whisker("m", 0.1, -0.2, 0.4)], "", x="")
    assert "no edge" not in plot.intervals([plot.Whisker("m", 0.3, 0.2, 0.4)], "", x="")
    assert score.verdict(score.plain(Interval(0.3, math.nan, math.nan))).startswith("no edge shown")


def test_rows_later_than_all_that_taught_are_scored_apart(folder: Path, fresh: Path, taught: Path, model: Path) -> None:
    result = evaluate.evaluate([taught, fresh], model)
    strict = result["strict"]
    assert strict["learnt_until"] == "2025-01-10"  # three quarters of the taught era
    assert 0 < strict["share"] == strict["rows"] / result["rows"] == 1
    before = later(synthetic.market(synthetic.PLANTED, 6_000, seed=4), -90)
    early = write(folder / "early.parquet", before)
    strict = evaluate.evaluate([early], model)["strict"]
    assert (strict["rows"], strict["share"]) == (0, 0.0)
    assert "no walk-forward" in strict["said"]
    assert "log_loss_skill_pct" not in strict
    both = evaluate.evaluate([early, fresh], model)["strict"]
    alone = evaluate.evaluate([fresh], model)
    assert both["rows"] == alone["rows"]
    assert both["log_loss_skill_pct"]["lstm"] == alone["log_loss_skill_pct"]["lstm"]
    assert both["said"].startswith(f"{100 * both['share']:.1f} %")


def test_an_artifact_that_hides_what_taught_it_has_no_later_rows(folder: Path, fresh: Path, model: Path) -> None:
    loaded = artifacts.load(model)
    kept = {key: value for key, value in loaded.manifest.report.items() if key != "folds"}
    silent = artifacts.seal(loaded.weights, msgspec.structs.replace(loaded.manifest, report=kept))
    artifacts.save(silent, folder / "silent")
    strict = evaluate.evaluate([fresh], folder / "silent")["strict"]
    assert set(strict) == {"said"}


def test_a_market_that_never_moves_is_scored_without_a_word_on_direction(folder: Path, model: Path) -> None:
    run = later(synthetic.market(synthetic.PLANTED, 5_000, seed=4), 30)
    price = np.full(len(run), 7.5)
    still = dataclasses.replace(run, open=price, high=price, low=price, close=price)
    scored = evaluate.assess([write(folder / "still.parquet", still)], model)
    assert scored.result["touch_share"] == 0.0
    assert scored.result["direction_skill_pct"] == scored.result["variance_r2"] == {}
    assert scored.result["auc"]["lstm"] == {}
    assert "all ended alike" in scored.result["verdict"]["direction"]
    assert "there was none" in report.page(scored)
    json.dumps(scored.result, allow_nan=False)


def test_a_day_is_scored_without_intervals(folder: Path, model: Path) -> None:
    day = later(synthetic.market(synthetic.PLANTED, 2_000, seed=4), 30)
    result = evaluate.evaluate([write(folder / "day.parquet", day)], model)
    assert result["days"] == 2
    assert result["log_loss_skill_pct"]["lstm"]["lo"] is None
    assert "too few days" in result["verdict"]["barrier"]


def test_files_as_strangers_bring_them_give_the_same_figures(folder: Path, fresh: Path, model: Path) -> None:
    table = pq.read_table(fresh)
    opened = table["open_time"].cast(pa.int64())
    upside_down = table.set_column(0, "open_time", opened).append_column("trades", pa.nulls(len(table)))
    other = folder / "prices.parquet"
    pq.write_table(pa.concat_tables([upside_down, upside_down.slice(5, 3)])[::-1], other)
    ignored = ("files", "by_market")
    one, two = (evaluate.evaluate([path], model) for path in (fresh, other))
    assert {k: v for k, v in one.items() if k not in ignored} == {k: v for k, v in two.items() if k not in ignored}


def test_the_command_says_in_one_line_what_it_cannot_score(folder: Path, fresh: Path, model: Path) -> None:
    hourly = write(folder / "hours.parquet", synthetic.market(synthetic.PLANTED, 400, seed=0, interval_s=3600))
    few = write(folder / "few.parquet", synthetic.market(synthetic.PLANTED, 200, seed=0))
    (folder / "empty").mkdir()
    for path, said in ((hourly, "given: 1h"), (few, "warm-up"), (folder / "empty", "given: none"), (folder / "x", "x")):
        ended = run_evaluate("--candles", str(path), "--artifact", str(model))
        assert ended.exit_code == 1
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    asked = ("--candles", str(fresh), "--artifact", str(model))
    assert run_evaluate(*asked, "--html", str(folder / "no" / "page.html")).exit_code == 1
    assert run_evaluate(*asked, "--folds", "2").exit_code == 2


def run_evaluate(*args: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *args])


def test_the_table_has_a_line_for_each_model(scored: evaluate.Scored) -> None:
    lines = list(table.rows(scored.result))
    assert [line.split(" | ")[0] for line in lines] == [
        "| ewma", "| har", "| lightgbm", "| lightgbm_shrunk", "| logistic", "| lstm", "| lstm_online",
    ]  # fmt: skip
    assert {line.count("|") for line in lines} == {len(table.HEADS) + 1}
