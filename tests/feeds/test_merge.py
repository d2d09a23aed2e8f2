from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.events import Event, Malformed, MarketTrade, MarkPrice
from feeds.market import NS_PER_MS, Trade
from feeds.merge import HELD_MAX, Merge
from feeds.traits import Identity, Traits
from tests.feeds.test_binance import market

BTC, ETH = market("BTC"), market("ETH")
T0_MS = 1_700_000_000_000


def merge(identity: Identity) -> Merge:
    return Merge(Traits(identity=identity, grace_ns=0))


def row(ms: int, price: int = 1, number: int = 0) -> MarketTrade:
    return MarketTrade(BTC, Trade(number, price, 1, (T0_MS + ms) * NS_PER_MS, 0, 1, False))


def mark(ms: int) -> MarkPrice:
    return MarkPrice(BTC, (T0_MS + ms) * NS_PER_MS, 0, mark_price=1.0)


def carry_all(both: Merge, ms: int) -> None:
    """Have both connections confirmed, and both past the time `ms`."""
    for lane in (1, 2):
        both.confirm(lane)
    for lane in (2, 1):
        both.take(lane, [mark(ms)])


def ids(events: Sequence[Event]) -> list[int]:
    return [event.trade.id for event in events if isinstance(event, MarketTrade)]


def test_one_connection_alone_is_handed_on_as_it_speaks() -> None:
    for identity in Identity:
        only = merge(identity)
        only.join(1)
        said: list[Event] = [row(0, number=5), row(0, number=5), row(1, number=9), Malformed("json", "x")]
        assert only.take(1, said) == said
        assert only.leave(1) == []


def test_the_first_arrival_of_a_number_wins_and_one_ahead_waits_for_those_before() -> None:
    both = merge(Identity.NUMBERED)
    both.join(1)
    both.take(1, [row(0, number=100)])
    both.join(2)
    assert ids(both.take(2, [row(5, number=105)])) == []
    assert not both.agrees(2)
    assert ids(both.take(1, [row(1, number=101), row(2, number=102)])) == [101, 102]
    assert ids(both.take(1, [row(3, number=103), row(4, number=104)])) == [103, 104, 105]
    carry_all(both, 4)
    assert both.agrees(2)
    assert ids(both.take(2, [row(6, number=106)])) == [106]
    assert ids(both.take(1, [row(5, number=105), row(6, number=106), row(7, number=107)])) == [107]
    assert both.leave(1) == []
    assert ids(both.take(2, [row(7, number=107), row(8, number=108)])) == [107, 108], "the sequence drops what it knows"
    assert both.lost == 0


def test_a_number_that_no_connection_delivers_is_stepped_over_and_counted() -> None:
    both = merge(Identity.NUMBERED)
    both.join(1)
    both.take(1, [row(0, number=1)])
    both.join(2)
    assert ids(both.take(1, [row(1, number=4)])) == []
    assert ids(both.take(2, [row(1, number=4)])) == [4]
    assert both.lost == 2
    both.take(2, [row(2, number=7)])
    assert ids(both.leave(1)) == [7]
    assert both.lost == 4


def test_after_an_outage_of_all_connections_the_first_back_is_not_kept_waiting() -> None:
    both = merge(Identity.NUMBERED)
    both.join(1)
    both.take(1, [row(0, number=1)])
    both.leave(1)
    both.join(2)
    both.join(3)
    assert ids(both.take(2, [row(9000, number=12)])) == [12], "connection 3 may be silent for long"


def test_no_mark_price_goes_before_the_trades_that_wait() -> None:
    """It would close their candle without them."""
    both = merge(Identity.NUMBERED)
    both.join(1)
    both.take(1, [row(0, number=1)])
    both.join(2)
    mark = MarkPrice(BTC, (T0_MS + 2000) * NS_PER_MS, 0, 1.0)
    assert both.take(1, [row(1, number=3), mark]) == []
    assert ids(both.take(2, [row(1, number=3)])) == [3]
    assert both.take(1, [mark]) == [mark]


def test_a_number_is_not_waited_for_on_a_connection_that_is_still_being_confirmed() -> None:
    both = merge(Identity.NUMBERED)
    both.join(1)
    both.confirm(1)
    both.take(1, [row(0, number=1)])
    both.join(2)
    assert ids(both.take(1, [row(1, number=3)])) == [3]
    both.confirm(2)
    assert ids(both.take(1, [row(2, number=5)])) == []
    assert both.lost == 1


@pytest.mark.parametrize(
    ("numbers", "lead"), [([1000, 1001, 10**15, *range(1002, 1008)], 0), ([1000, 1001, *range(1, 8)], 3)]
)
def test_numbers_that_run_backwards_on_every_connection_are_followed(numbers: list[int], lead: int) -> None:
    both, out = merge(Identity.NUMBERED), list[int]()
    both.join(1)
    both.join(2)
    for at in range(len(numbers) + lead):
        if at < len(numbers):
            out += ids(both.take(1, [row(at, number=numbers[at])]))
        if at >= lead:
            out += ids(both.take(2, [row(at - lead, number=numbers[at - lead])]))
    assert out == numbers


def test_what_is_remembered_is_bounded_though_a_time_was_false() -> None:
    only = merge(Identity.UNIQUE)
    only.join(1)
    only.take(1, [row(10**12, number=1)])
    for number in range(2, HELD_MAX + 1000):
        only.take(1, [row(number, number=number)])
    assert len(only._markets[BTC.symbol].told) <= HELD_MAX


