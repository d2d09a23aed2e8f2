"""Make the table of docs/model.md: the shipped artifact beside all baselines, walked forward, and the physical limits.

    python -m training.table DATA OUT

DATA is a folder with candle files as `SETS` names them; OUT receives one JSON and one HTML file a set.
It takes some minutes.
"""

import datetime as dt
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from inference.artifact import resolve
from training import evaluate, limits, report, score, synthetic


class Set(NamedTuple):
    """Candles of one table row: all of them before `since` teach the baselines, the rest is scored.

    At `folds` cuts the baselines are fitted anew, on all that lies before.
    """

    name: str
    files: str
    since: dt.date
    folds: int
    funding: str


SETS = (
    Set("Binance 1m, 2025-06", "binance_um/*_1m_2025-05_*.parquet", dt.date(2025, 6, 11), 2, "binance_um/*funding*"),
    Set("Bybit 5m, 2026-01", "bybit_linear/*_5m_*.parquet", dt.date(2025, 12, 30), 3, "bybit_linear/*funding*"),
    Set("BitMEX 1m, 2021", "bitmex/*_1m_*.parquet", dt.date(2021, 1, 1), 3, "bitmex/*funding*"),
)


HEADS = ("model", "skill %", "touch %", "direction %", "AUC touch / direction", "ECE touch", "R²", "MSE below HAR %")
"""R² and mean squared error are of the log variance over the signal horizon."""


def rows(result: dict[str, Any]) -> Iterator[str]:
    """Write one line of Markdown a model."""
    for model in sorted(set(result["variance_r2"]) | set(result["log_loss_skill_pct"])):
        cells = [
            score.text(result[key].get(model))
            for key in ("log_loss_skill_pct", "touch_skill_pct", "direction_skill_pct")
        ]
        auc, ece = result["auc"].get(model), result["ece"].get(model)
        cells += [f"{auc['touch']:.3f} / {auc['direction']:.3f}" if auc else "–", f"{ece['touch']:.3f}" if ece else "–"]
        r2, below = result["variance_r2"].get(model), result["variance_mse_below_reference_pct"].get(model)
        cells += [f"{r2['value']:.3f}" if r2 else "–", score.text(below, 1)]
        yield f"| {model} | {' | '.join(cells)} |"


def main(data: Path, out: Path, artifact: Path) -> None:
    """Score every set and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    for chosen in SETS:
        files = sorted(data.glob(chosen.files))
        if not files:
            print(f"no candles {chosen.files} in {data}", file=sys.stderr)
            continue
        funding = sorted(data.glob(chosen.funding))
        scored = evaluate.assess(files, artifact, train=files, since=chosen.since, folds=chosen.folds, funding=funding)
        stem = chosen.name.replace(" ", "-").replace(",", "").lower()
        (out / f"{stem}.json").write_bytes(msgspec.json.format(msgspec.json.encode(scored.result)))
        (out / f"{stem}.html").write_text(report.page(scored), encoding="utf-8")
        print(f"\n{chosen.name}: {scored.result['rows']} candles of {scored.result['days']} days\n")
        print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
        print("\n".join(rows(scored.result)))
        print(f"\n{scored.result['strict']['said']}")
        for name, below in scored.result["lstm_loss_below_pct"].items():
            print(f"Loss of lstm below {name}'s: {score.text(below)} %")
        trading = scored.result["trading"]
        print(f"\nTrading: {trading['trades']} trades, {trading['verdict']}; funding {trading['funding']}", flush=True)
    gain = limits.planted(synthetic.PLANTED)
    print(
        f"\nPlanted regimes: {100 * gain.recovered:.1f} % of the best possible log-loss gain ({gain.optimal:.3f} nats)"
    )
    said = limits.random_walks(artifact)
    print(f"Random walks: {said.count('skill above the prior')} of {len(said)} reports claim direction skill")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), resolve(sys.argv[3] if len(sys.argv) > 3 else "default"))
