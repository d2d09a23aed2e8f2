import datetime as dt

import pytest

from feeds.market import NS_PER_DAY
from inference.artifact import Affine, Calibration
from inference.revisions import RevisionBook, date_of, day_of, policy_under, source_of

OWN = (Calibration(), Calibration())
SHIFTED = (Calibration(), Calibration(touch=Affine(a=1.0, b=0.1)))


def test_a_candle_that_closes_at_midnight_belongs_to_the_day_that_begins() -> None:
    book = RevisionBook("s")
    book.add(100, OWN)
    book.add(101, SHIFTED)
    assert book.at(100 * NS_PER_DAY) is OWN
    assert book.at(101 * NS_PER_DAY - 1) is OWN
    assert book.at(101 * NS_PER_DAY) is SHIFTED
    assert book.at(100 * NS_PER_DAY - 1) is None
    assert book.at(102 * NS_PER_DAY) is None
    assert book.lacking(99, 103) == [99, 102, 103]


def test_a_days_revision_never_changes() -> None:
    book = RevisionBook("s")
    book.add(100, OWN)
    with pytest.raises(AssertionError, match="never changes"):
        book.add(100, SHIFTED)


def test_sources_differ_by_all_that_a_revision_is_computed_from_but_order() -> None:
    first = source_of("m-1", "binance", "1m", ("A/USDT:USDT", "B/USDT:USDT"))
    assert first == source_of("m-1", "binance", "1m", ("B/USDT:USDT", "A/USDT:USDT"))
    others = {
        source_of("m-2", "binance", "1m", ("A/USDT:USDT", "B/USDT:USDT")),
        source_of("m-1", "bybit", "1m", ("A/USDT:USDT", "B/USDT:USDT")),
        source_of("m-1", "binance", "5m", ("A/USDT:USDT", "B/USDT:USDT")),
        source_of("m-1", "binance", "1m", ("A/USDT:USDT",)),
    }
    assert len(others | {first}) == 5


def test_the_policy_of_a_day_follows_from_the_rules_and_the_revision() -> None:
    policies = {policy_under(policy, lines) for policy in ("a", "b") for lines in (OWN, SHIFTED)}
    assert len(policies) == 4
    assert not policies & {"a", "b"}
    assert policy_under("a", OWN) == policy_under("a", (Calibration(), Calibration()))


def test_days_are_numbered_as_times_are() -> None:
    assert day_of(dt.date(2025, 6, 20)) * NS_PER_DAY == 1_750_377_600 * 10**9
    assert date_of(day_of(dt.date(2025, 6, 20))) == dt.date(2025, 6, 20)
