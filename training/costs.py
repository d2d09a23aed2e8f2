"""What following the signals would have brought: one position at a time, every cost charged. Pure."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Costs:
    """What a round trip costs."""

    taker_fee_bps: float
    """Per side, of the notional."""
    half_spread_bps: float
    """Per side."""

    @property
    def round_trip_bps(self) -> float:
        """Fee and half spread, in and out."""
        return 2.0 * (self.taker_fee_bps + self.half_spread_bps)


@dataclass(frozen=True, slots=True)
class Trades:
    """Trades that do not overlap, in order."""

    entry: NDArray[np.int64]
    """Row of the candle at whose close the position was opened."""
    exit: NDArray[np.int64]
    side: NDArray[np.int8]
    gross_bps: NDArray[np.float64]
    net_bps: NDArray[np.float64]
    """After fees, half spread and funding."""


def trade(
    side: NDArray[np.int8],
    close: NDArray[np.float64],
    valid: NDArray[np.bool_],
    *,
    horizon: int,
    costs: Costs,
    funding_bps: NDArray[np.float64] | None = None,
) -> Trades:
    """Follow `side` on one market: enter one candle late, hold `horizon` candles, ignore signals while in a position.

    Args:
        side: −1, 0 or 1 decided at each candle's close, [n].
        close: closes of the same contiguous run, [n].
        valid: which rows may decide, [n].
        horizon: candles held.
        costs: fees and spread.
        funding_bps: funding a long pays at each candle's close, 0 where none settles, [n]; None charges nothing.

    Entering at the close of the *next* candle stands for everything between the decision and the fill.

    """
    entry, leave, sign = _walk(side, valid, horizon)
    gross = sign * 1e4 * (close[leave] / close[entry] - 1.0)
    paid = np.zeros(len(close) + 1) if funding_bps is None else np.concatenate(([0.0], np.cumsum(funding_bps)))
    funding = sign * (paid[leave + 1] - paid[entry + 1])
    return Trades(entry, leave, sign.astype(np.int8), gross, gross - costs.round_trip_bps - funding)


@njit(cache=True)
def _walk(
    side: NDArray[np.int8], valid: NDArray[np.bool_], horizon: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    entries, exits, signs = [0], [0], [0.0]  # numba takes the lists' types from a first element
    i, n = 0, len(side)
    while i + 1 + horizon < n:
        if valid[i] and side[i] != 0:
            entries.append(i + 1)
            exits.append(i + 1 + horizon)
            signs.append(float(side[i]))
            i += 1 + horizon
        else:
            i += 1
    return np.array(entries)[1:], np.array(exits)[1:], np.array(signs)[1:]
