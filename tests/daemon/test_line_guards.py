"""With a guard on, a line reaches back to the day's first candle; neither start nor restart nor repair shows."""

import functools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.line import Cause, Line, Snapshot
from daemon.topics import Signal
from feeds.market import NS_PER_DAY, Candle, CandleSpec, Origin
from inference.engine import Model
from inference.signals import Rules, Side
from tests.daemon.lines import EPOCH, WARMUP, messages, new_line, small_artifact
from tests.daemon.lines import candle as minute

HOUR = CandleSpec.parse("1h")
HOUR_NS = HOUR.interval_ns
RULES = Rules(
    taker_fee_bps=0.0, half_spread_bps=0.0, enter_edge_bps=-1000.0, exit_edge_bps=-2000.0, cooldown_candles=3,
    daily_loss_limit_bps=500.0,
)  # fmt: skip
GUARDED = Model(small_artifact("1h", seed=2), RULES)
"""Always on a side, so that both guards have something to do."""
DAY = 24
BEGIN = 19_500 * DAY
"""A midnight; epochs of 20 begin anywhere in the day."""
END = BEGIN + 4 * DAY


def candle(seq: int, *, shift: float = 0.0) -> Candle:
    return msgspec.structs.replace(
        minute(seq, shift=shift), open_time_ns=(seq - 1) * HOUR_NS, close_time_ns=seq * HOUR_NS
    )


def offer_all(line: Line, first: int, last: int) -> None:
    for seq in range(first, last):
        line.offer(candle(seq), Cause(seq * HOUR_NS + 1, seq * HOUR_NS + 2))


def begun(newest_seq: int) -> Line:
    line = new_line(GUARDED, spec=HOUR)
    line.begin(newest_seq=newest_seq, stream_seq=None, journal=[])
    return line


def told(line: Line) -> dict[int, bytes]:
    return {draft.seq: draft.identity for draft in line.take_work().drafts}


@functools.cache
def undisturbed() -> dict[int, bytes]:
    line = begun(BEGIN)
    offer_all(line, line.next_seq, END)
    return told(line)


def test_both_guards_are_told_of_and_midnight_ends_them() -> None:
    line = begun(BEGIN)
    offer_all(line, line.next_seq, END)
    signals = messages(line.take_work())
    assert [signal.seq for signal in signals] == list(range(BEGIN, END))
    reasons = {signal.reasons[0] for signal in signals}
    assert {"cooldown", "daily_loss_limit", "edge_above_cost"} <= reasons
    for signal in signals:
        assert isinstance(signal, Signal)
        assert (signal.side is Side.FLAT) == (signal.reasons[0] in ("cooldown", "daily_loss_limit"))
        assert signal.side is not Side.FLAT or signal.seq * HOUR_NS % NS_PER_DAY, "a day begins with the model's side"
        assert signal.side is not Side.FLAT or signal.confidence == signal.p_flat
        assert 0 < signal.size_hint <= signal.max_leverage


@pytest.mark.parametrize("first", range(BEGIN, BEGIN + 2 * DAY + 1))
def test_when_the_daemon_was_started_does_not_show(first: int) -> None:
    line = begun(first)
    assert first - line.next_seq < line.engine.reach == WARMUP + EPOCH + DAY
    offer_all(line, line.next_seq, END)
    assert told(line) == {seq: identity for seq, identity in undisturbed().items() if seq >= first}


@given(cut=st.integers(BEGIN + 1, END - 2), away=st.integers(0, EPOCH - 1), behind=st.integers(0, EPOCH))
@settings(max_examples=40, deadline=None)
def test_a_restart_anywhere_does_not_show(cut: int, away: int, behind: int) -> None:
    line = begun(BEGIN)
    offer_all(line, line.next_seq, max(line.next_seq, cut - behind))
    taken = Snapshot(line.next_seq - 1, line.engine.snapshot())
    offer_all(line, line.next_seq, cut)
    work = line.take_work()
    again = new_line(GUARDED, spec=HOUR)
    newest_seq = min(cut - 1 + away, END - 1)
    again.begin(newest_seq=newest_seq, stream_seq=cut - 1, journal=work.rows, snapshots=[taken])
    offer_all(again, again.next_seq, END)
    assert {draft.seq: draft.identity for draft in work.drafts} | told(again) == undisturbed()


@given(wrong=st.integers(BEGIN - WARMUP, BEGIN + 2 * DAY), lag=st.integers(0, 2 * EPOCH))
@settings(max_examples=40, deadline=None)
def test_a_repair_goes_through_the_days_ledger(wrong: int, lag: int) -> None:
    line, until = begun(BEGIN), wrong + lag + 1
    for seq in range(line.next_seq, until):
        shift = 1.5 if seq == wrong else 0.0
        line.offer(candle(seq, shift=shift), Cause(seq * HOUR_NS + 1, seq * HOUR_NS + 2))
    line.take_work()
    if line.audit(candle(wrong)):
        return  # before the fold's first candle
    (row,) = line.take_work().rows
    assert row.candle == msgspec.structs.replace(candle(wrong), origin=Origin.REPAIRED)
    offer_all(line, until, END)
    assert told(line) == {seq: undisturbed()[seq] for seq in range(max(until, BEGIN), END)}


def test_where_the_history_begins_within_the_day_signals_wait_for_midnight() -> None:
    line = begun(BEGIN + DAY + 3)
    hole = line.missing((BEGIN + DAY + 3) * HOUR_NS)
    assert hole is not None
    late = (BEGIN + DAY) // EPOCH * EPOCH - WARMUP + 1  # a candle too late for the fold of the day's first
    line.backfill([candle(seq) for seq in range(late, BEGIN + 30)], hole, 0, by_hand=False)
    offer_all(line, BEGIN + 30, BEGIN + 2 * DAY)
    assert line.engine.folded > WARMUP, "without the guards it would speak"
    assert told(line) == {}
    offer_all(line, BEGIN + 2 * DAY, END)
    assert told(line) == {seq: undisturbed()[seq] for seq in range(BEGIN + 2 * DAY, END)}
