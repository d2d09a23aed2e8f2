"""The bounds of the outbox: which rows go, and what stands for them."""

import json

from hypothesis import given
from hypothesis import strategies as st

from daemon import outbox, topics
from daemon.outbox import Limits, Load, Sent, Waiting, Window
from tests.daemon.lines import BEGIN, decoded, messages, new_line, offer_all

LIMITS = Limits.of(hours=2, rows=100, size_bytes=10_000)
HOUR_NS = 3_600_000_000_000


def test_each_bound_counts_by_itself() -> None:
    now_ns = 1_000 * HOUR_NS
    fine = Load(rows=100, size_bytes=10_000, oldest_ns=now_ns - 2 * HOUR_NS)
    assert not outbox.exceeded(fine, LIMITS, now_ns)
    assert not outbox.exceeded(Load(0, 0, 0), LIMITS, now_ns)
    assert outbox.exceeded(fine._replace(rows=101), LIMITS, now_ns)
    assert outbox.exceeded(fine._replace(size_bytes=10_001), LIMITS, now_ns)
    assert outbox.exceeded(fine._replace(oldest_ns=now_ns - 2 * HOUR_NS - 1), LIMITS, now_ns)


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(("ship", "add", "ack", "lose")), st.integers(0, 9)), max_size=80),
)
def test_rows_go_in_order_within_the_window_and_again_after_a_loss(size: int, steps: list[tuple[str, int]]) -> None:
    window, rows = Window(size), list(range(1, 4))
    known, flying, order, delivered = set[int](), list[int](), list[int](), list[int]()

    def ship() -> None:
        for row in [row for row in rows if row > window.cursor and row not in known][: window.room]:
            window.sent(row)
            flying.append(row)
            order.append(row)

    for kind, number in [*steps, ("lose", 0)]:
        if kind == "add":
            rows.extend(range(rows[-1] + 1, rows[-1] + 1 + number))
        elif kind == "ack" and flying:
            delivered.append(flying[number % len(flying)])
            flying.remove(delivered[-1])
            window.acknowledge(delivered[-1])
            known.update(window.take_acknowledged())
        elif kind == "lose":
            window.begin()
            order, flying = [], []
            assert window.is_empty
        else:
            ship()
        assert len(flying) == size - window.room <= size
        assert order == sorted(set(order)), "in order, and none twice on one connection"
        assert window.sent_to >= max(order, default=0)
    while len(known) < len(rows):
        ship()
        for row in flying:
            window.acknowledge(row)
        flying = []
        known.update(window.take_acknowledged())
    assert known == set(rows)
    window.acknowledge(1)
    assert window.take_acknowledged() == [1], "late word of an old connection counts, and takes no room"
    assert window.room == size


rows_of_lines = st.lists(st.tuples(st.sampled_from("abc"), st.integers(50, 400)), min_size=1, max_size=400)


@given(rows_of_lines)
def test_merging_up_to_the_cut_keeps_the_bounds_and_no_shorter_cut_does(kinds: list[tuple[str, int]]) -> None:
    waiting = [Waiting(row, line, size) for row, (line, size) in enumerate(kinds, 1)]
    load = Load(len(waiting), sum(w.size_bytes for w in waiting), 1)
    cut = outbox.cut(iter(waiting), load, LIMITS)
    if load.rows <= LIMITS.rows and load.size_bytes <= LIMITS.size_bytes:
        assert cut == 0
        return

    def left(upto: int) -> tuple[int, int]:
        """Merge all but the first of each line."""
        first = {w.line: w.row for w in reversed(waiting[:upto])}
        stay = [w for w in waiting if w.row > upto or w.row in first.values()]
        return len(stay), sum(w.size_bytes for w in stay)

    def fits(upto: int) -> bool:
        rows, size_bytes = left(upto)
        return rows <= 0.9 * LIMITS.rows and size_bytes <= 0.9 * LIMITS.size_bytes

    assert fits(cut) or cut == len(waiting)
    assert not fits(cut - 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(50, 400)), max_size=300))
def test_the_oldest_delivered_go_until_the_bounds_are_kept_and_no_more(kinds: list[tuple[int, int]]) -> None:
    sent = [Sent(row, hours * HOUR_NS, size) for row, (hours, size) in enumerate(kinds, 1)]
    load, now_ns = Load(len(sent), sum(s.size_bytes for s in sent), 0), 5 * HOUR_NS
    gone = outbox.surplus(iter(sent), load, LIMITS, now_ns)
    assert gone == sent[: len(gone)]

    def exceeded(kept: list[Sent]) -> bool:
        size_bytes = sum(s.size_bytes for s in kept)
        return len(kept) > LIMITS.rows or size_bytes > LIMITS.size_bytes or kept[0].time_ns < now_ns - LIMITS.age_ns

    assert len(gone) == len(sent) or not exceeded(sent[len(gone) :]) or sent[len(gone)].time_ns == 0
    assert not gone or exceeded(sent[len(gone) - 1 :])


def test_a_gap_takes_the_range_of_what_it_stands_for() -> None:
    line = new_line()
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    offer_all(line, range(line.next_seq, BEGIN + 9))
    stored = [topics.identity_of(m) for m in messages(line.take_work())]
    gap = outbox.gap_of(stored[0], stored[3])
    assert (gap.kind, gap.from_seq, gap.to_seq, gap.seq) == ("gap", BEGIN + 1, BEGIN + 4, BEGIN + 4)
    last = json.loads(stored[3])
    assert all(getattr(gap, key) == last[key] for key in ("exchange", "symbol", "spec", "model", "close_time"))
    identity = topics.identity_of(gap)
    assert decoded(identity).kind == "gap"
    assert outbox.is_gap(identity)
    assert not outbox.is_gap(stored[0])
    wider = outbox.gap_of(identity, stored[5])
    assert (wider.from_seq, wider.to_seq) == (BEGIN + 1, BEGIN + 6)
    assert wider.id != gap.id
