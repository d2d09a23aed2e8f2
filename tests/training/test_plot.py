import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from training import plot
from training.plot import Curve, Whisker


def svg(figure: str) -> ET.Element:
    found = ET.fromstring(figure).find("svg")
    assert found is not None
    return found


@given(low=st.floats(-1e6, 1e6), size=st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_within(low: float, size: float) -> None:
    found = plot.ticks(low, low + size)
    assert 1 <= len(found) <= 8
    slack = 1e-6 * size + 1e-9
    assert all(low - slack <= value <= low + size + slack for value, _ in found)
    assert all(abs(float(text.replace(",", "")) - value) <= 1e-9 + 1e-6 * abs(value) for value, text in found)


def test_curves_are_told_apart_without_colour() -> None:
    lines = [Curve("a", [(0, 0), (1, 2)]), Curve("b", [(0, 1), (1, 0)], plot.ORANGE, "7 3")]
    drawn = svg(plot.curves(lines, "caption", x="candles", y="share"))
    texts = [element.text for element in drawn.iter("text")]
    assert {"a", "b", "candles", "share"} <= set(texts)
    assert [line.get("stroke-dasharray") for line in drawn.iter("polyline")].count("7 3") == 2  # itself and its sample
    assert drawn.get("aria-label") == "caption"
    assert drawn.get("viewBox") == f"0 0 {plot.WIDTH} {plot.HEIGHT}"


def test_a_flat_line_is_drawn() -> None:
    assert "nan" not in plot.curves([Curve("a", [(0, 1.0), (0, 1.0)])], "", x="", y="")


def test_names_are_escaped_shortened_and_whole_in_the_title() -> None:
    name = "<b>" + "x" * 50
    drawn = svg(plot.intervals([Whisker(name, 1.0, 0.5, 1.5)], "", x="%"))
    assert [element.text for element in drawn.iter("title")] == [name]
    shown = next(element.text for element in drawn.iter("text") if element.text and element.text.startswith("<b>"))
    assert len(shown) == plot.NAME_MAX


def test_bars_are_as_long_as_their_figures() -> None:
    drawn = plot.bars([("a", 0.2), ("b", 0.1)], "", x="change")
    long, short = (float(width) for width in re.findall(r'<rect[^>]* width="([0-9.]+)"', drawn))
    assert abs(long - 2 * short) < 0.2
