"""What survives: journal of closed candles, newest snapshots, outbox, daily calibrations, in one SQLite file.

The only user of sqlite3. A candle, the state after it and the messages it caused are written in one transaction, so
start-up is recovery and there is no other kind. WAL with synchronous=FULL: what `commit` returned from is on the disk.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from daemon import outbox, topics
from daemon.line import Ordinal
from daemon.outbox import Limits, Load, Waiting
from feeds.market import Candle, Origin

SCHEMA_VERSION = 2
_OLDER = (0, 1)
"""Versions that are brought up to date by making the tables they lack; 0 is a new file."""
_BUSY_TIMEOUT_S = 5.0
_TABLES = """
CREATE TABLE IF NOT EXISTS journal (
    line TEXT NOT NULL, seq INTEGER NOT NULL, open_ns INTEGER NOT NULL, close_ns INTEGER NOT NULL,
    open REAL, high REAL, low REAL, close REAL, volume REAL, trades INTEGER, origin TEXT,
    PRIMARY KEY (line, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshot (
    line TEXT PRIMARY KEY, model TEXT NOT NULL, seq INTEGER NOT NULL, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS stream (line TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL, seq INTEGER NOT NULL, topic TEXT NOT NULL,
    time_ns INTEGER NOT NULL, identity BLOB NOT NULL, context BLOB NOT NULL, acknowledged INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS revision (
    source TEXT NOT NULL, day INTEGER NOT NULL, calibration BLOB NOT NULL, PRIMARY KEY (source, day)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocked (source TEXT PRIMARY KEY, until_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS outbox_pending ON outbox (row) WHERE acknowledged = 0;
CREATE INDEX IF NOT EXISTS outbox_age ON outbox (time_ns) WHERE acknowledged = 0;
CREATE INDEX IF NOT EXISTS outbox_stream ON outbox (line, seq);
CREATE INDEX IF NOT EXISTS outbox_topic ON outbox (topic, seq);
"""
_COLUMNS = "row, line, seq, topic, time_ns, identity, context"


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
        """Open or create the file.

        Raises:
            StoreError: another process has it, it cannot be written, or another version of lstmd wrote it.

        """
        self.path = path
        with contextlib.ExitStack() as undo:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
                undo.callback(self._db.close)
                self._prepare()
            except (OSError, sqlite3.Error) as error:
                hint = "is another lstmd using it, or the folder not writable?"
                raise StoreError(f"{path}: {error}; {hint}") from error
            undo.pop_all()
        counted = self._db.execute(
            "SELECT COUNT(*), TOTAL(LENGTH(identity) + LENGTH(context)) FROM outbox WHERE acknowledged=0"
        ).fetchone()
        self._pending_rows, self._pending_bytes = int(counted[0]), int(counted[1])

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (*_OLDER, SCHEMA_VERSION):
            said = f"schema {version}, this one is {SCHEMA_VERSION}"
            raise StoreError(f"{self.path}: written by another version of lstmd ({said})")
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        self._pending_rows += 1
        self._pending_bytes += len(m.identity) + len(m.context)
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

    def revisions(self, source: str) -> dict[int, bytes]:
        """Read the calibrations of a source by the number of their UTC day."""
        rows = self._db.execute("SELECT day, calibration FROM revision WHERE source=? ORDER BY day", (source,))
        return {int(day): bytes(calibration) for day, calibration in rows}

    def keep_revision(self, source: str, day: int, calibration: bytes) -> bytes:
        """Write a day's calibration down before anything is decided under it; return what was written first."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO revision VALUES (?,?,?)", (source, day, calibration))
        return self.revisions(source)[day]

    def blocked_until_ns(self, source: str) -> int:
        """Read the wall time before which an exchange wants no request; 0 where none was named."""
        found = self._db.execute("SELECT until_ns FROM blocked WHERE source=?", (source,)).fetchone()
        return int(found[0]) if found else 0

    def keep_blocked(self, source: str, until_ns: int) -> None:
        """Write down before which wall time an exchange wants no request."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO blocked VALUES (?,?)", (source, until_ns))

    def pending(self, after_row: int, limit: int) -> list[OutboxRow]:
        """Read messages that no broker has acknowledged, in order."""
        return self._outbox("acknowledged=0 AND row>? ORDER BY row LIMIT ?", after_row, limit)

    def load(self) -> Load:
        """Return how much waits to be acknowledged."""
        oldest = self._db.execute("SELECT MIN(time_ns) FROM outbox WHERE acknowledged=0").fetchone()[0]
        return Load(self._pending_rows, self._pending_bytes, int(oldest or 0))

    def acknowledge(self, rows: Sequence[int]) -> None:
        """Mark messages as delivered."""
        done = (
            "UPDATE outbox SET acknowledged=1 WHERE row=? AND acknowledged=0 "
            "RETURNING LENGTH(identity) + LENGTH(context)"
        )
        with self._transaction():
            sizes = [size for row in rows for (size,) in self._db.execute(done, (row,)).fetchall()]
        self._pending_rows -= len(sizes)
        self._pending_bytes -= sum(sizes)

    def shed(self, limits: Limits, *, now_ns: int, after_row: int) -> int:
        """Merge the oldest waiting messages into gaps where a bound is passed; return how many went.

        Those up to `after_row` have been sent and may have arrived: they stay as they are.
        """
        load = self.load()
        if not outbox.exceeded(load, limits, now_ns):
            return 0
        before_ns = outbox.expiry_ns(limits, now_ns) if now_ns - load.oldest_ns > limits.age_ns else 0
        cut = outbox.cut(self._waiting(after_row), load, limits)
        lasts = self._db.execute(
            "SELECT line, MAX(row) FROM ("
            "SELECT line, row FROM outbox WHERE acknowledged=0 AND row>?1 AND row<=?2 UNION ALL "
            "SELECT line, row FROM outbox WHERE acknowledged=0 AND row>?1 AND time_ns<?3) GROUP BY line",
            (after_row, cut, before_ns),
        ).fetchall()
        gone = 0
        with self._transaction():
            for line, last in lasts:
                rows = self._outbox(
                    "line=? AND acknowledged=0 AND row>? AND row<=? ORDER BY row", line, after_row, last
                )
                gone += self._merge(rows, now_ns=now_ns, before_ns=before_ns)
        return gone

    def _waiting(self, after_row: int) -> Iterator[Waiting]:
        rows = self._db.execute(
            "SELECT row, line, LENGTH(identity) + LENGTH(context) FROM outbox "
            "WHERE acknowledged=0 AND row>? ORDER BY row",
            (after_row,),
        )
        return (Waiting(*row) for row in rows)

    def _merge(self, rows: list[OutboxRow], *, now_ns: int, before_ns: int) -> int:
        """Let the last row of a line's oldest stand for all of them; return how many messages went."""
        last = rows[-1]
        if len(rows) == 1 and (last.time_ns >= before_ns or outbox.is_gap(last.identity)):
            return 0
        gap = outbox.gap_of(rows[0].identity, last.identity)
        identity, context = topics.identity_of(gap), topics.encode(gap.context)
        self._db.executemany("DELETE FROM outbox WHERE row=?", [(row.row,) for row in rows[:-1]])
        self._db.execute(
            "UPDATE outbox SET time_ns=?, identity=?, context=? WHERE row=?", (now_ns, identity, context, last.row)
        )
        self._pending_rows -= len(rows) - 1
        self._pending_bytes += len(identity) + len(context) - sum(len(r.identity) + len(r.context) for r in rows)
        return len(rows)

    def sent(self, topic: str, from_seq: int, limit: int) -> list[OutboxRow]:
        """Read delivered messages of a topic again from an ordinal on; what is on its way comes by itself, in order."""
        return self._outbox("topic=? AND seq>=? AND acknowledged=1 ORDER BY seq LIMIT ?", topic, from_seq, limit)

    def newest(self) -> list[OutboxRow]:
        """Read the newest message of each line."""
        return self._outbox("row IN (SELECT MAX(row) FROM outbox GROUP BY line)")

    def _outbox(self, where: str, *values: object) -> list[OutboxRow]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM outbox WHERE {where}", values)  # noqa: S608 (our own text)
        return [OutboxRow(*row) for row in rows]

    def prune(self, line: str, *, keep_from_seq: int, keep_messages: int) -> None:
        """Forget a line's candles below an ordinal, and delivered messages beyond the newest `keep_messages`."""
        with self._transaction():
            self._db.execute("DELETE FROM journal WHERE line=? AND seq<?", (line, keep_from_seq))
            self._db.execute(
                "DELETE FROM outbox WHERE line=?1 AND acknowledged=1 "
                "AND seq<=(SELECT MAX(seq) FROM outbox WHERE line=?1)-?2",
                (line, keep_messages),
            )

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            "seq": seq, "open_time_ns": open_ns, "close_time_ns": close_ns, "open": o, "high": h, "low": low,
            "close": c, "volume": volume, "trades": trades, "closed": True, "origin": Origin(str(origin)),
        },
        Candle,
    )  # fmt: skip
    return Ordinal(seq, candle)
