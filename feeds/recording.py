"""Our own recordings: what came over an exchange's connections, to the byte, with the time of its receipt.

A recording is a folder of files ``EXCHANGE-RUN-NUMBER.frames.zst``; RUN is when its recorder began, and NUMBER counts
its files. Each file is one zstd frame that can be read alone: a line of JSON, the `Header`, then entries. An entry is a
line ``TIME_NS WIRE LANE ENTRY LENGTH``, LENGTH bytes and a newline; the last line of a file that was closed is ``end``.
Wires are groups of markets; lanes are a wire's connections by number, as one is replaced by the next while it still
runs. `zstdcat` shows all of it.

A file that was not closed, as its recorder was killed, ends where it was flushed last; what is torn is left out, and
said. Nothing in a file names a path, and whoever reads one needs no more memory than the bounds below allow.
"""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BufferedReader, RawIOBase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, Self

import msgspec
import zstandard

from feeds.events import Entry
from feeds.market import NS_PER_MS, NS_PER_S, Market

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIX = ".frames.zst"
FRAME_MAX_BYTES = 8 << 20
"""The longest frame that a connection hands over; a longer entry is no recording."""
_HEADER_MAX_BYTES = 8 << 20
_ENTRY_LINE_MAX_BYTES = 128
_WINDOW_MAX_BYTES = 8 << 20
_PIECE_BYTES = 1024
_LEVEL = 3
_MAGIC = b"\x28\xb5\x2f\xfd"
_HOUR_NS = 3600 * NS_PER_S
_END = b"end\n"
_ENTRIES = {entry.value.encode(): entry for entry in Entry}


class Open(msgspec.Struct, frozen=True, array_like=True):
    """A connection that was open when a file began."""

    wire: int
    lane: int
    confirmed: bool


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says before its entries."""

    format: Literal["lstmd-frames"] = "lstmd-frames"
    version: Literal[2] = 2
    exchange: str
    run_ns: int
    """When the recorder began, by its clock."""
    number: int = 0
    """The file's place in the run, from 0."""
    exchange_ahead_ns: int
    """How far the exchange's clock was ahead of the recorder's when the run began."""
    wires: tuple[tuple[Market, ...], ...]
    """The markets of each group of connections."""
    specs: tuple[str, ...]
    """Candle specs whose klines were subscribed."""
    open: tuple[Open, ...] = ()

    @property
    def markets(self) -> tuple[Market, ...]:
        """All of them."""
        return tuple(market for wire in self.wires for market in wire)


class Record(NamedTuple):
    """One entry of a recording."""

    time_ns: int
    """Our clock at its receipt."""
    wire: int
    lane: int
    entry: Entry
    payload: bytes
    """The frame as it came; why a connection ended; settled funding as JSON."""


class Funding(msgspec.Struct, frozen=True):
    """The payload of `Entry.FUNDING`."""

    symbol: str
    asked_at_ns: int
    """The exchange's time of the question."""
    settlements: list[tuple[int, float]]
    """New ones, oldest first: time in ns UTC and rate."""


_header_of = msgspec.json.Decoder(Header).decode


