"""The ledger of ordinals: one message each, in order, whatever the order and the source of its candles."""

import functools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.line import VOID_SPACING_NS, Cause, Line, LineWork, Ordinal, Snapshot
from daemon.topics import Context, Signal, Void
from feeds.market import NS_PER_DAY, SEQ_PER_DAY, Candle, CandleSpec, Origin
from inference.artifact import Affine, Calibration
from inference.engine import MarketEngine, Model
from inference.revisions import RevisionBook
from inference.signals import Rules
from tests.daemon.lines import (
    BEGIN,
    EPOCH,
    MARKET,
    MINUTE_NS,
    MODEL,
    WARMUP,
    candle,
    live,
    messages,
    new_line,
    offer_all,
    small_artifact,
    small_model,
)

END = BEGIN + 3 * EPOCH
HUNDRED = CandleSpec.parse("100t")
DAY = 19_500
EVENT_MODEL = Model(small_artifact("100t"), Rules())


def begun(newest_seq: int, model: Model = MODEL) -> Line:
    line = new_line(model)
    line.begin(newest_seq=newest_seq, stream_seq=None, journal=[])
    return line


def identities(work: LineWork) -> dict[int, bytes]:
    return {draft.seq: draft.identity for draft in work.drafts}


@functools.cache
def undisturbed(first: int = BEGIN + 1) -> dict[int, bytes]:
    """Return the messages of a line that met no fault, up to `END`."""
    line = begun(first)
    offer_all(line, range(line.next_seq, END))
    return identities(line.take_work())


def test_each_candle_has_one_signal_in_order() -> None:
    line = begun(BEGIN + 1)
    assert line.next_seq == BEGIN - WARMUP
    offer_all(line, range(line.next_seq, END))
    work = line.take_work()
    told = messages(work)
    assert [m.seq for m in told] == list(range(BEGIN + 1, END))
    assert all(isinstance(m, Signal) for m in told)
    assert len({m.id for m in told}) == len(told)
    assert [row.seq for row in work.rows] == list(range(BEGIN - WARMUP, END))
    assert [c.seq for c in work.candles] == list(range(BEGIN + 1, END)), "the warm-up's are no news"
    assert line.take_work() == LineWork([], [], [], [])


@given(st.integers(BEGIN + 1, END - 1))
@settings(max_examples=25, deadline=None)
def test_when_the_daemon_was_started_does_not_show(first: int) -> None:
    line = begun(first)
    offer_all(line, range(line.next_seq, END))
    got = identities(line.take_work())
    assert got == {seq: identity for seq, identity in undisturbed().items() if seq >= first}


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_order_of_offers_gives_the_same_messages(data: st.DataObject) -> None:
    line = begun(BEGIN + 1)
    due = list(range(line.next_seq, END))
    seen: list[Signal | Void] = []
    for seq in data.draw(st.permutations(due)):
        line.offer(candle(seq), live(seq))
        if data.draw(st.booleans()):
            line.offer(candle(seq), live(seq))
        seen += messages(line.take_work())
    assert [m.seq for m in seen] == list(range(BEGIN + 1, END))
    assert {m.seq: m.id for m in seen} == {seq: msgspec.json.decode(i)["id"] for seq, i in undisturbed().items()}


@given(st.lists(st.integers(BEGIN - WARMUP, END - 1), max_size=30, unique=True), st.randoms())
@settings(max_examples=40, deadline=None)
def test_holes_are_named_one_by_one_and_filled_by_the_exchange(absent: list[int], random: object) -> None:
    line = begun(BEGIN + 1)
    offer_all(line, [seq for seq in range(line.next_seq, END) if seq not in absent])
    final_ns = (END - 1) * MINUTE_NS
    asked: set[int] = set()
    while hole := line.missing(final_ns):
        asked.update(range(hole[0], hole[1] + 1))
        assert asked <= set(absent)
        answer = [candle(seq) for seq in range(hole[0], hole[1] + 1)]
        line.backfill(answer, hole, final_ns, by_hand=True)
    assert asked == set(absent)
    assert identities(line.take_work()) == undisturbed()


