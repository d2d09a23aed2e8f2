import numpy as np
import pytest

from training.costs import Costs, trade

FREE = Costs(taker_fee_bps=0.0, half_spread_bps=0.0)


def test_entry_is_a_candle_late_and_costs_are_charged_both_ways() -> None:
    close = np.array([100.0, 101.0, 102.0, 103.0, 104.0, 105.0])
    side = np.array([1, 0, 0, 0, 0, 0], dtype=np.int8)
    made = trade(side, close, np.ones(6, bool), horizon=2, costs=Costs(taker_fee_bps=4.0, half_spread_bps=1.0))
    assert (made.entry.tolist(), made.exit.tolist()) == ([1], [3])
    assert made.gross_bps[0] == pytest.approx(1e4 * (103 / 101 - 1))
    assert made.net_bps[0] == pytest.approx(made.gross_bps[0] - 10.0)


def test_trades_do_not_overlap() -> None:
    close = np.exp(np.random.default_rng(0).normal(0, 0.01, 200).cumsum())
    made = trade(np.ones(200, np.int8), close, np.ones(200, bool), horizon=7, costs=FREE)
    assert (made.entry[1:] > made.exit[:-1]).all()
    assert len(made.entry) == (200 - 1) // 8


def test_a_short_earns_the_fall_and_receives_funding() -> None:
    close, side = np.array([100.0, 100.0, 99.0, 98.0]), np.array([-1, 0, 0, 0], dtype=np.int8)
    funding = np.array([0.0, 7.0, 3.0, 0.0])  # settled at the closes; the one at the entry itself came before it
    made = trade(side, close, np.ones(4, bool), horizon=1, costs=FREE, funding_bps=funding)
    assert made.gross_bps[0] == pytest.approx(100.0)
    assert made.net_bps[0] == pytest.approx(103.0)


def test_no_valid_row_no_trade() -> None:
    made = trade(np.ones(50, np.int8), np.ones(50), np.zeros(50, bool), horizon=3, costs=FREE)
    assert len(made.net_bps) == 0
