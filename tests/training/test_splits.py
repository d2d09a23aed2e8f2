import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.splits import Fold, Role, cut, eras


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_no_label_crosses_a_boundary(span: int, a: int, b: int, c: int) -> None:
    start, validate_from, test_from, end = np.cumsum([7, a, b, c])
    closes = np.arange(0, 700)
    roles = Fold(int(start), int(validate_from), int(test_from), int(end)).roles(closes, label_span_ns=span)
    reach = closes + span
    assert (reach[roles == Role.TRAIN] <= validate_from).all()
    assert (closes[roles == Role.VALIDATE] > validate_from + span).all()
    assert (reach[roles == Role.VALIDATE] <= test_from).all()
    assert (closes[roles == Role.TEST] > test_from + span).all()
    assert (reach[roles == Role.TEST] <= end).all()


def test_each_row_has_one_role_and_purge_and_embargo_cost_twice_the_span() -> None:
    roles = Fold(0, 100, 200, 300).roles(np.arange(1, 301), label_span_ns=10)
    assert [int((roles == role).sum()) for role in Role] == [50, 90, 80, 80]


def test_overlapping_spans_form_one_era() -> None:
    assert eras([(50, 60), (0, 10), (5, 20), (20, 30)]) == [(0, 20), (20, 30), (50, 60)]


def test_cut_refuses_fractions_out_of_order() -> None:
    assert cut((0, 100), validate_from=0.6, test_from=0.75) == Fold(0, 60, 75, 100)
    with pytest.raises(ValueError, match="validate_from"):
        cut((0, 100), validate_from=0.8, test_from=0.75)


@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 10))
def test_a_second_fit_has_no_validation_and_scores_the_same_rows(start: int, a: int, b: int, c: int, span: int) -> None:
    fold = Fold(start, start + a, start + a + b, start + a + b + c)
    closes = np.arange(start, fold.end_ns + 1, dtype=np.int64)
    first, again = (f.roles(closes, label_span_ns=span) for f in (fold, fold.joined()))
    assert not (again == Role.VALIDATE).any()
    assert ((again == Role.TEST) == (first == Role.TEST)).all()
    assert (again[(first == Role.TRAIN) | (first == Role.VALIDATE)] == Role.TRAIN).all()
    assert (closes[again == Role.TRAIN] + span <= fold.test_from_ns).all()
