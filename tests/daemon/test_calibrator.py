"""The daily revision at work: real candles from the emulated exchange around a midnight."""

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
import pytest
import structlog

from config.load import ConfigError
from config.schema import Feed
from daemon import calibrator
from daemon.calibrator import Calibrator
from daemon.desk import Desk
from daemon.line import VOID_SPACING_NS, Line, Snapshot
from daemon.metrics import Metrics
from daemon.pipeline import Pipeline
from daemon.source import Source
from daemon.store import LineCommit, Message, Store
from feeds.capture import read_candles
from feeds.emulator.server import Emulator
from feeds.emulator.sources import tape_of_candles
from feeds.emulator.tape import Tape
from feeds.errors import RequestRefused
from feeds.market import NS_PER_DAY, Candle, CandleSpec, Market, Origin
from inference import artifact as artifacts
from inference.engine import Model
from inference.revisions import RevisionBook, day_of
from inference.signals import Rules
from tests.daemon.brokers import until
from tests.daemon.lines import new_line, small_artifact
from tests.data import shared
from training import online
from training.dataset import Series, load

DAY = dt.date(2025, 6, 20)
MIDNIGHT_NS = day_of(DAY) * NS_PER_DAY
MINUTE = CandleSpec.parse("1m")
MINUTE_NS = MINUTE.interval_ns
MIDNIGHT = MINUTE.seq_at(MIDNIGHT_NS)
MARKETS = ("ADA/USDT:USDT", "SOL/USDT:USDT")
WAIT_S = 90
MODEL = Model(small_artifact("1m"), Rules())


