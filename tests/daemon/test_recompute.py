"""Messages made again from the journal are the very ones that were sent."""

import functools
from itertools import groupby

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import recompute
from daemon.line import Cause, Line, Ordinal
from daemon.recompute import Span
from feeds.market import NS_PER_DAY, SEQ_PER_DAY
from inference.engine import Model
from tests.daemon.lines import (
    BEGIN,
    EPOCH,
    MARKET,
    MINUTE_NS,
    MODEL,
    WARMUP,
    messages,
    new_line,
    offer_all,
    small_model,
)
from tests.daemon.test_line import DAY, EVENT_MODEL, HUNDRED, MIDNIGHT, TODAY, add, book, event_line, run_events

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


# ---- event candles

COUNTS = {DAY: 30, DAY + 1: 5, DAY + 2: 12, DAY + 3: 3, DAY + 4: 2, DAY + 5: 9}
"""Some days have fewer candles than a warm-up, one fewer than that with its eve."""


@functools.cache
def known_events() -> tuple[Line, list[Ordinal], dict[int, bytes]]:
    line = event_line()
    line.begin_events(stream_seq=None, first_day=DAY)
    run_events(line, COUNTS)
    work = line.take_work()
    return line, work.rows, {draft.seq: draft.identity for draft in work.drafts}


def days_of(journal: list[Ordinal]) -> dict[int, Span]:
    by_day = groupby((row.seq for row in journal), lambda seq: seq // SEQ_PER_DAY)
    return {day: Span(seqs[0], seqs[-1]) for day, of in by_day if (seqs := list(of))}


def told_again(line: Line, journal: list[Ordinal], from_seq: int) -> dict[int, bytes]:
    """Ask on, day by day, until nothing more comes."""
    found: dict[int, bytes] = {}
    while span := recompute.day_possible(line, from_seq, days_of(journal)):
        rows = [row for row in journal if span.first <= row.seq <= span.last]
        found |= {draft.seq: draft.identity for draft in recompute.messages(line, rows, from_seq)}
        from_seq = span.last + 1
    return found


@given(st.sampled_from([seq for day in COUNTS for seq in range(day * SEQ_PER_DAY, day * SEQ_PER_DAY + 31)]))
@settings(max_examples=40, deadline=None)
def test_event_candles_too_from_any_ordinal_on(from_seq: int) -> None:
    line, journal, told = known_events()
    before = line.engine.snapshot()
    silent = {(DAY + 4) * SEQ_PER_DAY}  # the beginning of a day that never had its warm-up: nothing else was said of it
    due = {seq: identity for seq, identity in told.items() if seq >= from_seq and seq not in silent}
    assert told_again(line, journal, from_seq) == due
    assert silent < set(told)
    assert line.engine.snapshot() == before


def test_a_day_whose_eve_has_been_forgotten_is_not_told() -> None:
    line, journal, told = known_events()
    first = {day: day * SEQ_PER_DAY for day in COUNTS}
    half = [row for row in journal if row.seq > first[DAY] + 30 - WARMUP]
    assert told_again(line, half, 0).keys() == {seq for seq in told if seq // SEQ_PER_DAY != DAY + 4}, "a whole warm-up"
    less = [row for row in journal if row.seq > first[DAY] + 31 - WARMUP]
    assert min(told_again(line, less, 0)) == first[DAY + 2], "of the next one the eve is whole"
    less = [row for row in journal if row.seq > first[DAY + 1] + 1]
    assert min(told_again(line, less, 0)) == first[DAY + 3]
    assert told_again(line, [], 0) == {}


def test_a_markets_first_day_is_told_from_its_first_candle() -> None:
    market = msgspec.structs.replace(MARKET, listed_at_ns=DAY * NS_PER_DAY + 1)
    line = new_line(EVENT_MODEL, market, HUNDRED)
    line.begin_events(stream_seq=None, first_day=DAY - 1)
    run_events(line, {DAY: 12, DAY + 1: 3})
    work = line.take_work()
    assert told_again(line, work.rows, 0) == {draft.seq: draft.identity for draft in work.drafts}
    assert min(told_again(line, work.rows[1:], 0)) > DAY * SEQ_PER_DAY + 12
