from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import shared
from training import funding, synthetic
from training.dataset import CandlesError

HOUR_MS = 3_600_000


def write(path: Path, times_ms: list[int], rates: list[float]) -> Path:
    table = pa.table({"time": pa.array(times_ms, pa.timestamp("ms", tz="UTC")), "funding_rate": rates})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("name", "market"),
    [
        ("BTCUSDT_8h-funding_rate_2025", "BTCUSDT"),
        ("BTCUSDT_1m_2025-05_2025-06", "BTCUSDT"),
        ("binance_BTC-USDT-PERP_funding", "binance_BTC-USDT-PERP"),
        ("binance_BTC-USDT-PERP_1m", "binance_BTC-USDT-PERP"),
        ("1000PEPEUSDT_5m_x", "1000PEPEUSDT"),
    ],
)
def test_funding_and_candles_of_a_market_find_each_other(name: str, market: str) -> None:
    assert funding.market_of(name) == market


def test_a_settlement_falls_on_the_candle_that_closes_with_it(tmp_path: Path) -> None:
    run = synthetic.market(synthetic.PLANTED, 1500, seed=0)
    hour = run.span[0] // (HOUR_MS * 10**6) * HOUR_MS + 8 * HOUR_MS
    path = write(tmp_path / "m_funding.parquet", [hour - 100 * HOUR_MS, hour + 7], [5e-4, 1e-4])
    settled = funding.read([path])["m"]
    paid = settled.bps(run)
    assert paid.sum() == pytest.approx(1.0)  # what settled before the run is nobody's
    assert run.close_time_ns[np.flatnonzero(paid)].tolist() == [hour * 10**6]
    assert settled.covers(hour * 10**6, (hour + 8 * HOUR_MS) * 10**6)
    assert not settled.covers(hour * 10**6, (hour + 9 * HOUR_MS) * 10**6)
    assert not settled.covers((hour - 109 * HOUR_MS) * 10**6, hour * 10**6)


def test_recorded_settlements_are_read() -> None:
    path = shared("ohlcv/bybit_linear/BTCUSDT_1h-funding_rate_2025-09_2026-01.parquet")
    settled = funding.read([path])["BTCUSDT"]
    assert len(settled.rate) == 389
    assert set(np.diff(settled.time_ns)) == {8 * funding.HOUR_NS}


def test_what_is_no_funding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("x")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "y.parquet")
    empty = write(tmp_path / "z.parquet", [], [])
    for path in (tmp_path / "x.parquet", tmp_path / "y.parquet", empty):
        with pytest.raises(CandlesError, match=path.name):
            funding.read([path])
