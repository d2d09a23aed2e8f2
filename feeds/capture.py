"""Recorded market data: the formats that tapes come in, our own recordings (`feeds.recording`) among them.

Whatever the source, `tape_frames` yields websocket frames as an exchange would send them, so that a replay goes
through the codec like everything else.
"""

import csv
import gzip
import zipfile
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.events import Entry
from feeds.market import NS_PER_MS, NS_PER_S
from feeds.playback import is_recording, play, regular
from feeds.recording import SUFFIX

_LINE_MAX_BYTES = 16 << 20
"""A longer line is no recorded frame; what a compressed file may unfold to is bounded by it."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One websocket frame as it came: text, or bytes where the exchange sends binary."""

    receive_time_ns: int
    text: str | bytes


class AggTrade(NamedTuple):
    """One row of Binance's daily aggTrades dump; numbers stay texts, as the exchange wrote them."""

    id: int
    price: str
    size: str
    first: int
    last: int
    time_ms: int
    buyer_is_maker: bool


class CandleColumns(NamedTuple):
    """Candles as columns of one length: opens in ns UTC, prices and volume float64."""

    open_time_ns: npt.NDArray[np.int64]
    open: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    close: npt.NDArray[np.float64]
    volume: npt.NDArray[np.float64]


class _Line(msgspec.Struct):
    """A line of our first recordings: ``{"ns":…,"text":…}``, or ``"data"``, base64, for a binary frame."""

    ns: int
    text: str | None = None
    data: bytes | None = None


_line_of = msgspec.json.Decoder(_Line).decode


def parts_of(path: Path) -> list[Path]:
    """List the parts of our first recordings, oldest first, `path` itself last."""
    stem, suffix = path.name.split(".", 1) if "." in path.name else (path.name, "")
    old = [p for p in path.parent.glob(f"{stem}.*.{suffix}") if _number(p) and p == _numbered(path, _number(p))]
    return [*sorted(old, key=_number), path]


def _numbered(path: Path, number: int) -> Path:
    stem, _, suffix = path.name.partition(".")
    return path.with_name(f"{stem}.{number}.{suffix}")


def _number(path: Path) -> int:
    between = path.name.split(".")[1:2]
    return int(between[0]) if between and between[0].isdigit() else 0


def read_frames(path: Path) -> Iterator[Frame]:
    """Yield the frames that a text capture received, in order of arrival.

    Known: our first recordings; hftbacktest (``recv_ns json``); cryptofeed's raw websocket files (``recv_s: json``). A
    file cut off by a kill ends where it was cut.

    Raises:
        ValueError: a line is of none of these formats; the message names file and line.

    """
    for number, line in enumerate(_lines(path), 1):
        try:
            frame = _parse_line(line)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"{path}:{number}: not a recorded frame ({error})") from error
        if frame is not None:
            yield frame


def _lines(path: Path) -> Iterator[bytes]:
    with regular(path) as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            yield from _bounded(gzip.GzipFile(fileobj=file) if zipped else file)
        except EOFError:
            return


def _bounded(source: gzip.GzipFile | IO[bytes]) -> Iterator[bytes]:
    while line := source.readline(_LINE_MAX_BYTES):
        if len(line) == _LINE_MAX_BYTES:
            raise ValueError(f"a line of more than {_LINE_MAX_BYTES} bytes")
        yield line


def _parse_line(line: bytes) -> Frame | None:
    """Read one line; None for what was not received (cryptofeed's headers and what its client sent)."""
    if line.startswith(b'{"ns":'):
        own = _line_of(line)
        return Frame(own.ns, own.text if own.text is not None else own.data or b"")
    head, _, body = line.partition(b" ")
    if head.isdigit():
        return Frame(int(head), body.decode().rstrip("\n"))
    if head.endswith(b":") and head[:1].isdigit():
        return Frame(int(Decimal(head[:-1].decode()) * NS_PER_S), body.decode().rstrip("\n"))
    if head.startswith((b"wss://", b"https://", b"configuration:")) or not line.strip():
        return None
    raise ValueError(f"unknown format: {line[:60]!r}")


def read_agg_trades(path: Path) -> Iterator[AggTrade]:
    """Yield the rows of Binance's official daily aggTrades dump (a zip of one csv, with or without a header)."""
    with regular(path) as file, zipfile.ZipFile(file) as archive, archive.open(archive.namelist()[0]) as raw:
        for number, row in enumerate(csv.reader(line.decode("ascii") for line in _bounded(raw)), 1):
            if number == 1 and not row[0].isdigit():
                continue
            try:
                identity, price, size, first, last, time_ms, maker = row[:7]
                yield AggTrade(
                    int(identity), price, size, int(first), int(last), int(time_ms), maker.strip().lower() == "true"
                )
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not an aggTrades row: {row[:8]}") from error


