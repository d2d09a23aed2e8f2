import numpy as np
import pytest

from feeds.market import NS_PER_S
from inference import artifact as artifacts
from inference.artifact import Artifact
from training import synthetic, trading, unseen
from training.dataset import Epochs, Series
from training.forecasts import Rows, rows_of
from training.funding import Settled
from training.score import Forecast
from training.splits import Role

MODEL = artifacts.load(artifacts.resolve("default"))


@pytest.fixture(scope="module")
def market() -> tuple[Series, Epochs, Rows]:
    run = synthetic.market(synthetic.PLANTED, 12_000, seed=2, name="m_1m")
    epochs = unseen.epochs_of(MODEL, [unseen.Run(run, None)], since_ns=0)
    return run, epochs, rows_of(epochs, [run], {"1m": 15}, Role.TEST)


def seer(rows: Rows, every: int) -> Forecast:
    """Know the barrier that will be touched, and speak of every so-manieth day only."""
    sure = rows.outcome.touched & (rows.outcome.day % every == 0)
    return Forecast(np.where(sure, 0.999, 0.0), np.where(rows.outcome.up, 0.999, 0.001), np.zeros(len(sure)))


def followed(
    forecast: Forecast, market: tuple[Series, Epochs, Rows], settled: dict[str, Settled], model: Artifact = MODEL
) -> dict[str, object]:
    run, epochs, rows = market
    _, figures = trading.follow(model, forecast, rows, epochs, [run], settled, seed=0)
    return figures


def test_settled_funding_is_charged_where_it_covers_the_span(market: tuple[Series, Epochs, Rows]) -> None:
    run, epochs, rows = market
    hours = np.arange(run.span[0] // (3600 * NS_PER_S), run.span[1] // (3600 * NS_PER_S) + 1) * 3600 * NS_PER_S
    book = Settled(hours, np.full(len(hours), 1e-3))
    forecast = seer(rows, 1)
    free, _ = trading.follow(MODEL, forecast, rows, epochs, [run], {}, seed=0)
    charged, figures = trading.follow(MODEL, forecast, rows, epochs, [run], {"m": book}, seed=0)
    assert figures["funding"] == "charged as settled"
    paid = free.net_bps - charged.net_bps
    assert set(np.unique(np.sign(paid[paid != 0]) * charged.side[paid != 0])) == {1.0}  # longs pay, shorts receive
    assert np.abs(paid[paid != 0]) == pytest.approx(10.0)
    assert 0.1 < (paid != 0).mean() < 0.5  # a quarter hour of each hour
    short = Settled(hours[:100], book.rate[:100])
    for settled in ({}, {"m": short}, {"other": book}):
        assert "not charged" in str(followed(forecast, market, settled)["funding"])


def test_few_trades_show_no_gain_however_good_they_were(market: tuple[Series, Epochs, Rows]) -> None:
    figures = followed(seer(market[2], 1), market, {})
    assert figures["verdict"] == "a gain after costs on these candles"
    rows = market[2]
    sparse = seer(rows, 1)
    assert sparse.p_touch is not None
    daily = np.flatnonzero(np.diff(rows.outcome.day, prepend=-1)) + 100
    chosen = np.isin(np.arange(len(rows.outcome)), [i + n for i in daily for n in range(40)])
    few = Forecast(np.where(chosen, sparse.p_touch, 0.0), sparse.p_up, sparse.log_ratio)
    figures = followed(few, market, {})
    assert 5 <= int(str(figures["trades"])) < trading.TRADES_MIN
    assert figures["verdict"] == "nothing shown: fewer than 30 trades"


def test_no_expected_move_is_no_trade(market: tuple[Series, Epochs, Rows]) -> None:
    n = len(market[2].outcome)
    figures = followed(Forecast(np.full(n, 0.5), np.full(n, 0.5), np.zeros(n)), market, {})
    assert figures["trades"] == 0
    assert "no claim of profit" in str(figures["verdict"])
