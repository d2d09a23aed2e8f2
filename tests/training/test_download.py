"""Fetching history from the emulated exchange: whole, broken off, refused, slowed down, extended."""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from ccxt.async_support.binanceusdm import binanceusdm

from feeds.emulator import Emulator, tape_from
from feeds.emulator.tape import K
from feeds.errors import RateLimited, RemoteError, RequestRefused
from feeds.history.binance import BinanceHistory
from feeds.market import NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market
from tests.daemon.test_cli import LSTMD, WAIT_S, environment
from training import dataset, download
from training.folder import Entry, Folder, FolderError, Gap, Manifest, absent

MINUTE, FIVE = CandleSpec.parse("1m"), CandleSpec.parse("5m")
BEGIN_NS = 1_700_006_400 * NS_PER_S  # a midnight
HISTORY_MIN = 3500
BTC = "BTC/USDT:USDT"
STEM = "binance_BTC-USDT-PERP"
NAMES = [f"{STEM}_1m.parquet", f"{STEM}_1m_mark.parquet", f"{STEM}_funding.parquet"]


@pytest.fixture(autouse=True)
def prompt_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the quarter of a second that ccxt waits for TLS to say goodbye."""
    monkeypatch.setattr(binanceusdm, "timeout_on_exit", 0)


@asynccontextmanager
async def exchange(minutes: int = HISTORY_MIN) -> AsyncIterator[tuple[Emulator, int]]:
    """Run an exchange whose clock stands still `minutes` into its tape; yield it and its port."""
    tapes = {"BTCUSDT": tape_from("synthetic", "BTCUSDT", seed=5, begin_ns=BEGIN_NS)}
    emulator = Emulator(tapes, start_ns=BEGIN_NS + (60 * minutes + 31) * NS_PER_S)
    port = await emulator.start()
    try:
        yield emulator, port
    finally:
        await emulator.stop()


async def fetch(port: int, out: Path, kind: type[BinanceHistory] = BinanceHistory, **changes: Any) -> list[Entry]:
    history = kind(f"http://127.0.0.1:{port}")
    asked: dict[str, Any] = {"symbols": [BTC], "specs": [MINUTE], "since_ns": BEGIN_NS, "rng": random.Random(1)}
    try:
        return await download.download(history, out, **asked | changes)
    finally:
        await history.aclose()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob(".parts/*/*.parquet"))


def manifest(folder: Path) -> Manifest:
    return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that one undisturbed run has filled."""
    out = tmp_path_factory.mktemp("whole")

    async def fill() -> None:
        async with exchange() as (_, port):
            await fetch(port, out)

    asyncio.run(fill())
    return out


def test_the_folder_holds_what_the_exchange_has(whole: Path) -> None:
    tape = tape_from("synthetic", "BTCUSDT", seed=5, begin_ns=BEGIN_NS)
    begin = BEGIN_NS // NS_PER_MS
    bars = tape.candles(60_000, start_ms=begin, end_ms=begin + HISTORY_MIN * 60_000, now_ms=begin + 10**9)
    table = pq.read_table(whole / NAMES[0])
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("open_time", "timestamp[ms, tz=UTC]"), *((name, "double") for name in ("open", "high", "low", "close")),
        ("volume", "double"), ("trades", "int64"),
    ]  # fmt: skip
    rows = np.array(bars, dtype=float)[:, :8]
    expected = [rows[:, 0], *(rows[:, 1:5].T / 10), rows[:, 5] / 1000, rows[:, 7]]  # tick 0.1, lot 0.001
    for column, values in zip(table.columns, expected, strict=True):
        np.testing.assert_array_equal(column.cast("int64" if column.type != "double" else "double"), values)
    mark = pq.read_table(whole / NAMES[1])
    assert mark.column_names == ["open_time", "open", "high", "low", "close"]
    assert mark.equals(table.select(mark.column_names))  # there, the mark is the last price
    funding = pq.read_table(whole / NAMES[2])
    assert funding.column_names == ["time", "funding_rate"]
    eight_hours = np.diff(funding["time"].cast("int64").to_numpy())
    assert len(eight_hours) == HISTORY_MIN // 480 - 1
    assert set(eight_hours) == {8 * 3_600_000}


def test_training_and_the_emulator_read_it(whole: Path) -> None:
    (run,) = dataset.read_series(whole / NAMES[0])
    assert (run.spec, len(run)) == ("1m", HISTORY_MIN)
    assert run.span == (BEGIN_NS, BEGIN_NS + HISTORY_MIN * 60 * NS_PER_S)
    begin_ms = BEGIN_NS // NS_PER_MS
    tape = tape_from(whole / NAMES[0], "BTCUSDT")
    bars = tape.candles(60_000, start_ms=begin_ms, end_ms=begin_ms + 6_000_000, now_ms=begin_ms + 10**8)
    np.testing.assert_array_equal(np.array(bars)[:, K.CLOSE] / 10, run.close[:100])
    with pytest.raises(dataset.CandlesError, match="no column volume"):  # a mark is no market's candle
        dataset.read_series(whole / NAMES[1])


