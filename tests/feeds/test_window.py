import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.market import Candle, Origin
from feeds.window import COLUMNS, Window


def candle(n: int) -> Candle:
    return Candle(
        seq=n + 1, open_time_ns=n, close_time_ns=n + 1, open=n + 0.1, high=n + 0.4, low=n + 0.0, close=n + 0.3,
        volume=float(n), trades=1, closed=True, origin=Origin.TRADES,
    )  # fmt: skip


def row(n: int) -> list[float]:
    return [getattr(candle(n), column) for column in COLUMNS]


@given(capacity=st.integers(1, 9), appended=st.integers(0, 40), data=st.data())
def test_the_newest_rows_are_one_contiguous_read_only_view(capacity: int, appended: int, data: st.DataObject) -> None:
    window = Window(capacity)
    for n in range(appended):
        window.append(candle(n))
    count = data.draw(st.integers(0, len(window)))
    rows = window.newest(count)
    assert len(window) == min(capacity, appended)
    assert rows.tolist() == [row(n) for n in range(appended - count, appended)]
    assert rows.flags.c_contiguous
    assert not rows.flags.owndata
    assert not rows.flags.writeable
    assert window.newest().tolist() == window.newest(len(window)).tolist()


def test_reading_and_appending_copy_nothing() -> None:
    window = Window(4)
    for n in range(4):
        window.append(candle(n))
    before = window.newest(2)
    window.append(candle(4))
    assert before.base is window.newest(4).base
    assert before.tolist() == [row(2), row(3)], "an append touches only the row that leaves"


def test_more_than_held_is_an_error() -> None:
    window = Window(3)
    window.append(candle(0))
    for count in (2, -1):
        with pytest.raises(ValueError, match="1 held"):
            window.newest(count)
    window.clear()
    assert (len(window), window.newest().shape) == (0, (0, len(COLUMNS)))
    with pytest.raises(ValueError, match="at least one"):
        Window(0)