def native_of(symbol: str) -> str:
    return symbol.partition("/")[0] + "USDT"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold an artifact, and the candles of the ten days before midnight and of three hours after it."""
    made = tmp_path_factory.mktemp("calibrator")
    artifacts.save(MODEL.artifact, made / "artifact")
    for symbol in MARKETS:
        table = pq.read_table(shared(f"ohlcv/binance_um/{native_of(symbol)}_1m_2025-05_2025-06.parquet"))
        opened = table["open_time"].to_numpy().astype("datetime64[ns]").astype(np.int64)
        first, end = np.searchsorted(opened, (MIDNIGHT_NS - 10 * NS_PER_DAY, MIDNIGHT_NS + NS_PER_DAY // 8))
        pq.write_table(table.slice(first, end - first), made / f"{native_of(symbol)}_1m.parquet")
    return made


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


@pytest.fixture(scope="module")
def tapes(folder: Path) -> dict[str, Tape]:
    natives = {path.stem.removesuffix("_1m"): path for path in files(folder)}
    return {native: tape_of_candles(native, read_candles(path)) for native, path in natives.items()}


def market(symbol: str, **changes: Any) -> Market:
    return Market(
        exchange="binance", symbol=symbol, native=native_of(symbol), price_decimals=4, size_decimals=0, **changes
    )


@contextlib.asynccontextmanager
async def emulated(
    tapes: dict[str, Tape], *, before_min: float, speed: float = 300
) -> AsyncIterator[tuple[Emulator, Feed]]:
    """Be an exchange whose clock stands some minutes before midnight until the first subscription."""
    emulator = Emulator(tapes, start_ns=MIDNIGHT_NS - round(before_min * MINUTE_NS), speed=speed)
    url = f"127.0.0.1:{await emulator.start()}"
    try:
        yield (
            emulator,
            Feed(
                exchange="binance", symbols=("ADA/USDT:USDT",), candles=("1m",), calibrate_on=MARKETS,
                ws_url=f"ws://{url}", rest_url=f"http://{url}",
            ),
        )  # fmt: skip
    finally:
        await emulator.stop()


class At:
    """A desk at work, with a store and a pipeline of its own."""

    def __init__(self, feed: Feed, path: Path) -> None:
        self.store, self.pipeline = Store(path), Pipeline(MODEL, base_topic="lstmd")
        self.told: dict[int, bytes] = {}
        self.late: dict[int, bool] = {}
        self.live: set[int] = set()
        self.desk = Desk(0, feed, self.pipeline, self.store, Metrics(), self._moved)

    def _moved(self) -> None:
        for line, work in self.pipeline.take_work():
            messages = [Message(d.seq, d.topic, d.time_ns, d.identity, b"{}") for d in work.drafts]
            state = Snapshot(line.next_seq - 1, line.engine.snapshot())
            self.store.commit([LineCommit(line.name, work.rows, state, line.model_key, messages)])
            for draft in work.drafts:
                assert draft.seq not in self.told
                self.told[draft.seq], self.late[draft.seq] = draft.identity, draft.context.late
        self.live |= {payload.seq for _, payload in self.pipeline.live()}

    async def __aenter__(self) -> Self:
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self.desk.run(self._stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.store.close()

    async def reaches(self, seq: int) -> None:
        await self.until(lambda: bool(self.told) and max(self.told) >= seq)

    async def until(self, true: Callable[[], bool]) -> None:
        def over() -> bool:
            if self._task.done():
                self._task.result()
            return true()

        async with asyncio.timeout(WAIT_S):
            await until(over)

    @property
    def line(self) -> Line:
        return self.desk.markets[0].channels["1m"].line

    @property
    def book(self) -> RevisionBook:
        assert self.line.engine.revisions is not None
        return self.line.engine.revisions


def policies(told: dict[int, bytes]) -> dict[int, str]:
    return {seq: json.loads(identity)["policy"] for seq, identity in told.items()}


async def test_when_it_was_started_does_not_show_and_the_revision_is_that_of_calibrate(
    folder: Path, tapes: dict[str, Tape], tmp_path: Path
) -> None:
    async with emulated(tapes, before_min=8.5) as (_, feed), At(feed, tmp_path / "a") as early:
        await early.until(lambda: bool(early.told))
        async with At(feed, tmp_path / "b") as between:
            await early.reaches(MIDNIGHT + 3)
            async with At(feed, tmp_path / "c") as after:
                await after.until(lambda: len(after.told) >= 8)
                await early.reaches(max(after.told))
                await between.reaches(max(after.told))
    assert min(early.told) < MIDNIGHT < min(after.told)
    for other in (between, after):
        both = early.told.keys() & other.told.keys()
        assert len(both) >= 8
        assert all(early.told[seq] == other.told[seq] for seq in both)
    assert sorted(early.told) == list(range(min(early.told), max(early.told) + 1))
    by_day = [{p for seq, p in policies(early.told).items() if (seq >= MIDNIGHT) is today} for today in (False, True)]
    assert [len(found) for found in by_day] == [1, 1]
    assert by_day[0] != by_day[1]
    assert early.late[MIDNIGHT], "nobody knows a day's revision when it begins"
    assert early.live
    assert MIDNIGHT not in early.live
    for at in (early, between, after):
        for day in {DAY - dt.timedelta(seq < MIDNIGHT) for seq in at.told}:
            expected = online.calibrate(files(folder), folder / "artifact", day)
            assert at.book.at(day_of(day) * NS_PER_DAY) == expected.calibration["1m"]
            assert expected.observations["1m"] == (7 * 288,)


async def test_while_the_exchange_refuses_signals_wait_and_then_come_and_a_restart_asks_for_nothing_anew(
    tapes: dict[str, Tape], tmp_path: Path
) -> None:
    async with emulated(tapes, before_min=8, speed=120) as (emulator, feed):
        async with At(feed, tmp_path / "s") as at:
            await at.until(lambda: bool(at.told))
            emulator.refuse = True
            await at.until(lambda: at.desk.availability(at.desk.markets[0])[0] == "tainted")
            said = at.desk.availability(at.desk.markets[0])[1]
            assert said.startswith(f"1m: the calibration of {DAY} is not known yet")
            await at.until(lambda: "history unreachable" in at.desk.availability(at.desk.markets[0])[1])
            await at.until(lambda: emulator.now_ns() > MIDNIGHT_NS + 4 * MINUTE_NS)
            assert max(at.told) == MIDNIGHT - 1
            emulator.refuse = False
            await at.until(lambda: at.desk.availability(at.desk.markets[0])[0] == "online")
            await at.reaches(MIDNIGHT + 6)
        assert sorted(at.told) == list(range(min(at.told), max(at.told) + 1))
        assert all(at.late[seq] for seq in range(MIDNIGHT, MIDNIGHT + 3))
        asked = emulator.venue.requests["klines"]
        async with At(feed, tmp_path / "s") as again:
            await again.reaches(max(at.told) + 3)
            assert again.book.at(MIDNIGHT_NS) == at.book.at(MIDNIGHT_NS)
        assert min(again.told) == max(at.told) + 1
        assert set(policies(again.told).values()) == {policies(at.told)[MIDNIGHT]}
        assert emulator.venue.requests["klines"] - asked < 7, "seven days would have been more"


async def test_a_market_nobody_trades_is_named_with_its_key(tapes: dict[str, Tape], tmp_path: Path) -> None:
    async with emulated(tapes, before_min=5) as (_, feed):
        wrong = feed.model_copy(update={"calibrate_on": ("SOL/USDT:USDT", "ADDA/USDT:USDT")})
        with pytest.raises(
            ConfigError, match=r"feeds\[0\].calibrate_on\[1\]: .* ADDA/USDT:USDT; did you mean ADA/USDT"
        ):
            async with At(wrong, tmp_path / "s") as at:
                await at.until(lambda: False)


# ---- without an exchange: what candles it has, and when


class Kept:
    """An exchange's history that lacks some candles, the first time or always."""

    settle_ns = 0
    budget = None

    def __init__(self, runs: Sequence[Series]) -> None:
        self._runs = {run.name.removesuffix("_1m"): run for run in runs}
        self.refuses = 0
        self.absent: dict[int, int] = {}
        """How often a row of the first market is still not there."""
        self.reads: list[tuple[str, int, int]] = []

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        if self.refuses:
            self.refuses -= 1
            raise RequestRefused("Invalid symbol.")
        run = self._runs[market.native]
        self.reads.append((market.native, start_ns // MINUTE_NS, end_ns // MINUTE_NS))
        rows = range(*np.searchsorted(run.close_time_ns, (start_ns, end_ns), side="right"))
        away = {row for row, times in self.absent.items() if times and market.native == "ADAUSDT"}
        self.absent = {row: times - (row in rows) for row, times in self.absent.items()}
        return [_candle(run, row) for row in rows if row not in away]


def _candle(run: Series, row: int) -> Candle:
    closed = int(run.close_time_ns[row])
    o, h, l, c, v = (float(getattr(run, name)[row]) for name in ("open", "high", "low", "close", "volume"))
    return Candle(
        seq=closed // MINUTE_NS, open_time_ns=closed - MINUTE_NS, close_time_ns=closed, open=o, high=h, low=l, close=c,
        volume=v, trades=1, closed=True, origin=Origin.EXCHANGE,
    )  # fmt: skip


class Clockwork:
    """A calibrator on a clock that the test turns."""

    def __init__(self, history: Kept, path: Path, **listed: int) -> None:
        self.now_ns = MIDNIGHT_NS - 2 * NS_PER_DAY + 10**10
        self.revised = 0

        def count() -> None:
            self.revised += 1

        source = Source(history, structlog.get_logger(), hindered=lambda: None)  # type: ignore[arg-type]
        self.store = Store(path)
        self.calibrator = Calibrator(
            artifact=MODEL.artifact, markets=[market(symbol, **listed) for symbol in MARKETS], specs=[MINUTE],
            source=source, store=self.store, now_ns=lambda: self.now_ns, revised=count,
        )  # fmt: skip
        self.book = self.calibrator.book(MINUTE)

    async def __aenter__(self) -> Self:
        self.lines = [self.waiting_since(self.now_ns)]
        self._task = asyncio.create_task(self.calibrator.run(lambda: self.lines))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        self.store.close()

    def waiting_since(self, time_ns: int) -> Line:
        line = new_line(revisions=self.book)
        line.next_seq = time_ns // MINUTE_NS
        return line

    async def has(self, day: dt.date) -> None:
        await self.until(lambda: self.book.at(day_of(day) * NS_PER_DAY) is not None)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            await until(lambda: self._task.done() or true())
        assert not self._task.done(), self._task.exception()


@pytest.fixture
def kept(folder: Path) -> Kept:
    return Kept(load(files(folder)))


def days_before(count: int) -> dt.date:
    return DAY - dt.timedelta(count)


async def test_day_after_day_it_asks_for_little_and_comes_to_the_same(folder: Path, kept: Kept, tmp_path: Path) -> None:
    async with Clockwork(kept, tmp_path / "s") as work:
        for ahead in (2, 1, 0):
            work.now_ns = MIDNIGHT_NS - ahead * NS_PER_DAY + 10**10
            await work.has(days_before(ahead))
        assert work.revised == 3
        for ahead in (2, 1, 0):
            expected = online.calibrate(files(folder), folder / "artifact", days_before(ahead))
            assert work.book.at(day_of(days_before(ahead)) * NS_PER_DAY) == expected.calibration["1m"]
    asked = [last - first for _, first, last in kept.reads]
    assert len(asked) == 6
    assert all(7 * 1440 <= candles <= 7 * 1440 + 28 for candles in asked[:2])
    assert all(1440 <= candles <= 1440 + 2 * 28 for candles in asked[2:])


async def test_a_market_that_comes_later_and_needs_an_earlier_day_gets_it(
    folder: Path, kept: Kept, tmp_path: Path
) -> None:
    work = Clockwork(kept, tmp_path / "s")
    work.now_ns += NS_PER_DAY
    async with work:
        await work.has(days_before(1))
        work.lines.append(work.waiting_since(work.now_ns - NS_PER_DAY))
        await work.has(days_before(2))
        work.now_ns += NS_PER_DAY
        await work.has(DAY)
        for ahead in (2, 1, 0):
            expected = online.calibrate(files(folder), folder / "artifact", days_before(ahead))
            assert work.book.at(day_of(days_before(ahead)) * NS_PER_DAY) == expected.calibration["1m"]


async def test_a_day_begins_when_its_last_rows_are_final(kept: Kept, tmp_path: Path) -> None:
    kept.settle_ns = 5 * 10**9
    work = Clockwork(kept, tmp_path / "s")
    work.now_ns = MIDNIGHT_NS - NS_PER_DAY
    async with work:
        work.now_ns = MIDNIGHT_NS - NS_PER_DAY + 6 * 10**9 - 1
        await asyncio.sleep(0.3)
        assert not kept.reads
        work.now_ns += 1
        await work.has(days_before(1))


async def test_a_candle_that_the_second_read_has_counts(folder: Path, kept: Kept, tmp_path: Path) -> None:
    kept.absent[5_000] = 1
    async with Clockwork(kept, tmp_path / "s") as work:
        await work.until(lambda: len(kept.reads) == 1)
        await asyncio.sleep(0.3)
        assert len(kept.reads) == 1, "it may still come"
        work.now_ns += VOID_SPACING_NS
        await work.has(days_before(2))
        expected = online.calibrate(files(folder), folder / "artifact", days_before(2))
        assert work.book.at(day_of(days_before(2)) * NS_PER_DAY) == expected.calibration["1m"]


async def test_a_hole_that_stays_is_one_for_calibrate_too(folder: Path, kept: Kept, tmp_path: Path) -> None:
    kept.absent[5_000] = 2
    for symbol in MARKETS:
        table = pq.read_table(folder / f"{native_of(symbol)}_1m.parquet")
        if symbol == MARKETS[0]:
            table = pq.read_table(folder / "ADAUSDT_1m.parquet").take([n for n in range(len(table)) if n != 5_000])
        pq.write_table(table, tmp_path / f"{native_of(symbol)}_1m.parquet")
    async with Clockwork(kept, tmp_path / "s") as work:
        await work.until(lambda: len(kept.reads) == 1)
        work.now_ns += VOID_SPACING_NS
        await work.has(days_before(2))
        found = work.book.at(day_of(days_before(2)) * NS_PER_DAY)
    assert found == online.calibrate(files(tmp_path), folder / "artifact", days_before(2)).calibration["1m"]
    assert found != online.calibrate(files(folder), folder / "artifact", days_before(2)).calibration["1m"]


async def test_a_refusal_is_rested_upon_and_asked_again(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrator, "REFUSED_PAUSE_S", 0.2)
    kept.refuses = 2
    async with Clockwork(kept, tmp_path / "s") as work:
        await work.until(lambda: work.calibrator.refused == "Invalid symbol.")
        await work.has(days_before(2))
        await work.until(lambda: not work.calibrator.refused)
    assert kept.refuses == 0


async def test_before_a_markets_listing_nothing_is_waited_for(kept: Kept, tmp_path: Path) -> None:
    listed_ns = MIDNIGHT_NS - 4 * NS_PER_DAY
    async with Clockwork(kept, tmp_path / "s", listed_at_ns=listed_ns) as work:
        await work.has(days_before(2))
    assert [first for _, first, _ in kept.reads] == [listed_ns // MINUTE_NS] * 2


async def test_what_a_store_says_stands(kept: Kept, tmp_path: Path) -> None:
    async with Clockwork(kept, tmp_path / "s") as work:
        await work.has(days_before(2))
        said = work.book.at(MIDNIGHT_NS - 2 * NS_PER_DAY)
    reads = len(kept.reads)
    async with Clockwork(kept, tmp_path / "s") as again:
        await asyncio.sleep(0.3)
        assert again.book.at(MIDNIGHT_NS - 2 * NS_PER_DAY) == said
    assert len(kept.reads) == reads
