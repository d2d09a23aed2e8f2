import math
import re
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from feeds.events import Ack, Refusal, Subscriptions
from feeds.session import TRANSITIONS, Happening, IllegalTransition, Limits, Session, State, following, mermaid
from feeds.subscription import Subscription

LIMITS = Limits(silence_s=30.0, pace_s=20.0, lifetime_s=1000.0)
STREAMS = ("a", "b")
ANSWERS = [Ack(1), Ack(2), Subscriptions(1, STREAMS), Subscriptions(2, ("a",)), Subscriptions(2, STREAMS)]


def session(*, paced: tuple[str, ...] = (), excused: tuple[str, ...] = ()) -> Session:
    subscription = Subscription(
        [(1, "subscribe")], confirm=(2, "list"), streams=STREAMS, spacing_s=0.0, ack_timeout_s=10.0
    )
    return Session(subscription, LIMITS, paced=paced, excused=excused)


def live(*, at_s: float = 0.0, paced: tuple[str, ...] = (), excused: tuple[str, ...] = ()) -> Session:
    made = session(paced=paced, excused=excused)
    made.opened(at_s)
    assert made.due(at_s) == "subscribe"
    made.control(Ack(1), at_s)
    assert made.due(at_s) == "list"
    made.control(Subscriptions(2, STREAMS), at_s)
    assert made.state is State.LIVE
    return made


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
    made = session()
    with pytest.raises(IllegalTransition):
        made.data(1.0)
    with pytest.raises(IllegalTransition):
        made.control(Refusal(1, 1, "no"), 1.0)
    assert (made.state, made.reason, made.deadline_s()) == (State.CONNECTING, "", math.inf)


def test_market_data_before_the_confirmation_is_welcome() -> None:
    made = session()
    made.opened(0.0)
    made.data(0.1)
    assert made.state is State.SUBSCRIBING


def test_a_request_without_an_answer_ends_the_session() -> None:
    made = session()
    made.opened(5.0)
    assert made.deadline_s() <= 5.0
    made.due(5.0)
    made.data(14.0)
    assert made.deadline_s() == 15.0
    made.tick(14.9)
    assert not made.over
    made.tick(15.0)
    assert (made.state, made.reason) == (State.CLOSING, "no answer to request (1,)")


def test_a_stream_that_is_not_listed_ends_the_session_by_name() -> None:
    made = session()
    made.opened(0.0)
    made.due(0.0)
    made.control(Ack(1), 0.1)
    made.due(0.1)
    made.control(Subscriptions(2, ("a", "z")), 0.2)
    assert (made.state, made.reason) == (State.CLOSING, "not subscribed: b; never asked for: z")


def test_a_refusal_ends_the_session() -> None:
    made = live()
    made.control(Refusal(None, -1, "too many"), 1.0)
    assert (made.state, made.reason) == (State.CLOSING, "refused: -1 too many")


def test_silence_makes_a_connection_stale_and_data_puts_it_off() -> None:
    made = live(at_s=100.0)
    made.data(110.0)
    assert made.deadline_s() == 140.0
    made.tick(139.9)
    assert made.state is State.LIVE
    made.tick(140.0)
    assert (made.state, made.reason, made.over) == (State.STALE, "no market data for 30 s", True)


def test_a_paced_key_that_falls_silent_among_others_is_told_by_name() -> None:
    made = live(paced=("x", "y"))
    for now_s in range(1, 25):
        made.data(float(now_s))
        made.paced("x", float(now_s))
        if now_s == 3:
            made.paced("y", 3.0)
    assert made.deadline_s() == 23.0
    made.tick(24.0)
    assert (made.state, made.reason) == (State.STALE, "silent for 20 s while others flow: y")
    assert made.mute == frozenset(), "it was heard on this connection, so the next may watch it"


def test_a_key_that_was_never_heard_is_excused_next_time_until_it_is_heard() -> None:
    first = live(paced=("x", "y"))
    first.data(19.0)
    first.paced("x", 19.0)
    first.tick(20.0)
    assert (first.state, first.mute) == (State.STALE, frozenset({"y"}))

    second = live(paced=("x", "y"), excused=tuple(first.mute))
    second.data(19.0)
    second.paced("x", 19.0)
    second.tick(20.0)
    assert (second.state, second.mute) == (State.LIVE, frozenset({"y"}))
    second.paced("y", 21.0)
    assert second.mute == frozenset()
    second.data(30.0)
    second.paced("x", 30.0)
    second.tick(41.0)
    assert (second.state, second.reason) == (State.STALE, "silent for 20 s while others flow: y")


def test_a_connection_is_left_before_it_is_too_old() -> None:
    made = live()
    made.data(999.0)
    assert made.deadline_s() == 1000.0
    made.tick(1000.0)
    assert (made.state, made.live_for_s(1000.0)) == (State.CLOSING, 1000.0)
    assert session().live_for_s(5.0) == 0.0


def test_the_first_reason_stays() -> None:
    made = live()
    made.tick(40.0)
    made.lost("connection reset")
    assert (made.state, made.reason) == (State.CLOSED, "no market data for 30 s")


def test_the_diagram_shows_every_change() -> None:
    drawn = set(re.findall(r"(\w+) --> (\w+): (\w+)", mermaid()))
    assert drawn == {(s, a, h) for s, row in TRANSITIONS.items() for h, a in row.items() if a is not s}


class AnyOrder(RuleBasedStateMachine):
    """Whatever the shell and the exchange do, the state moves along the table and every deadline is honoured."""

    def __init__(self) -> None:
        super().__init__()
        self.session = session(paced=("x", "y"))
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
    @rule(key=st.sampled_from(["x", "y", ""]))
    def data(self, key: str) -> None:
        self.session.data(self.now_s)
        if key:
            self.session.paced(key, self.now_s)
        self.fired()

    @rule(what=st.sampled_from(["opened", "stop", "lost", "data", "refusal"]))
    def anything(self, what: str) -> None:
        acts: dict[str, Callable[[], None]] = {
            "opened": lambda: self.session.opened(self.now_s),
            "stop": self.session.stop,
            "lost": lambda: self.session.lost("gone"),
            "data": lambda: self.session.data(self.now_s),
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
