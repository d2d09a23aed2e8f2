import dataclasses
import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from feeds.market import NS_PER_DAY
from inference import artifact as artifacts
from inference import outcomes, recalibrate
from inference.artifact import Artifact
from inference.lstm import Combined
from inference.outcomes import Columns
from tests.data import shared
from tests.training.test_dataset import write
from training import dataset, ensemble, online, synthetic, unseen
from training.dataset import CandlesError, Epochs, Series
from training.forecasts import Rows, calibrated, rows_of
from training.splits import Fold, Role

FOLDER = artifacts.resolve("default")


@pytest.fixture(scope="module")
def model() -> Artifact:
    return artifacts.load(FOLDER)


@pytest.fixture(scope="module")
def run() -> Series:
    return synthetic.market(synthetic.PLANTED, 16_000, seed=4)


@pytest.fixture(scope="module")
def folded(model: Artifact, run: Series) -> tuple[Epochs, Combined, Rows]:
    epochs = unseen.epochs_of(model, [unseen.Run(run, None)], since_ns=0)
    answers = outcomes.answer(model.weights, epochs.x, warmup=epochs.warmup)
    return epochs, answers, rows_of(epochs, [run], {"1m": 15}, Role.TEST)


def day_of(run: Series, number: int) -> dt.date:
    return dt.date(1970, 1, 1) + dt.timedelta(days=run.span[0] // NS_PER_DAY + number)


def test_a_revision_knows_nothing_of_its_own_day(run: Series, tmp_path: Path) -> None:
    day = day_of(run, 9)
    first = online.calibrate([write(tmp_path / "m.parquet", run)], FOLDER, day)
    changed = np.flatnonzero(run.close_time_ns > (day - dt.date(1970, 1, 1)).days * NS_PER_DAY)[0]
    later = np.arange(len(run)) >= changed
    prices = {
        name: np.where(later, getattr(run, name) * 1.1, getattr(run, name)) for name in ("open", "high", "low", "close")
    }
    other = dataclasses.replace(run, **prices)
    assert online.calibrate([write(tmp_path / "m.parquet", other)], FOLDER, day) == first
    assert online.calibrate([write(tmp_path / "m.parquet", run.rows(slice(0, int(changed))))], FOLDER, day) == first
    assert first.days_found == recalibrate.DAYS
    assert first.observations["1m"][2] == 7 * 96
    assert first.series == ("m 1m",)


def test_the_revision_of_a_day_is_the_one_that_evaluation_applies(
    model: Artifact, run: Series, folded: tuple[Epochs, Combined, Rows], tmp_path: Path
) -> None:
    epochs, answers, rows = folded
    made = online.online_forecast(model, answers, epochs, [run], rows)
    day = day_of(run, 9)
    revision = online.calibrate([write(tmp_path / "m.parquet", run)], FOLDER, day)
    expected = calibrated(answers, revision.calibration["1m"]).at(rows)
    today = rows.outcome.day == (day - dt.date(1970, 1, 1)).days
    assert today.sum() == 1440
    for mine, theirs in (
        (made.p_touch, expected.p_touch),
        (made.p_up, expected.p_up),
        (made.log_ratio, expected.log_ratio),
    ):
        assert mine is not None
        assert theirs is not None
        np.testing.assert_array_equal(mine[today], theirs[today])


def test_what_the_daemon_observes_is_what_is_evaluated(model: Artifact, tmp_path: Path) -> None:
    """On recorded candles with a hole: to the bit, since revisions must be."""
    (whole,) = dataset.read_series(shared("ohlcv/binance_um/SUIUSDT_1m_2025-05_2025-06.parquet"))
    run = whole.rows(slice(0, 6_000))
    runs = dataset.read_series(write(tmp_path / "m.parquet", run, without=slice(2_345, 2_347)))
    epochs = unseen.epochs_of(model, [unseen.Run(part, None) for part in runs], since_ns=0)
    answers = outcomes.answer(model.weights, epochs.x, warmup=epochs.warmup)
    columns = Columns(*(
        np.concatenate([getattr(part, name) for part in runs]) for name in Columns._fields
    ))  # fmt: skip
    observed = outcomes.past(model, columns, run.interval_ns)
    for k, past in enumerate(observed):
        evaluated = online.past_of(answers, epochs, np.ones(len(epochs), bool), k)
        assert len(past.close_time_ns) > 3_000
        for mine, theirs in zip(past, evaluated, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def test_the_steps_answers_are_torchs(model: Artifact, folded: tuple[Epochs, Combined, Rows]) -> None:
    epochs, answers, _ = folded
    for mine, theirs in zip(answers, ensemble.forecast(model.weights, epochs.x, warmup=epochs.warmup), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_the_first_day_is_under_the_own_calibration(
    model: Artifact, run: Series, folded: tuple[Epochs, Combined, Rows]
) -> None:
    epochs, answers, rows = folded
    made = online.online_forecast(model, answers, epochs, [run], rows).p_touch
    own = calibrated(answers, model.manifest.calibration).at(rows).p_touch
    assert made is not None
    assert own is not None
    first = rows.outcome.day == rows.outcome.day.min()
    np.testing.assert_allclose(made[first], own[first], atol=1e-12)
    assert np.abs(made[~first] - own[~first]).max() > 0.01


def test_candles_that_taught_do_not_calibrate(model: Artifact, run: Series) -> None:
    start, end = run.span
    folds = [Fold(start, start + 3 * NS_PER_DAY, start + 6 * NS_PER_DAY, end)]
    roles = unseen.epochs_of(model, [unseen.Run(run, folds)], since_ns=0)
    closed = roles.close_time_ns
    assert not roles.role[closed <= start + 3 * NS_PER_DAY].any()
    assert set(np.unique(roles.role[(closed > start + 4 * NS_PER_DAY) & (closed < start + 5 * NS_PER_DAY)])) == {
        Role.VALIDATE
    }
    assert (roles.role == Role.TEST).any()


def test_a_day_without_history_is_refused(run: Series, tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", run)
    with pytest.raises(CandlesError, match="closed in the 7 days"):
        online.calibrate([path], FOLDER, day_of(run, 300))
    with pytest.raises(CandlesError, match=r"matured|closed"):
        online.calibrate([path], FOLDER, day_of(run, 0))
