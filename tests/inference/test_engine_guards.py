"""Guards in the engine, on recorded candles: the sides they leave do not depend on start, restart or peeking."""

import functools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.market import NS_PER_DAY, NS_PER_MS, SEQ_PER_DAY, Candle
from inference import guards
from inference.engine import Answer, MarketEngine, Model, Phase, peek
from inference.signals import Side
from tests.inference.test_engine import (
    EAGER,
    EVENTS,
    MINUTE,
    RANDOM,
    Answers,
    E,
    W,
    artifact,
    asked,
    encoded,
    engine,
    event_days,
    market,
    minutes,
    run,
)

DAY = 1_440
RULES = msgspec.structs.replace(
    EAGER, taker_fee_bps=0.2, enter_edge_bps=-0.2, exit_edge_bps=-0.3, cooldown_candles=9, daily_loss_limit_bps=80.0
)
GUARDED = Model(artifact(), RULES)
FREE = Model(artifact(), msgspec.structs.replace(RULES, cooldown_candles=None, daily_loss_limit_bps=None))


def between(first: int, last: int) -> list[Candle]:
    candles = minutes(count=6_000)
    begin = candles[0].seq
    assert begin <= first <= last <= candles[-1].seq
    return candles[first - begin : last - begin + 1]


def midnight(number: int = 1) -> int:
    """Return the ordinal that closes at the recording's first midnight with room for a fold before it, or later."""
    return ((minutes()[0].seq + W + E) // DAY + number) * DAY


LAST = midnight(3) + 200


@functools.cache
def steady() -> Answers:
    """Return what is told from the first midnight on."""
    return run(engine(GUARDED), between(engine(GUARDED).fold_start(midnight()), LAST))


def sides_of(answers: Answers) -> dict[int, Side]:
    return {seq: answer.decision.side for seq, answer in answers.items() if isinstance(answer, Answer)}


def reasons_of(answers: Answers) -> dict[int, str]:
    return {seq: answer.decision.reasons[0] for seq, answer in answers.items() if isinstance(answer, Answer)}


def test_both_guards_fire_and_let_go_at_midnight() -> None:
    told = reasons_of(steady())
    assert list(told) == list(range(midnight(), LAST + 1))
    first, second = ([told[seq] for seq in range(midnight(n), midnight(n + 1))] for n in (1, 2))
    sides = {"edge_above_cost", "held_until_exit_edge"}
    stopped = first.index("daily_loss_limit")
    assert "cooldown" in first[:stopped]
    assert sides & set(first[:stopped])
    assert set(first[stopped:]) <= {"daily_loss_limit", "edge_below_cost", "outside_training_range"}
    assert first[-30:].count("daily_loss_limit") > 5, "the model goes on wanting sides until the day is over"
    assert sides & set(second[:30]), "and has them on the next"
    assert "cooldown" in second
    assert "daily_loss_limit" not in second, "the second day loses less"


def test_a_guarded_signal_is_the_models_own_but_for_the_side() -> None:
    free = run(engine(FREE), between(engine(FREE).fold_start(midnight()), LAST))
    guard, overruled = guards.begin(midnight()), 0
    for seq, answer in steady().items():
        own = free[seq]
        assert isinstance(answer, Answer)
        assert isinstance(own, Answer)
        if seq % DAY == 0:
            guard = guards.begin(seq)
        (candle,) = between(seq, seq)
        guard = guards.follow(guard, seq=seq, close=candle.close, wanted=own.decision.side, rules=RULES)
        assert answer.decision == guards.guarded(own.decision, guard)
        assert answer.inputs_hash != own.inputs_hash
        overruled += answer.decision is not own.decision and answer.decision.side is not own.decision.side
    assert overruled > 50
    assert GUARDED.policy != FREE.policy


@pytest.mark.parametrize("seq", [midnight(), midnight() + 1, midnight(2) - 1, midnight(2), midnight(2) + E + 7])
def test_the_reach_of_a_fold_suffices_and_no_less_does(seq: int) -> None:
    start = engine(GUARDED).fold_start(seq)
    assert seq - start + 1 <= engine(GUARDED).reach == W + E + DAY
    day_first = seq - seq % DAY
    enough = engine(GUARDED)
    told = run(enough, between(start, seq + 300))
    assert list(told) == list(range(day_first, seq + 301))
    assert encoded(told) == encoded({s: steady()[s] for s in told})
    late = engine(GUARDED)
    told = run(late, between(start + 1, seq))
    assert told == {}, "without the day's first candle nothing is told of the day"
    assert late.phase is not Phase.READY


@settings(max_examples=6, deadline=None)
@given(
    start=st.integers(-DAY, DAY + 100),
    cuts=st.lists(st.one_of(st.integers(0, 2 * DAY), st.sampled_from([DAY - 1, DAY, DAY + 1])), max_size=5),
    voids=st.frozensets(st.one_of(st.integers(0, 2 * DAY), st.sampled_from([0, DAY - 1, DAY, DAY + 1])), max_size=20),
)
def test_neither_start_nor_restarts_show(start: int, cuts: list[int], voids: frozenset[int]) -> None:
    origin = midnight()
    gone = frozenset(origin + n for n in voids)
    straight = engine(GUARDED)
    answers = run(straight, between(straight.fold_start(origin), LAST), gone)
    assert list(answers) == list(range(origin, LAST + 1))
    restarted = engine(GUARDED)
    mine: Answers = {}
    for candle in between(max(origin + start, minutes()[0].seq), LAST):
        if candle.seq - origin in cuts:
            snapshot = restarted.snapshot()
            restarted = engine(GUARDED)
            restarted.restore(snapshot)
        mine |= run(restarted, [candle], gone)
    assert min(mine) % DAY == 0
    assert encoded(mine) == encoded({seq: answer for seq, answer in answers.items() if seq >= min(mine)})
    assert restarted.snapshot() == straight.snapshot()


def test_peek_shows_the_guarded_side_and_changes_nothing() -> None:
    peeked = engine(GUARDED)
    seen: set[str] = set()
    run(peeked, between(peeked.fold_start(midnight()), midnight(2) - 200))
    for candle in between(midnight(2) - 199, midnight(2) + 300):
        before = peeked.snapshot()
        (decision,) = peek([asked(peeked, candle)])
        assert peeked.snapshot() == before
        answer = run(peeked, [candle])[candle.seq]
        assert isinstance(answer, Answer)
        assert decision == answer.decision
        seen.update(decision.reasons)
    assert {"cooldown", "edge_above_cost"} <= seen


@pytest.mark.parametrize("into_day", [1, 300, DAY - W, DAY - W + 1, DAY])
def test_the_ledger_of_a_market_listed_today_begins_with_its_first_signal(into_day: int) -> None:
    first = midnight() + into_day
    listed_ns = (first - 1) * MINUTE.interval_ns + 30_000 * NS_PER_MS
    new = engine(GUARDED, listed_at_ns=listed_ns)
    answers = run(new, between(first, first + DAY + 2 * W))
    assert list(answers) == list(range(first + W, first + DAY + 2 * W + 1))
    for seq in (first + W, first + W + 1, first + DAY // 2, first + DAY + W):
        other = engine(GUARDED, listed_at_ns=listed_ns)
        mine = run(other, between(other.fold_start(seq), first + DAY + 2 * W))
        assert min(mine) <= seq
        assert encoded(mine) == encoded({s: answers[s] for s in mine})
        assert other.snapshot() == new.snapshot()


def test_a_snapshot_carries_the_ledger_and_the_unguarded_have_none() -> None:
    stopped = next(seq for seq, reason in reasons_of(steady()).items() if reason == "daily_loss_limit")
    old, new = engine(GUARDED), engine(GUARDED)
    run(old, between(old.fold_start(midnight()), stopped))
    new.restore(old.snapshot())
    assert new.snapshot() == old.snapshot()
    assert encoded(run(new, between(stopped + 1, stopped + 5))) == encoded(
        {seq: steady()[seq] for seq in range(stopped + 1, stopped + 6)}
    )
    plain = engine(RANDOM)
    run(plain, between(plain.fold_start(midnight()), midnight()))
    assert plain._guard is None
    assert plain.reach == W + E


def test_a_contracts_cap_on_leverage_shows_in_payload_and_policy() -> None:
    capped_market = msgspec.structs.replace(market(), max_leverage=3.0)
    plain, capped = engine(RANDOM), MarketEngine(RANDOM, capped_market, MINUTE)
    candles = between(plain.fold_start(midnight()), midnight() + 20)
    ours, theirs = run(plain, candles), run(capped, candles)
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        assert isinstance(one, Answer)
        assert isinstance(other, Answer)
        assert one.decision.max_leverage > 3.0 == other.decision.max_leverage
        assert other.decision.size_hint == min(3.0, one.decision.size_hint)
        assert one.inputs_hash == other.inputs_hash
    assert plain.policy == RANDOM.policy != capped.policy


BUSY = Model(artifact(), msgspec.structs.replace(RULES, cooldown_candles=4, daily_loss_limit_bps=400.0))


def event_run(model: Model, candles: Sequence[Candle], listed_at_ns: int | None = None) -> tuple[MarketEngine, Answers]:
    of = MarketEngine(model, market("APE/USDT:USDT", listed_at_ns), EVENTS)
    return of, run(of, candles)


def test_event_candles_have_a_ledger_a_day() -> None:
    eve, second, third = event_days()
    _, answers = event_run(BUSY, [*eve, *second, *third])
    assert list(answers) == [candle.seq for candle in (*second, *third)]
    told = reasons_of(answers)
    assert "cooldown" in told.values()
    late, mine = event_run(BUSY, [*second[5:], *third])
    assert encoded(mine) == encoded({candle.seq: answers[candle.seq] for candle in third})
    guard = late._guard
    assert guard is not None
    again = MarketEngine(BUSY, market("APE/USDT:USDT"), EVENTS)
    run(again, [*second, *third[:7]])
    snapshot = again.snapshot()
    again = MarketEngine(BUSY, market("APE/USDT:USDT"), EVENTS)
    again.restore(snapshot)
    for candle in third[7:]:
        (decision,) = peek([asked(again, candle)])
        answer = run(again, [candle])[candle.seq]
        assert answer == answers[candle.seq]
        assert isinstance(answer, Answer)
        assert decision == answer.decision
    assert again.snapshot() == late.snapshot()


def test_event_candles_of_a_market_listed_today_or_after_a_short_eve() -> None:
    first, second, third = event_days()
    listed_ns = first[0].seq // SEQ_PER_DAY * NS_PER_DAY + 1
    _, answers = event_run(BUSY, [*first, *second], listed_ns)
    assert list(answers) == [candle.seq for candle in (*first[W:], *second)]
    short = second[: W // 2]
    _, answers = event_run(BUSY, [*first, *short, *third])
    _, fresh = event_run(BUSY, [*short, *third])
    assert list(fresh) == [candle.seq for candle in third[W - len(short) :]]
    assert encoded(fresh) == encoded({seq: answers[seq] for seq in fresh})
