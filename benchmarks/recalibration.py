"""How many days should the calibration's daily revision look back, and how firmly should its prior hold?

Only the validation spans of the artifact are used, the test spans never. The artifact's own calibration was fitted on
these very spans, so it is left out: what is revised is the bare ensemble. Groups are weighted alike. Spans are short
(7 to 77 days), which is why more days than a week can hardly be judged on three of the five.

    python benchmarks/recalibration.py DATA ARTIFACT

The artifact must be one made with `refit = false`: validation rows teach a second fit, so they say nothing of it.
"""

import sys
from pathlib import Path

import numpy as np

from feeds.market import NS_PER_DAY
from inference import artifact as artifacts
from inference import recalibrate
from inference.artifact import Artifact, Calibration
from inference.lstm import Combined
from inference.recalibrate import Past
from training import ensemble, metrics, online, unseen
from training.forecasts import calibrated
from training.splits import Role

GROUPS = (
    "bitmex/*_1m_*", "binance_um/*_1m_2023*", "binance_um/*_1m_2025-05_*", "bybit_linear/*_1m_*", "bybit_linear/*_5m_*",
)  # fmt: skip
DAYS, DEVIATIONS = (1, 3, 5, 7, 10, 14, 28), (0.1, 0.2, 0.4, 0.8)


def validation(model: Artifact, files: list[Path]) -> tuple[Past, int]:
    """Collect what the ensemble said of the validation rows at the signal horizon, and the horizon in ns."""
    runs = unseen.runs_of(model, files)
    horizon = model.manifest.signal_horizon[runs[0].series.spec]
    epochs = unseen.epochs_of(model, runs, since_ns=0)
    epochs.role[epochs.role != Role.VALIDATE] = Role.NONE
    epochs = epochs.part((epochs.role == Role.VALIDATE).any(axis=1))
    answers = ensemble.forecast(model.weights, epochs.x, warmup=epochs.warmup)
    k = model.manifest.horizons.index(horizon)
    past = online.past_of(answers, epochs, np.ones(len(epochs), bool), k)
    return past, horizon * runs[0].series.interval_ns


def scores(past: Past, horizon_ns: int, days: int, deviation: float) -> tuple[float, float, float]:
    """Revise each day by those before; return touch log loss, touch ECE and mean squared log variance error."""
    day = past.close_time_ns // NS_PER_DAY
    p, ratio = np.empty(len(day)), np.empty(len(day))
    for today in np.unique(day):
        rows = day == today
        before = past.before(int(today) * NS_PER_DAY, horizon_ns=horizon_ns, days=days)
        line = recalibrate.revise(Calibration(), before, horizon_ns=horizon_ns, deviation=deviation)
        raw = Combined(*(column[rows][:, None] for column in past[1:4]))
        said = calibrated(raw, [line])
        p[rows], ratio[rows] = said.p_touch[:, 0], said.log_ratio[:, 0]
    loss = float(metrics.log_loss(p, past.touched).mean())
    return loss, metrics.ece(p, past.touched), float(np.mean((ratio - past.realised) ** 2))


def main(data: Path, artifact: Path) -> None:
    """Print the grid, mean over groups."""
    model = artifacts.load(artifact)
    if model.manifest.recipe.get("refit"):
        sys.exit(f"{artifact}: validation rows taught it; make one with refit = false")
    groups = [validation(model, sorted(data.glob(pattern))) for pattern in GROUPS]
    none = np.array([scores(*group, 0, 1.0) for group in groups])
    print("days  deviation  touch log loss, 1e-5  ECE, mean and greatest  log variance MSE, %")
    print(f"none                                   {none[:, 1].mean():.4f}  {none[:, 1].max():.4f}")
    for days in DAYS:
        for deviation in DEVIATIONS:
            found = np.array([scores(*group, days, deviation) for group in groups])
            loss, mse = 1e5 * (found[:, 0] - none[:, 0]).mean(), 100 * (found[:, 2] / none[:, 2] - 1).mean()
            ece = found[:, 1]
            print(f"{days:4}  {deviation:9}  {loss:20.1f}  {ece.mean():.4f}  {ece.max():.4f}  {mse:19.2f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), artifacts.resolve(sys.argv[2]))
