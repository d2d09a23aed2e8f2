"""What survives: journal of closed candles, snapshots, outbox, daily calibrations, in one SQLite file.

The only user of sqlite3. Candles and the messages they caused are written in one transaction, now and then with the
state after them, so start-up is recovery and there is no other kind. WAL with synchronous=FULL: what `commit` returned
from is on the disk. A file that cannot be read is set aside, and a new one goes on from what it still tells.
"""

import contextlib
import errno
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
import structlog

from daemon import clock, folder, outbox, tables, topics
from daemon.folder import FolderInUse, FolderLock
from daemon.line import Ordinal, Snapshot
from daemon.outbox import Limits, Load, Sent, Waiting
from feeds.market import SEQ_PER_DAY

SNAPSHOTS = 2
"""Kept of a line: should the newest be damaged, there is the one before."""
WAL_BYTES_MAX = 16 << 20
"""To what the log of changes shrinks again once it is in the file."""
FREE_PAGES_MAX = 4096
"""Unused pages of the file, beyond which some are given back."""
_FORGET_PER_COMMIT = 256
"""Delivered messages forgotten in one transaction, beside as many as it adds: no commit takes much longer for it."""
_TIDY_EVERY = 64
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM)
"""What another start may find mended."""
_NEVER = 1 << 62
_COLUMNS = "row, line, seq, topic, time_ns, identity, context"
_astuple = msgspec.structs.astuple


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


class Prune(NamedTuple):
    """How much of a line's journal stays."""

    rows: int
    """Newest candles, at most."""
    floor: int
    """Newest candles that stay however old they are: a start may need them."""
    before_ns: int
    """Close before which a candle is too old."""


class LineCommit(msgspec.Struct, frozen=True):
    """What one line adds in a transaction."""

    line: str
    rows: list[Ordinal]
    snapshot: Snapshot | None
    model: str
    """What the snapshot depends on besides the candles."""
    messages: list[Message]
    prune: Prune | None = None


