"""Time and chance come from one place."""

import pytest

from daemon import clock


def test_the_wall_clock_is_in_nanoseconds() -> None:
    assert 1_700_000_000 * 10**9 < clock.now_ns() < 4_000_000_000 * 10**9


def test_the_monotonic_clock_does_not_go_back() -> None:
    readings = [clock.monotonic_s() for _ in range(100)]
    assert readings == sorted(readings)


def test_chance_can_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock.rng(5).random() == clock.rng(5).random()
    monkeypatch.setenv("LSTMD_SEED", "7")
    assert clock.rng().random() == clock.rng(7).random()
    monkeypatch.delenv("LSTMD_SEED")
    assert clock.rng().random() != clock.rng().random()


def test_each_life_has_a_name_of_its_own() -> None:
    names = {clock.boot_id() for _ in range(50)}
    assert len(names) == 50
    assert all(len(name) == 12 for name in names)