def test_the_manifest_names_every_file_and_nothing_of_this_machine(whole: Path) -> None:
    found = manifest(whole)
    assert sorted(path.name for path in whole.iterdir()) == sorted([*NAMES, "manifest.json"])
    assert [entry.name for entry in found.files] == NAMES
    for entry in found.files:
        assert entry.sha256 == hashlib.sha256((whole / entry.name).read_bytes()).hexdigest()
        assert entry.rows == pq.read_metadata(whole / entry.name).num_rows
        assert (entry.exchange, entry.symbol, entry.gaps) == ("binance", BTC, ())
    assert (found.files[0].begin, found.files[0].end) == ("2023-11-15T00:00:00.000Z", "2023-11-17T10:20:00.000Z")
    assert str(whole) not in (whole / "manifest.json").read_text()


class Trips(Counter[str]):
    """Counts requests; from one number to another, of all or of one kind, the exchange refuses every one."""

    def __init__(self, emulator: Emulator, first: int, last: int, *, of: str | None = None) -> None:
        super().__init__()
        self._emulator, self._span, self._of = emulator, range(first, last + 1), of

    def __setitem__(self, name: str, count: int) -> None:
        super().__setitem__(name, count)
        self._emulator.refuse = (self[self._of] if self._of else self.total()) in self._span


async def test_a_refusal_in_the_middle_changes_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with exchange() as (emulator, port):
        emulator.venue.requests = Trips(emulator, 6, 8)
        await fetch(port, tmp_path)
        assert emulator.venue.requests.total() > 8
    assert contents(tmp_path) == contents(whole)
    assert capsys.readouterr().err.count("again in") == 3


async def test_it_gives_up_and_the_next_run_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TRIES_MAX", 2)
    async with exchange() as (emulator, port):
        emulator.venue.requests = Trips(emulator, 4, 10**6, of="klines")  # after three pages of candles
        with pytest.raises(RemoteError, match="503"):
            await fetch(port, tmp_path)
        assert not (tmp_path / NAMES[0]).exists()
        assert emulator.venue.requests["klines"] == 3 + download.TRIES_MAX
        emulator.venue.requests = Counter()
        emulator.refuse = False
        await fetch(port, tmp_path)
        assert emulator.venue.requests["klines"] == 1
    assert contents(tmp_path) == contents(whole)


async def test_a_killed_run_is_gone_on_with(whole: Path, tmp_path: Path) -> None:
    async with exchange() as (emulator, port):
        emulator.venue.requests = Trips(emulator, 4, 10**6, of="klines")  # after three pages of candles
        command = (
            *LSTMD, "history", "--symbol", BTC, "--since", "2023-11-15", "--out", str(tmp_path),
            "--rest-url", f"http://127.0.0.1:{port}", "--json",
        )  # fmt: skip
        first = await asyncio.create_subprocess_exec(*command, env=environment(), stderr=asyncio.subprocess.PIPE)
        assert first.stderr is not None
        assert b"again in" in await asyncio.wait_for(first.stderr.readline(), WAIT_S)
        first.kill()
        await first.communicate()
        assert len(parts(tmp_path)) == 3
        emulator.venue.requests = Counter()
        emulator.refuse = False
        second = await asyncio.create_subprocess_exec(*command, env=environment(), stdout=asyncio.subprocess.PIPE)
        said, _ = await asyncio.wait_for(second.communicate(), WAIT_S)
        assert second.returncode == 0
        assert emulator.venue.requests["klines"] == 1
    assert contents(tmp_path) == contents(whole)
    told = msgspec.json.decode(said)
    assert told["folder"] == str(tmp_path)
    assert msgspec.convert(told["files"], tuple[Entry, ...]) == manifest(whole).files


async def test_a_kill_between_joining_and_tidying_is_harmless(whole: Path, tmp_path: Path) -> None:
    async with exchange() as (emulator, port):
        await fetch(port, tmp_path)
        rows = pq.read_table(tmp_path / NAMES[0])
        Folder(tmp_path).add(f"{STEM}_1m", rows.slice(1000, 1000))
        (tmp_path / ".parts" / f"{STEM}_1m" / "9.parquet.partial").write_bytes(b"half")
        (tmp_path / "manifest.json").unlink()
        emulator.venue.requests.clear()
        await fetch(port, tmp_path)
        assert emulator.venue.requests["klines"] == 0
    assert contents(tmp_path) == contents(whole)


