import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.subscription import RequestId, Subscription, plan


def subscription(*, confirm: tuple[RequestId, str] | None = (9, "list")) -> Subscription:
    return Subscription(
        [(1, "one"), (2, "two")], confirm=confirm, streams=["a", "b", "c"], spacing_s=0.25, ack_timeout_s=10.0
    )


def test_requests_keep_their_spacing_and_the_list_follows_the_last_acknowledgement() -> None:
    sub = subscription()
    assert (sub.due(100.0), sub.due(100.1), sub.send_at_s) == ("one", None, 100.25)
    sub.acked(1)
    assert sub.overdue_at_s == math.inf
    assert (sub.due(100.25), sub.due(200.0), sub.send_at_s) == ("two", None, math.inf)
    sub.acked(2)
    assert not sub.complete
    assert (sub.due(100.3), sub.due(100.5)) == (None, "list")
    sub.listed(9, ["c", "b", "a"])
    assert sub.complete
    assert (sub.overdue_at_s, sub.due(999.0)) == (math.inf, None)


def test_without_a_list_the_acknowledgements_are_all() -> None:
    sub = subscription(confirm=None)
    sub.due(0.0)
    sub.due(1.0)
    sub.acked(2)
    assert (sub.complete, sub.unanswered) == (False, (1,))
    sub.acked(1)
    assert sub.complete


def test_the_oldest_unanswered_request_decides_what_is_overdue() -> None:
    sub = subscription()
    sub.due(5.0)
    sub.due(6.0)
    assert (sub.overdue_at_s, sub.unanswered) == (15.0, (1, 2))
    sub.acked(1)
    assert sub.overdue_at_s == 16.0


@pytest.mark.parametrize(
    ("listed", "absent", "unasked"),
    [
        (["a"], ("b", "c"), ()),
        ([], ("a", "b", "c"), ()),
        (["a", "b", "c", "z"], (), ("z",)),
        (["a", "b", "z"], ("c",), ("z",)),
    ],
)
def test_a_list_that_differs_is_told_by_name(listed: list[str], absent: tuple[str], unasked: tuple[str]) -> None:
    sub = subscription()
    for number, now_s in ((1, 0.0), (2, 1.0)):
        sub.due(now_s)
        sub.acked(number)
    sub.due(2.0)
    sub.listed(9, listed)
    assert (sub.complete, sub.absent, sub.unasked) == (False, absent, unasked)


def test_answers_to_nothing_are_ignored() -> None:
    sub = subscription()
    sub.acked(1)
    sub.listed(9, ["a", "b", "c"])
    assert sub.due(0.0) == "one"
    sub.acked("1")
    sub.acked(7)
    assert (sub.unanswered, sub.complete) == ((1,), False)
    sub.acked(1)
    sub.acked(1)
    assert sub.due(1.0) == "two"
    sub.acked(2)
    assert sub.due(2.0) == "list"
    sub.acked(9)
    assert (sub.unanswered, sub.complete) == ((9,), False), "an empty acknowledgement is no list"


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 8), max_size=30))
def test_plans_keep_markets_whole_in_order_and_within_the_room(streams: dict[str, int]) -> None:
    groups = plan(streams, capacity=10)
    assert [market for group in groups for market in group] == list(streams)
    sums = [sum(streams[market] for market in group) for group in groups]
    assert all(0 < total <= 8 for total in sums)
    firsts = [streams[group[0]] for group in groups]
    assert all(total + first > 8 for total, first in zip(sums, firsts[1:], strict=False)), "no group is closed early"


def test_a_market_that_no_connection_can_carry_is_an_error() -> None:
    with pytest.raises(ValueError, match="X needs 9 of a connection's 8"):
        plan({"X": 9}, capacity=10)
