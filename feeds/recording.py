"""Our own recordings: what came over an exchange's connections, to the byte, with the time of its receipt.

A recording is a folder of files ``EXCHANGE-RUN-NUMBER.frames.zst``; RUN is when its recorder began, and NUMBER counts
its files. Each file is one zstd frame that can be read alone: a line of JSON, the `Header`, then entries. An entry is a
line ``TIME_NS WIRE LANE ENTRY LENGTH``, LENGTH bytes and a newline; the last line of a file that was closed is ``end``.
Wires are groups of markets; lanes are a wire's connections by number, as one is replaced by the next while it still
runs. `zstdcat` shows all of it.

A file that was not closed, as its recorder was killed, ends where it was flushed last. Nothing in a file names a path.
"""

import os
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple, Self

import msgspec
import zstandard

from feeds.events import Entry
from feeds.market import NS_PER_MS, NS_PER_S, Market

SUFFIX = ".frames.zst"
FRAME_MAX_BYTES = 8 << 20
"""The longest frame that a connection hands over; a longer entry is no recording."""
END = b"end\n"
"""The last line of a file that was closed."""
_LEVEL = 3
_HOUR_NS = 3600 * NS_PER_S


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
        self._out.write(END)
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
