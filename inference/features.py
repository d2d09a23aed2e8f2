"""Streaming features of one market's candles: the only implementation, for training, evaluation, replay and live.

One call folds one candle: the whole state is a flat float64 array, so a snapshot is its bytes and a peek is a copy and
an update. Every figure follows from open, high, low, close, volume and the close time. Prices enter as ratios and
volumes as shares, so one model serves all markets and intervals.

A window reaches back at most 240 candles and is summed afresh at each candle, in one order: such sums cannot drift and
keep no trace of an earlier spike. Averages that are recursive by definition (EMA, Wilder's) begin at the fold's first
candle, seeded as TA-Lib seeds them; until a span is filled they use the candles there are.

All compiled code is in this file because the on-disk cache notices changes of its own file only (see `kernels.jit`).
"""

import hashlib
from math import cos, log, log1p, pi, sin, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.kernels.jit import jit

RETURN_SPANS: Final = (1, 2, 5, 15, 30, 60)
SIGMA_SPAN: Final = 120
SIGMA_FLOOR: Final = 1e-5
SLOW_SPAN: Final = 480
"""Candles of the recursive variance that `sigma` is compared with."""
VWAP_SPAN: Final = 60
WILDER: Final = 14
BAND: Final = 20
EMA_SPANS: Final = (12, 50, 200)
MACD_SPANS: Final = (12, 26, 9)

FEATURES: Final = (
    *(f"return_{span}" for span in RETURN_SPANS),
    "range", "wick_upper", "wick_lower", "close_location",
    "volatility_5", "volatility_20", "volatility_60", "volatility_240", "sigma_slow", "atr_sigma",
    "volume_1_20", "volume_5_60", "volume_20_240", "volume_balance_20", "volume_balance_60", "empty_60",
    "efficiency_20", "efficiency_60", "autocorrelation_60", "semivariance_60", "channel_60", "channel_240",
    "rsi", "macd", "macd_hist", "percent_b", "bandwidth", "adx", "di_difference",
    *(f"ema_{span}" for span in EMA_SPANS),
    "vwap", "day_sin", "day_cos", "week_sin", "week_cos", "interval",
)  # fmt: skip
N_FEATURES: Final = len(FEATURES)

INDICATORS: Final = (
    "sigma", "rsi", "macd", "macd_signal", "macd_hist", "atr", "adx", "plus_di", "minus_di", "percent_b",
    "ema_fast", "ema_slow", "vwap",
)  # fmt: skip
"""Raw float64 figures for people and decisions. `sigma` is the trailing standard deviation of one-candle log returns:
the root of their mean square over 120 candles, at least 1e-5. Labels and decisions are scaled by it."""
N_INDICATORS: Final = len(INDICATORS)

_REVISION: Final = 1  # raise it whenever a figure changes while its name stays
FEATURES_VERSION: Final = hashlib.sha256(repr((_REVISION, FEATURES, INDICATORS)).encode()).hexdigest()[:12]
"""Names the definition of the features; an artifact trained on another one is refused."""

# The state's layout: scalars, then rings. A ring's newest entry lies at (candles seen − 1) mod its length.
_N, _HIGH, _LOW, _CLOSE, _GAIN, _LOSS, _ATR, _PLUS, _MINUS, _TR, _ADX, _SLOW = range(12)
_EMA = 12
_FAST, _SLOW_EMA, _SIGNAL = 15, 16, 17
_LOGS, _VOLUMES, _TYPICALS, _CLOSES, STATE_SIZE = 18, 18 + 256, 18 + 512, 18 + 576, 18 + 608
"""`STATE_SIZE`: float64 values of one market's state."""
_AT_SHAPE, _AT_VOLATILITY, _AT_VOLUME, _AT_PATH, _AT_CLASSIC, _AT_EMA, _AT_TIME = (
    FEATURES.index(first)
    for first in ("range", "volatility_5", "volume_1_20", "efficiency_20", "rsi", f"ema_{EMA_SPANS[0]}", "day_sin")
)
_DAY_NS, _WEEK_NS, _MINUTE_NS = 86_400 * 10**9, 7 * 86_400 * 10**9, 60 * 10**9

