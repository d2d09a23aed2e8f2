"""Candle files into the epochs the daemon lives in: its own features, labels, and what each row may be used for.

A training sequence is one epoch of the design: `warmup` candles that only fill the state, then `epoch` candles that
count, at the places where the live state starts from zero. So no training row sees a state that live would not have.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from feeds.market import NS_PER_S, CandleSpec
from inference import features
from training import labels
from training.columns import Columns, columns_of, moment
from training.labels import Labels
from training.splits import Fold, Role

Floats = NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)
SIGMA = features.INDICATORS.index("sigma")


class CandlesError(ValueError):
    """A candles file that cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Series:
    """A contiguous run of one market's candles; every array is [n]."""

    name: str
    """The file's name without its ending: market, interval and span, as a label only."""
    spec: str
    interval_ns: int
    close_time_ns: NDArray[np.int64]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return len(self.close)

    @property
    def span(self) -> tuple[int, int]:
        """First open and last close, ns."""
        return int(self.close_time_ns[0]) - self.interval_ns, int(self.close_time_ns[-1])

    def rows(self, keep: slice) -> "Series":
        """Return a part of the run."""
        return Series(
            self.name, self.spec, self.interval_ns, self.close_time_ns[keep],
            self.open[keep], self.high[keep], self.low[keep], self.close[keep], self.volume[keep],
        )  # fmt: skip


