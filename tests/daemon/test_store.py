"""What was committed is there after any end, all of it or nothing; bounds are kept; nobody else's file is touched."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import store as stores
from daemon import topics
from daemon.line import Ordinal
from daemon.outbox import Limits
from daemon.store import LineCommit, Message, Store, StoreError
from feeds.market import Origin
from tests.daemon.lines import BEGIN, MINUTE_NS, candle, decoded, new_line, offer_all


def message(seq: int, line: str = "a", *, padding: int = 0) -> Message:
    gap = {
        "kind": "signal", "seq": seq, "exchange": "binance", "symbol": line, "spec": "1m", "model": "m", "policy": "p",
        "close_time": topics.rfc3339(seq * MINUTE_NS), "valid_until": topics.rfc3339((seq + 1) * MINUTE_NS),
        "padding": "x" * padding,
    }  # fmt: skip
    return Message(seq, f"lstmd/{line}/signal", seq * MINUTE_NS, json.dumps(gap).encode(), b"{}")


def commit(seqs: list[int], line: str = "a", *, padding: int = 0, snapshot: bytes | None = b"state") -> LineCommit:
    rows = [Ordinal(seq, candle(seq) if seq % 5 else None) for seq in seqs]
    messages = [message(seq, line, padding=padding) for seq in seqs]
    return LineCommit(line, rows, snapshot, seqs[-1] if seqs else 0, "model/1", messages)


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
        assert store.snapshot("a", "model/1") == b"state"
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
        store.commit([LineCommit("a", [Ordinal(7, kept), Ordinal(8, None)], None, 0, "m", [])])
        again, void = store.journal("a", 0)
    assert msgspec.json.encode(again) == msgspec.json.encode(Ordinal(7, kept))
    assert void == Ordinal(8, None)


def test_a_repaired_candle_replaces_the_one_that_was_wrong(path: Path) -> None:
    with Store(path) as store:
        store.commit([commit([1, 2, 3])])
        repaired = Ordinal(2, candle(2, shift=1.0))
        store.commit([LineCommit("a", [repaired], b"new", 3, "model/1", [])])
        assert store.journal("a", 0)[1] == repaired
        assert store.snapshot("a", "model/1") == b"new"


def test_the_snapshot_of_another_model_is_passed_over(path: Path) -> None:
    with Store(path) as store:
        store.commit([commit([1])])
        assert store.snapshot("a", "model/2") is None
        assert store.snapshot("b", "model/1") is None


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
            store.commit([commit([2]), LineCommit("b", [], None, 0, "m", [bad])])
        assert [row.seq for row in store.pending(0, 10)] == [1]
        assert [row.seq for row in store.journal("a", 0)] == [1]
        assert store.stream_seq("a") == 1


def test_pruning_keeps_what_was_not_delivered(path: Path) -> None:
    with Store(path) as store:
        rows = store.commit([commit(list(range(1, 11)))])
        store.acknowledge([row.row for row in rows if row.seq != 2])
        store.prune("a", keep_from_seq=6, keep_messages=4)
        assert [row.seq for row in store.journal("a", 0)] == [6, 7, 8, 9, 10]
        assert [row.seq for row in store.pending(0, 10)] == [2]
        assert [row.seq for row in store.sent("lstmd/a/signal", 0, 20)] == [7, 8, 9, 10]
        assert store.stream_seq("a") == 10


# ---- who may open it


HOLDER = """
import sys
from pathlib import Path
from daemon.store import Store
Store(Path(sys.argv[1]))
print(1, flush=True)
input()
"""


def test_two_processes_do_not_share_a_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        monkeypatch.setattr(stores, "_BUSY_TIMEOUT_S", 0.1)
        with pytest.raises(StoreError) as caught:
            Store(path)
        other.communicate("\n", timeout=60)
    assert str(caught.value) == f"{path}: database is locked; is another lstmd using it, or the folder not writable?"
    Store(path).close()


def test_a_store_of_another_schema_is_refused_and_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"another version of lstmd \(schema 99, this one is 2\)"):
            Store(path)


def test_a_store_of_the_schema_before_is_brought_up_to_date(path: Path) -> None:
    with Store(path) as store:
        store.commit([commit([1])])
        store._db.execute("DROP TABLE revision")
        store._db.execute("PRAGMA user_version=1")
    with Store(path) as store:
        assert [row.seq for row in store.pending(0, 9)] == [1]
        store.keep_revision("s", 20_000, b"[]")
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (stores.SCHEMA_VERSION,)
    db.close()


def test_a_days_calibration_is_written_once(path: Path) -> None:
    with Store(path) as store:
        assert store.revisions("s") == {}
        assert store.keep_revision("s", 20_001, b"[1]") == b"[1]"
        assert store.keep_revision("s", 20_000, b"[2]") == b"[2]"
        assert store.keep_revision("s", 20_001, b"[3]") == b"[1]"
        assert store.keep_revision("t", 20_001, b"[3]") == b"[3]"
    with Store(path) as store:
        assert store.revisions("s") == {20_000: b"[2]", 20_001: b"[1]"}


def test_what_is_no_store_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store(path)
    with pytest.raises(StoreError, match=r"unable to open|directory"):
        Store(path.parent)
    with pytest.raises(StoreError, match=r"exists|directory"):
        Store(path / "below" / "lstmd.sqlite")


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
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[], snapshot=None)
    offer_all(line, range(line.next_seq, BEGIN + 30))
    work = line.take_work()
    drafts = [Message(d.seq, d.topic, d.time_ns, d.identity, topics.encode(d.context)) for d in work.drafts]
    with Store(path) as store:
        store.commit([LineCommit(line.name, work.rows, None, 0, "m", drafts)])
        store.shed(Limits.of(hours=1e6, rows=10, size_bytes=10**12), now_ns=0, after_row=0)
        first = store.pending(0, 1)[0]
    gap = decoded(first.identity)
    assert isinstance(gap, topics.Void)
    assert (gap.kind, gap.from_seq, gap.reasons) == ("gap", BEGIN + 1, ["outbox_bound"])
    assert msgspec.json.decode(first.context, type=topics.Context) == topics.Context(late=True)


# ---- crash


WRITER = """
import os, sys
from pathlib import Path
from daemon.line import Ordinal
from daemon.store import LineCommit, Message, Store

def commit(line, seqs):
    rows = [Ordinal(seq, None) for seq in seqs]
    messages = [Message(seq, f"lstmd/{line}/signal", seq, b"{}", b"{}") for seq in seqs]
    return LineCommit(line, rows, b"%d" % seqs[-1], seqs[-1], "model/1", messages)

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
            assert store.snapshot("a", "model/1") == b"%d" % last
            assert store.stream_seq("b") == last
            waiting = {row.seq for row in store.pending(0, 100_000) if row.line == "a"}
            delivered = {row.seq for row in store.sent("lstmd/a/signal", 0, 100_000)}
            assert waiting | delivered == set(range(1, last + 1))
            assert not waiting & delivered
            begin = last + 1
