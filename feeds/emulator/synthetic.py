"""Invented markets: reproducible from a seed, endless, with regimes, a daily rhythm and bursts of trading.

Prices are synthetic: nothing measured on them says anything about a real market.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from feeds.emulator.tape import MINUTE_MS, Block, Rows, T, Tape

BLOCK_MINUTES = 240
_MINUTES_PER_DAY = 1440


@dataclass(frozen=True)
class Contract:
    """What an invented market looks like."""

    price: float
    price_decimals: int
    size_decimals: int
    typical_size: float


@dataclass(frozen=True)
class Regime:
    """How the market behaves for a while."""

    drift: float
    """Mean log return of a minute."""
    volatility: float
    """Standard deviation of a minute's log return."""
    trades: float
    """Mean number of trades in a minute at the quietest hour."""
    minutes: float
    """Mean stay."""


CONTRACTS = {
    "BTCUSDT": Contract(64_000.0, 1, 3, 0.02),
    "ETHUSDT": Contract(2_600.0, 2, 3, 0.4),
    "SOLUSDT": Contract(150.0, 2, 2, 8.0),
    "XRPUSDT": Contract(0.58, 4, 1, 900.0),
    "BTCUSD": Contract(64_000.0, 1, 0, 500.0),
    "XBTUSD": Contract(64_000.0, 1, 0, 500.0),
    "ETHUSD": Contract(2_600.0, 2, 0, 300.0),
}
"""By the exchange's name for the market, without hyphens; the last ones count sizes in contracts."""
OTHER = Contract(1.0, 4, 0, 400.0)
REGIMES = (
    Regime(0.0, 0.0004, 14.0, 180.0),
    Regime(0.00006, 0.0007, 22.0, 90.0),
    Regime(-0.00006, 0.0007, 22.0, 90.0),
    Regime(0.0, 0.0016, 45.0, 40.0),
)
_PULL = 0.0002
"""Part of the distance to the contract's first price that a minute undoes, so that years of tape stay in range."""


def synthetic_tape(native: str, *, seed: int, begin_ms: int) -> Tape:
    """Invent the market `native` from `begin_ms` (a whole minute) on; same arguments, same tape, to the byte.

    Raises:
        ValueError: `begin_ms` is not a whole minute.

    """
    if begin_ms % MINUTE_MS:
        raise ValueError(f"a synthetic tape begins at a whole minute, not at {begin_ms} ms")
    contract = CONTRACTS.get(native.replace("-", ""), OTHER)
    return Tape(
        native,
        np.empty((0, len(T)), np.int64),
        price_decimals=contract.price_decimals,
        size_decimals=contract.size_decimals,
        more=_blocks(native, contract, seed, begin_ms),
    )


def _blocks(native: str, contract: Contract, seed: int, begin_ms: int) -> Iterator[Block]:
    """Invent block after block; each has its own generator, the last price, regime and ids are handed on."""
    log_price, regime = math.log(contract.price), 0
    next_id, next_fill = 1, 1
    number = 0
    while True:
        rng = np.random.default_rng([seed, zlib.crc32(native.encode()), number])
        opens = begin_ms + (number * BLOCK_MINUTES + np.arange(BLOCK_MINUTES)) * MINUTE_MS
        regimes = _regimes(rng, regime)
        trades, log_price = _trades(rng, contract, opens, regimes, log_price)
        fills = 1 + rng.poisson(0.4, len(trades))
        trades[:, T.ID] = next_id + np.arange(len(trades))
        trades[:, T.LAST] = next_fill - 1 + np.cumsum(fills)
        trades[:, T.FIRST] = trades[:, T.LAST] - fills + 1
        yield Block(int(opens[-1]) + MINUTE_MS, trades)
        regime, number = int(regimes[-1]), number + 1
        next_id, next_fill = next_id + len(trades), next_fill + int(fills.sum())


def _regimes(rng: np.random.Generator, current: int) -> Rows:
    """Walk the regimes for one block, one a minute."""
    out = np.empty(BLOCK_MINUTES, np.int64)
    at = 0
    while at < BLOCK_MINUTES:
        stay = int(rng.geometric(1 / REGIMES[current].minutes))
        out[at : at + stay] = current
        at += stay
        if at < BLOCK_MINUTES:
            current = int(rng.integers(len(REGIMES)))
    return out


def _trades(
    rng: np.random.Generator,
    contract: Contract,
    opens: Rows,
    regimes: Rows,
    log_price: float,
) -> tuple[Rows, float]:
    """Invent the trades of one block and say where the price ends."""
    drift, volatility, pace, _ = (
        np.array([getattr(r, name) for r in REGIMES])[regimes] for name in ("drift", "volatility", "trades", "minutes")
    )
    day = 2 * np.pi * (opens // MINUTE_MS % _MINUTES_PER_DAY) / _MINUTES_PER_DAY
    counts = rng.poisson(pace * (1.6 - np.cos(day)) * rng.lognormal(0.0, 0.35, BLOCK_MINUTES))
    minute = np.repeat(np.arange(BLOCK_MINUTES), counts)
    total = len(minute)
    mean = drift + _PULL * (math.log(contract.price) - log_price)
    spread = volatility / np.sqrt(np.maximum(counts, 1))
    returns = mean[minute] / counts[minute] + spread[minute] * rng.standard_normal(total)
    path = log_price + np.cumsum(returns)
    trades = np.empty((total, len(T)), np.int64)
    trades[:, T.TIME] = np.sort(opens[minute] + rng.integers(MINUTE_MS, size=total))
    trades[:, T.PRICE] = np.maximum(1, np.rint(np.exp(path) * 10**contract.price_decimals))
    size = contract.typical_size * rng.lognormal(-0.5, 1.0, total) * 10**contract.size_decimals
    trades[:, T.SIZE] = np.maximum(1, np.rint(size))
    trades[:, T.MAKER] = rng.random(total) < 0.5 - 0.35 * np.sign(returns)
    return trades, float(path[-1]) if total else log_price