_F64 = NDArray[np.float64]
_F32 = NDArray[np.float32]


def new_state() -> _F64:
    """Return the state before the fold's first candle, float64[STATE_SIZE]."""
    return np.zeros(STATE_SIZE)


@jit
def _clip(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)


@jit
def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 0.0


@jit
def _wilder(mean: float, x: float, k: int) -> float:
    """Fold the k-th value: a plain mean of the first 14, then (13 × mean + x) / 14."""
    return mean + (x - mean) / k if k <= WILDER else (mean * (WILDER - 1) + x) / WILDER


@jit
def _ema(mean: float, x: float, k: int, span: int) -> float:
    """Fold the k-th value: a plain mean of the first `span`, then the exponential mean with weight 2 / (span + 1)."""
    return mean + (x - mean) / k if k <= span else (x - mean) * (2.0 / (span + 1.0)) + mean


@jit
def _mean_close(state: _F64, n: int, span: int) -> float:
    count = min(n, span)
    total = 0.0
    for lag in range(count):
        total += state[_CLOSES + ((n - 1 - lag) & 31)]
    return total / count


@jit
def _push(state: _F64, h: float, l: float, c: float, v: float) -> int:
    """Enter the candle into the rings; return the number of candles seen."""
    n = int(state[_N])
    logarithm = log(c)
    if n == 0:
        state[_LOGS : _LOGS + 256] = logarithm  # no move before the fold's first candle
        state[_HIGH], state[_LOW], state[_CLOSE] = h, l, c
    state[_LOGS + (n & 255)] = logarithm
    state[_VOLUMES + (n & 255)] = v
    state[_TYPICALS + (n & 63)] = (h + l + c) / 3.0
    state[_CLOSES + (n & 31)] = c
    state[_N] = n + 1
    return n + 1


@jit
def _fold_range(state: _F64, n: int, h: float, l: float) -> tuple[float, float, float, float]:
    """Advance ATR, directional indicators and ADX (Wilder 1978, seeded as in TA-Lib); n ≥ 1 counts this candle.

    Return (atr, plus_di, minus_di, adx).
    """
    k = n - 1  # moves seen
    if k == 0:
        state[_ATR] = h - l  # stands until a true range is known
        return state[_ATR], 0.0, 0.0, 0.0
    close = state[_CLOSE]
    true_range = max(h - l, abs(h - close), abs(l - close))
    up, down = h - state[_HIGH], state[_LOW] - l
    state[_ATR] = _wilder(state[_ATR], true_range, k)
    keep = 1.0 - 1.0 / WILDER if k >= WILDER else 1.0  # the first 13 are summed, the 14th is the first to decay
    state[_PLUS] = state[_PLUS] * keep + (up if up > 0.0 and up > down else 0.0)
    state[_MINUS] = state[_MINUS] * keep + (down if down > 0.0 and down > up else 0.0)
    state[_TR] = state[_TR] * keep + true_range
    plus, minus = 100.0 * _share(state[_PLUS], state[_TR]), 100.0 * _share(state[_MINUS], state[_TR])
    index = k if k < WILDER else k - WILDER + 1  # TA-Lib's ADX begins with the 14th move
    if index <= WILDER or plus + minus > 0.0:
        state[_ADX] = _wilder(state[_ADX], 100.0 * _share(abs(plus - minus), plus + minus), index)
    return state[_ATR], plus, minus, state[_ADX]


@jit
def _fold_rsi(state: _F64, n: int, c: float) -> float:
    """Advance Wilder's RSI over 14 moves; 50 where nothing has moved."""
    if n == 1:
        return 50.0
    move = c - state[_CLOSE]
    state[_GAIN] = _wilder(state[_GAIN], max(move, 0.0), n - 1)
    state[_LOSS] = _wilder(state[_LOSS], max(-move, 0.0), n - 1)
    total = state[_GAIN] + state[_LOSS]
    return 100.0 * state[_GAIN] / total if total > 0.0 else 50.0


