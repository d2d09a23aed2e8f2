"""How a model is made, as one TOML file: everything that decides the artifact besides the candles."""

import datetime as dt
from pathlib import Path

import msgspec

from feeds.market import CandleSpec
from training.splits import Fold, cut, eras


class RecipeError(ValueError):
    """A recipe that cannot be followed; the text names the key."""


class Era(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A span of days with its cuts, all UTC: train, then validate, then the part that is only scored."""

    start: dt.date
    validate_from: dt.date
    test_from: dt.date
    end: dt.date

    def fold(self) -> Fold:
        """Return the cuts in ns."""
        return Fold(*(_midnight_ns(day) for day in (self.start, self.validate_from, self.test_from, self.end)))


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes, targets, cuts and the fitting of a model."""

    name: str = "default"
    resample: tuple[str, ...] = ("5m",)
    """Longer candles also learnt from each file."""
    hidden: int = 64
    layers: int = 1
    horizons: tuple[int, ...] = (5, 12, 15, 60)
    """Candles ahead; each has a touch, a direction and a variance head."""
    signal_horizon: dict[str, int] = msgspec.field(default_factory=lambda: {"1m": 15, "5m": 12})
    """Which of them a spec's signals use."""
    barrier_width: float = 1.0
    """Barriers at ± width · sigma · √horizon."""
    warmup: int = 256
    epoch: int = 720
    clip: float = 6.0
    """Normalised features are cut off here, standard deviations."""
    eras: tuple[Era, ...] = ()
    """Where to cut; without any, candles that overlap in time form an era, cut at the two fractions below."""
    validate_from: float = 0.6
    test_from: float = 0.75

    members: int = 3
    """Differently seeded networks whose logits are averaged."""
    direction_members: int = 2
    """How many of them also leave their weights of the pass that was best for direction, which over-fits first."""
    passes: int = 14
    patience: int = 3
    """Passes without a better validation loss before a member stops."""
    refit: bool = False
    """Fit the members a second time, on train and validate together, for the passes that validation chose. The artifact
    holds the second fit with the calibration of the first, so that nothing is calibrated on rows that taught."""
    batch: int = 32
    """Epochs side by side."""
    bptt: int = 120
    """Candles between two optimiser steps; gradients end there, the state is carried on."""
    learning_rate: float = 4e-3
    weight_decay: float = 0.2
    dropout: float = 0.3
    """Of the hidden state before the heads, in training only."""
    ema: float = 0.998
    """Decay per step of the averaged weights that are kept."""
    direction_weight: float = 0.3
    variance_weight: float = 0.25
    mirror: bool = True
    """Show half of the epochs upside down (1 / price), so that the direction heads cannot learn a drift by heart."""
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        """Check what the types cannot.

        Raises:
            RecipeError: a key has a value that cannot work.

        """
        for name in ("hidden", "layers", "warmup", "epoch", "members", "passes", "batch", "bptt", "threads"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1")
        if not self.horizons or any(b <= a for a, b in zip(self.horizons, self.horizons[1:], strict=False)):
            raise RecipeError("horizons must ascend")
        for spec, horizon in self.signal_horizon.items():
            CandleSpec.parse(spec)
            if horizon not in self.horizons:
                raise RecipeError(f"signal_horizon of {spec}: {horizon} is not one of horizons")
        if not 0 <= self.direction_members <= self.members:
            raise RecipeError("direction_members must lie between 0 and members")

    def folds(self, spans: list[tuple[int, int]]) -> list[Fold]:
        """Return the cuts for candles that cover `spans` (start, end in ns)."""
        if self.eras:
            return [era.fold() for era in self.eras]
        return [cut(span, validate_from=self.validate_from, test_from=self.test_from) for span in eras(spans)]


DEFAULT = Path(__file__).with_name("recipes") / "default.toml"
"""The recipe of the shipped artifact."""


def load(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: the file cannot be read, or a key is unknown or has a wrong value.

    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise RecipeError(f"{path.name}: {error}") from error


def _midnight_ns(day: dt.date) -> int:
    return (day - dt.date(1970, 1, 1)).days * 86_400 * 1_000_000_000
