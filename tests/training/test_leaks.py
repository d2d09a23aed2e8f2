import pytest

from tests.data import shared
from training import leaks
from training.dataset import CandlesError, Series, read_series


@pytest.fixture(scope="module")
def run() -> Series:
    return read_series(shared("ohlcv/binance_um/BTCUSDT_1m_2025-05_2025-06.parquet"))[0]


def test_the_features_do_not_know_the_future(run: Series) -> None:
    result = leaks.check(run)
    assert result.truncation_differs == 0
    assert not result.found


def test_a_planted_leak_is_found_both_ways(run: Series) -> None:
    result = leaks.check(run, leaks.planted)
    assert result.truncation_differs == leaks.CUTS
    assert result.skill_pct > leaks.SUSPICIOUS_PCT
    assert result.shifted_skill_pct < 1.0
    assert result.found


def test_a_survey_says_so_for_each_file() -> None:
    files = [shared(f"ohlcv/binance_um/{name}_2023-07_2023-08.parquet") for name in ("USDCUSDT_1m", "DASHUSDT_1m")]
    found = list(leaks.survey(files))
    assert [one.name for one in found] == [file.name for file in files]
    assert all(one.sound for one in found)
    assert not found[0]._replace(real=found[0].planted).sound
    assert not found[0]._replace(planted=found[0].real).sound


def test_too_few_candles_are_refused(run: Series) -> None:
    with pytest.raises(CandlesError, match="in a row"):
        leaks.check(run.rows(slice(0, 1000)))
