import math
import re
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from feeds.events import Ack, MarketTrade, MarkPrice, Refusal, Subscriptions
from feeds.market import Market
from feeds.session import TRANSITIONS, Happening, IllegalTransition, Limits, Session, State, following, mermaid
from feeds.subscription import Subscription
from tests.feeds.trades import made

LIMITS = Limits(silence_s=30.0, pace_s=20.0, lifetime_s=1000.0)
STREAMS = ("a", "b")
ANSWERS = [Ack(1), Ack(2), Subscriptions(1, STREAMS), Subscriptions(2, ("a",)), Subscriptions(2, STREAMS)]


X, Y = (
    Market(exchange="x", symbol=name, native=name, price_decimals=0, size_decimals=0) for name in ("X/U:U", "Y/U:U")
)


def mark(market: Market = X) -> MarkPrice:
    return MarkPrice(market, 1, 1, mark_price=1.0)


def trade(market: Market = X) -> MarketTrade:
    return MarketTrade(market, made(1, 1))


def session(*, markets: tuple[str, ...] = (), excused: tuple[str, ...] = ()) -> Session:
    subscription = Subscription(
        [(1, "subscribe")], confirm=(2, "list"), streams=STREAMS, spacing_s=0.0, ack_timeout_s=10.0
    )
    return Session(subscription, LIMITS, markets=markets, excused=excused)


def live(*, at_s: float = 0.0, markets: tuple[str, ...] = (), excused: tuple[str, ...] = ()) -> Session:
    new = session(markets=markets, excused=excused)
    new.opened(at_s)
    assert new.due(at_s) == "subscribe"
    new.control(Ack(1), at_s)
    assert new.due(at_s) == "list"
    new.control(Subscriptions(2, STREAMS), at_s)
    assert new.state is State.LIVE
    return new


def test_signs_of_life_are_due_at_their_pace_in_every_state_of_an_open_connection() -> None:
    subscription = Subscription([(1, "subscribe")], confirm=None, streams=STREAMS, spacing_s=0.0, ack_timeout_s=10.0)
    one = Session(subscription, Limits(silence_s=30.0, pace_s=20.0, lifetime_s=1000.0, ping_every_s=5.0))
    one.opened(0.0)
    one.due(0.0)
    assert (one.ping_due(4.9), one.deadline_s()) == (False, 5.0)
    assert (one.ping_due(5.0), one.ping_due(5.1)) == (True, False)
    one.control(Ack(1), 6.0)
    assert (one.state, one.deadline_s()) == (State.LIVE, 10.0)
    one.tick(10.0)
    assert one.ping_due(10.0)
    assert not live().ping_due(999.0), "an exchange that pings us wants none"


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("happening", Happening)
def test_every_happening_in_every_state_is_in_the_table_or_illegal(state: State, happening: Happening) -> None:
    after = TRANSITIONS[state].get(happening)
    if after is None:
        with pytest.raises(IllegalTransition, match=f"{happening} while {state}"):
            following(state, happening)
    else:
        assert following(state, happening) is after


