"""Read our own recordings (`feeds.recording`): in order, with what is torn left out and said.

Whoever reads a file needs no more memory than the bounds below allow, whatever it claims; links, pipes and devices are
refused.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import zstandard

from feeds.events import Entry
from feeds.recording import END, FRAME_MAX_BYTES, Header, Record

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_HEADER_MAX_BYTES = 8 << 20
_ENTRY_LINE_MAX_BYTES = 128
_WINDOW_MAX_BYTES = 8 << 20
_PIECE_BYTES = 1024
_MAGIC = b"\x28\xb5\x2f\xfd"
_ENTRIES = {entry.value.encode(): entry for entry in Entry}
_header_of = msgspec.json.Decoder(Header).decode


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
    if line == END:
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