def frames_from_trades(native: str, trades: Iterable[AggTrade]) -> Iterator[Frame]:
    """Encode trades as Binance's combined aggTrade frames, each received when it happened."""
    for trade in trades:
        yield Frame(trade.time_ms * NS_PER_MS, agg_trade_frame(native, trade))


def agg_trade_frame(native: str, trade: AggTrade, event_time_ms: int | None = None) -> str:
    """Encode one trade as the exchange sends it over ``/market/stream``."""
    data = agg_trade_data(native, trade, trade.time_ms if event_time_ms is None else event_time_ms)
    return f'{{"stream":"{native.lower()}@aggTrade","data":{data}}}'


def agg_trade_data(native: str, trade: AggTrade, event_time_ms: int) -> str:
    """Encode one trade as the exchange sends it over ``/market/ws``."""
    return (
        f'{{"e":"aggTrade","E":{event_time_ms},"a":{trade.id},"s":"{native}","p":"{trade.price}","q":"{trade.size}",'
        f'"nq":"{trade.size}","f":{trade.first},"l":{trade.last},"T":{trade.time_ms},'
        f'"m":{"true" if trade.buyer_is_maker else "false"},"st":1}}'
    )


def tape_frames(path: Path, native: str, torn: Callable[[str], None] = lambda _: None) -> Iterator[Frame]:
    """Yield any tape of trades as frames for one codec; `native` names the market where the file does not.

    A dump of aggTrades is encoded, Binance's ``@trade`` frames become aggTrades of one execution, a recording of ours
    is a file or a folder, and an old one in parts is read from its oldest part on.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none; the message names the file.

    """
    if path.is_dir() or is_recording(path):
        recordings = recordings_in(path) if path.is_dir() else [path]
        for _, record in play(recordings, torn):
            if record.entry is Entry.FRAME:
                yield Frame(record.time_ns, record.payload)
        return
    if zipfile.is_zipfile(path):
        yield from frames_from_trades(native, read_agg_trades(path))
        return
    for part in parts_of(path):
        for frame in read_frames(part):
            push = _trade_push(frame.text, b'"e":"trade"')
            if push is None:
                yield frame
            elif push.X == "MARKET":
                yield Frame(frame.receive_time_ns, agg_trade_frame(push.s, push.agg(), push.E))


def recordings_in(folder: Path) -> list[Path]:
    """List the files of our recordings in a folder.

    Raises:
        ValueError: there are none, or one is a symbolic link.

    """
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        raise ValueError(f"{folder}: no recording ({SUFFIX}) in this folder")
    return found


def tape_trades(path: Path, native: str) -> Iterator[AggTrade]:
    """Yield the trades of market `native` from any tape that `tape_frames` reads."""
    if path.is_file() and zipfile.is_zipfile(path):
        yield from read_agg_trades(path)
        return
    for frame in tape_frames(path, native):
        push = _trade_push(frame.text, b'"e":"aggTrade"')
        if push is not None and push.s == native:
            yield push.agg()


class _Push(msgspec.Struct):
    """What ``@trade`` and ``@aggTrade`` have in common, under the exchange's names."""

    E: int
    T: int
    s: str
    p: str
    q: str
    m: bool
    a: int = 0
    f: int = 0
    l: int = 0
    t: int = 0
    X: str = "MARKET"

    def agg(self) -> AggTrade:
        identity, first, last = (self.t, self.t, self.t) if self.t else (self.a, self.f, self.l)
        return AggTrade(identity, self.p, self.q, first, last, self.T, self.m)


class _Envelope(msgspec.Struct):
    data: _Push


_envelope_of = msgspec.json.Decoder(_Envelope).decode
_push_of = msgspec.json.Decoder(_Push).decode


def _trade_push(frame: str | bytes, tag: bytes) -> _Push | None:
    """Read the frame if it carries the event `tag`; the tag stands near the front in both forms."""
    raw = frame if isinstance(frame, bytes) else frame.encode()
    if tag not in raw[:100]:
        return None
    return _envelope_of(raw).data if raw.startswith(b'{"stream"') else _push_of(raw)


def read_candles(path: Path) -> CandleColumns:
    """Read a parquet file of candles: ``open_time`` as timestamps, open, high, low, close, volume as numbers.

    Raises:
        ValueError: the file lacks a column, or its candles are not in ascending order.

    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = [name for name in ("open_time", *CandleColumns._fields[1:]) if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    opens = table.column("open_time").cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64()).to_numpy()
    if not (opens[1:] > opens[:-1]).all():
        raise ValueError(f"{path}: open_time does not ascend")
    return CandleColumns(
        opens, *(table.column(name).cast(pa.float64()).to_numpy() for name in CandleColumns._fields[1:])
    )