def test_every_state_is_reached_and_leads_to_the_end() -> None:
    reached = {State.CONNECTING} | {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(State)
    assert all(following(state, Happening.LOST) is State.CLOSED for state in State if state is not State.CLOSED)
    assert not TRANSITIONS[State.CLOSED]


def test_an_illegal_happening_changes_nothing() -> None:
    one = session()
    with pytest.raises(IllegalTransition):
        one.hear(trade(), 1.0)
    with pytest.raises(IllegalTransition):
        one.control(Refusal(1, 1, "no"), 1.0)
    assert (one.state, one.reason, one.deadline_s()) == (State.CONNECTING, "", math.inf)


def test_market_data_before_the_confirmation_is_welcome() -> None:
    one = session()
    one.opened(0.0)
    one.hear(trade(), 0.1)
    assert one.state is State.SUBSCRIBING


def test_a_request_without_an_answer_ends_the_session() -> None:
    one = session()
    one.opened(5.0)
    assert one.deadline_s() <= 5.0
    one.due(5.0)
    one.hear(trade(), 14.0)
    assert one.deadline_s() == 15.0
    one.tick(14.9)
    assert not one.over
    one.tick(15.0)
    assert (one.state, one.reason) == (State.CLOSING, "no answer to request (1,)")


def test_a_stream_that_is_not_listed_ends_the_session_by_name() -> None:
    one = session()
    one.opened(0.0)
    one.due(0.0)
    one.control(Ack(1), 0.1)
    one.due(0.1)
    one.control(Subscriptions(2, ("a", "z")), 0.2)
    assert (one.state, one.reason) == (State.CLOSING, "not subscribed: b; never asked for: z")


def test_a_refusal_ends_the_session() -> None:
    one = live()
    one.control(Refusal(None, -1, "too many"), 1.0)
    assert (one.state, one.reason) == (State.CLOSING, "refused: -1 too many")


def test_silence_makes_a_connection_stale_and_data_puts_it_off() -> None:
    one = live(at_s=100.0)
    one.hear(trade(), 110.0)
    assert one.deadline_s() == 140.0
    one.tick(139.9)
    assert one.state is State.LIVE
    one.tick(140.0)
    assert (one.state, one.reason, one.over) == (State.STALE, "no market data for 30 s", True)


def test_a_paced_key_that_falls_silent_among_others_is_told_by_name() -> None:
    one = live(markets=(X.symbol, Y.symbol))
    for now_s in range(1, 25):
        one.hear(mark(X), float(now_s))
        if now_s == 3:
            one.hear(mark(Y), 3.0)
    assert one.deadline_s() == 23.0
    one.tick(24.0)
    assert (one.state, one.reason) == (State.STALE, "no mark price while others flow: Y/U:U")
    assert one.mute == frozenset(), "it was heard on this connection, so the next may watch it"


def test_a_key_that_was_never_heard_is_excused_next_time_until_it_is_heard() -> None:
    first = live(markets=(X.symbol, Y.symbol))
    first.hear(trade(), 19.0)
    first.hear(mark(X), 19.0)
    first.tick(20.0)
    assert (first.state, first.mute) == (State.STALE, frozenset({Y.symbol}))

    second = live(markets=(X.symbol, Y.symbol), excused=tuple(first.mute))
    second.hear(trade(), 19.0)
    second.hear(mark(X), 19.0)
    second.tick(20.0)
    assert (second.state, second.mute) == (State.LIVE, frozenset({Y.symbol}))
    second.hear(mark(Y), 21.0)
    assert second.mute == frozenset()
    second.hear(trade(), 30.0)
    second.hear(mark(X), 30.0)
    second.tick(41.0)
    assert (second.state, second.reason) == (State.STALE, "no mark price while others flow: Y/U:U")


def test_a_connection_is_left_before_it_is_too_old() -> None:
    one = live()
    one.hear(trade(), 999.0)
    assert one.deadline_s() == 1000.0
    one.tick(1000.0)
    assert (one.state, one.live_for_s(1000.0)) == (State.CLOSING, 1000.0)
    assert session().live_for_s(5.0) == 0.0


def test_the_first_reason_stays() -> None:
    one = live()
    one.tick(40.0)
    one.lost("connection reset")
    assert (one.state, one.reason) == (State.CLOSED, "no market data for 40 s")


def test_the_diagram_shows_every_change() -> None:
    drawn = set(re.findall(r"(\w+) --> (\w+): (\w+)", mermaid()))
    assert drawn == {(s, a, h) for s, row in TRANSITIONS.items() for h, a in row.items() if a is not s}


class AnyOrder(RuleBasedStateMachine):
    """Whatever the shell and the exchange do, the state moves along the table and every deadline is honoured."""

    def __init__(self) -> None:
        super().__init__()
        self.session = session(markets=(X.symbol, Y.symbol))
        self.before = self.session.state
        self.now_s = 0.0

    def fired(self) -> None:
        now = self.session.state
        assert now is self.before or now in TRANSITIONS[self.before].values()
        self.before = now

    @rule(step_s=st.floats(0.0, 400.0))
    def time_passes(self, step_s: float) -> None:
        self.now_s += step_s
        self.session.due(self.now_s)
        self.session.tick(self.now_s)
        self.fired()
        assert self.session.over or self.session.deadline_s() > self.now_s or self.session.state is State.SUBSCRIBING

    @rule(event=st.sampled_from(ANSWERS))
    def answer(self, event: Ack | Subscriptions) -> None:
        self.session.control(event, self.now_s)
        self.fired()

    @precondition(lambda self: self.session.state in (State.SUBSCRIBING, State.LIVE))
    @rule(event=st.sampled_from([trade(X), trade(Y), mark(X), mark(Y)]))
    def data(self, event: MarketTrade | MarkPrice) -> None:
        self.session.hear(event, self.now_s)
        self.fired()

    @rule(what=st.sampled_from(["opened", "stop", "lost", "data", "refusal"]))
    def anything(self, what: str) -> None:
        acts: dict[str, Callable[[], None]] = {
            "opened": lambda: self.session.opened(self.now_s),
            "stop": self.session.stop,
            "lost": lambda: self.session.lost("gone"),
            "data": lambda: self.session.hear(trade(), self.now_s),
            "refusal": lambda: self.session.control(Refusal(1, 1, "no"), self.now_s),
        }
        try:
            acts[what]()
        except IllegalTransition:
            assert self.session.state is self.before
        self.fired()

    @invariant()
    def a_session_that_is_over_says_why(self) -> None:
        assert bool(self.session.reason) == self.session.over


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