class Store:
    """The store of one daemon. Not shared between threads or processes: opening takes an exclusive lock."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. One that is damaged is set aside, loudly, and its streams go on in a new one.

        Raises:
            StoreError: another process has it, it cannot be written, or another version of lstmd wrote it.
            sqlite3.OperationalError: the disk is full, or fails.

        """
        self.path = path
        self._log = structlog.get_logger().bind(store=str(path))
        with contextlib.ExitStack() as undo:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = undo.enter_context(FolderLock(path.with_name(path.name + ".lock")))
                self._db = self._open()
            except FolderInUse as holder:
                said = f"another lstmd is using it ({holder}); stop that one, or give each a store.path of its own"
                raise StoreError(f"{path.parent}: {said}") from None
            except (OSError, sqlite3.Error) as error:
                if _code_of(error) in _DISK:
                    self._log.critical("store_failed", reason=str(error))
                    raise
                raise StoreError(f"store.path: {path}: {error}; is the folder not ours to write?") from error
            undo.pop_all()
        self._waits, self._sent = self._counted(0), self._counted(1)
        self._commits = 0

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if _code_of(error) not in _CORRUPT:
                raise
            return self._begin_anew(str(error))

    def _connect(self) -> sqlite3.Connection:
        with contextlib.ExitStack() as undo:
            db = sqlite3.connect(self.path, isolation_level=None)
            undo.callback(db.close)
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
            if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                error = sqlite3.DatabaseError(" ".join(found.split("***")[-1].split()))
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
            self._bring_up_to_date(db)
            undo.pop_all()
            return db

    def _bring_up_to_date(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, *tables.OLDER, tables.SCHEMA_VERSION):
            said = f"schema {version}, this one is {tables.SCHEMA_VERSION}"
            raise StoreError(f"{self.path}: written by another version of lstmd ({said})")
        if version in tables.OLDER:
            db.executescript(tables.TO_THIS_VERSION)
        db.executescript(tables.TABLES)
        if version in tables.OLDER:
            db.execute("VACUUM")  # from here on the file may shrink
        db.execute(f"PRAGMA user_version={tables.SCHEMA_VERSION}")

    def _begin_anew(self, reason: str) -> sqlite3.Connection:
        """Set the file aside; in a new one each stream goes on behind what is known to have been delivered.

        Candles come from the exchange again; messages that waited are made again from them, the same to the byte. Of a
        stream whose position cannot be read nobody can say what was lost: it begins like a new one.
        """
        found = self._salvaged()
        known = [(line, seq) for line, seq in found or [] if seq is not None]
        lost: object = "every stream's position" if found is None else [line for line, seq in found if seq is None]
        aside = folder.set_aside(self.path, reason, now_ns=clock.now_ns())
        self._log.critical("store_set_aside", reason=reason, file=aside.name, streams_kept=len(known), lost=lost)
        db = self._connect()
        with _Transaction(db):
            db.executemany("INSERT INTO stream VALUES (?,?)", known)
        return db

    def _salvaged(self) -> list[tuple[str, int | None]] | None:
        """Read from a damaged file up to where each stream was delivered; None where it does not say."""
        try:
            with contextlib.closing(sqlite3.connect(self.path)) as db:
                db.execute("PRAGMA locking_mode=EXCLUSIVE")
                return [(str(line), seq) for line, seq in db.execute(tables.POSITIONS) if isinstance(seq, int | None)]
        except sqlite3.Error:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close. Where the file was what ended the daemon, say so; one that is damaged is not met by the next start."""
        for fault in _faults(error):
            self._log.critical("store_failed", reason=str(fault))
        damage = [fault for fault in _faults(error) if _code_of(fault) in _CORRUPT]
        try:
            self._db.close()
            if damage:
                self._begin_anew(str(damage[0])).close()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the file; what was committed is safe with or without it."""
        self._db.close()
        self._lock.release()

    @property
    def set_aside(self) -> list[str]:
        """Names of the damaged files that lie beside this one, for the operator to look at and remove."""
        return folder.aside_of(self.path)

    def commit(self, lines: Iterable[LineCommit], *, sent: Limits | None = None, now_ns: int = 0) -> list[OutboxRow]:
        """Write candles, snapshots and messages in one transaction; return the new outbox rows in order.

        In the same transaction a line's oldest candles go, where `prune` says so, and the oldest delivered messages
        past the bounds `sent` at the exchange's time `now_ns`.
        """
        lines = list(lines)
        gone: list[Sent] = []
        with self._transaction():
            self._keep_rows(lines)
            added = self._enqueue(lines)
            for line in lines:
                if line.snapshot:
                    self._keep_snapshot(line, line.snapshot)
                if line.prune:
                    self._prune(line.line, line.prune)
            if sent:
                gone = self._forget_sent(sent, now_ns, _FORGET_PER_COMMIT + len(added))
        self._waits += sum(len(row.identity) + len(row.context) for row in added), len(added)
        self._sent -= sum(row.size_bytes for row in gone), len(gone)
        self._commits += 1
        if self._commits % _TIDY_EVERY == 0:
            self._tidy()
        return added

    def _keep_rows(self, lines: Sequence[LineCommit]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            [tables.flatten(line.line, row) for line in lines for row in line.rows],
        )
        # A snapshot speaks of the journal as it was: a row that is written again makes it untrue.
        firsts = [(line.line, min(row.seq for row in line.rows)) for line in lines if line.rows]
        self._db.executemany("DELETE FROM snapshot WHERE line=? AND seq>=?", firsts)

    def _keep_snapshot(self, line: LineCommit, snapshot: Snapshot) -> None:
        seq, state = snapshot
        checksum = tables.checksum(line.line, seq, line.model, state)
        self._db.execute(
            "INSERT OR REPLACE INTO snapshot VALUES (?,?,?,?,?)", (line.line, seq, line.model, checksum, state)
        )
        self._db.execute(
            "DELETE FROM snapshot WHERE line=?1 AND seq<"
            "(SELECT MIN(seq) FROM (SELECT seq FROM snapshot WHERE line=?1 ORDER BY seq DESC LIMIT ?2))",
            (line.line, SNAPSHOTS),
        )

    def _enqueue(self, lines: Sequence[LineCommit]) -> list[OutboxRow]:
        # What SQLite would number itself, one by one: nobody else writes here.
        newest = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name='outbox'").fetchone()
        number = itertools.count(1 + (newest[0] if newest else 0))
        added = [
            OutboxRow(next(number), line.line, m.seq, m.topic, m.time_ns, m.identity, m.context)
            for line in lines
            for m in line.messages
        ]
        self._db.executemany(f"INSERT INTO outbox ({_COLUMNS}) VALUES (?,?,?,?,?,?,?)", map(_astuple, added))  # noqa: S608
        newests = [(line.line, line.messages[-1].seq) for line in lines if line.messages]
        self._db.executemany("INSERT OR REPLACE INTO stream VALUES (?,?)", newests)
        return added

    def _prune(self, line: str, prune: Prune) -> None:
        """Forget a line's oldest candles; ordinals do not count them, as those of event candles begin anew daily."""
        nth = "SELECT seq FROM journal WHERE line=? ORDER BY seq DESC LIMIT 1 OFFSET ?"
        first_of_rows, first_of_floor = (
            (self._db.execute(nth, (line, count - 1)).fetchone() or (0,))[0] for count in (prune.rows, prune.floor)
        )
        old = "SELECT COALESCE(MAX(seq), 0) FROM journal WHERE line=? AND close_ns>0 AND close_ns<?"
        (newest_old,) = self._db.execute(old, (line, prune.before_ns)).fetchone()
        first = min(max(first_of_rows, newest_old + 1), first_of_floor)
        self._db.execute("DELETE FROM journal WHERE line=? AND seq<?", (line, first))

    def _forget_sent(self, limits: Limits, now_ns: int, at_most: int) -> list[Sent]:
        """Forget the oldest delivered messages past the bounds; a line's newest stays, being what `last` says."""
        oldest = self._db.execute(
            "SELECT row, time_ns, LENGTH(identity) + LENGTH(context) FROM outbox WHERE acknowledged=1 "
            "AND NOT EXISTS (SELECT 1 FROM stream WHERE stream.line=outbox.line AND stream.seq=outbox.seq) "
            "ORDER BY row LIMIT ?",
            (at_most,),
        )
        gone = outbox.surplus((Sent(*row) for row in oldest), self._sent.load(), limits, now_ns)
        self._db.executemany("DELETE FROM outbox WHERE row=?", [(sent.row,) for sent in gone])
        return gone

    def _tidy(self) -> None:
        """Give some pages back to the file system, if many are free."""
        if self._db.execute("PRAGMA freelist_count").fetchone()[0] > FREE_PAGES_MAX:
            # As a script: a plain statement is stepped but once, and a step gives one page back.
            self._db.executescript(f"PRAGMA incremental_vacuum({FREE_PAGES_MAX // 4})")

    def forget_lines(self, before_ns: int) -> list[str]:
        """Forget journal and snapshots of lines that had no candle since; where their streams stood is kept."""
        newest = "SELECT close_ns FROM journal WHERE line=? AND close_ns>0 ORDER BY seq DESC LIMIT 1"
        lines = [line for (line,) in self._db.execute(tables.LINES)]
        gone = [line for line in lines if (self._db.execute(newest, (line,)).fetchone() or (0,))[0] < before_ns]
        with self._transaction():
            for table in ("journal", "snapshot"):
                self._db.executemany(f"DELETE FROM {table} WHERE line=?", [(line,) for line in gone])  # noqa: S608
        return gone

    def journal(self, line: str, from_seq: int, to_seq: int = _NEVER) -> list[Ordinal]:
        """Read a line's ordinals from `from_seq` to `to_seq`, ascending."""
        rows = self._db.execute(
            "SELECT * FROM journal WHERE line=? AND seq BETWEEN ? AND ? ORDER BY seq", (line, from_seq, to_seq)
        )
        return [tables.unflatten(row) for row in rows]

    def journal_begin(self, line: str, from_seq: int = 0) -> int | None:
        """Return the oldest ordinal of a line that is kept, from `from_seq` on."""
        found = self._db.execute("SELECT MIN(seq) FROM journal WHERE line=? AND seq>=?", (line, from_seq)).fetchone()
        return None if found[0] is None else int(found[0])

    def journal_days(self, line: str) -> dict[int, tuple[int, int]]:
        """Return the first and the last ordinal of an event line that are kept of each UTC day, by its number."""
        found = self._db.execute(
            f"SELECT seq / {SEQ_PER_DAY}, MIN(seq), MAX(seq) FROM journal WHERE line=? GROUP BY 1",  # noqa: S608
            (line,),
        )
        return {day: (first, last) for day, first, last in found}

    def snapshots(self, line: str, model: str) -> list[Snapshot]:
        """Read a line's states under `model`, newest first; a damaged one is passed over, and said."""
        found = []
        for seq, checksum, state in self._db.execute(
            "SELECT seq, CAST(checksum AS BLOB), CAST(state AS BLOB) FROM snapshot "
            "WHERE line=? AND model=? ORDER BY seq DESC",
            (line, model),
        ):
            if tables.checksum(line, seq, model, state) == checksum:
                found.append(Snapshot(seq, state))
            else:
                self._log.error("snapshot_damaged", line=line, seq=seq)
        return found

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
        return self._waits.load(int(oldest or 0))

    def acknowledge(self, rows: Sequence[int]) -> None:
        """Mark messages as delivered."""
        size = "SELECT LENGTH(identity) + LENGTH(context) FROM outbox WHERE row=? AND acknowledged=0"
        with self._transaction():
            # A repeated row counts once: of equal ones only the first is still waiting.
            sizes = [found[0] for row in dict.fromkeys(rows) if (found := self._db.execute(size, (row,)).fetchone())]
            self._db.executemany("UPDATE outbox SET acknowledged=1 WHERE row=?", [(row,) for row in rows])
        self._waits -= sum(sizes), len(sizes)
        self._sent += sum(sizes), len(sizes)

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
        self._waits -= sum(len(r.identity) + len(r.context) for r in rows), len(rows)
        self._waits += len(identity) + len(context), 1
        return len(rows)

    def sent(self, topic: str, from_seq: int, limit: int) -> list[OutboxRow]:
        """Read delivered messages of a topic again from an ordinal on; what is on its way comes by itself, in order."""
        return self._outbox("topic=? AND seq>=? AND acknowledged=1 ORDER BY seq LIMIT ?", topic, from_seq, limit)

    def first_held(self, topic: str, from_seq: int) -> int | None:
        """Return the first ordinal from `from_seq` on that a message of the topic is held for, delivered or not."""
        found = self._db.execute("SELECT MIN(seq) FROM outbox WHERE topic=? AND seq>=?", (topic, from_seq)).fetchone()
        return None if found[0] is None else int(found[0])

    def newest(self) -> list[OutboxRow]:
        """Read the newest message of each line."""
        return self._outbox("(line, seq) IN (SELECT line, seq FROM stream) ORDER BY row")

    def _outbox(self, where: str, *values: object) -> list[OutboxRow]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM outbox WHERE {where}", values)  # noqa: S608 (our own text)
        return [OutboxRow(*row) for row in rows]

    def _counted(self, acknowledged: int) -> "_Tally":
        size = "TOTAL(LENGTH(identity) + LENGTH(context))"
        found = self._db.execute(f"SELECT {size}, COUNT(*) FROM outbox WHERE acknowledged={acknowledged}")  # noqa: S608
        return _Tally(*map(int, found.fetchone()))

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
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # a full disk may have ended it already
            self._db.execute("ROLLBACK")


class _Tally(NamedTuple):
    """Bytes and rows, counted along."""

    size_bytes: int
    rows: int

    def __add__(self, more: tuple[int, int]) -> "_Tally":  # type: ignore[override]
        return _Tally(self.size_bytes + more[0], self.rows + more[1])

    def __sub__(self, less: tuple[int, int]) -> "_Tally":
        return _Tally(self.size_bytes - less[0], self.rows - less[1])

    def load(self, oldest_ns: int = 0) -> Load:
        return Load(self.rows, self.size_bytes, oldest_ns)


def _code_of(error: BaseException) -> int | None:
    """Return SQLite's primary result code, also for what the operating system says of a disk."""
    if isinstance(error, OSError):
        return {errno.ENOSPC: sqlite3.SQLITE_FULL, errno.EIO: sqlite3.SQLITE_IOERR}.get(error.errno or 0)
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _faults(error: BaseException | None) -> Iterator[sqlite3.Error]:
    """Find SQLite's errors in what ends the daemon."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _faults(part)
    elif isinstance(error, sqlite3.Error):
        yield error