def test_a_younger_connection_goes_on_alone_only_once_all_rows_of_the_time_it_began_are_told() -> None:
    both = merge(Identity.NONE)
    both.join(1)
    both.take(1, [row(0)])
    both.join(2)
    both.take(2, [row(7), row(7)])
    both.take(1, [row(7)])
    carry_all(both, 7)
    assert not both.agrees(2)
    both.take(1, [row(7)])
    assert both.agrees(2)
    assert both.leave(1) == []


@pytest.mark.parametrize("identity", [Identity.UNIQUE, Identity.NONE])
def test_a_younger_connection_waits_and_takes_over_where_the_elder_ended(identity: Identity) -> None:
    def said(ms: int, price: int = 1) -> MarketTrade:
        return row(ms, price, number=1000 + 10 * ms + price if identity is Identity.UNIQUE else 0)

    both = merge(identity)
    both.join(1)
    both.confirm(1)
    assert both.take(1, [said(0), said(1)]) == [said(0), said(1)]
    both.join(2)
    both.confirm(2)
    assert both.take(2, [said(2), said(3), mark(3)]) == []
    assert not both.agrees(2)
    assert both.take(1, [said(2), said(3), mark(3)]) == [said(2), said(3), mark(3)]
    assert both.agrees(2)
    assert both.take(2, [said(4), said(4, 2)]) == []
    assert both.take(1, [said(4)]) == [said(4)]
    assert both.leave(1) == [said(4, 2)]
    assert both.take(2, [said(5), mark(5)]) == [said(5), mark(5)]


def test_a_replay_on_joining_does_not_hold_up_the_takeover_of_a_quiet_market() -> None:
    both = merge(Identity.UNIQUE)
    both.join(1)
    both.take(1, [row(0, number=1), row(1, number=2)])
    both.join(2)
    both.take(2, [row(0, number=1), row(1, number=2)])
    carry_all(both, 1)
    assert both.agrees(2)
    assert both.leave(1) == []


def test_rows_alike_are_counted_where_there_are_no_ids() -> None:
    both = merge(Identity.NONE)
    both.join(1)
    both.join(2)
    both.take(1, [row(0), row(1), row(1)])
    both.take(2, [row(0), row(1), row(1), row(1)])
    assert both.leave(1) == [row(1)]


def test_of_the_time_at_which_the_younger_began_only_the_elder_is_believed() -> None:
    both = merge(Identity.NONE)
    both.join(1)
    both.take(1, [row(7), row(7)])
    both.join(2)
    both.take(2, [row(7), row(7), row(7), row(8)])
    assert both.leave(1) == [row(8)]


def test_a_confirmed_connection_goes_before_one_that_is_not() -> None:
    both = merge(Identity.UNIQUE)
    both.join(1)
    both.join(2)
    assert both.take(2, [row(1, number=1)]) == []
    assert both.confirm(2) == [row(1, number=1)]
    assert both.take(1, [row(2, number=2)]) == []
    assert both.confirm(1) == []
    assert both.leave(2) == [row(2, number=2)]


def test_a_connection_is_bridged_only_by_one_that_carried_all_before_it_fell_silent() -> None:
    both = merge(Identity.NUMBERED)
    both.join(1)
    both.confirm(1)
    assert not both.bridged(1), "it is alone"
    both.take(1, [row(0, number=1), mark(0)])
    both.join(2)
    assert not both.bridged(1)
    assert both.bridged(2), "the other goes on"
    both.take(2, [mark(5)])
    both.confirm(2)
    both.take(1, [mark(5)])
    assert not both.bridged(1), "what the second said before it carried everything proves nothing"
    both.take(2, [row(4, number=1), mark(9)])
    both.take(1, [mark(8)])
    assert not both.bridged(1), "it may have fallen silent before the second carried everything"
    both.take(1, [mark(9)])
    assert both.bridged(1)


@settings(deadline=None)
@given(data=st.data(), identity=st.sampled_from(Identity))
def test_however_two_connections_interleave_each_trade_comes_once_and_in_order(
    data: st.DataObject, identity: Identity
) -> None:
    """Both connections are sent the same tape, each from where it began; the first ends somewhere in the overlap."""
    steps = data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=40))
    tape, ms = [], 0
    for n, step in enumerate(steps, start=1):
        ms += step
        tape.append(row(ms, price=1 + n % 2, number=0 if identity is Identity.NONE else n))
    begin = data.draw(st.integers(0, len(tape) - 2))
    end = data.draw(st.integers(begin + 1, len(tape)))
    both, out = merge(identity), list[Event]()
    at, behind = [0, begin], [end, len(tape)]
    both.join(1)
    out += both.take(1, list(tape[:begin]))
    at[0] = begin
    both.join(2)
    while at[0] < end:
        lane = data.draw(st.integers(0, 1))
        if at[lane] < behind[lane]:
            out += both.take(lane + 1, [tape[at[lane]]])
            at[lane] += 1
    # What the elder was sent and the younger too is known twice, so the elder may go once the younger is beyond it.
    began_ns = tape[begin].trade.event_time_ns
    while at[1] < len(tape) and at[1] <= end:
        out += both.take(2, [tape[at[1]]])
        at[1] += 1
    carry_all(both, ms)
    proven = both.agrees(2) and tape[end - 1].trade.event_time_ns > began_ns
    out += both.leave(1)
    out += both.take(2, list(tape[at[1] :]))
    if identity is Identity.NONE and not proven:
        return
    seen = list(dict.fromkeys(ids(out))) if identity is not Identity.NONE else out
    assert seen == (ids(tape) if identity is not Identity.NONE else tape)
    assert both.lost == 0
