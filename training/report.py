"""One self-contained HTML page for an evaluation: tables and inline SVG; nothing is fetched, it opens offline."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.artifact import Artifact
from inference.explain import half_life, mean_forget
from training import metrics, score
from training.costs import Trades
from training.ensemble import forecast
from training.evaluate import Scored

WIDTH, HEIGHT, EDGE, TOP, BOTTOM = 460, 230, 60, 16, 26
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .5em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:.5em;vertical-align:top}"
    "figcaption{font-size:13px;color:#555;max-width:460px}.word{font-weight:600}"
)
BLUE, ORANGE, GREY = "#06c", "#d60", "#999"
EXPLAINED = "Skill is per cent of the class prior's log loss; intervals are 95 %, from resampling whole days."
Points = Sequence[tuple[float, float]]


def page(scored: Scored) -> str:
    """Write the page."""
    result = scored.result
    parts = [
        f"<h1>{html.escape(result['model'])} on candles of {result['from']} to {result['to']}</h1>",
        f"<p>{result['rows']} candles of {result['days']} days. {EXPLAINED}</p>",
        _verdicts(result),
        _table(result),
        _variance_table(result),
        "<h2>By month and by market</h2>",
        _intervals("Log-loss skill by month, %", result["by_month"]),
        _intervals("Log-loss skill by market, %", result["by_market"]),
        "<h2>Are the probabilities true?</h2>",
        _reliability(scored),
        "<h2>Trading it</h2>",
        _equity(scored.trades, result["trading"]),
        "<h2>What the model remembers, and what it looks at</h2>",
        _memory(scored),
        _importance(scored.artifact, scored.sample),
        "<h2>Candles</h2><ul>",
        *(f"<li>{html.escape(f['name'])} <small>{f['sha256'][:16]}…</small></li>" for f in result["files"]),
        "</ul>",
    ]
    body = "\n".join(parts)
    head = f"<meta charset=utf-8><title>lstmd evaluation</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en>{head}{body}</html>\n"


def _verdicts(result: dict[str, Any]) -> str:
    rows = {"Barrier": result["verdict"]["barrier"], "Direction": result["verdict"]["direction"]}
    rows["Trading"] = result["trading"]["verdict"]
    said = "".join(f"<li>{name}: <span class=word>{html.escape(text)}</span></li>" for name, text in rows.items())
    return f"<ul>{said}{''.join(f'<li>{html.escape(w)}</li>' for w in result['warnings'])}</ul>"


def _table(result: dict[str, Any]) -> str:
    heads = ("model", "skill %", "touch %", "direction %", "AUC touch", "AUC direction", "ECE touch", "Brier")
    rows = [
        (
            name, score.text(skill), score.text(result["touch_skill_pct"][name]),
            score.text(result["direction_skill_pct"][name]),
            f"{result['auc'][name]['touch']:.3f}", f"{result['auc'][name]['direction']:.3f}",
            f"{result['ece'][name]['touch']:.3f}", f"{result['brier'][name]:.4f}",
        )
        for name, skill in result["log_loss_skill_pct"].items()
    ]  # fmt: skip
    return _html_table(heads, rows)


def _variance_table(result: dict[str, Any]) -> str:
    below = result["variance_mse_below_reference_pct"]
    rows = [
        (
            name,
            score.text(r2, 3),
            f"{result['variance_qlike'][name]:.3f}",
            score.text(below[name], 1) if name in below else "–",
        )
        for name, r2 in result["variance_r2"].items()
    ]
    return _html_table(("log variance", "R²", "QLIKE", f"MSE below {result['variance_reference']}, %"), rows)


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


class _Frame:
    """Axes of one plot: maps figures to pixels."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = (_widened(x), _widened(y))

    def at(self, x: float, y: float) -> str:
        (x0, x1), (y0, y1) = self.x, self.y
        return (
            f"{EDGE + (x - x0) / (x1 - x0) * (WIDTH - 2 * EDGE):.1f},"
            f"{HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP):.1f}"
        )

    def line(self, points: Points, colour: str, dash: str = "") -> str:
        path = " ".join(self.at(x, y) for x, y in points)
        return f'<polyline fill="none" stroke="{colour}" stroke-dasharray="{dash}" points="{path}"/>'

    def figure(self, marks: Sequence[str], caption: str, ticks: Sequence[tuple[float, str]] | None = None) -> str:
        """Draw the axes around marks; `ticks` replace the numbers at the ends of the lower one."""
        (x0, x1), (y0, y1) = self.x, self.y
        below = [(x0, _number(x0)), (x1, _number(x1))] if ticks is None else ticks
        axes = self.line([(x0, y1), (x0, y0), (x1, y0)], "#888")
        labels = "".join(
            f'<text x="{px}" y="{py}" font-size="11" text-anchor="{anchor}">{html.escape(text)}</text>'
            for px, py, anchor, text in (
                *((self.at(x, y0).split(",")[0], HEIGHT - BOTTOM + 16, "middle", text) for x, text in below),
                (EDGE - 6, HEIGHT - BOTTOM, "end", _number(y0)), (EDGE - 6, TOP + 4, "end", _number(y1)),
            )
        )  # fmt: skip
        svg = f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{axes}{labels}{"".join(marks)}</svg>'
        return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _widened(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _reliability(scored: Scored) -> str:
    hit = scored.outcome.touched
    every = np.ones(len(hit), bool)
    plots = []
    for caption, name, rows, happened in (
        ("Touch: observed share against predicted probability.", "p_touch", every, hit),
        ("Direction given a touch.", "p_up", hit, scored.outcome.up),
    ):
        curves = []
        for model, colour in (("lstm", BLUE), ("lstm_online", ORANGE)):
            points = metrics.reliability(getattr(scored.models[model], name)[rows], happened[rows])
            curves.append(([(b.predicted, b.observed) for b in points], colour))
        low, high = (edge(edge(point) for points, _ in curves for point in points) for edge in (min, max))
        frame = _Frame((low, high), (low, high))
        marks = [frame.line([(low, low), (high, high)], GREY, "4"), *(frame.line(*curve) for curve in curves)]
        plots.append(frame.figure(marks, f"{caption} Blue: lstm, orange: lstm_online, dashed: perfect."))
    return "".join(plots)


def _intervals(caption: str, groups: dict[str, Any]) -> str:
    every = [(name, group["log_loss_skill_pct"]["lstm"]) for name, group in groups.items()]
    figures = [(name, figure) for name, figure in every if figure["lo"] is not None]
    if not figures:
        return f"<p>{html.escape(caption)}: too few days for intervals.</p>"
    lows, highs = [f["lo"] for _, f in figures], [f["hi"] for _, f in figures]
    frame = _Frame((-0.5, len(figures) - 0.5), (min(0.0, *lows), max(0.0, *highs)))
    marks = [frame.line([(-0.5, 0), (len(figures) - 0.5, 0)], GREY, "4")]
    for i, (name, figure) in enumerate(figures):
        x, y = frame.at(i, figure["value"]).split(",")
        marks.append(frame.line([(i, figure["lo"]), (i, figure["hi"])], BLUE))
        marks.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{BLUE}"><title>{html.escape(name)}</title></circle>')
    names = ", ".join(f"{i} {name}" for i, (name, _) in enumerate(figures, 1))
    ticks = [(i - 1.0, str(i)) for i in range(1, len(figures) + 1)]
    return frame.figure(marks, f"{caption}, with 95 % intervals: {names}", ticks)


def _equity(trades: Trades | None, figures: dict[str, Any]) -> str:
    if trades is None or not len(trades.net_bps):
        return "<p>No expected move paid the round trip, so there is no trade and no curve.</p>"
    net, gross = (np.cumsum(np.concatenate(([0.0], bps))) for bps in (trades.net_bps, trades.gross_bps))
    last = len(net) - 1
    frame = _Frame((0, last), (min(net.min(), gross.min()), max(net.max(), gross.max())))
    marks = [frame.line([(0, 0.0), (last, 0.0)], GREY, "4")]
    marks += [frame.line(list(enumerate(curve.tolist())), colour) for curve, colour in ((gross, GREY), (net, BLUE))]
    said = (
        f"{figures['trades']} trades that do not overlap, entered one candle late; a round trip costs "
        f"{figures['round_trip_bps']:g} bps. Funding: {figures['funding']}."
    )
    drawn = frame.figure(marks, "Sum of bps, trade by trade: grey before costs, blue after.")
    return f"<p>{html.escape(said)} Mean net, bps: {score.text(figures['net_bps_mean'], 1)}.</p>{drawn}"


def _memory(scored: Scored) -> str:
    lives = np.sort(half_life(mean_forget(scored.artifact.weights, scored.sample)).ravel())
    share = (np.arange(len(lives)) + 1) / len(lives)
    points = list(zip(np.log10(np.clip(lives, 0.1, 1e4)).tolist(), share.tolist(), strict=True))
    frame = _Frame((points[0][0], points[-1][0]), (0.0, 1.0))
    decades = range(int(np.ceil(points[0][0])), int(points[-1][0]) + 1)
    ends = [(x, f"{10**x:.2g}") for x in (points[0][0], points[-1][0])]
    inner = [(float(n), f"{10.0**n:g}") for n in decades if min(abs(n - x) for x, _ in ends) > 0.15]
    return frame.figure(
        [frame.line(points, BLUE)],
        "Half-life of the units' memory, from their mean forget gate over one epoch: share of units below, against "
        "candles on a logarithmic scale.",
        ends + inner,
    )


def _importance(artifact: Artifact, sample: NDArray[np.float32]) -> str:
    """Silence one feature at a time and see how far the touch probability moves."""
    names, warmup = artifact.manifest.features.names, artifact.manifest.warmup
    base = forecast(artifact.weights, sample[None], warmup=warmup).p_touch
    moved = []
    for i, name in enumerate(names):
        silenced = sample.copy()
        silenced[:, i] = artifact.weights.mean[i]
        changed = forecast(artifact.weights, silenced[None], warmup=warmup).p_touch
        moved.append((float(np.abs(changed - base).mean()), name))
    rows = [(name, f"{value:.4f}") for value, name in sorted(moved, reverse=True)[:15]]
    return (
        "<p>Mean change of the touch probability when a feature is held at its mean, over one epoch:</p>"
        + _html_table(("feature", "change"), rows)
    )
