import numpy as np
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import features
from inference.features import FEATURES, INDICATORS, N_FEATURES, N_INDICATORS, STATE_SIZE
from tests.inference.candles import F32, F64, MINUTE_NS, Candles, fold, read

BTC = "binance_um/BTCUSDT_1m_2025-05_2025-06.parquet"
XBT = "bitmex/XBTUSD_1m_2017-01_2021-09.parquet"  # 53,616 empty minutes, open outside [low, high]
USDC = "binance_um/USDCUSDT_1m_2023-07_2023-08.parquet"  # 8,053 empty minutes


def one_by_one(candles: Candles, state: F64) -> tuple[F32, F64]:
    rows = len(candles.close)
    x, raw = np.empty((rows, N_FEATURES), np.float32), np.empty((rows, N_INDICATORS))
    for t in range(rows):
        o, h, l, c, v, closed = (column[t] for column in candles)
        features.update(state, o, h, l, c, v, closed, MINUTE_NS, x[t], raw[t])
    return x, raw


def column(x: F32, name: str) -> F32:
    return x[:, FEATURES.index(name)]


def made(closes: list[float], volumes: list[float] | None = None) -> Candles:
    close = np.array(closes)
    volume = np.ones(len(close)) if volumes is None else np.array(volumes)
    return Candles(close, close, close, close, volume, MINUTE_NS * np.arange(1, len(close) + 1))


@pytest.mark.parametrize("source", [BTC, XBT])
def test_classic_indicators_equal_talib(source: str) -> None:
    """RSI, MACD, ATR, ADX, DI and EMA to 1e-9 of their scale over the whole series, from TA-Lib's first value on."""
    candles = read(source)
    high, low, close = candles.high, candles.low, candles.close
    ours = dict(zip(INDICATORS, fold(candles)[1].T, strict=True))
    line, signal, hist = talib.MACD(close, 12, 26, 9)
    hundred = np.full(len(close), 100.0)
    cases = {  # reference and the scale that differences are relative to; a MACD line is a difference of prices
        "rsi": (talib.RSI(close, 14), hundred),
        "macd": (line, close), "macd_signal": (signal, close), "macd_hist": (hist, close),
        "atr": (talib.ATR(high, low, close, 14), close),
        "adx": (talib.ADX(high, low, close, 14), hundred),
        "plus_di": (talib.PLUS_DI(high, low, close, 14), hundred),
        "minus_di": (talib.MINUS_DI(high, low, close, 14), hundred),
        "ema_fast": (talib.EMA(close, 12), close), "ema_slow": (talib.EMA(close, 50), close),
    }  # fmt: skip
    for name, (reference, scale) in cases.items():
        known = ~np.isnan(reference)
        assert known.sum() > len(close) - 60, name
        assert np.max(np.abs(ours[name] - reference)[known] / scale[known]) < 1e-9, name


def test_percent_b_equals_talib_bands() -> None:
    """To 1e-9 where the bands have some width: TA-Lib subtracts squares and loses the digits of a narrow band."""
    candles = read(BTC)
    upper, middle, lower = talib.BBANDS(candles.close, 20, 2.0, 2.0)
    wide = (upper - lower) / middle > 2e-4
    assert wide.sum() > 60_000
    ours = fold(candles)[1][:, INDICATORS.index("percent_b")]
    assert np.max(np.abs(ours - (candles.close - lower) / (upper - lower))[wide]) < 1e-9


def test_sigma_and_vwap_are_what_they_say() -> None:
    candles = read(BTC, 1000)
    moves = np.diff(np.log(candles.close))
    typical = (candles.high + candles.low + candles.close) / 3
    raw = fold(candles)[1]
    for t in (300, 999):
        sigma = np.sqrt(np.mean(moves[t - 120 : t] ** 2))
        vwap = np.average(typical[t - 59 : t + 1], weights=candles.volume[t - 59 : t + 1])
        assert raw[t, INDICATORS.index("sigma")] == pytest.approx(sigma, rel=1e-12)
        assert raw[t, INDICATORS.index("vwap")] == pytest.approx(vwap, rel=1e-12)


def test_returns_ratios_and_paths_are_what_they_say() -> None:
    candles = read(BTC, 1000)
    x, raw = fold(candles)
    logs, t = np.log(candles.close), 900
    sigma = raw[t, INDICATORS.index("sigma")]
    moves = np.diff(logs)[:t][::-1]  # newest first
    volume = candles.volume[: t + 1][::-1]
    least = 0.01 * volume[:240].mean()
    expected = {
        "return_5": (logs[t] - logs[t - 5]) / (sigma * np.sqrt(5)),
        "volatility_20": np.log(np.sqrt(np.mean(moves[:20] ** 2)) / sigma),
        "volume_5_60": np.log((volume[:5].mean() + least) / (volume[:60].mean() + least)),
        "volume_balance_20": np.sum(np.sign(moves[:20]) * volume[:20]) / volume[:20].sum(),
        "efficiency_60": (logs[t] - logs[t - 60]) / np.abs(moves[:60]).sum(),
        "autocorrelation_60": np.sum(moves[:60] * moves[1:61]) / np.sum(moves[:60] ** 2),
        "semivariance_60": np.sum(moves[:60] * np.abs(moves[:60])) / np.sum(moves[:60] ** 2),
        "channel_240": np.interp(logs[t], [logs[t - 239 : t + 1].min(), logs[t - 239 : t + 1].max()], [-1, 1]),
    }
    for name, value in expected.items():
        assert column(x, name)[t] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("source", [BTC, USDC])
