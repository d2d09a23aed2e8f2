"""A feed through ccxt, end to end against the emulated Binance: its candles are those of the tape, cuts or not."""

from pathlib import Path

import pytest
from ccxt.async_support.base.exchange import Exchange

from config.schema import Feed
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.store import Store
from feeds.emulator.tape import MINUTE_MS, K
from feeds.market import Candle
from tests.daemon.brokers import until
from tests.daemon.test_desk import MODEL, at_work, emulated, markets

SYMBOL = "BTC/USDT:USDT"


@pytest.mark.parametrize("close", ["trades", "exchange"])
async def test_candles_through_ccxt_are_the_tapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, close: str) -> None:
    monkeypatch.setattr(Exchange, "timeout_on_exit", 0)
    pipeline = Pipeline(MODEL, base_topic="lstmd")
    found: dict[int, Candle] = {}
    signals: list[int] = []

    def moved() -> None:
        for _, work in pipeline.take_work():
            found.update({row.seq: row.candle for row in work.rows if row.candle})
            signals.extend(draft.seq for draft in work.drafts)

    async with emulated(markets("BTCUSDT"), speed=240) as (emulator, port):
        url = f"127.0.0.1:{port}"
        feed = Feed(
            exchange="ccxt:binanceusdm", symbols=(SYMBOL,), close=close, ws_url=f"ws://{url}", rest_url=f"http://{url}"
        )
        with Store(tmp_path / "store.sqlite") as store:
            desk = Desk(0, feed, pipeline, store, Metrics(), moved)
            async with at_work(desk):
                await until(lambda: len(signals) >= 6)
                await emulator.cut()
                await until(lambda: len(signals) >= 18)
                await until(lambda: desk.availability(desk.markets[0]) == ("online", ""))
                assert desk.reconnects == 1
        tape = emulator.venue.tapes["BTCUSDT"]
        first, last = min(found), max(found)
        now_ms = emulator.now_ns() // 1_000_000
        bars = tape.candles(MINUTE_MS, start_ms=(first - 1) * MINUTE_MS, end_ms=last * MINUTE_MS, now_ms=now_ms)
        price, size = 10**tape.price_decimals, 10**tape.size_decimals
    assert signals == list(range(signals[0], signals[0] + len(signals)))
    assert sorted(found) == list(range(first, last + 1))
    prices = (K.OPEN, K.HIGH, K.LOW, K.CLOSE)
    expected = [[bar[0], *(bar[column] / price for column in prices), bar[K.VOLUME] / size] for bar in bars]
    got = [found[seq] for seq in sorted(found)]
    assert [[c.open_time_ns // 1_000_000, c.open, c.high, c.low, c.close, c.volume] for c in got] == expected
    origins = {candle.origin for candle in got}
    assert ("trades" in origins) == (close == "trades")
