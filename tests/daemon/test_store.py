"""What was committed is there after any end, all of it or nothing; bounds are kept; nobody else's file is touched."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import tables, topics
from daemon.line import Ordinal, Snapshot
from daemon.outbox import Limits
from daemon.store import LineCommit, Message, Prune, Store, StoreError
from feeds.market import Origin
from tests.daemon.lines import BEGIN, MINUTE_NS, candle, decoded, new_line, offer_all


def message(seq: int, line: str = "a", *, padding: int = 0) -> Message:
    gap = {
        "kind": "signal", "seq": seq, "exchange": "binance", "symbol": line, "spec": "1m", "model": "m", "policy": "p",
        "close_time": topics.rfc3339(seq * MINUTE_NS), "valid_until": topics.rfc3339((seq + 1) * MINUTE_NS),
        "padding": "x" * padding,
    }  # fmt: skip
    return Message(seq, f"lstmd/{line}/signal", seq * MINUTE_NS, json.dumps(gap).encode(), b"{}")


def commit(seqs: list[int], line: str = "a", *, padding: int = 0, prune: Prune | None = None) -> LineCommit:
    rows = [Ordinal(seq, candle(seq) if seq % 5 else None) for seq in seqs]
    messages = [message(seq, line, padding=padding) for seq in seqs]
    return LineCommit(line, rows, Snapshot(seqs[-1], b"state %d" % seqs[-1]), "model/1", messages, prune)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "lstmd.sqlite"


def test_everything_is_there_again(path: Path) -> None:
    with Store(path) as store:
        added = store.commit([commit([1, 2, 3]), commit([8], "b")])
        assert [row.seq for row in added] == [1, 2, 3, 8]
    with Store(path) as store:
        assert store.pending(0, 10) == added
        assert store.journal("a", 2) == [Ordinal(2, candle(2)), Ordinal(3, candle(3))]
        assert store.snapshots("a", "model/1") == [Snapshot(3, b"state 3")]
        assert (store.stream_seq("a"), store.stream_seq("b"), store.stream_seq("c")) == (3, 8, None)
        assert [row.seq for row in store.newest()] == [3, 8]
        assert store.load().rows == 4


floats = st.floats(1e-12, 1e15)


@given(st.lists(floats, min_size=5, max_size=5), st.integers(0, 2**53), st.sampled_from(list(Origin)))
@settings(max_examples=50, deadline=None)
def test_a_candle_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, figures: list[float], trades: int, origin: Origin
) -> None:
    o, h, l, c, v = figures
    kept = msgspec.structs.replace(candle(7), open=o, high=h, low=l, close=c, volume=v, trades=trades, origin=origin)
    with Store(tmp_path_factory.mktemp("bits") / "s.sqlite") as store:
        store.commit([LineCommit("a", [Ordinal(7, kept), Ordinal(8, None)], None, "m", [])])
        again, void = store.journal("a", 0)
    assert msgspec.json.encode(again) == msgspec.json.encode(Ordinal(7, kept))
    assert void == Ordinal(8, None)


def test_a_repaired_candle_replaces_the_one_that_was_wrong_and_what_was_folded_with_it(path: Path) -> None:
    with Store(path) as store:
        store.commit([commit([1, 2])])
        store.commit([commit([3, 4])])
        repaired = Ordinal(3, candle(3, shift=1.0))
        store.commit([LineCommit("a", [repaired], None, "model/1", [])])
        assert store.journal("a", 0)[2] == repaired
        assert store.snapshots("a", "model/1") == [Snapshot(2, b"state 2")]
        store.commit([LineCommit("a", [Ordinal(1, candle(1, shift=1.0))], Snapshot(4, b"new"), "model/1", [])])
        assert store.snapshots("a", "model/1") == [Snapshot(4, b"new")]


def test_two_snapshots_are_kept_and_one_that_is_damaged_is_passed_over(path: Path) -> None:
    with Store(path) as store:
        for seq in (1, 2, 3):
            store.commit([commit([seq]), commit([seq], "b")])
        kept = [Snapshot(3, b"state 3"), Snapshot(2, b"state 2")]
        assert store.snapshots("a", "model/1") == store.snapshots("b", "model/1") == kept
        store._db.execute("UPDATE snapshot SET state=CAST('stale 3' AS BLOB) WHERE line='a' AND seq=3")
        store._db.execute("UPDATE snapshot SET seq=4 WHERE line='b' AND seq=2")
        with structlog.testing.capture_logs() as said:
            assert store.snapshots("a", "model/1") == kept[1:]
            assert store.snapshots("b", "model/1") == kept[:1]
        assert [(line["event"], line["line"], line["seq"]) for line in said] == [
            ("snapshot_damaged", "a", 3),
            ("snapshot_damaged", "b", 4),
        ]


def test_the_snapshot_of_another_model_is_passed_over(path: Path) -> None:
    with Store(path) as store:
        store.commit([commit([1])])
        assert store.snapshots("a", "model/2") == []
        assert store.snapshots("b", "model/1") == []


def test_acknowledged_messages_are_not_sent_again_unless_asked_for(path: Path) -> None:
    with Store(path) as store:
        rows = store.commit([commit([1, 2, 3, 4])])
        store.acknowledge([rows[0].row, rows[2].row, rows[2].row])
        assert [row.seq for row in store.pending(0, 10)] == [2, 4]
        assert [row.seq for row in store.pending(rows[1].row, 10)] == [4]
        assert [row.seq for row in store.pending(0, 1)] == [2]
        assert store.load().rows == 2
        assert [row.seq for row in store.sent("lstmd/a/signal", 0, 10)] == [1, 3], "what is on its way comes in order"
        assert [row.seq for row in store.sent("lstmd/a/signal", 2, 10)] == [3]
        assert store.sent("lstmd/b/signal", 0, 10) == []
    with Store(path) as store:
        assert [row.seq for row in store.pending(0, 10)] == [2, 4]


def test_a_transaction_that_fails_leaves_nothing(path: Path) -> None:
    with Store(path) as store:
        store.commit([commit([1])])
        bad = Message(3, "t", 3, None, b"{}")  # type: ignore[arg-type]
        with pytest.raises(sqlite3.IntegrityError):
            store.commit([commit([2]), LineCommit("b", [], None, "m", [bad])])
        assert [row.seq for row in store.pending(0, 10)] == [1]
        assert [row.seq for row in store.journal("a", 0)] == [1]
        assert store.stream_seq("a") == 1
        assert store.load().rows == 1, "what is counted in memory is what is on the disk"


# ---- who may open it


HOLDER = """
import sys
from pathlib import Path
from daemon.store import Store
Store(Path(sys.argv[1]))
print(1, flush=True)
input()
"""


def test_two_processes_do_not_share_a_store(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        with pytest.raises(StoreError) as caught:
            Store(path)
        other.communicate("\n", timeout=60)
    assert str(caught.value) == (
        f"{path.parent}: another lstmd is using it (process {other.pid}); "
        "stop that one, or give each a store.path of its own"
    )
    Store(path).close()


def test_nor_do_two_stores_of_one_process(path: Path) -> None:
    with Store(path), pytest.raises(StoreError, match="another lstmd is using it"):
        Store(path)
    Store(path).close()


def test_a_store_of_another_schema_is_refused_and_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"another version of lstmd \(schema 99, this one is 3\)"):
            Store(path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, path.name + ".lock"]


OLD_SNAPSHOT = "CREATE TABLE snapshot (line TEXT PRIMARY KEY, model TEXT NOT NULL, seq INTEGER NOT NULL, state BLOB)"


@pytest.mark.parametrize("version", tables.OLDER)
def test_an_older_store_is_brought_up_to_date(path: Path, version: int) -> None:
    with Store(path) as store:
        store.commit([commit([1])])
        if version == 1:
            store._db.execute("DROP TABLE revision")
        store._db.executescript(f"DROP TABLE snapshot; {OLD_SNAPSHOT}; INSERT INTO snapshot VALUES ('a', 'm', 1, 'x')")
        store._db.executescript(f"PRAGMA auto_vacuum=NONE; PRAGMA user_version={version}; VACUUM")
    for _ in range(2):
        with Store(path) as store:
            assert [row.seq for row in store.pending(0, 9)] == [1]
            assert store.journal("a", 0) == [Ordinal(1, candle(1))]
            assert store.snapshots("a", "m") == []
            assert store._db.execute("PRAGMA user_version").fetchone() == (tables.SCHEMA_VERSION,)
            assert store._db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
            store.keep_revision("s", 20_000, b"[]")


def test_a_days_calibration_is_written_once(path: Path) -> None:
    with Store(path) as store:
        assert store.revisions("s") == {}
        assert store.keep_revision("s", 20_001, b"[1]") == b"[1]"
        assert store.keep_revision("s", 20_000, b"[2]") == b"[2]"
        assert store.keep_revision("s", 20_001, b"[3]") == b"[1]"
        assert store.keep_revision("t", 20_001, b"[3]") == b"[3]"
    with Store(path) as store:
        assert store.revisions("s") == {20_000: b"[2]", 20_001: b"[1]"}


def test_where_no_store_can_be_is_said(path: Path) -> None:
    path.parent.mkdir()
    with pytest.raises(StoreError, match=r"unable to open|directory"):
        Store(path.parent)
    path.touch()
    with pytest.raises(StoreError, match=r"exists|directory"):
        Store(path / "below" / "lstmd.sqlite")


# ---- damage and full disks


def filled(path: Path, *, upto: int = 400) -> None:
    """Leave a store of two lines in which all but some messages were delivered."""
    with Store(path) as store:
        for first in range(1, upto, 20):
            for line in "ab":
                rows = store.commit([commit(list(range(first, first + 20)), line, padding=500)])
                store.acknowledge([row.row for row in rows if line == "a" or row.seq <= upto - 5])


def spoil(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "header":
        raw[:100] = b"\xa5" * 100
    elif how == "text":
        raw = bytearray(b"certainly not a database" * 100)
    elif how == "truncated":
        del raw[len(raw) // 2 :]
    else:
        page = 4096 * (len(raw) // 4096 // 2)
        raw[page : page + 2048] = b"\xa5" * 2048
    path.write_bytes(raw)


SAYS = {
    "header": "file-is-not-a-database",
    "text": "file-is-not-a-database",
    "truncated": "database-disk-image-is-malformed",
    "torn page": "btreeinitpage-returns-error-code-11",
}


@pytest.mark.parametrize("how", ["header", "text", "truncated", "torn page"])
def test_a_damaged_store_is_set_aside_and_a_new_one_begun(path: Path, how: str) -> None:
    filled(path)
    spoil(path, how)
    damaged = path.read_bytes()
    with structlog.testing.capture_logs() as said, Store(path) as store:
        assert store.journal("a", 0) == []
        assert store.pending(0, 9) == []
        (name,) = store.set_aside
        store.commit([commit([1000])])
        assert [row.seq for row in store.newest()] == [1000]
    (line,) = said
    assert (line["event"], line["log_level"], line["file"]) == ("store_set_aside", "critical", name)
    assert name.startswith("lstmd.sqlite.set-aside.20")
    assert SAYS[how] in name
    assert len((path.parent / name).read_bytes()) == len(damaged)
    with structlog.testing.capture_logs() as said, Store(path) as store:
        assert [row.seq for row in store.journal("a", 0)] == [1000], "the new one stays"
        assert store.set_aside == [name]
    assert not said


def test_streams_go_on_behind_what_was_delivered_where_a_damaged_store_still_says_it(path: Path) -> None:
    filled(path)
    with Store(path) as store:
        store.shed(Limits.of(hours=1e6, rows=3, size_bytes=10**12), now_ns=0, after_row=0)
        assert told(store, "b")[0] == ("gap", 396, 399)
        store.commit([commit([7], "c")])
        store._db.execute("UPDATE stream SET seq=9 WHERE line='c'")
        (root,) = store._db.execute("SELECT rootpage FROM sqlite_schema WHERE name='journal'").fetchone()
    with path.open("r+b") as file:
        file.seek(4096 * (root - 1))
        file.write(b"\xa5" * 1000)
    with structlog.testing.capture_logs() as said, Store(path) as store:
        assert (store.stream_seq("a"), store.stream_seq("b"), store.stream_seq("c")) == (400, 395, None)
    assert [(line["streams_kept"], line["lost"]) for line in said] == [(2, ["c"])]


def test_damage_met_at_work_ends_it_and_the_next_start_is_sound(path: Path) -> None:
    filled(path)
    store = Store(path)
    (root,) = store._db.execute("SELECT rootpage FROM sqlite_schema WHERE name='journal'").fetchone()
    store._db.execute("PRAGMA shrink_memory")
    with path.open("r+b") as file:
        file.seek(4096 * (root - 1))
        file.write(b"\xa5" * 1000)

    def work() -> None:
        """Fail as a daemon of many tasks does."""
        try:
            store.journal("a", 0)
        except sqlite3.DatabaseError as error:
            raise BaseExceptionGroup("tasks", [ValueError("x"), BaseExceptionGroup("inner", [error])]) from None

    with structlog.testing.capture_logs() as said, pytest.raises(BaseExceptionGroup) as caught, store:
        work()
    assert "malformed" in repr(caught.value.exceptions[1])
    assert [line["event"] for line in said] == ["store_failed", "store_set_aside"]
    assert said[1]["file"].endswith("malformed")
    with structlog.testing.capture_logs() as said, Store(path) as store:
        assert (store.stream_seq("a"), store.stream_seq("b")) == (400, 395)
        assert store.set_aside
    assert not said


def test_a_full_disk_commits_nothing_by_halves_and_is_no_fault_of_the_file(path: Path) -> None:
    with Store(path) as store:
        store.commit([commit([1])])
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.commit([commit(list(range(2, 200)), padding=1000), commit([2], "b")])
        assert [row.seq for row in store.pending(0, 999)] == [1]
        assert [row.seq for row in store.journal("a", 0)] == [1]
        assert (store.stream_seq("a"), store.stream_seq("b"), store.load().rows) == (1, None, 1)
        store._db.execute("PRAGMA max_page_count=1000000")
        store.commit([commit([2])])
    store = Store(path)
    store._db.execute("PRAGMA max_page_count=1")
    with structlog.testing.capture_logs() as said, pytest.raises(sqlite3.OperationalError), store:
        store.commit([commit(list(range(3, 300)), padding=1000)])
    assert [(line["event"], line["reason"]) for line in said] == [("store_failed", "database or disk is full")]
    with Store(path) as store:
        assert [row.seq for row in store.pending(0, 999)] == [1, 2]
        assert store.set_aside == []


# ---- bounds


def told(store: Store, line: str = "a") -> list[tuple[str, int, int]]:
    found = []
    for row in store.pending(0, 10_000):
        payload = json.loads(row.identity)
        if row.line == line:
            found.append((payload["kind"], payload.get("from_seq", payload["seq"]), payload["seq"]))
            assert row.seq == payload["seq"]
    return found


def test_past_the_bound_in_rows_the_oldest_become_one_gap_in_their_place(path: Path) -> None:
    limits = Limits.of(hours=1e6, rows=10, size_bytes=10**12)
    with Store(path) as store:
        for seq in range(1, 11):
            store.commit([commit([seq])])
            assert store.shed(limits, now_ns=0, after_row=0) == 0
        store.commit([commit([11])])
        assert store.shed(limits, now_ns=0, after_row=0) == 3
        assert told(store) == [("gap", 1, 3), *(("signal", seq, seq) for seq in range(4, 12))]
        assert store.load().rows == 9
        store.commit([commit([12, 13])])
        assert store.shed(limits, now_ns=0, after_row=0) == 3, "an older gap is taken in"
        assert told(store) == [("gap", 1, 5), *(("signal", seq, seq) for seq in range(6, 14))]
        assert store.stream_seq("a") == 13
        load = store.load()
    with Store(path) as store:
        assert store.load()[:2] == load[:2], "what is counted in memory is what is on the disk"


def test_the_bound_in_bytes_counts_all_lines_and_sheds_the_oldest_of_each(path: Path) -> None:
    limits = Limits.of(hours=1e6, rows=10**6, size_bytes=40_000)
    with Store(path) as store:
        for seq in range(1, 21):
            store.commit([commit([seq], "a", padding=1000), commit([seq], "b", padding=1000)])
            store.shed(limits, now_ns=0, after_row=0)
            assert store.load().size_bytes <= limits.size_bytes
        for line in "ab":
            gap, *signals = told(store, line)
            assert gap[:2] == ("gap", 1)
            assert [seq for _, seq, _ in signals] == list(range(gap[2] + 1, 21))
            assert len(signals) > 10


def test_the_bound_in_hours_is_counted_by_the_exchanges_time(path: Path) -> None:
    limits = Limits.of(hours=2, rows=10**6, size_bytes=10**12)
    with Store(path) as store:
        store.commit([commit(list(range(1, 181))), commit([175], "b")])
        assert store.shed(limits, now_ns=121 * MINUTE_NS, after_row=0) == 0
        gone = store.shed(limits, now_ns=122 * MINUTE_NS, after_row=0)
        assert gone == 13, "back to nine tenths of two hours"
        assert told(store)[:2] == [("gap", 1, 13), ("signal", 14, 14)]
        assert told(store, "b") == [("signal", 175, 175)]
        assert store.load().oldest_ns == 14 * MINUTE_NS
        assert store.shed(limits, now_ns=5 * 60 * MINUTE_NS, after_row=0) == 169
        assert told(store) == [("gap", 1, 180)]
        assert told(store, "b") == [("gap", 175, 175)]
        assert store.shed(limits, now_ns=50 * 60 * MINUTE_NS, after_row=0) == 0, "a gap is as short as it gets"


def test_what_may_have_arrived_is_never_merged(path: Path) -> None:
    limits = Limits.of(hours=1e6, rows=10, size_bytes=10**12)
    with Store(path) as store:
        rows = store.commit([commit(list(range(1, 16)))])
        store.acknowledge([rows[0].row])
        store.shed(limits, now_ns=0, after_row=rows[3].row)
        kinds = told(store)
        assert kinds[:3] == [("signal", seq, seq) for seq in (2, 3, 4)]
        assert kinds[3][:2] == ("gap", 5)
        assert store.load().rows <= 10


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_every_ordinal_is_told_once_whatever_is_shed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool]]
) -> None:
    limits = Limits.of(hours=1e6, rows=12, size_bytes=10**12)
    newest = dict.fromkeys("abc", 0)
    delivered: dict[str, list[tuple[int, int]]] = {line: [] for line in "abc"}

    def deliver(store: Store, limit: int) -> int:
        rows = store.pending(0, limit)
        for row in rows:
            payload = json.loads(row.identity)
            delivered[row.line].append((payload.get("from_seq", payload["seq"]), payload["seq"]))
        store.acknowledge([row.row for row in rows])
        return rows[-1].row if rows else 0

    with Store(tmp_path_factory.mktemp("shed") / "s.sqlite") as store:
        sent_to = 0
        for line, count, ship in steps:
            seqs = list(range(newest[line] + 1, newest[line] + count + 1))
            newest[line] = seqs[-1]
            store.commit([commit(seqs, line)])
            store.shed(limits, now_ns=0, after_row=sent_to)
            assert store.load().rows <= 12
            if ship:
                sent_to = max(sent_to, deliver(store, 4))
        deliver(store, 1000)
        assert store.load()[:2] == (0, 0)
    for line, spans in delivered.items():
        assert [seq for first, last in spans for seq in range(first, last + 1)] == list(range(1, newest[line] + 1))


def test_a_gap_in_the_outbox_is_a_valid_message(path: Path) -> None:
    line = new_line()
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    offer_all(line, range(line.next_seq, BEGIN + 30))
    work = line.take_work()
    drafts = [Message(d.seq, d.topic, d.time_ns, d.identity, topics.encode(d.context)) for d in work.drafts]
    with Store(path) as store:
        store.commit([LineCommit(line.name, work.rows, None, "m", drafts)])
        store.shed(Limits.of(hours=1e6, rows=10, size_bytes=10**12), now_ns=0, after_row=0)
        first = store.pending(0, 1)[0]
    gap = decoded(first.identity)
    assert isinstance(gap, topics.Void)
    assert (gap.kind, gap.from_seq, gap.reasons) == ("gap", BEGIN + 1, ["outbox_bound"])
    assert msgspec.json.decode(first.context, type=topics.Context) == topics.Context(late=True)


# ---- retention

WEEK = 7 * 1440
AT_REST = Limits.of(hours=24 * 14, rows=3000, size_bytes=10**9)


def test_the_file_stops_growing(path: Path) -> None:
    """Five weeks of three lines, delivered; one of them ends after the second."""
    sizes = []
    with Store(path) as store:
        for first in range(1, 5 * WEEK, 96):
            seqs = list(range(first, first + 96))
            lines = "abc" if first < 2 * WEEK else "ab"
            prune = Prune(2000, 1700, (first - 10 * WEEK) * MINUTE_NS)
            now_ns = seqs[-1] * MINUTE_NS
            commits = [commit(seqs, line, padding=500, prune=prune) for line in lines]
            rows = store.commit(commits, sent=AT_REST, now_ns=now_ns)
            store.acknowledge([row.row for row in rows])
            if first % WEEK < 96:
                store.forget_lines(now_ns - WEEK * MINUTE_NS)
            sizes.append(sum(f.stat().st_size for f in path.parent.glob("lstmd.sqlite*")))
        assert [len(store.journal(line, 0)) for line in "abc"] == [2000, 2000, 0]
        held = store.sent("lstmd/a/signal", 0, 10**6)
        assert len(held) + len(store.sent("lstmd/b/signal", 0, 10**6)) == 3000 - 1 + 192
        assert [row.seq for row in store.sent("lstmd/c/signal", 0, 10**6)] == [2 * WEEK], "its newest"
        assert store.snapshots("c", "model/1") == []
    weeks = [max(sizes[at : at + 105]) for at in range(0, len(sizes), 105)]
    assert max(weeks[2:]) <= weeks[1] * 1.02, weeks
    with Store(path) as store:
        assert store._sent.rows == store._db.execute("SELECT COUNT(*) FROM outbox").fetchone()[0]


def test_delivered_messages_go_by_age_and_bytes_too_and_those_that_wait_stay(path: Path) -> None:
    with Store(path) as store:
        rows = store.commit([commit([1, 2], "b"), commit(list(range(1, 101)), padding=1000)])
        store.acknowledge([row.row for row in rows if row.seq != 3])
        by_age = Limits.of(hours=0.5, rows=10**6, size_bytes=10**9)
        store.commit([], sent=by_age, now_ns=80 * MINUTE_NS)
        assert [row.seq for row in store.sent("lstmd/a/signal", 0, 999)] == list(range(50, 101))
        assert [row.seq for row in store.sent("lstmd/b/signal", 0, 999)] == [2], "what `last` says is kept"
        by_size = Limits.of(hours=1e6, rows=10**6, size_bytes=20_000)
        store.commit([], sent=by_size, now_ns=0)
        kept = [row.seq for row in store.sent("lstmd/a/signal", 0, 999)]
        assert kept == list(range(101 - len(kept), 101))
        assert 14 <= len(kept) <= 20
        assert [row.seq for row in store.pending(0, 9)] == [3]


def test_the_journal_goes_by_rows_and_age_and_never_below_what_a_start_may_need(path: Path) -> None:
    def left(prune: Prune) -> list[int]:
        store.commit([LineCommit("a", [], None, "m", [], prune)])
        return [row.seq for row in store.journal("a", 0)]

    days = [day * 10**7 + number for day in (1, 2, 3) for number in range(1, 41)]
    rows = [Ordinal(seq, msgspec.structs.replace(candle(at), seq=seq)) for at, seq in enumerate(days, 1)]
    with Store(path) as store:
        store.commit([LineCommit("a", rows, None, "m", [])])
        assert left(Prune(200, 10, 0)) == days
        assert left(Prune(100, 10, 0)) == days[20:]
        assert left(Prune(100, 10, 51 * MINUTE_NS)) == days[50:]
        assert left(Prune(100, 10, 10**6 * MINUTE_NS)) == days[-10:]
        assert left(Prune(5, 8, 0)) == days[-8:]


def test_pages_that_are_free_are_given_back(path: Path) -> None:
    with Store(path) as store:
        rows = store.commit([commit(list(range(1, 4000)), padding=8000)])
        store.acknowledge([row.row for row in rows])
        begun = path.stat().st_size
        for _ in range(600):
            store.commit([], sent=Limits.of(hours=1e6, rows=10, size_bytes=10**9))
    assert begun > 30_000_000
    assert path.stat().st_size < 0.7 * begun


# ---- crash


WRITER = """
import os, sys
from pathlib import Path
from daemon.line import Ordinal, Snapshot
from daemon.store import LineCommit, Message, Store

