"""One self-contained HTML page for an evaluation: tables and inline SVG; nothing is fetched, it opens offline."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import outcomes
from inference.artifact import Artifact
from inference.explain import half_life, mean_forget
from training import metrics, plot, score
from training.costs import Trades
from training.evaluate import Scored
from training.plot import BLUE, GREY, ORANGE, Curve, Whisker

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "h1{font-size:1.5em;overflow-wrap:anywhere}.wide{overflow-x:auto}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}"
    "figure{display:inline-block;margin:.5em .5em .5em 0;vertical-align:top;max-width:100%}"
    "svg{max-width:100%;height:auto;fill:#333}figcaption{font-size:13px;color:#555;max-width:480px}"
    ".word{font-weight:600}small{color:#555}li{overflow-wrap:anywhere}li::first-letter{text-transform:uppercase}"
)
EXPLAINED = (
    "Skill is per cent of the log loss of a prior that gives every candle the same chances; above 0 is better than it. "
    "Square brackets hold 95 % intervals, from resampling whole UTC days. Touch: will price reach a barrier within the "
    "horizon? Direction: which one first?"
)
MODELS = {
    "lstm": "what the daemon serves, with the artifact's own calibration",
    "lstm_online": "the same under a calibration revised each UTC day",
    "logistic": "logistic regression on the same features",
    "lightgbm": "boosted trees on the same features",
    "lightgbm_shrunk": "these, with their direction drawn to the prior as far as validation asks",
    "har": "HAR regression on trailing variances, with a season of the day",
    "ewma": "exponential average of squared returns",
}
FEATURES_SHOWN = 15


def page(scored: Scored) -> str:
    """Write the page."""
    result = scored.result
    title = f"{result['model']} on candles of {result['from']} to {result['to']}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{result['rows']:,} candles of {result['days']} days. {EXPLAINED}</p>",
        _verdicts(result),
        "<h2>Beside the baselines, on the same candles</h2>",
        _table(result),
        _variance_table(result),
        _glossary(result),
        _folds(result),
        "<h2>By month and by market</h2>",
        _intervals("Skill by month", result["by_month"]),
        _intervals("Skill by market", result["by_market"]),
        "<h2>Are the probabilities true?</h2>",
        _reliability(scored),
        "<h2>Trading it</h2>",
        _equity(scored.trades, result["trading"]),
        "<h2>What the model remembers, and what it looks at</h2>",
        _memory(scored),
        _importance(scored.artifact, scored.sample),
        "<h2>Candles</h2><ul>",
        *(f"<li>{html.escape(f['name'])} <small>SHA-256 {f['sha256'][:16]}…</small></li>" for f in result["files"]),
        "</ul>",
    ]
    body = "\n".join(parts)
    view = "<meta name=viewport content='width=device-width,initial-scale=1'>"
    head = f"<meta charset=utf-8>{view}<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _verdicts(result: dict[str, Any]) -> str:
    skills = {"Barrier": "log_loss_skill_pct", "Direction": "direction_skill_pct"}
    figures = {name: score.text(result[key].get("lstm")) for name, key in skills.items()}
    said = [
        f"<li>{name}: <span class=word>{html.escape(result['verdict'][name.lower()])}</span> ({figure} %)</li>"
        for name, figure in figures.items()
    ]
    said.append(f"<li>Trading: <span class=word>{html.escape(result['trading']['verdict'])}</span></li>")
    strict = result["strict"]
    alone = f"; on them alone {score.text(strict['log_loss_skill_pct'].get('lstm'))} %" if strict.get("rows") else ""
    notes = [strict["said"] + alone, *result["warnings"]]
    return f"<ul>{''.join(said)}</ul><p>Mind:</p><ul>{''.join(f'<li>{html.escape(n)}</li>' for n in notes)}</ul>"


def _table(result: dict[str, Any]) -> str:
    direction, below = result["direction_skill_pct"], result["lstm_loss_below_pct"]
    skills = [
        (
            name,
            score.text(skill),
            score.text(result["touch_skill_pct"].get(name)),
            _worded(direction.get(name), "no edge"),
            _worded(below.get(name), "no difference"),
        )
        for name, skill in result["log_loss_skill_pct"].items()
    ]
    others = [
        (
            name,
            *(_number(result[key][name].get(part)) for key in ("auc", "ece") for part in ("touch", "direction")),
            f"{result['brier'][name]:.4f}",
        )
        for name in result["log_loss_skill_pct"]
    ]
    heads = ("model", "skill %", "touch %", "direction %", "lstm's loss is lower by, %")
    more = ("model", "AUC touch", "AUC direction", "ECE touch", "ECE direction", "Brier")
    return _html_table(heads, skills) + _html_table(more, others)


def _worded(figure: score.Figure | None, nothing: str) -> str:
    """Write an interval, with `nothing` in words where it covers zero."""
    return f"{score.text(figure)} {nothing}" if score.covers_zero(figure) else score.text(figure)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _variance_table(result: dict[str, Any]) -> str:
    below = result["variance_mse_below_reference_pct"]
    rows = [
        (name, score.text(result["variance_r2"].get(name), 3), f"{qlike:.3f}", score.text(below.get(name), 1))
        for name, qlike in result["variance_qlike"].items()
    ]
    heads = ("log variance over the horizon", "R²", "QLIKE", f"squared error below {result['variance_reference']}, %")
    return _html_table(heads, rows)


def _glossary(result: dict[str, Any]) -> str:
    present = [name for name in MODELS if name in result["variance_qlike"] or name in result["log_loss_skill_pct"]]
    return f"<p><small>{'; '.join(f'<b>{name}</b>: {MODELS[name]}' for name in present)}.</small></p>"


def _folds(result: dict[str, Any]) -> str:
    if "folds" not in result:
        return ""
    rows = [
        (
            f"{fold['from']} to {fold['to']}",
            f"{fold['rows']:,}",
            *(score.text(s) for s in fold["log_loss_skill_pct"].values()),
        )
        for fold in result["folds"]
    ]
    heads = ("scored", "candles", *result["folds"][0]["log_loss_skill_pct"])
    return "<h2>Walked forward</h2><p>Skill, %; baselines fitted anew before each stretch:</p>" + _html_table(
        heads, rows
    )


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col>{html.escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _intervals(caption: str, groups: dict[str, Any]) -> str:
    skills = {name: group["log_loss_skill_pct"] for name, group in groups.items()}
    figures = {name: skill["lstm"] for name, skill in skills.items() if "lstm" in skill}
    told = [Whisker(name, f["value"], f["lo"], f["hi"]) for name, f in figures.items() if f["lo"] is not None]
    short = [name for name, f in figures.items() if f["lo"] is None]
    left_out = f" Too few days for an interval: {', '.join(short)}." if short else ""
    if not told:
        return f"<p>{html.escape(f'{caption}.{left_out}')}</p>"
    return plot.intervals(told, f"{caption}, of lstm, with 95 % intervals.{left_out}", x="log-loss skill, %")


def _reliability(scored: Scored) -> str:
    hit = scored.outcome.touched
    every = np.ones(len(hit), bool)
    asked = (
        ("Touch", "p_touch", every, hit, "share of candles touched"),
        ("Direction given a touch", "p_up", hit, scored.outcome.up, "share with the upper barrier first"),
    )
    plots = []
    for caption, field, rows, happened, share in asked:
        if not rows.any():
            plots.append(f"<p>{caption}: there was none.</p>")
            continue
        lines = []
        for model, colour, dash in (("lstm", BLUE, ""), ("lstm_online", ORANGE, "7 3")):
            points = metrics.reliability(getattr(scored.models[model], field)[rows], happened[rows])
            lines.append(Curve(model, [(b.predicted, b.observed) for b in points], colour, dash))
        edges = [edge for line in lines for point in line.points for edge in point]
        lines.append(Curve("perfect", [(min(edges),) * 2, (max(edges),) * 2], GREY, "2 3"))
        said = f"{caption}: what happened against what was said, in up to 15 groups of equal size."
        plots.append(plot.curves(lines, said, x="predicted probability", y=share, square=True))
    return "".join(plots)


def _equity(trades: Trades | None, figures: dict[str, Any]) -> str:
    if trades is None or not len(trades.net_bps):
        return "<p>No expected move paid the round trip, so there is no trade and no curve.</p>"
    net, gross = (np.cumsum(np.concatenate(([0.0], bps))).tolist() for bps in (trades.net_bps, trades.gross_bps))
    said = (
        f"{figures['trades']} trades that do not overlap within a market, entered one candle late; a round trip costs "
        f"{figures['round_trip_bps']:g} bps. Funding: {figures['funding']}."
    )
    lines = [
        Curve("before costs", list(enumerate(gross)), ORANGE, "7 3"),
        Curve("after costs", list(enumerate(net))),
        Curve("nothing done", [(0, 0.0), (len(net) - 1, 0.0)], GREY, "2 3"),
    ]
    whole = [(value, f"{value:.0f}") for value, _ in plot.ticks(0, len(net) - 1) if value == int(value)]
    drawn = plot.curves(lines, "Sum of all trades so far.", x="trades, in time", y="bps of one position", x_ticks=whole)
    return f"<p>{html.escape(said)} Mean after costs, bps a trade: {score.text(figures['net_bps_mean'], 1)}.</p>{drawn}"


def _memory(scored: Scored) -> str:
    lives = np.sort(half_life(mean_forget(scored.artifact.weights, scored.sample)).ravel())
    shares = 100.0 * (np.arange(len(lives)) + 1) / len(lives)
    points = list(zip(np.log10(np.clip(lives, 0.1, 1e4)).tolist(), shares.tolist(), strict=True))
    marks = [(float(np.log10(m * 10.0**n)), f"{m * 10.0**n:g}") for n in range(-1, 4) for m in (1, 2, 5)]
    median = float(np.median(lives))
    said = (
        "How long the units remember: half-life by each one's mean forget gate over one epoch, on a logarithmic scale. "
        f"Half of the {len(lives)} units lose half of what they hold within {median:.1f} candles."
    )
    line = Curve("units", points)
    return plot.curves([line], said, x="half-life, candles", y="units with a shorter one, %", x_ticks=marks)


def _importance(artifact: Artifact, sample: NDArray[np.float32]) -> str:
    """Silence one feature at a time and see how far the touch probability moves."""
    names, warmup = artifact.manifest.features.names, artifact.manifest.warmup
    shown = np.repeat(sample[None], len(names) + 1, axis=0)
    for i in range(len(names)):
        shown[i, :, i] = artifact.weights.mean[i]
    said = outcomes.answer(artifact.weights, shown, warmup=warmup).p_touch
    moved = np.abs(said[:-1] - said[-1]).mean(axis=(1, 2))
    rows = [(names[i], float(moved[i])) for i in np.argsort(-moved)[:FEATURES_SHOWN]]
    caption = (
        f"The {len(rows)} features that matter most to the touch probability, each held at its mean over one epoch."
    )
    return plot.bars(rows, caption, x="mean change of the probability")
