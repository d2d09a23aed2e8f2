import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.market import NS_PER_MS, NS_PER_S, Trade
from feeds.sequence import ExchangeClock, Reorder, TradeIdentities, TradeSequence, Verdict
from tests.feeds.trades import made

T0_MS = 1_700_000_000_000
JUMP_MS = ExchangeClock.JUMP_NS // NS_PER_MS


def verdicts(*trades: tuple[int, int]) -> list[Verdict]:
    sequence = TradeSequence()
    return [sequence.take(made(n, T0_MS + ms)) for n, ms in trades]


def test_contiguous_ids_follow_each_other_even_with_times_a_little_out_of_order() -> None:
    assert verdicts((7, 0), (8, 0), (9, -999), (10, 5)) == [Verdict.NEXT] * 4


def test_what_was_seen_is_a_duplicate_and_what_was_not_is_a_gap() -> None:
    assert verdicts((7, 0), (7, 0), (8, 1), (7, 0), (10, 2), (11, 3)) == [
        Verdict.NEXT, Verdict.DUPLICATE, Verdict.NEXT, Verdict.DUPLICATE, Verdict.GAP, Verdict.NEXT,
    ]  # fmt: skip


def test_a_trade_from_long_before_is_rejected_and_forgotten() -> None:
    assert verdicts((7, 0), (8, -1_001), (8, 1)) == [Verdict.NEXT, Verdict.PAST, Verdict.NEXT]


def test_after_a_bogus_id_the_next_real_trade_says_that_trades_may_be_missing() -> None:
    assert verdicts((7, 0), (10**15, 10), (8, 20), (9, 30)) == [
        Verdict.NEXT, Verdict.GAP, Verdict.GAP, Verdict.NEXT,
    ]  # fmt: skip
    assert verdicts((7, 0), (2, 10), (8, 20)) == [Verdict.NEXT, Verdict.GAP, Verdict.GAP]


def test_what_a_bogus_time_hides_ends_in_a_gap() -> None:
    assert verdicts((7, 0), (8, 30_000), (9, 1_000), (10, 29_500), (11, 29_900)) == [
        Verdict.NEXT, Verdict.NEXT, Verdict.PAST, Verdict.GAP, Verdict.NEXT,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5_000)), max_size=40))
def test_judging_moves_nothing_and_only_what_is_taken_moves_the_sequence(moves: list[tuple[int, int]]) -> None:
    sequence = TradeSequence()
    for n, ms in moves:
        before = (sequence.last_id, sequence.last_time_ns)
        trade: Trade = made(n, T0_MS + ms)
        verdict = sequence.judge(trade)
        assert (sequence.last_id, sequence.last_time_ns) == before
        assert sequence.take(trade) is verdict
        taken = verdict in (Verdict.NEXT, Verdict.GAP)
        assert sequence.last_id == (n if taken else before[0])
        assert sequence.last_time_ns == (max(before[1], trade.event_time_ns) if taken else before[1])


def test_ids_that_are_no_numbers_show_repetitions_and_nothing_else() -> None:
    known = TradeIdentities()
    rows = [(70, 0), (7, 5), (70, 6), (900, -900), (0, 7), (0, 7)]
    assert [known.take(made(n, T0_MS + ms)) for n, ms in rows] == [
        Verdict.NEXT, Verdict.NEXT, Verdict.DUPLICATE, Verdict.NEXT, Verdict.NEXT, Verdict.NEXT,
    ]  # fmt: skip
    assert known.take(made(901, T0_MS - 1_001)) is Verdict.PAST
    assert TradeIdentities(disorder_ns=2 * NS_PER_S).take(made(1, T0_MS)) is Verdict.NEXT