@jit
def _fold_macd(state: _F64, n: int, c: float) -> tuple[float, float]:
    """Advance MACD (12, 26, 9); return (line, signal). As in TA-Lib both means are seeded at the 26th close."""
    fast, slow, signal = MACD_SPANS
    if n <= slow:
        state[_FAST], state[_SLOW_EMA] = _mean_close(state, n, fast), _mean_close(state, n, slow)
    else:
        state[_FAST] = _ema(state[_FAST], c, n, fast)
        state[_SLOW_EMA] = _ema(state[_SLOW_EMA], c, n, slow)
    line = state[_FAST] - state[_SLOW_EMA]
    state[_SIGNAL] = _ema(state[_SIGNAL], line, n - slow + 1, signal) if n >= slow else line
    return line, state[_SIGNAL]


@jit
def _bands(state: _F64, n: int) -> tuple[float, float]:
    """Return mean and population deviation of the last 20 closes, in two passes: no cancellation at high prices."""
    count = min(n, BAND)
    middle = _mean_close(state, n, BAND)
    total = 0.0
    for lag in range(count):
        difference = state[_CLOSES + ((n - 1 - lag) & 31)] - middle
        total += difference * difference
    return middle, sqrt(total / count)


@jit
def _vwap(state: _F64, n: int, c: float) -> float:
    """Return the volume-weighted mean of typical prices over 60 candles; the close where nothing was traded."""
    value = volume = 0.0
    for lag in range(VWAP_SPAN):
        weight = state[_VOLUMES + ((n - 1 - lag) & 255)]  # zero before the first candle
        value += state[_TYPICALS + ((n - 1 - lag) & 63)] * weight
        volume += weight
    return value / volume if volume > 0.0 else c


@jit
def _moves(
    state: _F64, n: int, start: int, stop: int, before: tuple[float, float, float, float, float, float]
) -> tuple[float, float, float, float, float, float]:
    """Extend sums over the log returns from `start` to `stop` candles back.

    (squares, absolutes, products of neighbours, signed squares, lowest and highest log close).
    """
    squares, absolutes, products, signed, lowest, highest = before
    here = state[_LOGS + ((n - 1 - start) & 255)]
    earlier = state[_LOGS + ((n - 2 - start) & 255)]
    move = here - earlier
    for lag in range(start, stop):
        earliest = state[_LOGS + ((n - 3 - lag) & 255)]
        previous = earlier - earliest
        squares += move * move
        absolutes += abs(move)
        products += move * previous
        signed += move * abs(move)
        lowest, highest = min(lowest, here), max(highest, here)
        here, earlier, move = earlier, earliest, previous
    return squares, absolutes, products, signed, lowest, highest