class Recorder:
    """Writes a run: a new file each hour and whenever one has grown past `part_bytes`, all of them within `max_bytes`.

    The owner calls `flush` at least each second: what was written since is what a kill may lose. Every method may
    raise OSError.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        *,
        max_bytes: int,
        part_bytes: int = 256 << 20,
        deleted: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Open the first file; `deleted` is told each file of the exchange that is deleted to keep within the bound."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._header = folder, header
        self._max_bytes, self._part_bytes = max_bytes, min(part_bytes, max_bytes // 4)
        self._deleted = deleted
        earlier = sorted(path for path in folder.glob(f"{header.exchange}-*{SUFFIX}") if _is_ours(path))
        self._closed = deque((path, path.stat().st_size) for path in earlier)
        self._closed_bytes = sum(size for _, size in self._closed)
        self._lanes: dict[tuple[int, int], bool] = {}
        self._funding: list[Record] = []
        self.files = self.entries = 0
        self.bytes = 0
        """Of this run, compressed; what was deleted counts too."""
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, record: Record) -> None:
        """Append an entry."""
        time_ns, wire, lane, entry, _ = record
        if time_ns // _HOUR_NS > self._hour:
            self.close()
            self._open(time_ns)
        if entry is Entry.OPENED or entry is Entry.CONFIRMED:
            self._lanes[wire, lane] = entry is Entry.CONFIRMED
        elif entry is Entry.ENDED:
            self._lanes.pop((wire, lane), None)
        elif entry is Entry.FUNDING:
            self._funding.append(record)
        self._append(record)
        self.entries += 1

    def _append(self, record: Record) -> None:
        time_ns, wire, lane, entry, payload = record
        self._out.write(b"%d %d %d %b %d\n%b\n" % (time_ns, wire, lane, entry.encode(), len(payload), payload))
        self._newest_ns = time_ns

    def flush(self) -> None:
        """Hand what was written to the operating system; begin a new file and delete old ones where the bounds ask."""
        self._out.flush(zstandard.FLUSH_BLOCK)
        self._file.flush()
        size = self._file.tell()
        if size >= self._part_bytes:
            self.close()
            self._open(self._newest_ns)
            size = 0
        while self._closed and self._closed_bytes + size > self._max_bytes:
            path, gone = self._closed.popleft()
            self._closed_bytes -= gone
            path.unlink(missing_ok=True)
            self._deleted(path)

    def close(self) -> None:
        """End the file, and have it on the disk."""
        self._out.write(_END)
        self._out.close()  # type: ignore[no-untyped-call]
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        self._closed.append((self._path, size))
        self._closed_bytes += size
        self.bytes += size

    def _open(self, time_ns: int | None = None) -> None:
        self._newest_ns = self._header.run_ns if time_ns is None else time_ns
        self._hour = self._newest_ns // _HOUR_NS
        open_lanes = tuple(Open(wire, lane, confirmed) for (wire, lane), confirmed in self._lanes.items())
        header = msgspec.structs.replace(self._header, number=self.files, open=open_lanes)
        self._path = self._folder / _name(header)
        self._file: BinaryIO = self._path.open("xb")  # never an existing file, nor what a link points to
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._out: zstandard.ZstdCompressionWriter = compressor.stream_writer(self._file, closefd=False)
        self._out.write(msgspec.json.encode(header) + b"\n")
        self.files += 1
        for record in self._funding:  # a file is to be readable alone
            self._append(record)
        self._out.flush(zstandard.FLUSH_BLOCK)
        self._file.flush()


def _name(header: Header) -> str:
    began = datetime.fromtimestamp(header.run_ns // NS_PER_S, UTC)
    ms = header.run_ns % NS_PER_S // NS_PER_MS
    return f"{header.exchange}-{began:%Y%m%dT%H%M%S}{ms:03d}Z-{header.number:06d}{SUFFIX}"


def _is_ours(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


# ---- reading


def is_recording(path: Path) -> bool:
    """Tell whether the file begins as one of ours does."""
    with regular(path) as file:
        return file.read(4) == _MAGIC


@contextmanager
def regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read it for the length of the block.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a symbolic link, or no regular file (a pipe, a device).

    """
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link: name the file itself")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is no regular file")
        yield file


@contextmanager
def _unpacked(path: Path) -> Iterator[BufferedReader]:
    with regular(path) as file:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX_BYTES)
        yield BufferedReader(_Piecewise(decompressor.stream_reader(file, read_size=_PIECE_BYTES)), 1 << 16)


class _Piecewise(RawIOBase):
    """Unpacks a piece at a time: where one is spoilt, what the pieces before it hold has been handed on."""

    def __init__(self, reader: zstandard.ZstdDecompressionReader) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._reader.read1(len(view))
        view[: len(data)] = data
        return len(data)


def read_header(path: Path) -> Header:
    """Read what a file says of itself.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no recording of ours, or was made by a later version.

    """
    with _unpacked(path) as entries:
        return _header(path, entries)


def _header(path: Path, entries: BufferedReader) -> Header:
    try:
        return _header_of(entries.readline(_HEADER_MAX_BYTES))
    except (msgspec.DecodeError, zstandard.ZstdError) as error:
        raise ValueError(f"{path}: no recording that this version reads ({error})") from error


