"""A day of real trades through each emulated exchange, with everything that goes wrong with connections.

`DAY_HOURS` says how much of the day; the whole of it is `make day`.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from config.schema import Feed
from daemon.desk import Desk
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.store import LineCommit, Store
from feeds.emulator import Emulator, Tape
from feeds.emulator.sources import tape_of_trades
from feeds.exchanges import CODECS
from feeds.market import NS_PER_MS, CandleSpec
from feeds.traits import Traits
from inference.engine import Model
from inference.signals import Rules
from tests.daemon.brokers import until
from tests.daemon.lines import small_artifact
from tests.daemon.tapes import ape_trades
from tests.feeds.trades import Figures

HOURS = int(os.environ.get("DAY_HOURS", "2"))
SPEED, CUTS, ROLLOVERS = (240.0, 6, 2) if HOURS < 24 else (900.0, 20, 5)
"""The cuts come in the first half of the time; connections live long enough to be replaced in the second."""
WARM_MS = 60 * 60_000
"""Of the day, what is history when the feed begins."""
MINUTE = CandleSpec.parse("1m")
NATIVES = {
    "binance": "APEUSDT", "bybit": "APEUSDT", "bingx": "APE-USDT", "bitget": "APEUSDT", "bitmex": "APEUSDT",
}  # fmt: skip
MODEL = Model(small_artifact("1m"), Rules())


def expected(traits: Traits) -> dict[int, Figures]:
    """Fold the texts of the tape by the exchange's habit, without the project's builder."""
    rows: dict[int, list[tuple[Decimal, Decimal]]] = {}
    for trade in ape_trades(HOURS):
        rows.setdefault(trade.time_ms // 60_000 + 1, []).append((Decimal(trade.price), Decimal(trade.size)))
    candles: dict[int, Figures] = {}
    close: Decimal | None = None
    for seq in range(min(rows), max(rows)):
        trades = rows.get(seq, [])
        before = [close] if close is not None and (traits.opens_at_previous_close or not trades) else []
        prices = [price for price, _ in trades]
        extremes = prices + (before if traits.open_in_range or not trades else [])
        close = prices[-1] if prices else before[0]
        volume = sum((size for _, size in trades), Decimal(0))
        o, h, l, c, v = map(float, ((before or prices)[0], max(extremes), min(extremes), close, volume))
        candles[seq] = Figures(o, h, l, c, v, 0)
    return candles


class Day:
    """A desk on an emulated exchange, and all that it has journaled."""

    def __init__(self, exchange: str, folder: Path) -> None:
        self.exchange, self.native = exchange, NATIVES[exchange]
        tape = tape_of_trades(self.native, ape_trades(HOURS))
        self.end_ms = int(tape.end_ms or 0)
        self.tapes: dict[str, Tape] = {self.native: tape}
        self.emulator = Emulator(
            self.tapes, exchange=exchange, start_ns=(tape.begin_ms + WARM_MS) * NS_PER_MS, speed=SPEED, seed=7
        )
        self.store, self.metrics = Store(folder / f"{exchange}.sqlite"), Metrics()
        self.pipeline = Pipeline(MODEL, base_topic="lstmd")
        self.desk: Desk

    def commit(self) -> None:
        for line, work in self.pipeline.take_work():
            self.store.commit([LineCommit(line.name, work.rows, None, "", [])])

    @property
    def journal(self) -> dict[int, Figures]:
        (channel,) = self.desk.markets[0].channels.values()
        return {
            row.seq: Figures(c.open, c.high, c.low, c.close, c.volume, 0)
            for row in self.store.journal(channel.line.name, 0)
            if (c := row.candle)
        }

    @property
    def seconds(self) -> float:
        """How long the tape takes."""
        return (self.end_ms - self.tapes[self.native].begin_ms - WARM_MS) / 1000 / SPEED

    def counted(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"exchange": self.exchange}) or 0.0

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        port = await self.emulator.start()
        url = f"127.0.0.1:{port}"
        symbols = ("APE/USDT:USDT",)
        feed = Feed(exchange=self.exchange, symbols=symbols, ws_url=f"ws://{url}", rest_url=f"http://{url}")
        self.desk = Desk(0, feed, self.pipeline, self.store, self.metrics, self.commit)
        stop = asyncio.Event()
        try:
            async with asyncio.timeout(self.seconds * 4 + 120), asyncio.TaskGroup() as group:
                task = group.create_task(self.desk.run(stop))
                yield
                stop.set()
                task.cancel()
        finally:
            await self.emulator.stop()


async def disturb(day: Day) -> None:
    """Cut and stall all through the day, at moments that a seed gives."""
    rng = random.Random(f"day {day.exchange}")
    moments = sorted(rng.uniform(0.02, 0.5) * day.seconds for _ in range(CUTS))
    began_s = asyncio.get_running_loop().time()
    for n, moment_s in enumerate(moments):
        await asyncio.sleep(max(0.0, began_s + moment_s - asyncio.get_running_loop().time()))
        if n % 4 == 0:
            day.emulator.stall(rng.uniform(0.05, 0.3))
            await asyncio.sleep(0.1)
        await day.emulator.cut()


@pytest.mark.parametrize("exchange", CODECS)
async def test_every_candle_is_the_tapes_whatever_happens_to_the_connections(
    exchange: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ape_trades(HOURS)  # skips without the recorded day
    day = Day(exchange, tmp_path)
    day.emulator.venue.faults.duplicate = 0.0 if exchange == "bingx" else 0.02  # there, a row twice is two trades
    day.emulator.venue.faults.reorder = 0.02
    monkeypatch.setattr(CODECS[exchange], "lifetime_s", day.seconds / (2 * ROLLOVERS + 1))
    async with day.at_work():
        await until(lambda: bool(day.desk.markets) and day.desk.live)
        disturbing = asyncio.create_task(disturb(day))
        wanted = expected(CODECS[exchange].traits)
        newest = max(wanted)
        await until(lambda: max(day.journal, default=0) >= newest - 1)
        await disturbing
        first = min(day.journal)
        folded = {seq: figures for seq, figures in wanted.items() if first <= seq < newest - 1}
        await until(lambda: {seq: day.journal.get(seq) for seq in folded} == folded)
        await until(lambda: day.counted("lstmd_rollovers_total") >= ROLLOVERS)
    assert day.counted("lstmd_rollover_lost_trades_total") == 0