def mirrored(run: Series) -> Series:
    """Turn prices upside down, 1 / price: what the other side of the market sees, with every move of the other sign."""
    scale = float(run.close[0]) ** 2
    return Series(
        run.name, run.spec, run.interval_ns, run.close_time_ns,
        scale / run.open, scale / run.low, scale / run.high, scale / run.close, run.volume,
    )  # fmt: skip


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_series(path: Path) -> list[Series]:
    """Read a parquet file of candles as contiguous runs, cut where an interval is missing.

    The interval is the smallest distance between two open times; see `columns_of` for what a file may look like.

    Raises:
        CandlesError: not parquet, no candles, or candles that cannot be.

    """
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise CandlesError(f"{path.name}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    try:
        return _runs(path.stem, columns_of(table))
    except ValueError as error:
        raise CandlesError(f"{path.name}: {error}") from error


def _runs(name: str, columns: Columns) -> list[Series]:
    opened, *figures = columns
    steps = np.diff(opened)
    if not len(steps):
        raise ValueError("fewer than two candles")
    interval = int(steps.min())
    spec, astray = spec_text(interval), opened % interval != 0
    if astray.any():
        raise ValueError(f"open_time {moment(int(opened[astray.argmax()]))} is no whole multiple of {spec}")
    whole = Series(name, spec, interval, opened + interval, *figures)
    edges = [0, *(np.flatnonzero(steps != interval) + 1), len(opened)]
    return [whole.rows(slice(a, b)) for a, b in itertools.pairwise(edges)]


def spec_text(interval_ns: int) -> str:
    """Write an interval as a candle spec, in the largest unit that divides it: 60 s → ``1m``."""
    for unit, length in (("h", 3600), ("m", 60), ("s", 1)):
        if interval_ns % (length * NS_PER_S) == 0:
            return f"{interval_ns // (length * NS_PER_S)}{unit}"
    raise CandlesError(f"candles {interval_ns / NS_PER_S:g} s apart are none that are known")


def resample(series: Series, spec: str) -> Series | None:
    """Join candles into a longer interval that theirs divides, whole ones only; None where there is none."""
    interval = CandleSpec.parse(spec).interval_ns
    factor = interval // series.interval_ns
    if factor * series.interval_ns != interval or factor == 1:
        return None
    first = int(np.argmax((series.close_time_ns - series.interval_ns) % interval == 0))
    count = (len(series) - first) // factor
    if count == 0:
        return None

    def grouped(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x[first : first + count * factor].reshape(count, factor)

    return Series(
        series.name, spec, interval, series.close_time_ns[first + factor - 1 :: factor][:count],
        grouped(series.open)[:, 0], grouped(series.high).max(axis=1), grouped(series.low).min(axis=1),
        grouped(series.close)[:, -1], grouped(series.volume).sum(axis=1),
    )  # fmt: skip


def candle_files(paths: Iterable[Path]) -> list[Path]:
    """Put for each folder, as `lstmd history` makes them, the candle files in it; funding and mark are none."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        files += [file for file in inside if file == path or not re.search("[-_](funding|mark)", file.stem)]
    return files


def load(paths: Iterable[Path], *, also: Sequence[str] = ()) -> list[Series]:
    """Read candle files and, of each, the longer specs in `also` (a 1m file also teaches 5m)."""
    runs = [run for path in paths for run in read_series(path)]
    return runs + [joined for run in runs for spec in also if (joined := resample(run, spec)) is not None]


@dataclass(frozen=True, slots=True)
class Epochs:
    """N epochs of W + E candles with the labels of the last E.

    `x` is [N, W+E, F] raw float32 features; the rest is [N, E] or [N, E, K]. Rows past the end of a run are zero and
    `role` NONE.
    """

    x: NDArray[np.float32]
    role: NDArray[np.int8]
    labels: Labels
    sigma: Floats
    close_time_ns: NDArray[np.int64]
    series: NDArray[np.int32]
    """Index into the list of runs, [N]."""
    row: NDArray[np.int64]
    """Row within the run; −1 where there is none."""

    @property
    def warmup(self) -> int:
        """Candles of each epoch that only fill the state."""
        return int(self.x.shape[1] - self.role.shape[1])

    def __len__(self) -> int:
        return len(self.x)

    def part(self, keep: Any) -> "Epochs":
        """Return some of the epochs."""
        return Epochs(
            self.x[keep], self.role[keep], self.labels.part(keep), self.sigma[keep], self.close_time_ns[keep],
            self.series[keep], self.row[keep],
        )  # fmt: skip

    def usable(self, role: Role) -> NDArray[np.bool_]:
        """Tell which rows and horizons may be used for `role`, [N, E, K]."""
        usable: NDArray[np.bool_] = self.labels.valid & (self.role == role)[..., None]
        return usable


def epochs_of(
    runs: Sequence[Series],
    *,
    warmup: int,
    epoch: int,
    horizons: tuple[int, ...],
    width: float,
    folds: Sequence[Fold] | None,
) -> Epochs:
    """Fold runs of candles into epochs.

    Args:
        runs: contiguous runs.
        warmup: candles that fill the state before each epoch (W).
        epoch: candles of an epoch (E); it starts where close_time / interval divides by it.
        horizons: horizons of the labels, candles.
        width: barrier width in sigma · √horizon.
        folds: what each candle is for by its time; None makes every row a test row.

    """
    parts = [
        part for index, run in enumerate(runs) for part in _epochs(run, index, warmup, epoch, horizons, width, folds)
    ]
    if not parts:
        raise CandlesError(f"no epoch of {warmup} + {epoch} candles with its whole warm-up lies in the given candles")
    x, role, label, sigma, closed, series, row = zip(*parts, strict=True)
    stacked = Labels(horizons, *(np.stack([getattr(l, f) for l in label]) for f in _LABEL_FIELDS))
    return Epochs(
        np.stack(x), np.stack(role), stacked, np.stack(sigma), np.stack(closed),
        np.array(series, dtype=np.int32), np.stack(row),
    )  # fmt: skip


_LABEL_FIELDS = ("valid", "touched", "up", "log_ratio", "log_return")
_Part = tuple[
    NDArray[np.float32], NDArray[np.int8], Labels, Floats, NDArray[np.int64], int, NDArray[np.int64]
]  # fmt: skip


def _epochs(
    run: Series,
    index: int,
    warmup: int,
    epoch: int,
    horizons: tuple[int, ...],
    width: float,
    folds: Sequence[Fold] | None,
) -> Iterator[_Part]:
    first_seq = int(run.close_time_ns[0]) // run.interval_ns
    start = -(-(first_seq + warmup) // epoch) * epoch - first_seq  # row of the first epoch with a whole warm-up
    roles = _roles(run, max(horizons) * run.interval_ns, folds)
    for begin in range(start, len(run), epoch):
        count = min(epoch, len(run) - begin)
        inside = slice(begin, begin + count)
        if not roles[inside].any():
            continue
        ahead = run.rows(slice(begin - warmup, min(begin + count + max(horizons), len(run))))
        x, indicators = fold_features(ahead.rows(slice(0, warmup + count)))
        sigma = indicators[warmup:, SIGMA]
        tail = slice(warmup, None)
        padded_sigma = np.concatenate((sigma, np.full(len(ahead) - warmup - count, sigma[-1])))
        made = labels.label(
            ahead.high[tail], ahead.low[tail], ahead.close[tail], padded_sigma, horizons=horizons, width=width
        )
        label = Labels(horizons, *(_pad(getattr(made, f)[:count], epoch) for f in _LABEL_FIELDS))
        yield (
            _pad(x, warmup + epoch), _pad(roles[inside], epoch), label, _pad(sigma, epoch),
            _pad(run.close_time_ns[inside], epoch), index, _pad(np.arange(begin, begin + count), epoch, fill=-1),
        )  # fmt: skip


def fold_features(candles: Series) -> tuple[NDArray[np.float32], Floats]:
    """Fold features and indicators over candles from a zero state, as the daemon does; [n, F] float32 and [n, I]."""
    x = np.empty((len(candles), features.N_FEATURES), dtype=np.float32)
    indicators = np.empty((len(candles), len(features.INDICATORS)))
    features.update_many(
        features.new_state(), candles.open, candles.high, candles.low, candles.close, candles.volume,
        candles.close_time_ns, candles.interval_ns, x, indicators,
    )  # fmt: skip
    return x, indicators


def _roles(run: Series, label_span_ns: int, folds: Sequence[Fold] | None) -> NDArray[np.int8]:
    if folds is None:
        return np.full(len(run), Role.TEST, dtype=np.int8)
    roles = np.full(len(run), Role.NONE, dtype=np.int8)
    for fold in folds:
        roles = np.maximum(roles, fold.roles(run.close_time_ns, label_span_ns=label_span_ns))
    return roles


def _pad(x: NDArray[Scalar], length: int, *, fill: float = 0) -> NDArray[Scalar]:
    padded = np.full((length, *x.shape[1:]), fill, dtype=x.dtype)
    padded[: len(x)] = x
    return padded