def test_nothing_is_missing_that_cannot_be_final_yet() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 5))
    assert line.missing((BEGIN + 5) * MINUTE_NS - 1) is None
    assert line.missing((BEGIN + 5) * MINUTE_NS) == (BEGIN + 5, BEGIN + 5)
    assert line.missing((BEGIN + 9) * MINUTE_NS) == (BEGIN + 5, BEGIN + 9)
    line.offer(candle(BEGIN + 7), live(BEGIN + 7))
    assert line.missing((BEGIN + 9) * MINUTE_NS) == (BEGIN + 5, BEGIN + 6)


def test_a_candle_is_late_unless_its_own_event_brought_it() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 3))
    line.offer(candle(BEGIN + 5), live(BEGIN + 5))
    line.backfill([candle(BEGIN + 3), candle(BEGIN + 4)], (BEGIN + 3, BEGIN + 4), 0, by_hand=True)
    offer_all(line, [BEGIN + 6])
    told = {draft.seq - BEGIN: draft for draft in line.take_work().drafts}
    assert {at: draft.context.late for at, draft in told.items()} == {
        1: False,
        2: False,
        3: True,
        4: True,
        5: True,
        6: False,
    }
    assert [told[at].context.origin for at in (2, 3, 5)] == ["trades", "repaired", "trades"]
    assert [bool(told[at].receive_time_ns) for at in (2, 3, 5)] == [True, False, False], "latency of live ones only"


def test_candles_that_were_folded_already_change_nothing() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 5))
    line.take_work()
    line.offer(candle(BEGIN + 3, shift=2.0), live(BEGIN + 3))
    line.offer_void(BEGIN + 4, live(BEGIN + 4))
    assert line.take_work() == LineWork([], [], [], [])


# ---- voids


def read_without(line: Line, absent: Sequence[int], hole: tuple[int, int], at_ns: int) -> None:
    have = [candle(seq) for seq in range(hole[0], hole[1] + 1) if seq not in absent]
    line.backfill(have, hole, at_ns, by_hand=True)


def test_two_reads_apart_without_a_candle_make_a_void() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 3))
    hole, now_ns = (BEGIN + 3, BEGIN + 6), (BEGIN + 7) * MINUTE_NS
    absent = [BEGIN + 3, BEGIN + 4]
    read_without(line, absent, hole, now_ns)
    read_without(line, absent, hole, now_ns + VOID_SPACING_NS - 1)
    assert [m.seq for m in messages(line.take_work())] == [BEGIN + 1, BEGIN + 2]
    read_without(line, absent, hole, now_ns + VOID_SPACING_NS)
    told = messages(line.take_work())
    assert [(m.seq, m.kind) for m in told] == [
        (BEGIN + 3, "void"), (BEGIN + 4, "void"), (BEGIN + 5, "signal"), (BEGIN + 6, "signal"),
    ]  # fmt: skip
    assert told[0].reasons == ["exchange_has_no_candle"]
    assert told[2].inputs_hash != msgspec.json.decode(undisturbed()[BEGIN + 5])["inputs_hash"], "a void is an input"


def test_the_newest_candle_is_never_void() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 3))
    for read in range(5):
        line.backfill([], (BEGIN + 3, BEGIN + 4), (BEGIN + 9) * MINUTE_NS + read * VOID_SPACING_NS, by_hand=True)
    assert line.next_seq == BEGIN + 3


def test_a_candle_that_came_while_the_exchange_was_asked_is_no_void() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 3))
    hole, now_ns = (BEGIN + 3, BEGIN + 5), (BEGIN + 7) * MINUTE_NS
    read_without(line, [BEGIN + 3, BEGIN + 4], hole, now_ns)
    line.offer(candle(BEGIN + 4), live(BEGIN + 4))
    read_without(line, [BEGIN + 3, BEGIN + 4], hole, now_ns + VOID_SPACING_NS)
    assert [m.kind for m in messages(line.take_work())][2:] == ["void", "signal", "signal"]


def test_voids_in_the_warm_up_are_folded_and_not_told() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, [seq for seq in range(line.next_seq, BEGIN + 2) if seq != BEGIN - 2])
    line.offer_void(BEGIN - 2, Cause(0))
    (told,) = messages(line.take_work())
    assert told.seq == BEGIN + 1


# ---- taking up


def snapshot_of(line: Line) -> Snapshot:
    return Snapshot(line.next_seq - 1, line.engine.snapshot())


