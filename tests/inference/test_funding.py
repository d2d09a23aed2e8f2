import itertools

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.funding import FundingBook
from tests.data import shared

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE
DAY = 24 * HOUR
T0 = 20_000 * DAY


def book(*settlements: tuple[int, float], asked: int = T0 + 10 * DAY) -> FundingBook:
    new = FundingBook()
    new.extend(list(settlements), asked_at_ns=asked)
    return new


EIGHT_HOURLY = [(T0 - 8 * HOUR, 0.0001), (T0, 0.0003)]


@pytest.mark.parametrize(
    ("close", "horizon", "expected"),
    [
        (7 * HOUR + 46 * MINUTE, 15 * MINUTE, 0.0003),
        (7 * HOUR + 45 * MINUTE, 15 * MINUTE, 0.0003),  # it falls due at the very end
        (7 * HOUR + 44 * MINUTE, 15 * MINUTE, 0.0),
        (8 * HOUR, 15 * MINUTE, 0.0),  # it has just been paid
        (8 * HOUR - MINUTE, 9 * HOUR, 0.0006),
        (MINUTE, 24 * HOUR, 0.0009),
    ],
)
def test_what_falls_due_within_the_horizon_is_charged_at_the_last_settled_rate(
    close: int, horizon: int, expected: float
) -> None:
    assert book(*EIGHT_HOURLY).charge(T0 + close, horizon) == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("hours", [1, 2, 4, 8])
def test_the_interval_is_that_of_the_last_two_settlements(hours: int) -> None:
    b = book((T0 - 8 * HOUR, 1.0), (T0 - hours * HOUR, 0.0002), (T0, -0.0001))
    due = T0 + hours * HOUR
    assert b.charge(due - 5 * MINUTE, 5 * MINUTE) == -0.0001
    assert b.charge(due - 5 * MINUTE, 4 * MINUTE) == 0.0
    assert b.charge(due - 5 * MINUTE, 5 * MINUTE + hours * HOUR) == -0.0002


def test_one_settlement_alone_means_every_eight_hours() -> None:
    b = book((T0, 0.0005))
    assert b.charge(T0 + 4 * HOUR, 3 * HOUR) == 0.0
    assert b.charge(T0 + 4 * HOUR, 4 * HOUR) == 0.0005


def test_a_settlement_is_known_a_minute_after_it_took_place() -> None:
    b = book(*EIGHT_HOURLY, (T0 + 8 * HOUR, 0.7))
    at = T0 + 8 * HOUR + FundingBook.KNOWN_AFTER_NS
    assert b.charge(at - 1, 8 * HOUR) == 0.0003
    assert b.charge(at, 8 * HOUR) == 0.7


def test_no_funding_at_all_is_no_charge_and_never_a_negative_zero() -> None:
    assert book().charge(T0 + 59 * MINUTE, HOUR) == 0.0
    for b in (book((T0 - HOUR, -0.1), (T0, -0.1)), book(*((t, -0.0) for t, _ in EIGHT_HOURLY))):
        for horizon in (0, 5 * MINUTE, 2 * HOUR):
            charge = b.charge(T0 + 2 * MINUTE, horizon)
            assert charge is not None
            assert charge != 0.0 or str(charge) == "0.0", "its bytes go into a hash"


def test_a_book_that_is_too_old_says_so_only_where_it_matters() -> None:
    close = T0 + 7 * HOUR + 50 * MINUTE
    due = FundingBook().due_ns(close)
    assert due == T0 + 7 * HOUR + MINUTE
    for asked, expected in ((due - 1, None), (due, 0.0003)):
        b = book(*EIGHT_HOURLY, asked=asked)
        assert b.charge(close, 15 * MINUTE) == expected
        assert b.charge(close - 20 * MINUTE, 15 * MINUTE) == 0.0, "no whole hour lies ahead, so nothing can fall due"


def test_settlements_are_told_twice_and_some_ms_beside_the_hour() -> None:
    b = book((T0 + 3, 0.1), (T0 + 8 * HOUR - 2_000_000, 0.2))
    b.extend([(T0 + 8 * HOUR + 9_000_000, 0.2), (T0 + 16 * HOUR + 1, 0.3)], asked_at_ns=0)
    assert b.newest_ns == T0 + 16 * HOUR
    assert b.asked_at_ns == T0 + 10 * DAY, "the time of asking runs forward only"
    assert b.charge(T0 + 17 * HOUR, 8 * HOUR) == 0.3
    assert FundingBook().newest_ns == 0


intervals = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=30)


@given(
    hours=intervals,
    jitter=st.lists(st.integers(-20_000_000, 20_000_000), min_size=30, max_size=30),
    close=st.integers(0, 8 * 24 * 60),
    horizon=st.sampled_from([5, 15, 60, 300]),
    asked=st.lists(st.tuples(st.integers(0, 10 * DAY), st.integers(0, MINUTE - 50_000_000)), min_size=2, max_size=2),
)
def test_the_answer_does_not_depend_on_when_the_book_was_asked(
    hours: list[int], jitter: list[int], close: int, horizon: int, asked: list[tuple[int, int]]
) -> None:
    times = [T0, *(T0 + total * HOUR for total in itertools.accumulate(hours))]
    rates = [0.0001 * (n + 1) for n in range(len(times))]
    answers = []
    for shift, (ago, delay) in enumerate(asked):
        asked_at = T0 + ago
        jittered = zip(times, rates, jitter[shift:] + jitter, strict=False)
        known = [(t + j, rate) for t, rate, j in jittered if t + j + delay <= asked_at]
        b = book(*known, asked=asked_at)
        answer = b.charge(T0 + close * MINUTE, horizon * MINUTE)
        assert answer is not None or asked_at < b.due_ns(T0 + close * MINUTE)
        answers.append(answer)
    assert None in answers or answers[0] == answers[1]


def test_recorded_funding_of_a_quarter_is_charged_three_times_a_day() -> None:
    table = pq.read_table(shared("ohlcv/binance_um/BTCUSDT_8h-funding_rate_2025.parquet"))
    times = table["time"].to_numpy().astype("datetime64[ns]").astype(int).tolist()
    rates = table["funding_rate"].to_pylist()
    b = book(*zip(times, rates, strict=True), asked=times[-1] + DAY)
    start, minutes = times[1] + 2 * MINUTE, (times[-2] - times[1]) // MINUTE
    charges = [b.charge(start + n * MINUTE, 15 * MINUTE) for n in range(minutes)]
    charged = sum(1 for charge in charges if charge)
    assert charged == 15 * sum(1 for rate in rates[1:-2] if rate), "each settlement shows in the fifteen minutes before"
