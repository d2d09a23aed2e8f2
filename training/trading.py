"""What following the forecasts would have brought, and what they say they would bring."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feeds.market import NS_PER_DAY
from inference.artifact import Artifact
from training import costs, metrics, score
from training.costs import Costs, Trades
from training.dataset import Epochs, Series
from training.forecasts import Rows
from training.funding import Settled, market_of
from training.score import Forecast, Outcome

TRADES_MIN = 30
"""Fewer trades than this show no gain, whatever their interval."""
WORDS = {"skill above the prior": "a gain after costs on these candles", "worse than the prior": "a loss after costs"}


def expected_bps(artifact: Artifact, forecast: Forecast, outcome: Outcome) -> NDArray[np.float64]:
    """Return the expected move of each row as the live decision reckons it, bps."""
    assert forecast.p_touch is not None
    assert forecast.p_up is not None
    barrier: NDArray[np.float64] = 1e4 * artifact.manifest.barrier_width * outcome.sigma * np.sqrt(outcome.horizon)
    return forecast.p_touch * (2 * forecast.p_up - 1) * barrier


def follow(
    artifact: Artifact,
    forecast: Forecast,
    rows: Rows,
    epochs: Epochs,
    runs: Sequence[Series],
    settled: Mapping[str, Settled],
    *,
    seed: int,
) -> tuple[Trades, dict[str, Any]]:
    """Take the side whose expected move pays the round trip, each run on its own; return trades in time and figures.

    `settled` holds settled funding by market; a market without, or whose settlements do not cover the scored span, is
    not charged, and the figures say so.
    """
    charge = Costs(artifact.manifest.decision.taker_fee_bps, artifact.manifest.decision.half_spread_bps)
    expected = expected_bps(artifact, forecast, rows.outcome)
    wanted = np.where(np.abs(expected) > charge.round_trip_bps, np.sign(expected), 0).astype(np.int8)
    at = epochs.row[rows.at[0], rows.at[1]]
    parts, moments = [], []
    charged, free = set[str](), set[str]()
    for index in np.unique(rows.run):
        mine, run = rows.run == index, runs[index]
        side, valid = np.zeros(len(run), np.int8), np.zeros(len(run), bool)
        side[at[mine]], valid[at[mine]] = wanted[mine], True
        horizon = artifact.manifest.signal_horizon[run.spec]
        book, closed = settled.get(market_of(run.name)), rows.outcome.close_time_ns[mine]
        known = book is not None and book.covers(int(closed.min()), int(closed.max()))
        (charged if known else free).add(run.name)
        paid = book.bps(run) if book is not None and known else None
        parts.append(costs.trade(side, run.close, valid, horizon=horizon, costs=charge, funding_bps=paid))
        moments.append(run.close_time_ns[parts[-1].entry])
    order = np.argsort(np.concatenate(moments), kind="stable")
    names = ("entry", "exit", "side", "gross_bps", "net_bps")
    trades = Trades(*(np.concatenate([getattr(p, name) for p in parts])[order] for name in names))
    figures = _figures(trades, np.concatenate(moments)[order] // NS_PER_DAY, expected, charge, seed)
    return trades, figures | {"funding": _said(charged, free)}


def _said(charged: set[str], free: set[str]) -> str:
    if not free:
        return "charged as settled"
    without = "no funding history of the scored span was given"
    return f"not charged for {', '.join(sorted(free))}: {without}" if charged else f"not charged: {without}"


def _figures(
    trades: Trades, day: NDArray[np.int64], expected: NDArray[np.float64], charge: Costs, seed: int
) -> dict[str, Any]:
    size = np.quantile(np.abs(expected), (0.5, 0.99, 1.0)).tolist()
    figures: dict[str, Any] = {
        "trades": len(day),
        "round_trip_bps": charge.round_trip_bps,
        "expected_move_bps": {"p50": size[0], "p99": size[1], "max": size[2]},
    }
    if not len(day):
        return figures | {"verdict": "no trade: no expected move pays the round trip; no claim of profit"}
    sums = np.column_stack((trades.net_bps, np.ones(len(day))))
    net = score.plain(metrics.block_bootstrap(day, sums, lambda s: s[:, 0] / np.maximum(s[:, 1], 1), seed=seed))
    said = score.verdict(net)
    if len(day) < TRADES_MIN and said == "skill above the prior":
        said = f"nothing shown: fewer than {TRADES_MIN} trades"
    figures |= {"gross_bps_mean": float(trades.gross_bps.mean()), "net_bps_mean": net}
    return figures | {"verdict": WORDS.get(said, said)}
