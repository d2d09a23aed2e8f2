import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.columns import Columns, columns_of

BEGIN_S = 1_735_689_600
N = 6
OPENED_S = [BEGIN_S + 60 * i for i in range(N)]
FIGURES = {
    "open": [10.0 + i for i in range(N)], "high": [12.0 + i for i in range(N)], "low": [9.0 + i for i in range(N)],
    "close": [11.0 + i for i in range(N)], "volume": [0.0, 1.0, 2.0, 0.0, 5.0, 6.0],
}  # fmt: skip


def table(opened: object = None, **figures: object) -> pa.Table:
    times = pa.array([s * 1000 for s in OPENED_S], pa.timestamp("ms", tz="UTC")) if opened is None else opened
    return pa.table({"open_time": times} | FIGURES | figures)


def same(one: Columns, other: Columns) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "opened",
    [
        *(pa.array(OPENED_S, pa.timestamp("s", tz=zone)) for zone in (None, "UTC", "America/New_York", "+05:30")),
        *(
            pa.array([s * per_s for s in OPENED_S], pa.timestamp(unit))
            for unit, per_s in (("ms", 10**3), ("us", 10**6), ("ns", 10**9))
        ),
        *(pa.array([s * per_s for s in OPENED_S], pa.int64()) for per_s in (1, 10**3, 10**6, 10**9)),
        pa.array(OPENED_S, pa.uint32()),
        *(pa.array([s * per_s for s in OPENED_S], pa.float64()) for per_s in (1.0, 1e3, 1e6, 1e9)),
        pa.chunked_array([pa.array(OPENED_S[:2]), pa.array(OPENED_S[2:])]),
    ],
    ids=str,
)
def test_times_are_read_however_they_are_written(opened: object) -> None:
    columns = columns_of(table(opened))
    assert columns.open_time_ns.tolist() == [s * 10**9 for s in OPENED_S]
    assert same(columns, columns_of(table()))


@pytest.mark.parametrize(
    ("figures", "kind"),
    [
        ({"close": pa.array(FIGURES["close"], pa.float32())}, "single precision"),
        ({"close": pa.array([str(p) for p in FIGURES["close"]])}, "text"),
        ({"close": pa.array([11 + i for i in range(N)])}, "whole numbers"),
        ({"close": pa.array([11 + i for i in range(N)], pa.decimal128(10, 3))}, "decimals"),
        ({"count": pa.nulls(N)}, "a further column"),
    ],
)
def test_figures_are_read_however_they_are_written(figures: dict[str, object], kind: str) -> None:
    assert same(columns_of(table(**figures)), columns_of(table())), kind


@given(rows=st.permutations([*range(N), *range(N)]).map(lambda rows: [*rows, *range(N)]))
def test_order_and_repetition_of_rows_do_not_matter(rows: list[int]) -> None:
    assert same(columns_of(table().take(rows)), columns_of(table()))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (table(pa.array(["2025-01-01"] * N)), "open_time is of type string"),
        (table(pa.array([i // 86_400 for i in OPENED_S], pa.date32())), "open_time is of type date32"),
        (table(pa.array([None, *OPENED_S[1:]], pa.timestamp("s"))), "open_time is missing in 1 row"),
        (table(pa.array(range(N))), "no number of s, ms"),
        (table(pa.array([float("nan"), *OPENED_S[1:]])), "no number of s, ms"),
        (table(close=["x"] * N), "close is not all numbers"),
        (table(volume=[None, *FIGURES["volume"][1:]]), "at 2025-01-01T00:00:00.000Z a price is not"),
        (table(volume=[*FIGURES["volume"][:-1], -1.0]), "at 2025-01-01T00:05:00.000Z a price is not"),
        (table(open=[0.0, float("inf"), *FIGURES["open"][2:]]), "and 1 more a price"),
        (table(high=FIGURES["low"], low=FIGURES["high"]), "and 5 more the close lies outside"),
        (
            pa.concat_tables([table(), table(volume=[9.0] * N)]),
            "two different candles open at 2025-01-01T00:00:00.000Z",
        ),
        (table().drop_columns(["low"]), "no column low; it has open_time, open, high, close, volume"),
        (pa.table({}), "it has none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_named(bad: pa.Table, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        columns_of(bad)


def test_an_open_outside_low_and_high_is_let_be() -> None:
    assert columns_of(table(open=[99.0] * N)).open.tolist() == [99.0] * N  # BitMEX opens at the close before
