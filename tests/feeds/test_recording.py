"""Our recordings: exact, bounded, readable after a kill, and suspicious of what they are handed."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.capture import Frame, recordings_in, tape_frames, tape_trades
from feeds.events import Entry
from feeds.market import Market
from feeds.playback import is_recording, play, read_header
from feeds.recording import FRAME_MAX_BYTES, SUFFIX, Header, Open, Record, Recorder

HOUR_NS = 3_600_000_000_000
RUN_NS = 1_760_000_000_000_000_000 // HOUR_NS * HOUR_NS
MARKET = Market(exchange="binance", symbol="BTC/USDT:USDT", native="BTCUSDT", price_decimals=1, size_decimals=3)
HEADER = Header(exchange="binance", run_ns=RUN_NS, exchange_ahead_ns=-5, wires=((MARKET,),), specs=("1m",))
OPENED = Record(RUN_NS, 0, 1, Entry.OPENED, b"")
CONFIRMED = Record(RUN_NS + 1, 0, 1, Entry.CONFIRMED, b"")


def frame(number: int, payload: bytes = b"x", *, at_ns: int | None = None) -> Record:
    return Record(RUN_NS + number if at_ns is None else at_ns, 0, 1, Entry.FRAME, payload)


def recorder(folder: Path, header: Header = HEADER, *, max_bytes: int = 1 << 30) -> Recorder:
    return Recorder(folder, header, max_bytes=max_bytes)


def read(*paths: Path) -> tuple[list[Record], list[str]]:
    said: list[str] = []
    return [record for _, record in play(paths, said.append)], said


def killed(folder: Path, records: list[Record], *, flushed: int) -> Path:
    """Write records and leave the file as a kill would, the first `flushed` of them handed to the system."""
    one = recorder(folder)
    for record in records[:flushed]:
        one.write(record)
    one.flush()
    for record in records[flushed:]:
        one.write(record)
    (path,) = folder.iterdir()
    left = path.read_bytes()
    one.close()
    path.write_bytes(left)
    return path


RECORDS = st.lists(
    st.builds(
        Record,
        st.integers(RUN_NS, RUN_NS + HOUR_NS - 1),
        st.integers(0, 3),
        st.integers(1, 9),
        st.sampled_from(list(Entry)),
        st.binary(max_size=300) | st.just(b"\n") | st.just(b"\x1f\x8b\x08\x00\n0 0 1 frame 3\n"),
    ),
    max_size=30,
)


@given(records=RECORDS)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_to_the_byte(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    folder = tmp_path_factory.mktemp("rec")
    with recorder(folder) as one:
        for record in records:
            one.write(record)
    assert read(*folder.iterdir()) == (records, [])


def test_the_longest_frame_fits_and_a_longer_entry_is_no_recording(tmp_path: Path) -> None:
    long = frame(1, b"\n" * FRAME_MAX_BYTES)
    with recorder(tmp_path / "a") as one:
        one.write(long)
    assert read(*(tmp_path / "a").iterdir()) == ([long], [])
    with recorder(tmp_path / "b") as one:
        one.write(frame(1))
        one.write(frame(2, b"\n" * (FRAME_MAX_BYTES + 1)))
    records, said = read(*(tmp_path / "b").iterdir())
    assert records == [frame(1)]
    assert "read up to entry 1," in said[0]
    assert "8388609 bytes" in said[0]


def test_each_hour_has_a_file_that_can_be_read_alone(tmp_path: Path) -> None:
    funding = Record(RUN_NS, 0, 0, Entry.FUNDING, b'{"symbol":"BTC/USDT:USDT","asked_at_ns":1,"settlements":[]}')
    records = [funding, OPENED, CONFIRMED, *(frame(0, at_ns=RUN_NS + n * HOUR_NS // 2) for n in range(5))]
    with recorder(tmp_path) as one:
        for record in records:
            one.write(record)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [f"binance-20251009T080000000Z-{n:06d}{SUFFIX}" for n in range(3)]
    assert [record for record in read(*files)[0] if record != funding] == records[1:]
    assert read_header(files[1]).open == (Open(0, 1, True),)
    alone, said = read(files[1])
    assert [record.entry for record in alone] == [
        Entry.OPENED,
        Entry.CONFIRMED,
        Entry.FUNDING,
        Entry.FRAME,
        Entry.FRAME,
    ]
    assert not said


def test_the_folder_stays_within_its_bound_and_the_oldest_go_first(tmp_path: Path) -> None:
    rng, bound = random.Random(1), 100_000
    deleted: list[Path] = []
    other = tmp_path / f"bybit-20250101T000000000Z-000000{SUFFIX}"
    other.write_bytes(bytes(90_000))
    with recorder(tmp_path, msgspec.structs.replace(HEADER, run_ns=RUN_NS - HOUR_NS)) as one:
        one.write(frame(0, rng.randbytes(40_000), at_ns=RUN_NS - HOUR_NS))
    first = next(path for path in tmp_path.iterdir() if path != other)
    with Recorder(tmp_path, HEADER, max_bytes=bound, deleted=deleted.append) as one:
        for number in range(200):
            one.write(frame(number, rng.randbytes(2000)))
            one.flush()
            assert sum(path.stat().st_size for path in tmp_path.iterdir() if path != other) <= bound
    left = [path for path in sorted(tmp_path.iterdir()) if path != other]
    assert deleted[0] == first
    assert deleted == sorted(deleted)
    assert not set(deleted) & set(left)
    assert other.exists(), "another exchange's"
    records, said = read(*left)
    assert not said
    frames = [record.time_ns for record in records if record.entry is Entry.FRAME]
    assert frames == list(range(frames[0], RUN_NS + 200)), "the newest are kept, without a hole"
    assert len(frames) > 20


def test_a_killed_recorder_loses_what_it_had_not_flushed_and_no_more(tmp_path: Path) -> None:
    records = [frame(n, os.urandom(200)) for n in range(1, 301)]
    path = killed(tmp_path, records, flushed=250)
    got, _ = read(path)
    assert got[:250] == records[:250]
    assert got == records[: len(got)]


def test_wherever_a_file_is_cut_or_spoilt_what_comes_before_is_read_and_the_rest_is_said(tmp_path: Path) -> None:
    records = [frame(n, random.Random(n).randbytes(100)) for n in range(1, 60)]
    with recorder(tmp_path) as one:
        for record in records:
            one.write(record)
            one.flush()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for cut in range(400, len(whole) - 1, 97):
        path.write_bytes(whole[:cut])
        got, said = read(path)
        assert got == records[: len(got)]
        assert len(got) >= len(records) * (cut - 500) // len(whole)
        assert f"read up to entry {len(got)}, there it breaks off" in said[0]
    path.write_bytes(whole[:-200] + bytes(200))
    got, said = read(path)
    assert got == records[: len(got)]
    assert len(got) >= 45
    assert "breaks off" in said[0]


def test_a_recorder_that_was_killed_has_lost_its_connections(tmp_path: Path) -> None:
    killed(tmp_path, [OPENED, CONFIRMED, frame(5)], flushed=3)
    later = msgspec.structs.replace(HEADER, run_ns=RUN_NS + 1_000_000)
    with recorder(tmp_path, later) as one:
        one.write(frame(0, at_ns=RUN_NS + 2_000_000))
    got, said = read(*tmp_path.iterdir())
    ended = Record(RUN_NS + 5, 0, 1, Entry.ENDED, b"the recording breaks off")
    assert got == [OPENED, CONFIRMED, frame(5), ended, frame(0, at_ns=RUN_NS + 2_000_000)]
    assert "read up to entry 3, there it breaks off (not closed)" in said[0]


def three_hours(folder: Path) -> list[Path]:
    with recorder(folder) as one:
        for record in (OPENED, CONFIRMED, *(frame(0, at_ns=RUN_NS + n * HOUR_NS) for n in range(3))):
            one.write(record)
    return sorted(folder.iterdir())


def test_a_recorder_killed_at_once_leaves_a_file_that_can_be_read(tmp_path: Path) -> None:
    path = killed(tmp_path, [], flushed=0)
    assert read_header(path) == HEADER
    assert read(path)[0] == []


def test_a_missing_file_breaks_the_connections_and_a_torn_one_too(tmp_path: Path) -> None:
    files = three_hours(tmp_path)
    kinds = [record.entry for record in read(files[2], files[0])[0]]
    afresh = [Entry.ENDED, Entry.OPENED, Entry.CONFIRMED, Entry.FRAME]
    assert kinds == [Entry.OPENED, Entry.CONFIRMED, Entry.FRAME, *afresh]
    files[1].write_bytes(files[1].read_bytes()[:-20])
    kinds = [record.entry for record in read(*files)[0]]
    assert kinds[-4:] == afresh


def test_files_that_do_not_follow_upon_one_another_are_refused(tmp_path: Path) -> None:
    files = three_hours(tmp_path / "a")
    with recorder(tmp_path / "b", msgspec.structs.replace(HEADER, run_ns=RUN_NS + HOUR_NS)) as one:
        one.write(frame(0, at_ns=RUN_NS + HOUR_NS))
    with recorder(tmp_path / "c", msgspec.structs.replace(HEADER, exchange="bybit")):
        pass
    with pytest.raises(ValueError, match="recorded while the one before it"):
        read(*files, *(tmp_path / "b").iterdir())
    with pytest.raises(ValueError, match="a second time"):
        read(files[0], files[0])
    with pytest.raises(ValueError, match="several exchanges: binance, bybit"):
        read(*files, *(tmp_path / "c").iterdir())


def packed(body: bytes, **options: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(body)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (packed(b"x" * (200 << 20), window_log=27), "too much memory"),
        (packed(b"x" * (20 << 20)), "malformed"),
        (packed(b'{"format":"lstmd-frames","version":3}'), "3"),
        (packed(b'{"format":"other"}\n'), "other"),
        (b"\x28\xb5\x2f\xfd\xff\xff", "zstd|truncated|input"),
    ],
    ids=["a window without bound", "a header without end", "a later version", "something else", "no zstd"],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / f"x{SUFFIX}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.frames\.zst.*({said})"):
        read(path)


def test_links_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    files = three_hours(tmp_path / "real")
    link = tmp_path / f"link{SUFFIX}"
    link.symlink_to(files[0])
    os.mkfifo(tmp_path / f"pipe{SUFFIX}")
    for path, said in ((link, "symbolic link"), (tmp_path / f"pipe{SUFFIX}", "no regular file")):
        with pytest.raises(ValueError, match=said):
            is_recording(path)
    with pytest.raises(ValueError, match=r"symbolic link|no regular file"):
        list(tape_frames(tmp_path, "BTCUSDT"))


def test_a_recorder_follows_no_link_and_overwrites_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / f"binance-20251009T080000000Z-000000{SUFFIX}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        recorder(tmp_path / "rec")
    assert victim.read_text() == "mine"
    old = tmp_path / "rec" / f"binance-20240101T000000000Z-000000{SUFFIX}"
    old.symlink_to(victim)
    with recorder(tmp_path / "rec", msgspec.structs.replace(HEADER, run_ns=RUN_NS + 1_000_000), max_bytes=4000) as one:
        one.write(frame(0, os.urandom(8000), at_ns=RUN_NS + 1_000_000))
        one.flush()
    assert old.is_symlink(), "not ours to delete"


def pushes() -> Iterator[bytes]:
    for number in range(1, 4):
        figures = '"s":"BTCUSDT","p":"1.5","q":"2","f":1,"l":1,"m":true'
        data = f'"e":"aggTrade","E":{number},"a":{number},"T":{number},{figures}'
        yield f'{{"stream":"btcusdt@aggTrade","data":{{{data}}}}}'.encode()


def test_a_recording_is_a_tape_like_others(tmp_path: Path) -> None:
    with recorder(tmp_path) as one:
        one.write(OPENED)
        for number, push in enumerate(pushes()):
            one.write(frame(number, push))
    (path,) = recordings_in(tmp_path)
    for tape in (path, tmp_path):
        assert list(tape_frames(tape, "BTCUSDT")) == [Frame(RUN_NS + n, push) for n, push in enumerate(pushes())]
        assert [trade.id for trade in tape_trades(tape, "BTCUSDT")] == [1, 2, 3]
    with pytest.raises(ValueError, match="no recording"):
        recordings_in(tmp_path / "empty")
