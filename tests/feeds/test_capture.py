"""Recordings of our own and foreign ones, the real files where they are present."""

import gzip
import itertools
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.capture import (
    FLUSH_FRAMES,
    AggTrade,
    Frame,
    Recorder,
    frames_from_trades,
    parts_of,
    read_agg_trades,
    read_candles,
    read_frames,
    tape_frames,
    tape_trades,
)
from tests.data import shared

FRAMES = st.lists(st.tuples(st.integers(0, 2**62), st.text() | st.binary()), max_size=20)


@given(frames=FRAMES)
@settings(max_examples=40, deadline=None)
def test_a_recording_reads_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, frames: list[tuple[int, str | bytes]]
) -> None:
    path = tmp_path_factory.mktemp("rec") / "out.jsonl.gz"
    with Recorder(path) as recorder:
        for time_ns, frame in frames:
            recorder.write(time_ns, frame)
    assert list(read_frames(path)) == [Frame(time_ns, frame) for time_ns, frame in frames]


def test_parts_are_bounded_and_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    rng = np.random.default_rng(1)
    with Recorder(path, part_bytes=50_000, parts=3) as recorder:
        for number in range(10 * FLUSH_FRAMES + 7):
            recorder.write(number, rng.bytes(100).hex())
    assert [p.name for p in parts_of(path)] == ["out.8.jsonl.gz", "out.9.jsonl.gz", "out.10.jsonl.gz", "out.jsonl.gz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in parts_of(path))
    times = [frame.receive_time_ns for frame in tape_frames(path, "BTCUSDT")]
    assert times == list(range(7 * FLUSH_FRAMES, 10 * FLUSH_FRAMES + 7))


def test_a_new_recorder_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.gz"
    for number in (1, 2):
        with Recorder(path) as recorder:
            recorder.write(number, "frame")
    assert [p.name for p in parts_of(path)] == ["out.1.gz", "out.gz"]
    assert [frame.receive_time_ns for frame in tape_frames(path, "X")] == [1, 2]


def test_a_recording_cut_off_by_a_kill_reads_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    recorder = Recorder(path)
    for number in range(2 * FLUSH_FRAMES + 5):
        recorder.write(number, "frame")
    left = path.read_bytes()
    recorder.close()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(left)
    assert len(list(read_frames(cut))) == 2 * FLUSH_FRAMES


@pytest.mark.parametrize("line", ["hello", '{"ns":"x"}', "12.x: {}", '{"e":"trade"}'])
def test_an_unknown_line_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(f'1 {{"a":1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"bad\.txt:2"):
        list(read_frames(path))


def test_plain_files_are_read_as_well_as_gzip(tmp_path: Path) -> None:
    plain, zipped = tmp_path / "a", tmp_path / "b"
    plain.write_text('1723161255088156767 {"a":1}\n\n')
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_frames(plain)) == list(read_frames(zipped)) == [Frame(1723161255088156767, '{"a":1}')]


def test_cryptofeed_times_are_exact_and_what_was_sent_is_left_out() -> None:
    frames = list(read_frames(shared("cryptofeed/BINANCE_FUTURES.ws.1.0.gz")))
    assert frames[0].receive_time_ns == 1_626_992_741_062_170_000
    assert all(isinstance(f.text, str) and f.text.startswith("{") for f in frames)
    bitmex = list(read_frames(shared("cryptofeed/BITMEX.ws.1.0.gz")))
    assert not any('"op":"subscribe","args"' in str(f.text)[:30] for f in bitmex)


def test_the_official_dump_is_read_whole() -> None:
    trades = list(read_agg_trades(shared("trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip")))
    assert len(trades) == 45_342
    assert trades[0] == AggTrade(171927517, "0.7097", "19.0", 551530707, 551530707, 1729209603958, False)
    assert all(b.id == a.id + 1 for a, b in itertools.pairwise(trades))


def test_every_tape_gives_the_same_trades_as_frames_and_as_rows() -> None:
    for name, native, count in (
        ("trades/binance_um_APEUSDT-aggTrades-2024-10-18.zip", "APEUSDT", 45_342),
        ("hftbacktest/usdm_ethusdt_20240808.gz", "ETHUSDT", 14_076),
        ("cryptofeed/BINANCE_FUTURES.ws.1.0.gz", "SUSHIUSDT", 40),
    ):
        path = shared(name)
        trades = list(tape_trades(path, native))
        assert len(trades) == count
        stream = f"{native.lower()}@aggTrade"
        pushes = [f for f in tape_frames(path, native) if f'"stream":"{stream}"' in str(f.text[:60])]
        data = [msgspec.json.decode(push.text)["data"] for push in pushes]
        assert [(d["a"], d["p"], d["q"], d["f"], d["l"], d["T"], d["m"]) for d in data] == [tuple(t) for t in trades]
        assert {d["s"] for d in data} == {native}


def test_insurance_fund_trades_are_no_trades(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    body = '{"stream":"a@trade","data":{"e":"trade","E":2,"T":1,"s":"A","t":%d,"p":"1","q":"1","X":"%s","m":true}}'
    path.write_text("".join(f"{i} {body % (i, x)}\n" for i, x in ((1, "MARKET"), (2, "INSURANCE_FUND"), (3, "NA"))))
    assert [t.id for t in tape_trades(path, "A")] == [1]


def test_frames_carry_what_the_exchange_sends_today() -> None:
    live = [msgspec.json.decode(line) for line in shared("live2026/frames.jsonl").read_bytes().splitlines()]
    real = next(msgspec.json.decode(r["raw"]) for r in live if (r["venue"], r["channel"]) == ("binance_um", "aggTrade"))
    trade = AggTrade(1, "2.5", "3", 4, 5, 6, True)
    (frame,) = frames_from_trades("BTCUSDT", [trade])
    ours = msgspec.json.decode(frame.text)
    assert (ours.keys(), ours["data"].keys()) == (real.keys(), real["data"].keys())
    assert {k: type(v) for k, v in ours["data"].items()} == {k: type(v) for k, v in real["data"].items()}
    assert frame.receive_time_ns == 6_000_000


def test_real_candles_of_either_time_unit() -> None:
    for name, rows in (
        ("ohlcv/binance_um/AVAXUSDT_1m_2025-02_raw.parquet", 40_320),
        ("ohlcv/bybit_linear/DOGEUSDT_1m_2025-05-30_2025-06-29.parquet", 43_200),
    ):
        candles = read_candles(shared(name))
        assert {len(column) for column in candles} == {rows}
        assert (np.diff(candles.open_time_ns) == 60_000_000_000).all()
        assert (candles.low <= candles.high).all()
        assert candles.volume.dtype == np.float64


def test_candle_files_that_lack_or_mix_up_something(tmp_path: Path) -> None:
    times = pa.array([60_000, 0], pa.timestamp("ms", tz="UTC"))
    ones = [1.0, 1.0]
    table = pa.table({"open_time": times, "open": ones, "high": ones, "low": ones, "close": ones, "volume": ones})
    pq.write_table(table, tmp_path / "order.parquet")
    with pytest.raises(ValueError, match="ascend"):
        read_candles(tmp_path / "order.parquet")
    pq.write_table(table.drop_columns("volume"), tmp_path / "lacks.parquet")
    with pytest.raises(ValueError, match="volume"):
        read_candles(tmp_path / "lacks.parquet")