def resumed(
    line: Line, *, newest_seq: int, rows: list[Ordinal], snapshots: Sequence[Snapshot] = (), model: Model = MODEL
) -> Line:
    """Start afresh from what `line` has left behind."""
    again = new_line(model)
    again.begin(newest_seq=newest_seq, stream_seq=line.next_seq - 1, journal=rows, snapshots=snapshots)
    return again


@given(cut=st.integers(BEGIN + 2, END - 2), away=st.integers(0, EPOCH - 1), with_snapshot=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_restart_anywhere_does_not_show(cut: int, away: int, with_snapshot: bool) -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, cut))
    work = line.take_work()
    newest_seq = min(cut - 1 + away, END - 1)
    snapshots = [snapshot_of(line)] if with_snapshot else []
    again = resumed(line, newest_seq=newest_seq, rows=work.rows, snapshots=snapshots)
    assert again.next_seq in (cut, again.first_needed(newest_seq, cut - 1))
    offer_all(again, range(again.next_seq, END))
    assert identities(work) | identities(again.take_work()) == undisturbed()


@given(data=st.data(), cut=st.integers(BEGIN + 2, END - 2), garbage=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_follows_an_older_snapshot_is_folded_again(data: st.DataObject, cut: int, garbage: bool) -> None:
    """A crash comes some candles after the newest snapshot, and that may be damaged: the state is the very same."""
    at = sorted(data.draw(st.sets(st.integers(BEGIN - WARMUP, cut - 1), min_size=2, max_size=2)))
    line = begun(BEGIN + 1)
    taken: list[Snapshot] = []
    for seq in range(line.next_seq, cut):
        line.offer(candle(seq), live(seq))
        if seq in at:
            taken.insert(0, snapshot_of(line))
    work = line.take_work()
    if garbage:
        taken[0] = Snapshot(at[1], taken[0].state[:-1])
    again = resumed(line, newest_seq=cut - 1, rows=work.rows, snapshots=taken)
    assert again.next_seq == cut
    assert again.take_work().drafts == []
    if at[not garbage] >= again.first_needed(cut - 1, cut - 1) - 1:
        assert again.engine.snapshot() == line.engine.snapshot()
    for each in (line, again):
        offer_all(each, range(cut, END))
    assert again.engine.snapshot() == line.engine.snapshot()
    assert identities(work) | identities(again.take_work()) == undisturbed()


def test_a_snapshot_that_the_journal_does_not_reach_is_not_used() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 9))
    rows, ahead = line.take_work().rows, snapshot_of(line)
    again = new_line()
    again.begin(newest_seq=BEGIN + 5, stream_seq=BEGIN + 5, journal=rows[:-3], snapshots=[ahead])
    offer_all(again, range(BEGIN + 6, BEGIN + 9))
    assert again.engine.snapshot() == line.engine.snapshot()


@pytest.mark.parametrize("garbage", [b"", b"\x93garbage", small_model(seed=3).id.encode()])
def test_a_snapshot_that_cannot_be_read_is_made_good_from_the_journal(garbage: bytes) -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 9))
    work = line.take_work()
    again = resumed(line, newest_seq=BEGIN + 8, rows=work.rows, snapshots=[Snapshot(BEGIN + 8, garbage)])
    assert again.next_seq == BEGIN + 9
    offer_all(again, range(BEGIN + 9, END))
    assert identities(work) | identities(again.take_work()) == undisturbed()


def test_a_journal_with_a_hole_is_not_trusted() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 9))
    rows = line.take_work().rows
    again = resumed(line, newest_seq=BEGIN + 8, rows=rows[:3] + rows[4:], snapshots=[snapshot_of(line)])
    assert again.next_seq == BEGIN - WARMUP
    assert again.missing((BEGIN + 8) * MINUTE_NS) == (BEGIN - WARMUP, BEGIN + 8)


def test_of_a_long_absence_one_epoch_is_made_up_for_and_the_rest_is_one_gap() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 3))
    rows = line.take_work().rows
    newest = BEGIN + 3 + 2 * EPOCH
    again = resumed(line, newest_seq=newest, rows=rows, snapshots=[snapshot_of(line)])
    offer_all(again, range(again.next_seq, END))
    gap, *told = messages(again.take_work())
    assert isinstance(gap, Void)
    assert (gap.kind, gap.from_seq, gap.to_seq, gap.seq) == ("gap", BEGIN + 3, newest - EPOCH, newest - EPOCH)
    assert gap.reasons == ["absent_too_long"]
    assert [m.seq for m in told] == list(range(newest - EPOCH + 1, END))
    assert [m.id for m in told] == [msgspec.json.decode(undisturbed()[m.seq])["id"] for m in told]


