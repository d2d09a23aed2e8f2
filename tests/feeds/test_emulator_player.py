"""What falls due on a connection, before any dialect writes it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.emulator import Tape
from feeds.emulator.clock import VirtualClock
from feeds.emulator.funding import FUNDING_MS, funding_rate
from feeds.emulator.player import Bar, Channel, Happening, Mark, Pace, Player, Trades
from feeds.emulator.tape import MINUTE_MS, T
from feeds.emulator.venue import Venue
from tests.feeds.emulators import START_MS, invented

NATIVE = "BTCUSDT"
STEPS = st.lists(st.integers(1, 40_000), min_size=1, max_size=30)


def played(pace: Pace, channel: Channel, steps: list[int]) -> tuple[Tape, int, list[Happening]]:
    """Play one channel in steps of ms; return the tape, the end and all that happened."""
    tape, now = invented(NATIVE), START_MS
    player = Player(Venue(VirtualClock(START_MS * 1_000_000), {NATIVE: tape}), pace)
    player.subscribe("it", channel)
    out: list[Happening] = []
    for step in steps:
        now += step
        happened = player.due(now)
        assert all(one.event_ms <= now for one in happened)
        out += happened
    assert [one.event_ms for one in out] == sorted(one.event_ms for one in out)
    return tape, now, out


@given(batch=st.sampled_from([1, 20, 1000]), lag=st.integers(0, 500), steps=STEPS)
@settings(deadline=None, max_examples=40)
def test_trades_of_a_batch_share_a_message_whatever_the_pump(batch: int, lag: int, steps: list[int]) -> None:
    pace = Pace(trade_lag_ms=lag, trade_batch_ms=batch)
    tape, now, out = played(pace, Channel(NATIVE, "trades"), steps)
    batches = [one.rows for one in out if isinstance(one, Trades)]
    ends = [(start - lag + 1) // batch * batch - 1 for start in (START_MS, now)]
    assert [row for rows in batches for row in rows] == tape.trades(*ends).tolist()
    numbers = [{row[T.TIME] // batch for row in rows} for rows in batches]
    assert all(len(one) == 1 for one in numbers)
    assert all(max(one) < min(other) for one, other in pairwise(numbers))


@given(steps=STEPS)
@settings(deadline=None, max_examples=30)
def test_the_last_forming_candle_shows_the_last_trade(steps: list[int]) -> None:
    steps = [*steps, 1000, 1000]
    tape, now, out = played(Pace(candle_lag_ms=300, candle_pace_ms=500), Channel(NATIVE, "candles", MINUTE_MS), steps)
    bars = [one for one in out if isinstance(one, Bar)]
    current = tape.candles(MINUTE_MS, start_ms=(now - 300) // MINUTE_MS * MINUTE_MS, end_ms=now, now_ms=now - 300)
    shown = [one for one in bars if one.bar[0] == current[0][0]]
    fresh = tape.trades(max(START_MS - 300, current[0][0] - 1), now - 1300)
    assert not len(fresh) or shown
    if shown:
        behind = tape.candles(MINUTE_MS, start_ms=current[0][0], end_ms=now, now_ms=shown[-1].event_ms - 300)
        assert shown[-1].bar == behind[0]
        assert not len(tape.trades(max(shown[-1].event_ms - 300, current[0][0] - 1), now - 1300))


def test_an_exchange_may_push_closed_candles_only() -> None:
    _, _, out = played(
        Pace(candle_lag_ms=12_000, candle_pace_ms=None), Channel(NATIVE, "candles", MINUTE_MS), [500] * 600
    )
    bars = [one for one in out if isinstance(one, Bar)]
    assert len(bars) == 5
    assert all(one.closed and one.event_ms == one.bar[0] + MINUTE_MS + 12_000 for one in bars)


@pytest.mark.parametrize("step", [100, 1000])
def test_the_mark_price_has_its_own_pace(step: int) -> None:
    tape, _, out = played(Pace(), Channel(NATIVE, "mark", step), [50] * 200)
    marks = [one for one in out if isinstance(one, Mark)]
    assert {b.event_ms - a.event_ms for a, b in pairwise(marks)} == {step}
    assert all(one.price == tape.price_at(one.event_ms) for one in marks)


def test_settlements_are_told_with_the_rate_announced() -> None:
    _, _, out = played(Pace(), Channel(NATIVE, "funding"), [300_000] * 200)
    first = START_MS // FUNDING_MS * FUNDING_MS + FUNDING_MS
    assert [one for one in out if isinstance(one, Mark)] == out
    assert [(one.event_ms, one.funding_ms, one.rate) for one in out if isinstance(one, Mark)] == [
        (at, at, funding_rate(NATIVE, at)) for at in (first, first + FUNDING_MS)
    ]
