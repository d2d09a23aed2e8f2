"""Markets whose best possible forecast is known: regimes of drift and volatility, and the pure random walk.

One-candle log returns are normal with the drift and volatility of a hidden regime, a Markov chain; high and low are the
ends of the move. So the returns are all there is to see, and filtering them (Hamilton 1989) is optimal.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feeds.market import NS_PER_S
from training.dataset import Series, spec_text

Floats = NDArray[np.float64]
START_NS = 1_735_689_600 * NS_PER_S  # 2025-01-01, a midnight
DISTANCES = 48
"""Barrier distances at which the optimum is tabulated."""


class Regimes(NamedTuple):
    """A hidden Markov market."""

    stay: float
    """Chance to stay in a regime for another candle; else any other one is as likely."""
    drift: tuple[float, ...]
    """Mean log return a candle, per regime."""
    volatility: tuple[float, ...]
    """Standard deviation of the log return a candle, per regime."""

    def transition(self) -> Floats:
        """Return the transition matrix [S, S]."""
        s = len(self.drift)
        off = (1.0 - self.stay) / max(1, s - 1)
        return np.full((s, s), off) + (self.stay - off) * np.eye(s) if s > 1 else np.ones((1, 1))


PLANTED = Regimes(0.99, (4e-4, -4e-4, 6e-4, -6e-4), (1e-3, 1e-3, 3e-3, 3e-3))
"""Four regimes: calm and wild, each rising and falling."""
RANDOM_WALK = Regimes(1.0, (0.0,), (1e-3,))
"""Nothing to foretell."""


def market(regimes: Regimes, candles: int, *, seed: int, interval_s: int = 60, name: str = "synthetic") -> Series:
    """Draw a market of `candles` candles."""
    rng = np.random.default_rng(seed)
    states = _chain(regimes.transition(), rng.uniform(size=candles))
    noise = rng.standard_normal(candles)
    close = 100.0 * np.exp(np.cumsum(np.array(regimes.drift)[states] + np.array(regimes.volatility)[states] * noise))
    opened = np.concatenate(([100.0], close[:-1]))
    interval = interval_s * NS_PER_S
    times = START_NS + interval * np.arange(1, candles + 1, dtype=np.int64)
    low, high = np.minimum(opened, close), np.maximum(opened, close)
    return Series(name, spec_text(interval), interval, times, opened, high, low, close, np.ones(candles))


@njit(cache=True)
def _chain(transition: Floats, uniform: Floats) -> NDArray[np.int64]:
    states = np.zeros(len(uniform), dtype=np.int64)
    for t in range(1, len(uniform)):
        s, total = 0, transition[states[t - 1], 0]
        while total < uniform[t] and s + 1 < len(transition):
            s += 1
            total += transition[states[t - 1], s]
        states[t] = s
    return states


def filtered(regimes: Regimes, close: Floats) -> Floats:
    """Return the probability of each regime given all closes so far, [n, S]."""
    returns = np.diff(np.log(close), prepend=np.log(close[0]))
    drift, volatility = np.array(regimes.drift), np.array(regimes.volatility)
    likelihood = np.exp(-0.5 * ((returns[:, None] - drift) / volatility) ** 2) / volatility
    likelihood[0] = 1.0
    return _forward(regimes.transition(), likelihood)


@njit(cache=True)
def _forward(transition: Floats, likelihood: Floats) -> Floats:
    n, s = likelihood.shape
    out = np.empty((n, s))
    belief = np.full(s, 1.0 / s)
    for t in range(n):
        belief = (transition.T @ belief) * likelihood[t]
        belief /= belief.sum()
        out[t] = belief
    return out


def optimal(
    regimes: Regimes, belief: Floats, distance: Floats, *, horizon: int, paths: int = 40_000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Return the best possible (p_touch, p_up given a touch) of rows [n].

    Args:
        regimes: the market.
        belief: filtered regime probabilities, [n, S].
        distance: of both barriers from the close, as a log return, [n].
        horizon: candles ahead.
        paths: simulated futures per regime; the error is about 0.5 / √paths.
        seed: of the simulation.

    """
    grid = np.exp(np.linspace(np.log(distance.min()), np.log(distance.max() * 1.0001), DISTANCES))
    s = len(regimes.drift)
    up, down = np.empty((s, DISTANCES)), np.empty((s, DISTANCES))
    rng = np.random.default_rng(seed)
    drift, volatility = np.array(regimes.drift), np.array(regimes.volatility)
    for state in range(s):
        uniform, noise = rng.uniform(size=(paths, horizon)), rng.standard_normal((paths, horizon))
        up[state], down[state] = _first_touch(regimes.transition(), drift, volatility, state, uniform, noise, grid)
    at = np.log(distance)
    p_up = sum(belief[:, k] * np.interp(at, np.log(grid), up[k]) for k in range(s))
    p_down = sum(belief[:, k] * np.interp(at, np.log(grid), down[k]) for k in range(s))
    touch = np.asarray(p_up + p_down)
    return touch, np.asarray(p_up / np.maximum(touch, 1e-12))


@njit(cache=True)
def _first_touch(
    transition: Floats, drift: Floats, volatility: Floats, start: int, uniform: Floats, noise: Floats, grid: Floats
) -> tuple[Floats, Floats]:
    paths, horizon = uniform.shape
    up, down = np.zeros(len(grid)), np.zeros(len(grid))
    for p in range(paths):
        state, x, reached = start, 0.0, 0  # grid[:reached] has been touched
        for t in range(horizon):
            following, total = 0, transition[state, 0]
            while total < uniform[p, t] and following + 1 < len(transition):
                following += 1
                total += transition[state, following]
            state = following
            x += drift[state] + volatility[state] * noise[p, t]
            while reached < len(grid) and abs(x) >= grid[reached]:
                if x > 0:
                    up[reached] += 1
                else:
                    down[reached] += 1
                reached += 1
    return up / paths, down / paths