def _entries(path: Path, torn: Callable[[str], None]) -> Iterator[Record | None]:
    """Yield a file's entries, and None at the end where it is whole; what is torn is left out and told."""
    number = 0
    with _unpacked(path) as entries:
        _header(path, entries)
        try:
            while record := _read(entries):
                yield record
                number += 1
        except (ValueError, KeyError, zstandard.ZstdError) as error:
            torn(f"{path}: read up to entry {number}, there it breaks off ({error})")
            return
    yield None


def _read(entries: BufferedReader) -> Record | None:
    line = entries.readline(_ENTRY_LINE_MAX_BYTES)
    if line == _END:
        return None
    if not line.endswith(b"\n"):
        raise ValueError("not closed" if not line else "cut off")
    time_ns, wire, lane, entry, length = line.split()
    size = int(length)
    if not 0 <= size <= FRAME_MAX_BYTES:
        raise ValueError(f"an entry of {size} bytes")
    payload = entries.read(size + 1)
    if len(payload) != size + 1 or payload[-1:] != b"\n":
        raise ValueError("cut off")
    return Record(int(time_ns), int(wire), int(lane), _ENTRIES[entry], payload[:-1])


def play(paths: Sequence[Path], torn: Callable[[str], None]) -> Iterator[tuple[Header, Record]]:
    """Yield the entries of recordings of one exchange in the order in which they came, each with its file's header.

    Where a recorder ended without a word, or a file of its run is missing or torn, the connections end too. `torn` is
    told in a sentence what was left out.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is no recording, or they do not follow upon one another.

    """
    files = sorted(((read_header(path), path) for path in paths), key=lambda one: (one[0].run_ns, one[0].number))
    exchanges = sorted({header.exchange for header, _ in files})
    if len(exchanges) > 1:
        raise ValueError(f"recordings of several exchanges: {', '.join(exchanges)}; one at a time")
    player = _Player(torn)
    for header, path in files:
        yield from player.file(header, path)


class _Player:
    """What is known between two files: which connections are open, and whether the next file goes on."""

    def __init__(self, torn: Callable[[str], None]) -> None:
        self._torn = torn
        self._before: Header | None = None
        self._whole = False
        self._newest_ns = 0
        self._lanes: dict[tuple[int, int], None] = {}

    def file(self, header: Header, path: Path) -> Iterator[tuple[Header, Record]]:
        """Play one file after the one before it."""
        before = self._before
        if before is None or not self._follows(before, header, path):
            yield from self._break(header)
        self._before, self._whole = header, False
        for record in _entries(path, self._torn):
            if record is None:
                self._whole = True
                return
            self._note(record)
            yield header, record

    def _follows(self, before: Header, header: Header, path: Path) -> bool:
        if header.run_ns != before.run_ns:
            if header.run_ns < self._newest_ns:
                raise ValueError(f"{path}: was recorded while the one before it still was")
            return False
        if header.number == before.number:
            raise ValueError(f"{path}: the same file of a recording a second time")
        return self._whole and header.number == before.number + 1

    def _break(self, header: Header) -> Iterator[tuple[Header, Record]]:
        """End the connections that nobody ended, and say of those open as the file began what would have been said."""
        if self._before:
            for wire, lane in self._lanes:
                yield self._before, Record(self._newest_ns, wire, lane, Entry.ENDED, b"the recording breaks off")
        self._newest_ns = max(self._newest_ns, header.run_ns)
        self._lanes = {(one.wire, one.lane): None for one in header.open}
        for one in header.open:
            yield header, Record(self._newest_ns, one.wire, one.lane, Entry.OPENED, b"")
            if one.confirmed:
                yield header, Record(self._newest_ns, one.wire, one.lane, Entry.CONFIRMED, b"")

    def _note(self, record: Record) -> None:
        self._newest_ns = max(self._newest_ns, record.time_ns)
        if record.entry is Entry.OPENED:
            self._lanes[record.wire, record.lane] = None
        elif record.entry is Entry.ENDED:
            self._lanes.pop((record.wire, record.lane), None)