def test_a_stream_that_goes_on_where_the_history_begins_too_late_says_so() -> None:
    """The journal is lost, and the exchange no longer has the fold's first candles: the model waits for a boundary."""
    line = new_line()
    line.begin(newest_seq=BEGIN + 5, stream_seq=BEGIN + 4, journal=[])
    hole = line.missing((BEGIN + 5) * MINUTE_NS)
    assert hole == (BEGIN - WARMUP, BEGIN + 5)
    line.backfill([candle(seq) for seq in range(BEGIN, BEGIN + 6)], hole, 0, by_hand=False)
    offer_all(line, range(BEGIN + 6, END))
    gap, *told = messages(line.take_work())
    assert isinstance(gap, Void)
    assert (gap.kind, gap.from_seq, gap.to_seq, gap.reasons) == (
        "gap",
        BEGIN + 5,
        BEGIN + EPOCH - 1,
        ["model_not_ready"],
    )
    assert [m.id for m in told] == [msgspec.json.decode(undisturbed()[m.seq])["id"] for m in told]
    assert told[0].seq == BEGIN + EPOCH
    assert told[-1].seq == END - 1


def test_a_stream_that_never_began_owes_nothing() -> None:
    line = begun(BEGIN + 5)
    line.backfill([candle(seq) for seq in range(BEGIN, BEGIN + 6)], (BEGIN - WARMUP, BEGIN + 5), 0, by_hand=False)
    offer_all(line, range(BEGIN + 6, END))
    assert [m.seq for m in messages(line.take_work())] == list(range(BEGIN + EPOCH, END))


# ---- the exchange disagrees


@given(wrong=st.integers(BEGIN - WARMUP, BEGIN + EPOCH + 3), restart=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_mismatch_repairs_journal_and_state_and_rewrites_no_signal(wrong: int, restart: bool) -> None:
    line, until = begun(BEGIN + 1), BEGIN + EPOCH + 4
    for seq in range(line.next_seq, until):
        line.offer(candle(seq, shift=1.5 if seq == wrong else 0.0), live(seq))
    before = line.take_work()
    assert line.audit(candle(wrong - 1)) or wrong - 1 < BEGIN - WARMUP
    assert not line.audit(candle(wrong))
    repair = line.take_work()
    ((ours, official, repaired),) = map(msgspec.structs.astuple, repair.mismatches)
    assert (ours.seq, official, repaired) == (wrong, candle(wrong), True)
    assert repair.drafts == []
    (row,) = repair.rows
    assert row.candle == msgspec.structs.replace(candle(wrong), origin=Origin.REPAIRED)
    assert line.audit(candle(wrong)), "once repaired, it agrees"
    if restart:
        journal = [repair.rows[0] if row.seq == wrong else row for row in before.rows]
        line = resumed(line, newest_seq=until - 1, rows=journal, snapshots=[snapshot_of(line)])
    offer_all(line, range(until, END))
    after = identities(line.take_work())
    assert after == {seq: undisturbed()[seq] for seq in range(until, END)}, "from here on as if nothing had been"


def test_a_candle_that_waits_is_corrected_before_it_is_told() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 3))
    line.offer(candle(BEGIN + 4, shift=1.0), live(BEGIN + 4))
    assert not line.audit(candle(BEGIN + 4))
    offer_all(line, [BEGIN + 3])
    assert identities(line.take_work()) == {seq: undisturbed()[seq] for seq in range(BEGIN + 1, BEGIN + 5)}


def test_a_void_that_turns_out_to_be_a_candle_repairs_the_state() -> None:
    line = begun(BEGIN + 1)
    offer_all(line, range(line.next_seq, BEGIN + 3))
    line.offer_void(BEGIN + 3, Cause(0))
    assert not line.audit(candle(BEGIN + 3))
    line.take_work()
    offer_all(line, range(BEGIN + 4, END))
    assert identities(line.take_work()) == {seq: undisturbed()[seq] for seq in range(BEGIN + 4, END)}


