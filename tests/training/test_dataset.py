from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference import features
from tests.data import shared
from training import dataset, synthetic
from training.dataset import CandlesError, Series
from training.splits import Fold, Role

SOL = "ohlcv/binance_um/SOLUSDT_1m_2025-05_2025-06.parquet"


def write(path: Path, run: Series, *, without: slice | None = None, **columns: object) -> Path:
    opened = (run.close_time_ns - run.interval_ns) // 10**6
    table = {"open_time": pa.array(opened, pa.timestamp("ms", tz="UTC"))}
    table |= {name: pa.array(getattr(run, name)) for name in ("open", "high", "low", "close", "volume")} | columns
    made = pa.table(table)
    if without is not None:
        made = pa.concat_tables([made.slice(0, without.start), made.slice(without.stop)])
    pq.write_table(made, path)
    return path


def epochs(runs: list[Series], folds: list[Fold] | None = None) -> dataset.Epochs:
    return dataset.epochs_of(runs, warmup=256, epoch=720, horizons=(5, 15), width=1.0, folds=folds)


def test_a_hole_cuts_the_run(tmp_path: Path) -> None:
    run = synthetic.market(synthetic.PLANTED, 300, seed=0)
    first, second = dataset.read_series(write(tmp_path / "a.parquet", run, without=slice(100, 110)))
    assert (len(first), len(second)) == (100, 190)
    np.testing.assert_array_equal(second.close, run.close[110:])


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [("close", -1.0, "positive"), ("volume", float("nan"), "positive"), ("volume", -1.0, "negative")],
)
def test_figures_that_cannot_be_are_refused(tmp_path: Path, column: str, value: float, complaint: str) -> None:
    run = synthetic.market(synthetic.PLANTED, 20, seed=0)
    spoilt = getattr(run, column).copy()
    spoilt[7] = value
    with pytest.raises(CandlesError, match=complaint):
        dataset.read_series(write(tmp_path / "a.parquet", run, **{column: pa.array(spoilt)}))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"open_time": [1, 2], "open": [1.0, 1.0]}), tmp_path / "a.parquet")
    with pytest.raises(CandlesError, match=r"a\.parquet: no column close, high, low, volume"):
        dataset.read_series(tmp_path / "a.parquet")


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("open_time,open")
    with pytest.raises(CandlesError, match="not a readable parquet"):
        dataset.read_series(tmp_path / "a.parquet")


def test_resampling_keeps_whole_intervals_only() -> None:
    run = synthetic.market(synthetic.PLANTED, 103, seed=1).rows(slice(3, None))  # begins at 00:03
    joined = dataset.resample(run, "5m")
    assert joined is not None
    assert joined.spec == "5m"
    assert len(joined) == 19
    assert (joined.close_time_ns % joined.interval_ns == 0).all()
    assert joined.open[0] == run.open[2]
    assert joined.close[0] == run.close[6]
    assert joined.high[0] == run.high[2:7].max()
    assert joined.volume[0] == 5
    assert dataset.resample(joined, "1m") is None


def test_epochs_lie_where_live_ones_do_and_hold_the_live_features() -> None:
    run = dataset.read_series(shared(SOL))[0].rows(slice(0, 4000))
    made = epochs([run])
    seq = made.close_time_ns // run.interval_ns
    assert (seq[:, 0] % 720 == 0).all()
    whole = made.row[1]
    np.testing.assert_array_equal(run.close_time_ns[whole], made.close_time_ns[1])
    state, x, raw = features.new_state(), np.empty(features.N_FEATURES, np.float32), np.empty(features.N_INDICATORS)
    for t in range(976):
        at = whole[0] - 256 + t
        features.update(
            state, run.open[at], run.high[at], run.low[at], run.close[at], run.volume[at],
            run.close_time_ns[at], run.interval_ns, x, raw,
        )  # fmt: skip
        np.testing.assert_array_equal(made.x[1, t], x)
        assert t < 256 or made.sigma[1, t - 256] == raw[0]


def test_labels_reach_into_the_next_epoch_but_not_past_the_run() -> None:
    run = synthetic.market(synthetic.PLANTED, 720 * 3 + 100, seed=2)
    made = epochs([run])
    assert made.labels.valid[:-1].all()
    last = made.row[-1]
    assert made.labels.valid[-1, :, 1].sum() == (last >= 0).sum() - 15
    assert not made.usable(Role.TEST)[-1][last < 0].any()


def test_only_epochs_with_a_role_are_made() -> None:
    run = synthetic.market(synthetic.PLANTED, 720 * 6, seed=2)
    start, step = run.span[0], 720 * run.interval_ns
    made = epochs([run], [Fold(start, start + 3 * step, start + 4 * step, start + 4 * step)])
    # seq counts closes, so an epoch's candles close at its start: one of them spills over each cut
    assert made.close_time_ns.max() <= start + 5 * step
    assert {int(role) for role in np.unique(made.role)} == {Role.NONE, Role.TRAIN, Role.VALIDATE}


def test_no_whole_warm_up_is_an_error() -> None:
    with pytest.raises(CandlesError, match="256"):
        epochs([synthetic.market(synthetic.PLANTED, 200, seed=0)])


def test_a_folder_of_history_stands_for_its_candle_files(tmp_path: Path) -> None:
    for name in ("b_1m", "a_1m", "a_1m_mark", "a_funding", "B_8h-mark_2025", "B_8h-funding_rate_2025"):
        (tmp_path / f"{name}.parquet").touch()
    (tmp_path / "manifest.json").touch()
    single = tmp_path / "a_1m_mark.parquet"
    assert dataset.candle_files([tmp_path]) == [tmp_path / "a_1m.parquet", tmp_path / "b_1m.parquet"]
    assert dataset.candle_files([single]) == [single]  # named by hand, it is meant
