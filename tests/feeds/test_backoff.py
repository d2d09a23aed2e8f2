import random

from hypothesis import given
from hypothesis import strategies as st

from feeds.backoff import Backoff


class Highest(random.Random):
    """Draws the upper end, to show the limit that jitter stays below."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0.0
        return b


def test_limits_double_up_to_the_cap() -> None:
    backoff = Backoff(Highest())
    limits = [backoff.delay_s(live_s=0.0, since_attempt_s=60.0) for _ in range(10)]
    assert limits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


def test_only_a_long_live_connection_starts_over() -> None:
    backoff = Backoff(Highest())
    assert [backoff.delay_s(live_s=live_s, since_attempt_s=60.0) for live_s in (0.0, 9.9, 9.9, 10.0, 0.0)] == [
        0.2, 0.4, 0.8, 0.2, 0.4,
    ]  # fmt: skip


@given(seed=st.integers(), ages_s=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=40))
def test_attempts_are_never_closer_than_the_spacing_nor_further_than_the_cap(seed: int, ages_s: list[float]) -> None:
    backoff = Backoff(random.Random(seed), cap_s=3.0)
    delays_s = [backoff.delay_s(live_s=0.0, since_attempt_s=age_s) for age_s in ages_s]
    assert all(0.2 - age_s - 1e-9 <= delay_s <= 3.0 for age_s, delay_s in zip(ages_s, delays_s, strict=True))
    assert min(delays_s) >= 0.0


def test_the_same_seed_draws_the_same_delays() -> None:
    first, second = (Backoff(random.Random(7)) for _ in range(2))
    draws = [[b.delay_s(live_s=0.0, since_attempt_s=9.0) for _ in range(8)] for b in (first, second)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 8
