"""A folder of market history: parquet files, parts of those that are still growing, and a manifest of what is there.

Whatever is written is written beside its place, synced and renamed into it, so a kill at any moment leaves whole files
only. The same rows give the same bytes, however many parts brought them.
"""

import datetime as dt
import io
import itertools
import os
import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from feeds.market import NS_PER_MS, CandleSpec, Market
from training.dataset import sha256_of

MANIFEST_FILE = "manifest.json"
PARTS_FOLDER = ".parts"
FORMAT = 1
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class FolderError(ValueError):
    """Something in the folder is in the way; the text says what."""


class Kind(StrEnum):
    """What a file holds."""

    CANDLES = "candles"
    MARK = "mark"
    FUNDING = "funding"


class Gap(msgspec.Struct, frozen=True):
    """An interval without candles, ``[begin, end)``."""

    begin: str
    end: str
    candles: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file, as the manifest describes it. Times are RFC 3339, UTC."""

    name: str
    sha256: str
    kind: Kind
    exchange: str
    symbol: str
    spec: str | None
    """None for funding."""
    rows: int
    begin: str
    """First open, or first settlement."""
    end: str
    """Last close, or last settlement."""
    gaps: tuple[Gap, ...]
    """Candles that the exchange does not have."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the folder holds, by name."""

    format: int = FORMAT
    files: tuple[Entry, ...] = ()


class Folder:
    """Rows by stem, a file's name without its ending; the first column of each table is its time, in ms UTC."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._entries = {entry.name: entry for entry in _manifest(path / MANIFEST_FILE).files}

    def rows(self, stem: str, schema: pa.Schema) -> pa.Table:
        """Return what is there, ascending, every time once.

        Raises:
            FolderError: a file is not one of ours.

        """
        files = [file for file in (self._file(stem), *self._parts(stem)) if file.exists()]
        whole = pa.concat_tables([_read(file, schema) for file in files] or [schema.empty_table()])
        _, first = np.unique(times_ms(whole), return_index=True)
        return whole.take(first).combine_chunks()

    def add(self, stem: str, rows: pa.Table) -> None:
        """Keep some more rows; at least one."""
        _write(rows, self._path / PARTS_FOLDER / stem / f"{times_ms(rows)[0]}.parquet")

    def close(self) -> None:
        """Tidy up; parts of files that are not sealed stay."""
        parts = self._path / PARTS_FOLDER
        if parts.exists() and not any(parts.iterdir()):
            parts.rmdir()

    def seal(self, stem: str, schema: pa.Schema, kind: Kind, market: Market, spec: CandleSpec | None) -> Entry | None:
        """Join a file with its parts and say so in the manifest; None where there are no rows."""
        rows, parts = self.rows(stem, schema), self._parts(stem)
        if not len(rows):
            return None
        file = self._file(stem)
        if parts or not file.exists():
            _write(rows, file)
        times, step = times_ms(rows), spec.interval_ns // NS_PER_MS if spec else 0
        begin, end = int(times[0]), int(times[-1]) + step
        gaps = [(a, b) for a, b in absent(times.tolist(), begin, end, step)] if spec else []
        entry = Entry(
            name=file.name, sha256=sha256_of(file), kind=kind, exchange=market.exchange, symbol=market.symbol,
            spec=str(spec) if spec else None, rows=len(rows), begin=_text(begin), end=_text(end),
            gaps=tuple(Gap(_text(a), _text(b), (b - a) // step) for a, b in gaps),
        )  # fmt: skip
        self._entries[file.name] = entry
        present = [self._entries[name] for name in sorted(self._entries) if (self._path / name).exists()]
        text = msgspec.json.format(msgspec.json.encode(Manifest(files=tuple(present))), indent=2)
        _replace(self._path / MANIFEST_FILE, text + b"\n")
        if parts:
            shutil.rmtree(self._path / PARTS_FOLDER / stem)
        return entry

    def _file(self, stem: str) -> Path:
        return self._path / f"{stem}.parquet"

    def _parts(self, stem: str) -> list[Path]:
        return sorted((self._path / PARTS_FOLDER / stem).glob("*.parquet"))


def times_ms(rows: pa.Table) -> NDArray[np.int64]:
    """Return the first column, ms since 1970."""
    times: NDArray[np.int64] = rows.column(0).cast(pa.int64()).to_numpy()
    return times


def absent(opens_ms: Sequence[int], begin_ms: int, end_ms: int, step_ms: int) -> list[tuple[int, int]]:
    """Return the spans ``[begin, end)`` of intervals within ``[begin_ms, end_ms)`` that have no open time."""
    edges = [begin_ms - step_ms, *opens_ms, end_ms]
    return [(a + step_ms, b) for a, b in itertools.pairwise(edges) if b - a > step_ms]


def _text(time_ms: int) -> str:
    moment = _EPOCH + dt.timedelta(milliseconds=time_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _manifest(path: Path) -> Manifest:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return Manifest()
    except msgspec.DecodeError as error:
        raise FolderError(f"{path}: {error}; it is made anew once it is moved away") from error


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise FolderError(f"{path}: {str(error).splitlines()[0]}") from error
    if not table.schema.equals(schema):
        raise FolderError(f"{path}: has columns {', '.join(table.column_names)}, expected {', '.join(schema.names)}")
    return table


def _write(rows: pa.Table, path: Path) -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(rows, buffer)
    _replace(path, buffer.getvalue())


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