def test_the_memory_of_ids_is_bounded() -> None:
    known = TradeIdentities()
    for n in range(1, TradeIdentities.REMEMBERED + 2):
        assert known.take(made(n, T0_MS)) is Verdict.NEXT
    assert known.take(made(2, T0_MS)) is Verdict.DUPLICATE
    assert known.take(made(1, T0_MS)) is Verdict.NEXT


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 500)), max_size=60))
def test_trades_out_of_order_within_the_bound_come_out_in_order_and_all_of_them(rows: list[tuple[int, int]]) -> None:
    arrivals = [made(n, T0_MS + ms) for n, (ms, _) in enumerate(sorted(rows, key=sum))]  # delayed by 0 to 500 ms
    order = Reorder(500 * NS_PER_MS)
    out = [trade for arrival in arrivals for trade in order.add(arrival)]
    assert all(trade.event_time_ns <= arrivals[-1].event_time_ns for trade in out)
    out += order.until((T0_MS + 3_500) * NS_PER_MS)
    assert out == sorted(arrivals, key=lambda trade: (trade.event_time_ns, trade.id))


def test_what_is_held_back_is_forgotten_with_the_connection_and_order_costs_nothing_where_it_is_kept() -> None:
    order = Reorder(NS_PER_S)
    late, early = made(1, T0_MS + 5), made(2, T0_MS)
    assert order.add(late) == order.add(early) == []
    order.clear()
    assert order.until((T0_MS + 10_000) * NS_PER_MS) == []
    assert Reorder(0).add(late) == [late]


def clock() -> ExchangeClock:
    made_clock = ExchangeClock()
    made_clock.set(T0_MS * NS_PER_MS)
    return made_clock


def believes(of: ExchangeClock, source: str, ms: int) -> bool:
    return of.believes(source, (T0_MS + ms) * NS_PER_MS)


def time_of(of: ExchangeClock) -> int:
    return of.now_ns // NS_PER_MS - T0_MS


def test_time_runs_forward_only() -> None:
    c = clock()
    assert believes(c, "trade", 500)
    assert believes(c, "mark", 200), "an older time is no lie"
    assert time_of(c) == 500
    c.set(0)
    assert time_of(c) == 500


def test_a_jump_waits_for_another_source() -> None:
    c = clock()
    assert believes(c, "mark", JUMP_MS)
    assert not believes(c, "mark", 2 * JUMP_MS + 1)
    assert not believes(c, "mark", 2 * JUMP_MS + 2), "the same source proves nothing"
    assert c.disputed
    assert time_of(c) == JUMP_MS
    assert believes(c, "trade", 2 * JUMP_MS + 50)
    assert (time_of(c), c.disputed) == (2 * JUMP_MS + 50, False)


@pytest.mark.parametrize("second_ms", [2 * JUMP_MS, 10**10 - JUMP_MS - 1, 10**10 + JUMP_MS + 1])
def test_two_sources_that_disagree_prove_nothing(second_ms: int) -> None:
    c = clock()
    assert not believes(c, "mark", 10**10)
    assert not believes(c, "trade", second_ms)
    assert time_of(c) == 0


def test_a_source_that_comes_back_to_its_senses_is_no_witness() -> None:
    c = clock()
    assert not believes(c, "mark", 10**8)
    assert believes(c, "mark", 100)
    assert not c.disputed
    assert not believes(c, "trade", 10**8)


def test_the_exchanges_own_clock_settles_a_dispute() -> None:
    c = clock()
    assert not believes(c, "mark", 10**8)
    c.set(c.now_ns + NS_PER_S)
    assert not c.disputed
    assert not believes(c, "trade", 10**8)


@given(st.lists(st.tuples(st.sampled_from(["trade", "mark", "kline"]), st.integers(0, 10 * JUMP_MS)), max_size=30))
def test_no_source_alone_moves_time_by_more_than_the_bound(events: list[tuple[str, int]]) -> None:
    c, said = clock(), dict[str, list[int]]()
    for source, ms in events:
        before = time_of(c)
        others = [claim for other, claims in said.items() if other != source for claim in claims]
        if believes(c, source, ms):
            assert time_of(c) == max(before, ms)
            assert ms <= before + JUMP_MS or any(abs(other - ms) <= JUMP_MS for other in others)
        else:
            assert time_of(c) == before
        said.setdefault(source, []).append(ms)