@jit
def _volumes(
    state: _F64, n: int, start: int, stop: int, before: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Extend sums over volumes from `start` to `stop` candles back.

    (volume, volume × sign of the return, empty candles).
    """
    total, signed, empty = before
    for lag in range(start, stop):
        volume = state[_VOLUMES + ((n - 1 - lag) & 255)]
        move = state[_LOGS + ((n - 1 - lag) & 255)] - state[_LOGS + ((n - 2 - lag) & 255)]
        total += volume
        signed += volume if move > 0.0 else -volume if move < 0.0 else 0.0
        empty += 1.0 if volume == 0.0 and lag < n else 0.0
    return total, signed, empty


@jit
def _deviation(squares: float, n: int, span: int) -> float:
    count = max(min(n - 1, span), 1)
    return max(sqrt(squares / count), SIGMA_FLOOR)


@jit
def _channel(x: float, lowest: float, highest: float) -> float:
    return 2.0 * (x - lowest) / (highest - lowest) - 1.0 if highest > lowest else 0.0


@jit
def _write_moves(state: _F64, n: int, out: _F32) -> float:
    """Write what follows from closes alone; return sigma."""
    x = state[_LOGS + ((n - 1) & 255)]
    m5 = _moves(state, n, 0, 5, (0.0, 0.0, 0.0, 0.0, x, x))
    m20 = _moves(state, n, 5, 20, m5)
    m60 = _moves(state, n, 20, 60, m20)
    m120 = _moves(state, n, 60, SIGMA_SPAN, m60)
    m240 = _moves(state, n, SIGMA_SPAN, 240, m120)
    sigma = _deviation(m120[0], n, SIGMA_SPAN)
    for i, span in enumerate(RETURN_SPANS):
        out[i] = _clip((x - state[_LOGS + ((n - 1 - span) & 255)]) / (sigma * sqrt(span)), 8.0)
    volatility = out[_AT_VOLATILITY:]
    volatility[0] = _clip(log(_deviation(m5[0], n, 5) / sigma), 4.0)
    volatility[1] = _clip(log(_deviation(m20[0], n, 20) / sigma), 4.0)
    volatility[2] = _clip(log(_deviation(m60[0], n, 60) / sigma), 4.0)
    volatility[3] = _clip(log(_deviation(m240[0], n, 240) / sigma), 4.0)
    volatility[4] = _clip(log(sigma / max(sqrt(state[_SLOW]), SIGMA_FLOOR)), 4.0)
    path = out[_AT_PATH:]
    path[0] = _clip(_share(x - state[_LOGS + ((n - 21) & 255)], m20[1]), 1.0)
    path[1] = _clip(_share(x - state[_LOGS + ((n - 61) & 255)], m60[1]), 1.0)
    path[2] = _clip(_share(m60[2], m60[0]), 1.0)
    path[3] = _share(m60[3], m60[0])
    path[4] = _channel(x, m60[4], m60[5])
    path[5] = _channel(x, m240[4], m240[5])
    return sigma


@jit
def _write_volumes(state: _F64, n: int, out: _F32) -> None:
    """Write volume against its means, as log ratios; one hundredth of the long mean keeps empty candles finite."""
    v5 = _volumes(state, n, 0, 5, (0.0, 0.0, 0.0))
    v20 = _volumes(state, n, 5, 20, v5)
    v60 = _volumes(state, n, 20, 60, v20)
    v240 = _volumes(state, n, 60, 240, v60)
    long = v240[0] / min(n, 240)
    least = 0.01 * long
    if long > 0.0:
        mean20 = v20[0] / min(n, 20) + least
        out[0] = log((state[_VOLUMES + ((n - 1) & 255)] + least) / mean20)
        out[1] = log((v5[0] / min(n, 5) + least) / (v60[0] / min(n, 60) + least))
        out[2] = log(mean20 / (long + least))
    else:
        out[:3] = 0.0
    out[3] = _share(v20[1], v20[0])
    out[4] = _share(v60[1], v60[0])
    out[5] = v60[2] / min(n, 60)


@jit
def _write_shape(o: float, h: float, l: float, c: float, atr: float, sigma: float, out: _F32) -> None:
    """Write the candle's own shape. BitMEX opens at the previous close, which may lie outside: it is moved inside."""
    inside = min(max(o, l), h)
    out[0] = log1p((h - l) / (c * sigma))
    out[1] = min((h - max(inside, c)) / atr, 8.0)
    out[2] = min((min(inside, c) - l) / atr, 8.0)
    out[3] = _channel(c, l, h)


@jit
def _write_time(close_time_ns: int, interval_ns: int, out: _F32) -> None:
    day = 2.0 * pi * ((close_time_ns % _DAY_NS) / _DAY_NS)
    week = 2.0 * pi * ((close_time_ns % _WEEK_NS) / _WEEK_NS)
    out[0], out[1], out[2], out[3] = sin(day), cos(day), sin(week), cos(week)
    out[4] = _clip(log(interval_ns / _MINUTE_NS) / log(5.0), 4.0) if interval_ns > 0 else 0.0  # event candles: 0


@jit
def update(
    state: _F64, o: float, h: float, l: float, c: float, v: float, close_time_ns: int, interval_ns: int,
    out_features: _F32, out_indicators: _F64,
) -> None:  # fmt: skip
    """Fold one candle into `state` in place and write its features and indicators.

    Args:
        state: float64[STATE_SIZE], as `new_state` made it or an earlier call left it.
        o: open; may lie outside [l, h].
        h: high.
        l: low, above zero.
        c: close.
        v: volume in any one unit; 0 in an empty candle.
        close_time_ns: exclusive end of the candle, ns UTC.
        interval_ns: length of a time candle, ns; 0 for event candles.
        out_features: float32[N_FEATURES]; finite, bounded, not yet normalised.
        out_indicators: float64[N_INDICATORS].

    """
    n = _push(state, h, l, c, v)
    if n > 1:
        move = log(c / state[_CLOSE])
        state[_SLOW] += (move * move - state[_SLOW]) / min(n - 1, SLOW_SPAN)
    atr, plus, minus, adx = _fold_range(state, n, h, l)
    rsi = _fold_rsi(state, n, c)
    line, signal = _fold_macd(state, n, c)
    middle, deviation = _bands(state, n)
    vwap = _vwap(state, n, c)
    for i, span in enumerate(EMA_SPANS):
        state[_EMA + i] = _ema(state[_EMA + i], c, n, span)
    state[_HIGH], state[_LOW], state[_CLOSE] = h, l, c

    sigma = _write_moves(state, n, out_features)
    _write_volumes(state, n, out_features[_AT_VOLUME:])
    unit = max(atr, SIGMA_FLOOR * c)
    _write_shape(o, h, l, c, unit, sigma, out_features[_AT_SHAPE:])
    flat = deviation <= 1e-9 * middle  # no more than rounding
    percent_b = 0.5 if flat else 0.5 + (c - middle) / (4.0 * deviation)
    classic = out_features[_AT_CLASSIC:]
    classic[0] = rsi / 50.0 - 1.0
    classic[1] = _clip(line / unit, 10.0)
    classic[2] = _clip((line - signal) / unit, 10.0)
    classic[3] = _clip(2.0 * percent_b - 1.0, 3.0)
    classic[4] = _clip(log(max(deviation / middle, SIGMA_FLOOR) / sigma), 4.0)
    classic[5] = adx / 100.0
    classic[6] = (plus - minus) / 100.0
    for i, span in enumerate(EMA_SPANS):
        out_features[_AT_EMA + i] = _clip(log(c / state[_EMA + i]) / (sigma * sqrt(span)), 8.0)
    out_features[_AT_EMA + 3] = _clip(log(c / vwap) / (sigma * sqrt(VWAP_SPAN)), 8.0)
    out_features[_AT_VOLATILITY + 5] = _clip(log(unit / (c * sigma)), 4.0)
    _write_time(close_time_ns, interval_ns, out_features[_AT_TIME:])

    out_indicators[0], out_indicators[1] = sigma, rsi
    out_indicators[2], out_indicators[3], out_indicators[4] = line, signal, line - signal
    out_indicators[5], out_indicators[6], out_indicators[7], out_indicators[8] = atr, adx, plus, minus
    out_indicators[9], out_indicators[10], out_indicators[11] = percent_b, state[_EMA], state[_EMA + 1]
    out_indicators[12] = vwap


@jit
def update_many(
    state: _F64, o: _F64, h: _F64, l: _F64, c: _F64, v: _F64, close_time_ns: NDArray[np.int64], interval_ns: int,
    out_features: _F32, out_indicators: _F64,
) -> None:  # fmt: skip
    """Fold T candles in order, exactly as T calls of `update`.

    Arrays are [T]; `out_features` is float32[T, N_FEATURES], `out_indicators` float64[T, N_INDICATORS].
    """
    for t in range(len(c)):
        update(state, o[t], h[t], l[t], c[t], v[t], close_time_ns[t], interval_ns, out_features[t], out_indicators[t])
