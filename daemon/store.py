"""What survives: a journal of closed candles, the newest snapshots and the outbox, in one SQLite file.

The only user of sqlite3. A candle, the state after it and the messages it caused are written in one transaction, so start-up
is recovery and there is no other kind. WAL with synchronous=FULL: what `commit` returned from is on the disk.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from daemon.line import Ordinal
from feeds.market import Candle, Origin

SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 5.0
_TABLES = """
CREATE TABLE IF NOT EXISTS journal (
    line TEXT NOT NULL, seq INTEGER NOT NULL, open_ns INTEGER NOT NULL, close_ns INTEGER NOT NULL,
    open REAL, high REAL, low REAL, close REAL, volume REAL, trades INTEGER, origin TEXT,
    PRIMARY KEY (line, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshot (line TEXT PRIMARY KEY, model TEXT NOT NULL, seq INTEGER NOT NULL, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS stream (line TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL, seq INTEGER NOT NULL, topic TEXT NOT NULL,
    time_ns INTEGER NOT NULL, identity BLOB NOT NULL, context BLOB NOT NULL, acknowledged INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS outbox_pending ON outbox (row) WHERE acknowledged = 0;
CREATE INDEX IF NOT EXISTS outbox_stream ON outbox (line, seq);
"""


class StoreError(Exception):
    """The store cannot be used; the text names the file and what to do."""


class OutboxRow(msgspec.Struct, frozen=True):
    """A durable message on its way to the broker."""

    row: int
    line: str
    seq: int
    topic: str
    time_ns: int
    """The exchange's time it speaks of: bounds in hours are counted from it."""
    identity: bytes
    context: bytes


class Message(msgspec.Struct, frozen=True):
    """A durable message to be put in the outbox."""

    seq: int
    topic: str
    time_ns: int
    identity: bytes
    context: bytes


class LineCommit(msgspec.Struct, frozen=True):
    """What one line adds in a transaction."""

    line: str
    rows: list[Ordinal]
    snapshot: bytes | None
    snapshot_seq: int
    model: str
    messages: list[Message]


class Store:
    """The store of one daemon. Not shared between threads or processes: opening takes an exclusive lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: {error}; is another lstmd using it, or the folder not writable?") from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise StoreError(f"{self.path}: written by another version of lstmd (schema {version}, this one is {SCHEMA_VERSION})")
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was committed is safe with or without it."""
        self._db.close()

    def commit(self, lines: Iterable[LineCommit]) -> list[OutboxRow]:
        """Write candles, snapshots and messages in one transaction; return the new outbox rows in order."""
        added: list[OutboxRow] = []
        with self._transaction():
            for line in lines:
                self._db.executemany(
                    "INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                    [_flatten(line.line, row) for row in line.rows],
                )
                if line.snapshot is not None:
                    self._db.execute(
                        "INSERT OR REPLACE INTO snapshot VALUES (?,?,?,?)",
                        (line.line, line.model, line.snapshot_seq, line.snapshot),
                    )
                added += [self._enqueue(line.line, message) for message in line.messages]
        return added

    def _enqueue(self, line: str, m: Message) -> OutboxRow:
        row = self._db.execute(
            "INSERT INTO outbox (line, seq, topic, time_ns, identity, context) VALUES (?,?,?,?,?,?)",
            (line, m.seq, m.topic, m.time_ns, m.identity, m.context),
        ).lastrowid
        assert row is not None
        self._db.execute("INSERT OR REPLACE INTO stream VALUES (?,?)", (line, m.seq))
        return OutboxRow(row, line, m.seq, m.topic, m.time_ns, m.identity, m.context)

    def journal(self, line: str, from_seq: int) -> list[Ordinal]:
        """Read a line's ordinals from `from_seq` on, ascending."""
        rows = self._db.execute("SELECT * FROM journal WHERE line=? AND seq>=? ORDER BY seq", (line, from_seq))
        return [_unflatten(row) for row in rows]

    def snapshot(self, line: str, model: str) -> bytes | None:
        """Read the newest state of a line under `model`."""
        row = self._db.execute("SELECT state FROM snapshot WHERE line=? AND model=?", (line, model)).fetchone()
        return bytes(row[0]) if row else None

    def stream_seq(self, line: str) -> int | None:
        """Return the newest ordinal that a message was ever written for."""
        row = self._db.execute("SELECT seq FROM stream WHERE line=?", (line,)).fetchone()
        return int(row[0]) if row else None

    def pending(self, after_row: int, limit: int) -> list[OutboxRow]:
        """Read messages that no broker has acknowledged, in order."""
        rows = self._db.execute(
            "SELECT row, line, seq, topic, time_ns, identity, context FROM outbox WHERE acknowledged=0 AND row>? ORDER BY row LIMIT ?",
            (after_row, limit),
        )
        return [OutboxRow(*row) for row in rows]

    def depth(self) -> tuple[int, int]:
        """Return the number of unacknowledged messages and the `time_ns` of the oldest (0 when none)."""
        count, oldest = self._db.execute("SELECT COUNT(*), MIN(time_ns) FROM outbox WHERE acknowledged=0").fetchone()
        return int(count), int(oldest or 0)

    def acknowledge(self, rows: Sequence[int]) -> None:
        """Mark messages as delivered."""
        with self._transaction():
            self._db.executemany("UPDATE outbox SET acknowledged=1 WHERE row=?", [(row,) for row in rows])

    def sent(self, topic: str, from_seq: int, limit: int) -> list[OutboxRow]:
        """Read messages of a topic again from an ordinal on, delivered or not."""
        rows = self._db.execute(
            "SELECT row, line, seq, topic, time_ns, identity, context FROM outbox WHERE topic=? AND seq>=? ORDER BY row LIMIT ?",
            (topic, from_seq, limit),
        )
        return [OutboxRow(*row) for row in rows]

    def newest(self) -> list[OutboxRow]:
        """Read the newest message of each line."""
        rows = self._db.execute(
            "SELECT row, line, seq, topic, time_ns, identity, context FROM outbox "
            "WHERE row IN (SELECT MAX(row) FROM outbox GROUP BY line)"
        )
        return [OutboxRow(*row) for row in rows]

    def prune(self, line: str, *, keep_from_seq: int, keep_messages: int) -> None:
        """Forget a line's candles below an ordinal, and delivered messages beyond the newest `keep_messages`."""
        with self._transaction():
            self._db.execute("DELETE FROM journal WHERE line=? AND seq<?", (line, keep_from_seq))
            self._db.execute(
                "DELETE FROM outbox WHERE line=?1 AND acknowledged=1 AND seq<=(SELECT MAX(seq) FROM outbox WHERE line=?1)-?2",
                (line, keep_messages),
            )

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _flatten(line: str, row: Ordinal) -> tuple[object, ...]:
    c = row.candle
    if c is None:
        return (line, row.seq, 0, 0, None, None, None, None, None, None, None)
    figures = (c.open, c.high, c.low, c.close, c.volume, c.trades, str(c.origin))
    return (line, row.seq, c.open_time_ns, c.close_time_ns, *figures)


def _unflatten(row: tuple[object, ...]) -> Ordinal:
    _, seq, open_ns, close_ns, o, h, low, c, volume, trades, origin = row
    assert isinstance(seq, int)
    if origin is None:
        return Ordinal(seq, None)
    candle = msgspec.convert(
        {
            "seq": seq, "open_time_ns": open_ns, "close_time_ns": close_ns, "open": o, "high": h, "low": low, "close": c,
            "volume": volume, "trades": trades, "closed": True, "origin": Origin(str(origin)),
        },
        Candle,
    )  # fmt: skip
    return Ordinal(seq, candle)