def test_stream_batch_and_snapshot_agree_to_the_bit(source: str) -> None:
    candles = read(source, 3000)
    state = features.new_state()
    x, raw = fold(candles, state)
    streamed = features.new_state()
    first = one_by_one(candles.rows(slice(0, 1234)), streamed)
    restored = np.frombuffer(streamed.tobytes()).copy()
    second = fold(candles.rows(slice(1234, 3000)), restored)
    assert np.concatenate([first[0], second[0]]).tobytes() == x.tobytes()
    assert np.concatenate([first[1], second[1]]).tobytes() == raw.tobytes()
    assert restored.tobytes() == state.tobytes()


def test_windows_forget_what_lies_over_240_candles_back() -> None:
    """Only recursive averages may know it; every other feature is the same to the bit after any past."""
    calm = read(BTC, 2000)
    wild = calm.scaled(1.0, 1.0)
    wild.volume[:500] *= 1e9
    wild.high[:500] *= 50.0
    wild.close[:500] *= np.where(np.arange(500) % 2, 10.0, 1.0)
    recursive = {"sigma_slow", "atr_sigma", "wick_upper", "wick_lower", "rsi", "adx", "di_difference", "macd",
                 "macd_hist", "ema_12", "ema_50", "ema_200"}  # fmt: skip
    a, b = fold(calm)[0][500 + 241 :], fold(wild)[0][500 + 241 :]
    for i, name in enumerate(FEATURES):
        assert name in recursive or a[:, i].tobytes() == b[:, i].tobytes(), name


@pytest.mark.parametrize(("price", "volume"), [(2.0**-20, 1e6), (37.0, 1e-3), (1e5, 3.0)])
def test_features_have_no_scale(price: float, volume: float) -> None:
    """Up to rounding; that may decide a tie of directional moves, so the tiny price is scaled by a power of two."""
    candles = read(BTC, 3000)
    assert np.max(np.abs(fold(candles)[0] - fold(candles.scaled(price, volume))[0])) < 1e-6


def test_interval_and_time_of_day() -> None:
    candles = made([1.0, 1.0])
    noon = candles._replace(close_time_ns=np.array([12 * 3600 * 10**9, 18 * 3600 * 10**9]))
    x = fold(noon, interval_ns=5 * MINUTE_NS)[0]
    np.testing.assert_allclose(column(x, "day_sin"), [0.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(column(x, "day_cos"), [-1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(column(x, "interval"), 1.0, atol=1e-6)
    assert not column(fold(noon, interval_ns=0)[0], "interval").any()


def test_empty_minutes_say_nothing() -> None:
    x, raw = fold(made([0.1] * 700, [0.0] * 700))
    named = dict(zip(FEATURES, x[-1], strict=True))
    assert named.pop("empty_60") == 1.0
    silent = {
        "return_1",
        "return_60",
        "rsi",
        "macd",
        "percent_b",
        "adx",
        "vwap",
        "ema_200",
        "volume_1_20",
        "channel_240",
    }
    assert all(abs(named[name]) < 1e-6 for name in silent)
    assert raw[-1, INDICATORS.index("sigma")] == features.SIGMA_FLOOR


def test_a_spike_leaves_no_trace_in_sums() -> None:
    x, _ = fold(made([100.0, 1e9, *[100.0] * 600], [1.0, 1e18, *[1.0] * 600]))
    named = dict(zip(FEATURES, x[-1], strict=True))
    assert named["volatility_240"] == named["efficiency_60"] == 0.0
    assert named["volume_20_240"] == pytest.approx(0.0, abs=1e-7)


prices = st.floats(1e-9, 1e9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(prices, prices, prices, prices, st.just(0.0) | st.floats(0, 1e15)), min_size=1, max_size=80),
    st.sampled_from([0, 1, MINUTE_NS, 86_400 * 10**9]),
    st.integers(1, 10),
)
def test_any_legal_candle_gives_finite_bounded_features(
    rows: list[tuple[float, ...]], interval_ns: int, repeats: int
) -> None:
    """`open` may lie anywhere; candles may be spikes over eighteen orders of magnitude, repeated or empty."""
    table = np.array(rows * repeats)
    low, high = table[:, 1:4].min(axis=1), table[:, 1:4].max(axis=1)
    times = (1_700_000_000 + 60 * np.arange(len(table))) * 10**9
    candles = Candles(table[:, 0].copy(), high, low, table[:, 3].copy(), table[:, 4].copy(), times)
    state = features.new_state()
    x, raw = fold(candles, state, interval_ns)
    assert all(np.isfinite(array).all() for array in (x, raw, state))
    assert np.abs(x).max() < 60.0


def test_names_are_unique_and_the_state_is_flat() -> None:
    assert len(set(FEATURES)) == N_FEATURES
    assert len(set(INDICATORS)) == N_INDICATORS
    assert features.new_state().shape == (STATE_SIZE,)
