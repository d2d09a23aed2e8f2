"""Messages made again from the journal are the very ones that were sent."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import recompute
from daemon.line import Cause, Line, Ordinal
from inference.engine import Model
from tests.daemon.lines import BEGIN, EPOCH, MINUTE_NS, MODEL, WARMUP, messages, new_line, offer_all, small_model
from tests.daemon.test_line import MIDNIGHT, TODAY, add, book

END = BEGIN + 4 * EPOCH
VOID = BEGIN + EPOCH + 3
HOUR_NS = 60 * MINUTE_NS


@functools.cache
def known() -> tuple[Line, list[Ordinal], dict[int, bytes]]:
    """Return a line with one ordinal void, its journal and what it told, over four epochs."""
    line = new_line()
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    offer_all(line, range(line.next_seq, VOID))
    line.offer_void(VOID, Cause(0))
    offer_all(line, range(VOID + 1, END))
    work = line.take_work()
    return line, work.rows, {draft.seq: draft.identity for draft in work.drafts}


@given(st.integers(BEGIN + 1, END - 1), st.integers(1, END - BEGIN))
@settings(max_examples=40, deadline=None)
def test_from_any_ordinal_on_they_are_the_same_to_the_byte(first: int, count: int) -> None:
    line, journal, told = known()
    before = line.engine.snapshot()
    start, last = line.engine.fold_start(first), min(first + count, END) - 1
    drafts = recompute.messages(line, [row for row in journal if start <= row.seq <= last], first)
    assert {draft.seq: draft.identity for draft in drafts} == {seq: told[seq] for seq in range(first, last + 1)}
    assert all(draft.context.late for draft in drafts)
    assert line.engine.snapshot() == before
    assert line.take_work().rows == []


def test_a_fold_that_the_journal_does_not_hold_is_not_begun() -> None:
    line, _, _ = known()
    assert recompute.first_possible(line, 0, oldest=BEGIN - WARMUP) == BEGIN
    assert recompute.first_possible(line, BEGIN + 7, oldest=BEGIN - WARMUP) == BEGIN + 7
    assert recompute.first_possible(line, BEGIN + 7, oldest=BEGIN - WARMUP + 1) == BEGIN + EPOCH
    assert recompute.first_possible(line, 0, oldest=END - 5) >= END, "there is none"


def test_nor_one_whose_funding_is_not_known() -> None:
    line, _, _ = known()
    poorer = new_line()
    poorer.next_seq = line.next_seq
    settled = [((BEGIN * MINUTE_NS // HOUR_NS + hours) * HOUR_NS, 1e-4) for hours in (-1, 0)]
    poorer.funding.extend(settled, asked_at_ns=END * MINUTE_NS)
    first = recompute.first_possible(poorer, 0, oldest=BEGIN - 60 - WARMUP)
    assert first > BEGIN - 40
    assert poorer.funding.reaches(poorer.engine.fold_start(first) * MINUTE_NS)
    assert not poorer.funding.reaches(poorer.engine.fold_start(first - EPOCH) * MINUTE_NS)


def test_they_go_under_their_days_calibration_and_end_where_it_is_not_known() -> None:
    revisions = book(TODAY - 1)
    line = new_line(revisions=revisions)
    line.begin(newest_seq=MIDNIGHT - 15, stream_seq=None, journal=[])
    offer_all(line, range(line.next_seq, MIDNIGHT + 15))
    add(revisions, TODAY)
    line.drain()
    work = line.take_work()
    first = MIDNIGHT - 10
    journal = [row for row in work.rows if row.seq >= line.engine.fold_start(first)]
    again = {draft.seq: draft.identity for draft in recompute.messages(line, journal, first)}
    assert again == {draft.seq: draft.identity for draft in work.drafts if draft.seq >= first}
    line.engine.revisions = book(TODAY - 1)
    assert [draft.seq for draft in recompute.messages(line, journal, first)] == list(range(first, MIDNIGHT))


def test_another_model_tells_under_its_own_name() -> None:
    line, journal, told = known()
    other: Model = small_model(seed=9)
    renewed = new_line(other)
    renewed.next_seq = line.next_seq
    again = recompute.messages(renewed, [row for row in journal if row.seq >= BEGIN - WARMUP], BEGIN + 1)
    assert [draft.seq for draft in again] == list(told)
    work = renewed.take_work()
    work.drafts = again
    assert {message.model for message in messages(work)} == {other.id} != {MODEL.id}