async def test_a_later_run_adds_what_is_newer_and_an_earlier_start_what_is_older(whole: Path, tmp_path: Path) -> None:
    async with exchange(2000) as (_, port):
        middle = BEGIN_NS + 1234 * 60 * NS_PER_S
        (entry, *_) = await fetch(port, tmp_path, since_ns=middle + 1, until_ns=middle + 400 * 60 * NS_PER_S)
        assert entry.rows == 399  # from the first candle that opens at `since` or later
    async with exchange() as (emulator, port):
        await fetch(port, tmp_path, since_ns=BEGIN_NS + 3000 * 60 * NS_PER_S)  # and what lies between
        assert emulator.venue.requests["klines"] == 2
        await fetch(port, tmp_path, since_ns=0)  # the listing is where it begins
    assert contents(tmp_path) == contents(whole)


async def test_specs_and_markets_share_a_folder(whole: Path, tmp_path: Path) -> None:
    async with exchange() as (_, port):
        await fetch(port, tmp_path, specs=[FIVE])
        entries = await fetch(port, tmp_path)
    assert [entry.name for entry in entries] == NAMES
    assert [entry.spec for entry in manifest(tmp_path).files] == ["1m", "1m", "5m", "5m", None]
    (short,), (long,) = (dataset.read_series(tmp_path / f"{STEM}_{spec}.parquet") for spec in ("1m", "5m"))
    joined = dataset.resample(short, "5m")
    assert joined is not None
    np.testing.assert_array_equal(joined.high, long.high)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


class Lacking(BinanceHistory):
    """Has lost 70 minutes over a page's edge, and the last but one."""

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        found = await super().candles(market, spec, start_ns=start_ns, end_ns=end_ns)
        lost = {*range(950, 1020), HISTORY_MIN - 2}
        return [candle for candle in found if (candle.open_time_ns - BEGIN_NS) // (60 * NS_PER_S) not in lost]


async def test_what_the_exchange_lacks_is_listed_and_never_filled(whole: Path, tmp_path: Path) -> None:
    async with exchange() as (_, port):
        for _ in range(2):
            (entry, *_) = await fetch(port, tmp_path, Lacking)
            assert entry.gaps == (
                Gap("2023-11-15T15:50:00.000Z", "2023-11-15T17:00:00.000Z", 70),
                Gap("2023-11-17T10:18:00.000Z", "2023-11-17T10:19:00.000Z", 1),
            )
            assert entry.rows == HISTORY_MIN - 71
        assert [len(run) for run in dataset.read_series(tmp_path / NAMES[0])] == [950, HISTORY_MIN - 1022, 1]
        await fetch(port, tmp_path)  # once it has them, they are fetched
    assert contents(tmp_path) == contents(whole)


class Limited(BinanceHistory):
    """Wants a pause before every fourth answer."""

    asked = 0

    async def candles(self, market: Market, spec: CandleSpec, *, start_ns: int, end_ns: int) -> list[Candle]:
        self.asked += 1
        if self.asked % 4 == 0:
            raise RateLimited("slower", retry_after_s=0.3)
        return await super().candles(market, spec, start_ns=start_ns, end_ns=end_ns)


async def test_a_limit_is_waited_out(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = asyncio.get_running_loop()
    async with exchange() as (_, port):
        begun = loop.time()
        await fetch(port, tmp_path, Limited)
    assert loop.time() - begun >= 0.3
    assert contents(tmp_path) == contents(whole)
    assert "again in 0.3 s: slower" in capsys.readouterr().err


async def test_what_cannot_be_had_is_refused(tmp_path: Path) -> None:
    async with exchange(100) as (_, port):
        with pytest.raises(RequestRefused, match="trades no ETH/USDT:USDT"):
            await fetch(port, tmp_path, symbols=[BTC, "ETH/USDT:USDT"])
        for text in ("100t", "5s"):
            with pytest.raises(RequestRefused, match=text):
                await fetch(port, tmp_path, specs=[CandleSpec.parse(text)])
        with pytest.raises(FolderError, match="has no 1m candles of BTC/USDT:USDT in that time"):
            await fetch(port, tmp_path, since_ns=BEGIN_NS + 10**15)
    assert contents(tmp_path) == {}


async def test_files_that_are_not_ours_stay_as_they_are(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / NAMES[0]
    async with exchange(100) as (_, port):
        file.write_text("mine")
        with pytest.raises(FolderError, match=NAMES[0]):
            await fetch(port, tmp_path)
        assert file.read_text() == "mine"
        file.write_bytes((whole / NAMES[1]).read_bytes())
        with pytest.raises(FolderError, match="has columns open_time, open, high, low, close, expected open_time"):
            await fetch(port, tmp_path)
        file.unlink()
        (tmp_path / "manifest.json").write_text('{"format": 1, "weights": 3}')
        with pytest.raises(FolderError, match=r"manifest\.json: .*weights"):
            await fetch(port, tmp_path)


def test_absent_spans_are_half_open() -> None:
    assert absent([], 0, 30, 10) == [(0, 30)]
    assert absent([0, 10, 20], 0, 30, 10) == []
    assert absent([10, 40], 0, 70, 10) == [(0, 10), (20, 40), (50, 70)]