# ---- funding


def test_a_candle_waits_for_the_funding_that_it_is_charged() -> None:
    line = new_line()
    line.funding.asked_at_ns = 0
    settled_ns = (BEGIN - 100) * MINUTE_NS // 3_600_000_000_000 * 3_600_000_000_000
    line.funding.extend([(settled_ns - 28_800_000_000_000, 1e-4), (settled_ns, 1e-4)], asked_at_ns=settled_ns + 1)
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    due_seq = (settled_ns + 28_800_000_000_000) // MINUTE_NS - 2
    offer_all(line, range(line.next_seq, due_seq + 3))
    assert line.waits_for_funding
    assert line.missing((due_seq + 3) * MINUTE_NS) is None, "it is not the exchange's candles that lack"
    line.funding.extend([], asked_at_ns=(due_seq + 60) * MINUTE_NS)
    line.drain()
    assert not line.waits_for_funding
    work = line.take_work()
    assert [d.seq for d in work.drafts] == list(range(BEGIN + 1, due_seq + 3))
    assert work.drafts[-1].context.late


# ---- daily revisions of the calibration

MIDNIGHT = BEGIN + 800
TODAY = MIDNIGHT * MINUTE_NS // NS_PER_DAY


def book(*days: int) -> RevisionBook:
    made = RevisionBook("s")
    for day in days:
        add(made, day)
    return made


def add(revisions: RevisionBook, day: int) -> None:
    revisions.add(day, (Calibration(touch=Affine(a=1.0, b=0.1 * (day - TODAY))),))


def revised_line(revisions: RevisionBook) -> Line:
    line = new_line(revisions=revisions)
    line.begin(newest_seq=MIDNIGHT - 15, stream_seq=None, journal=[])
    return line


@functools.cache
def revised() -> dict[int, bytes]:
    """Return the messages around a midnight of a line that never had to wait."""
    line = revised_line(book(TODAY - 1, TODAY))
    offer_all(line, range(line.next_seq, MIDNIGHT + 15))
    return identities(line.take_work())


def test_a_midnight_changes_policy_and_forecast_and_nothing_else() -> None:
    plain = new_line()
    plain.begin(newest_seq=MIDNIGHT - 15, stream_seq=None, journal=[])
    offer_all(plain, range(plain.next_seq, MIDNIGHT + 15))
    own = {seq: msgspec.json.decode(identity) for seq, identity in identities(plain.take_work()).items()}
    told = {seq: msgspec.json.decode(identity) for seq, identity in revised().items()}
    assert told.keys() == own.keys()
    decided = {
        "p_short",
        "p_flat",
        "p_long",
        "side",
        "confidence",
        "expected_move_bps",
        "edge_bps",
        "size_hint",
        "reasons",
    }
    for seq, message in told.items():
        assert {key for key in message if message[key] != own[seq][key]} <= {"id", "policy"} | decided
    assert len({message["policy"] for seq, message in told.items() if seq < MIDNIGHT}) == 1
    assert len({message["policy"] for seq, message in told.items() if seq >= MIDNIGHT}) == 1
    assert told[MIDNIGHT]["policy"] != told[MIDNIGHT - 1]["policy"]
    assert told[MIDNIGHT]["p_flat"] == own[MIDNIGHT]["p_flat"], "its revision is the own calibration"
    assert told[MIDNIGHT - 1]["p_flat"] > own[MIDNIGHT - 1]["p_flat"]


def test_signals_wait_for_the_calibration_of_their_day_and_none_is_lost() -> None:
    known = book(TODAY - 1)
    line = revised_line(known)
    offer_all(line, range(line.next_seq, MIDNIGHT + 15))
    before = line.take_work()
    assert line.waits_for_calibration
    assert line.missing((MIDNIGHT + 20) * MINUTE_NS) is None, "it is not the exchange's candles that lack"
    assert max(identities(before)) == MIDNIGHT - 1
    assert not before.drafts[-1].context.late
    line.drain()
    assert not line.take_work().drafts
    add(known, TODAY)
    line.drain()
    after = line.take_work()
    assert not line.waits_for_calibration
    assert identities(before) | identities(after) == revised()
    assert all(draft.context.late for draft in after.drafts)