def commit(line, seqs):
    rows = [Ordinal(seq, None) for seq in seqs]
    messages = [Message(seq, f"lstmd/{line}/signal", seq, b"{}", b"{}") for seq in seqs]
    return LineCommit(line, rows, Snapshot(seqs[-1], b"%d" % seqs[-1]), "model/1", messages)

with Store(Path(sys.argv[1])) as store:
    seq = int(sys.argv[2])
    while True:
        rows = store.commit([commit("a", [seq, seq + 1]), commit("b", [seq + 1])])
        os.write(1, b"%d\\n" % (seq + 1))
        if seq % 3 == 0:
            store.acknowledge([row.row for row in rows])
        seq += 2
"""
"""Commits for ever, and says after each commit what is now safe."""


def test_a_kill_in_the_middle_of_it_leaves_journal_snapshot_and_outbox_in_step(path: Path) -> None:
    begin = 1
    for kills in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(begin)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            safe = [process.stdout.readline() for _ in range(20 + 17 * kills)]
            process.send_signal(signal.SIGKILL)
            safe += process.stdout.readlines()
        with Store(path) as store:
            last = store.stream_seq("a")
            assert last is not None
            assert last >= int(next(line for line in reversed(safe) if line.endswith(b"\n"))), "what was said is kept"
            assert [row.seq for row in store.journal("a", 0)] == list(range(1, last + 1))
            assert store.snapshots("a", "model/1")[0] == Snapshot(last, b"%d" % last)
            assert store.stream_seq("b") == last
            waiting = {row.seq for row in store.pending(0, 100_000) if row.line == "a"}
            delivered = {row.seq for row in store.sent("lstmd/a/signal", 0, 100_000)}
            assert waiting | delivered == set(range(1, last + 1))
            assert not waiting & delivered
            begin = last + 1
