"""Recordings of our own and foreign ones, the real files where they are present."""

import gzip
import itertools
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feeds.capture import (
    AggTrade,
    Frame,
    frames_from_trades,
    parts_of,
    read_agg_trades,
    read_candles,
    read_frames,
    tape_frames,
    tape_trades,
)
from tests.data import shared


@pytest.fixture
def in_parts(tmp_path: Path) -> Path:
    """Write a recording as the first versions did: gzip, a JSON line each, in parts."""
    for name, times in (("out.2.gz", (3, 4)), ("out.10.gz", (5,)), ("out.1.gz", (1, 2)), ("out.gz", (6, 7))):
        lines = [f'{{"ns":{time},"text":"\\u00e4 {time}"}}' for time in times]
        (tmp_path / name).write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return tmp_path / "out.gz"


def test_our_first_recordings_are_still_read(in_parts: Path) -> None:
    assert [p.name for p in parts_of(in_parts)] == ["out.1.gz", "out.2.gz", "out.10.gz", "out.gz"]
    assert list(tape_frames(in_parts, "X")) == [Frame(time, f"ä {time}") for time in range(1, 8)]


def test_binary_frames_of_our_first_recordings_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"ns":1,"data":"H4sIAA=="}\n')
    assert list(read_frames(tmp_path / "x")) == [Frame(1, b"\x1f\x8b\x08\x00")]


def test_a_recording_cut_off_by_a_kill_reads_up_to_the_cut(in_parts: Path) -> None:
    rng = np.random.default_rng(1)
    lines = [f'{{"ns":{n},"text":"{rng.bytes(50).hex()}"}}\n' for n in range(5000)]
    in_parts.write_bytes(gzip.compress("".join(lines).encode())[:-50_000])
    times = [frame.receive_time_ns for frame in read_frames(in_parts)]
    assert times == list(range(len(times)))
    assert 1000 < len(times) < 5000


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"1 " + bytes(100 << 20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 16777216 bytes"):
            list(read_frames(bomb))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_link_is_no_tape(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("1 {}\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="symbolic link"):
        list(tape_frames(tmp_path / "link", "X"))


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