@pytest.mark.parametrize("known", [(), (TODAY - 1,), (TODAY - 1, TODAY)])
def test_a_journal_waits_for_the_calibrations_of_its_days(known: tuple[int, ...]) -> None:
    line = revised_line(book(TODAY - 1, TODAY))
    offer_all(line, range(line.next_seq, MIDNIGHT + 5))
    work = line.take_work()
    revisions = book(*known)
    again = new_line(revisions=revisions)
    again.begin(
        newest_seq=MIDNIGHT + 4, stream_seq=MIDNIGHT + 4, journal=work.rows, snapshots=[Snapshot(MIDNIGHT + 4, b"")]
    )
    offer_all(again, range(MIDNIGHT + 5, MIDNIGHT + 15))
    for day in revisions.lacking(TODAY - 1, TODAY):
        assert not again.take_work().drafts
        assert again.waits_for_calibration
        add(revisions, day)
        again.drain()
    assert again.next_seq == MIDNIGHT + 15
    assert identities(work) | identities(again.take_work()) == revised()


def test_a_void_goes_under_its_days_policy_and_a_range_under_the_models_own() -> None:
    line = revised_line(book(TODAY - 1, TODAY))
    offer_all(line, range(line.next_seq, MIDNIGHT))
    line.offer_void(MIDNIGHT, Cause(1))
    void = messages(line.take_work())[-1]
    assert (void.kind, void.policy) == ("void", line.engine.policy_for(MIDNIGHT))
    again = new_line(revisions=book())
    again.begin(newest_seq=MIDNIGHT + 3 * EPOCH, stream_seq=MIDNIGHT, journal=[])
    (gap,) = messages(again.take_work())
    assert (gap.kind, gap.policy) == ("gap", MODEL.policy)


# ---- event candles


def event(day: int, number: int) -> Candle:
    base = candle(day * 97 + number)
    open_ns = day * NS_PER_DAY + number * 1_000_000_000
    return msgspec.structs.replace(
        base, seq=day * SEQ_PER_DAY + number, open_time_ns=open_ns, close_time_ns=open_ns + 900_000_000
    )


def event_line() -> Line:
    return new_line(EVENT_MODEL, spec=HUNDRED)


def run_events(line: Line, days: dict[int, int], *, first: tuple[int, int] = (0, 1)) -> None:
    for day, count in days.items():
        for number in range(1, count + 1):
            if (day, number) >= first:
                line.offer(event(day, number), Cause(1, 2))


def test_event_candles_are_told_from_the_day_whose_warm_up_is_known() -> None:
    line = event_line()
    line.begin_events(stream_seq=None, first_day=DAY)
    run_events(line, {DAY: 30, DAY + 1: 12, DAY + 2: 3})
    told = messages(line.take_work())
    assert [(m.seq, m.kind) for m in told] == [
        ((DAY + 1) * SEQ_PER_DAY, "day"),
        *(((DAY + 1) * SEQ_PER_DAY + n, "signal") for n in range(1, 13)),
        ((DAY + 2) * SEQ_PER_DAY, "day"),
        *(((DAY + 2) * SEQ_PER_DAY + n, "signal") for n in range(1, 4)),
    ]


def test_event_candles_do_not_depend_on_the_day_of_the_start() -> None:
    days = {DAY: 30, DAY + 1: 12, DAY + 2: 30, DAY + 3: 5}
    early, later = event_line(), event_line()
    early.begin_events(stream_seq=None, first_day=DAY)
    run_events(early, days)
    later.begin_events(stream_seq=None, first_day=DAY + 1)
    run_events(later, {day: count for day, count in days.items() if day > DAY})
    told = identities(early.take_work())
    assert identities(later.take_work()) == {seq: i for seq, i in told.items() if seq >= (DAY + 2) * SEQ_PER_DAY}


