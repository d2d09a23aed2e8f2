"""Small inline SVG plots that need no script and scale with the screen: curves, intervals by name, bars. Pure.

Curves differ in dash as well as in colour, and each is named in the plot, so that print and colour-blind eyes lose
nothing.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 44
NAMES, NAMED_END, NAMED_WIDTH, ROW = 184, 460, 560, 24
"""In plots that have one line a name: where the names end, where the axis ends, all of it, and the height of a line."""
NAME_MAX = 24
BLUE, ORANGE, GREY = "#0b5cad", "#c4500a", "#777"
Points = Sequence[tuple[float, float]]
Ticks = Sequence[tuple[float, str]]


class Curve(NamedTuple):
    """A named line."""

    name: str
    points: Points
    colour: str = BLUE
    dash: str = ""
    """SVG's stroke-dasharray; empty draws it through."""


class Whisker(NamedTuple):
    """A figure with its interval."""

    name: str
    value: float
    lo: float
    hi: float


def ticks(low: float, high: float, *, about: int = 5) -> list[tuple[float, str]]:
    """Return round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart, with their text."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    count = math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1
    values = [(math.ceil(low / step - 1e-9) + i) * step for i in range(count)]
    return [(value, f"{value + 0.0:,.{decimals}f}") for value in values]


def curves(
    lines: Sequence[Curve], caption: str, *, x: str, y: str, square: bool = False, x_ticks: Ticks | None = None
) -> str:
    """Draw lines over axes named `x` and `y`; `square` gives both the same range."""
    xs, ys = ([point[i] for line in lines for point in line.points] for i in (0, 1))
    if square:
        xs = ys = [*xs, *ys]
    x_span, y_span = _span(xs), _span(ys)

    def at(px: float, py: float) -> tuple[float, float]:
        right, up = (px - x_span[0]) / (x_span[1] - x_span[0]), (py - y_span[0]) / (y_span[1] - y_span[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    marks = []
    for value, text in ticks(*y_span):
        height = at(x_span[0], value)[1]
        marks += [_line([(LEFT, height), (WIDTH - RIGHT, height)], "#e4e4e4"), _text(LEFT - 6, height + 4, text, "end")]
    for value, text in ticks(*x_span) if x_ticks is None else x_ticks:
        if x_span[0] <= value <= x_span[1]:
            marks.append(_text(at(value, y_span[0])[0], HEIGHT - BOTTOM + 16, text))
    marks += [
        _line([at(x_span[0], y_span[1]), at(x_span[0], y_span[0]), at(x_span[1], y_span[0])], "#666"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x),
        _text(0, 0, y, move=f"translate(13 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)"),
    ]
    start = float(LEFT)
    for line in lines:
        marks.append(_line([at(*point) for point in line.points], line.colour, line.dash, width=1.6))
        marks.append(_line([(start, 14), (start + 26, 14)], line.colour, line.dash, width=1.6))
        marks.append(_text(start + 31, 18, line.name, "start"))
        start += 46 + 6.2 * len(line.name)
    return _figure(marks, caption, WIDTH, HEIGHT)


def intervals(rows: Sequence[Whisker], caption: str, *, x: str) -> str:
    """Draw one line a name with figure and interval; hollow, and said so, where the interval covers zero."""
    span = _span([0.0, *(edge for row in rows for edge in (row.lo, row.hi))])
    marks, end = _ruled(span, len(rows), x)
    for i, row in enumerate(rows):
        height, nothing = TOP + (i + 0.5) * ROW, row.lo <= 0 <= row.hi
        centre = _across(row.value, span)
        marks.append(_line([(_across(row.lo, span), height), (_across(row.hi, span), height)], BLUE, width=1.6))
        fill = "#fff" if nothing else BLUE
        marks.append(f'<circle cx="{centre:.1f}" cy="{height:.1f}" r="4" fill="{fill}" stroke="{BLUE}"/>')
        marks.append(_name(row.name, height))
        marks.append(_text(NAMED_END + 10, height + 4, f"{row.value:.2f}{' · no edge' if nothing else ''}", "start"))
    marks.append(_line([(_across(0, span), TOP), (_across(0, span), end)], GREY, "4 3"))
    return _figure(marks, caption, NAMED_WIDTH, end + BOTTOM)


def bars(rows: Sequence[tuple[str, float]], caption: str, *, x: str) -> str:
    """Draw one bar a name."""
    span = _span([0.0, *(value for _, value in rows)])
    marks, end = _ruled(span, len(rows), x)
    for i, (name, value) in enumerate(rows):
        left, right, top = _across(0, span), _across(value, span), TOP + i * ROW
        size = f'width="{max(right - left, 0.5):.1f}" height="{ROW - 8}"'
        marks.append(f'<rect x="{left:.1f}" y="{top + 4}" {size} fill="{BLUE}"/>')
        marks += [_name(name, top + ROW / 2), _text(right + 6, top + ROW / 2 + 4, f"{value:.4f}", "start")]
    return _figure(marks, caption, NAMED_WIDTH, end + BOTTOM)


def _ruled(span: tuple[float, float], rows: int, x: str) -> tuple[list[str], float]:
    """Draw the axis under lines with names; return it with the height at which it lies."""
    end = float(TOP + rows * ROW)
    marks = [_line([(NAMES, end), (NAMED_END, end)], "#666"), _text((NAMES + NAMED_END) / 2, end + 36, x)]
    for value, text in ticks(*span):
        marks += [_line([(_across(value, span), TOP), (_across(value, span), end)], "#e4e4e4")]
        marks += [_text(_across(value, span), end + 16, text)]
    return marks, end


def _across(value: float, span: tuple[float, float]) -> float:
    return NAMES + (value - span[0]) / (span[1] - span[0]) * (NAMED_END - NAMES)


def _name(name: str, height: float) -> str:
    short = name if len(name) <= NAME_MAX else f"{name[: NAME_MAX - 1]}…"
    return f"<g><title>{html.escape(name)}</title>{_text(NAMES - 8, height + 4, short, 'end')}</g>"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _line(points: Points, colour: str, dash: str = "", *, width: float = 1.0) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline fill="none" stroke="{colour}" stroke-width="{width}"{dashes} points="{path}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", *, move: str = "") -> str:
    moved = f' transform="{move}"' if move else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{moved}>{html.escape(text)}</text>'


def _figure(marks: Sequence[str], caption: str, width: float, height: float) -> str:
    said = html.escape(caption)
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    svg = f'<svg {size} font-size="11" role="img" aria-label="{said}">{"".join(marks)}</svg>'
    return f"<figure>{svg}<figcaption>{said}</figcaption></figure>"
