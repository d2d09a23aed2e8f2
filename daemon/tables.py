"""The tables of the store as text, and how values become their rows and rows values. No database is touched here."""

import hashlib

import msgspec

from daemon.line import Ordinal
from feeds.market import Candle, Origin

SCHEMA_VERSION = 3
OLDER = (1, 2)
"""Versions that are brought up to date; 0 is a new file."""
TABLES = """
CREATE TABLE IF NOT EXISTS journal (
    line TEXT NOT NULL, seq INTEGER NOT NULL, open_ns INTEGER NOT NULL, close_ns INTEGER NOT NULL,
    open REAL, high REAL, low REAL, close REAL, volume REAL, trades INTEGER, origin TEXT,
    PRIMARY KEY (line, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshot (
    line TEXT NOT NULL, seq INTEGER NOT NULL, model TEXT NOT NULL, checksum BLOB NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (line, seq));
CREATE TABLE IF NOT EXISTS stream (line TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL, seq INTEGER NOT NULL, topic TEXT NOT NULL,
    time_ns INTEGER NOT NULL, identity BLOB NOT NULL, context BLOB NOT NULL, acknowledged INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS revision (
    source TEXT NOT NULL, day INTEGER NOT NULL, calibration BLOB NOT NULL, PRIMARY KEY (source, day)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocked (source TEXT PRIMARY KEY, until_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS outbox_pending ON outbox (row) WHERE acknowledged = 0;
CREATE INDEX IF NOT EXISTS outbox_sent ON outbox (row) WHERE acknowledged = 1;
CREATE INDEX IF NOT EXISTS outbox_age ON outbox (time_ns) WHERE acknowledged = 0;
CREATE INDEX IF NOT EXISTS outbox_stream ON outbox (line, seq);
CREATE INDEX IF NOT EXISTS outbox_topic ON outbox (topic, seq);
"""
TO_THIS_VERSION = "DROP TABLE IF EXISTS snapshot;"
"""Before `TABLES`, for an older file: its snapshots had no checksum, and the journal says the same."""
LINES = (
    "WITH RECURSIVE lines(line) AS (SELECT MIN(line) FROM journal UNION ALL "
    "SELECT (SELECT MIN(line) FROM journal WHERE line > lines.line) FROM lines WHERE line IS NOT NULL) "
    "SELECT line FROM lines WHERE line IS NOT NULL"
)
"""Every line of the journal, by one look each where DISTINCT would read every row."""
ROW_BYTES = 100
"""What a journal row takes in the file beside its line's name, about: benchmarks/store.py measures it."""
POSITIONS = (
    "WITH first AS (SELECT line, MIN(row) AS row FROM outbox WHERE acknowledged = 0 GROUP BY line) "
    "SELECT s.line, CASE WHEN s.seq = (SELECT MAX(seq) FROM outbox WHERE line = s.line) "
    "THEN COALESCE(json_extract(CAST(o.identity AS TEXT), '$.from_seq') - 1, o.seq - 1, s.seq) END "
    "FROM stream s LEFT JOIN first f ON f.line = s.line LEFT JOIN outbox o ON o.row = f.row"
)
"""Up to which ordinal each stream was delivered; NULL where two tables do not agree on its newest."""


def checksum(line: str, seq: int, model: str, state: bytes) -> bytes:
    """Hash a snapshot with what it belongs to."""
    named = f"{line}|{seq}|{model}|".encode()
    return hashlib.blake2b(named + state, digest_size=8).digest()


def flatten(line: str, row: Ordinal) -> tuple[object, ...]:
    """Make a row of the journal."""
    c = row.candle
    if c is None:
        return (line, row.seq, 0, 0, None, None, None, None, None, None, None)
    figures = (c.open, c.high, c.low, c.close, c.volume, c.trades, str(c.origin))
    return (line, row.seq, c.open_time_ns, c.close_time_ns, *figures)


def unflatten(row: tuple[object, ...]) -> Ordinal:
    """Read a row of the journal."""
    _, seq, open_ns, close_ns, o, h, low, c, volume, trades, origin = row
    assert isinstance(seq, int)
    if origin is None:
        return Ordinal(seq, None)
    candle = msgspec.convert(
        {
            "seq": seq, "open_time_ns": open_ns, "close_time_ns": close_ns, "open": o, "high": h, "low": low,
            "close": c, "volume": volume, "trades": trades, "closed": True, "origin": Origin(str(origin)),
        },
        Candle,
    )  # fmt: skip
    return Ordinal(seq, candle)