@given(st.integers(DAY, DAY + 2), st.integers(1, 12), st.booleans(), st.integers(0, 15), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_restart_of_event_candles_does_not_show(
    day: int, number: int, next_day: bool, behind: int, garbage: bool
) -> None:
    days = {DAY: 14, DAY + 1: 12, DAY + 2: 14, DAY + 3: 5}
    whole = event_line()
    whole.begin_events(stream_seq=None, first_day=DAY)
    run_events(whole, days)
    line = event_line()
    line.begin_events(stream_seq=None, first_day=DAY)
    candles = [(d, n) for d in range(DAY, day + 1) for n in range(1, (number if d == day else days[d]) + 1)]
    taken = Snapshot(0, b"")
    for at, each in enumerate(candles, 1):
        line.offer(event(*each), Cause(1, 2))
        if at == len(candles) - behind:
            taken = snapshot_of(line)
    work = line.take_work()
    stream_seq = work.drafts[-1].seq if work.drafts else None
    again = event_line()
    first_day = day if next_day else day - 1
    rows = [row for row in work.rows if row.seq >= first_day * SEQ_PER_DAY]
    snapshots = [Snapshot(taken.seq, b"x")] if garbage else [taken]
    again.begin_events(stream_seq=stream_seq, first_day=first_day, journal=rows, snapshots=snapshots)
    known = not garbage and taken.seq >= first_day * SEQ_PER_DAY
    if known:
        assert again.engine.snapshot() == line.engine.snapshot()
    if not known and first_day < DAY:
        return  # the day before the very first has no candles here
    assert again.next_seq == line.next_seq, "nothing is to be fetched but what came meanwhile"
    if not known and stream_seq is not None and again.publish_from > stream_seq + 1:
        return  # without a state, and with the eve unread, the day cannot be known: a gap says so
    run_events(again, {d: n for d, n in days.items() if d >= first_day})
    resumed = identities(again.take_work())
    complete = identities(whole.take_work())
    if stream_seq is None:
        complete = {seq: i for seq, i in complete.items() if seq >= again.publish_from}
    assert identities(work) | resumed == complete


def test_after_days_away_event_candles_begin_again_behind_a_gap() -> None:
    line = event_line()
    line.begin_events(stream_seq=DAY * SEQ_PER_DAY + 7, first_day=DAY + 5)
    run_events(line, {DAY + 5: 10, DAY + 6: 3})
    told = messages(line.take_work())
    gap, day = told[:2]
    assert isinstance(gap, Void)
    assert (gap.kind, gap.from_seq, gap.to_seq) == ("gap", DAY * SEQ_PER_DAY + 8, (DAY + 6) * SEQ_PER_DAY - 1)
    assert (day.kind, day.seq) == ("day", (DAY + 6) * SEQ_PER_DAY)
    assert [m.kind for m in told[2:]] == ["signal"] * 3


def test_a_market_listed_today_has_no_day_before() -> None:
    market = msgspec.structs.replace(MARKET, listed_at_ns=DAY * NS_PER_DAY + 1)
    line = new_line(EVENT_MODEL, market, HUNDRED)
    line.begin_events(stream_seq=None, first_day=DAY)
    run_events(line, {DAY: 12})
    assert [m.seq % SEQ_PER_DAY for m in messages(line.take_work())] == list(range(WARMUP + 1, 13))


def test_a_line_that_reads_its_journal_repairs_as_one_that_keeps_its_candles() -> None:
    kept, committed = new_line(), dict[int, Ordinal]()

    def journal(name: str, first: int, last: int) -> list[Ordinal]:
        assert name == kept.name
        return [committed[seq] for seq in sorted(committed) if first <= seq <= last]

    read = Line(
        base_topic="lstmd", market=kept.market, spec=kept.spec, engine=MarketEngine(MODEL, kept.market, kept.spec),
        funding=kept.funding, context=Context, journal=journal,
    )  # fmt: skip
    for line in (kept, read):
        line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    official = msgspec.structs.replace(candle(BEGIN + 2), volume=77.0, origin=Origin.EXCHANGE)
    for seq in range(kept.next_seq, BEGIN + 15):
        for line in (kept, read):
            line.offer(candle(seq), live(seq))
        if seq % 3:
            committed.update((row.seq, row) for row in read.take_work().rows)
    for line in (kept, read):
        assert line.audit(candle(BEGIN + 1))
        assert not line.audit(official)
        assert line.audit(official), "it has been repaired"
        assert line.is_own(BEGIN + 1)
        assert not line.is_own(BEGIN + 2)
    assert read.first_own() == kept.first_own()
    assert read.engine.snapshot() == kept.engine.snapshot()
    assert read.take_work().rows[-1].candle == kept.take_work().rows[-1].candle
