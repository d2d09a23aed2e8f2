"""A model on disk: a folder with `model.safetensors` and `manifest.json`, checked before anything trusts it.

Loading executes no code. What is refused is refused in one line that says why: another format, contents that do not
match their hash, features of another definition, sizes that do not fit, no measured parity with the torch reference.
"""

import hashlib
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from inference.features import FEATURES, FEATURES_VERSION
from inference.kernels.jit import jit
from inference.lstm import F32, F64, HEADS, Weights, combine_one

FORMAT: Final = 2
PARITY_CANDLES_MIN: Final = 10_000
PARITY_MAX_ABS: Final = 1e-5
"""Of raw outputs and of h; of c it is the greatest difference over max(1, |c|)."""
FILE_BYTES_MAX: Final = 256 * 2**20
"""Of either file; what is larger is no artifact of ours."""
MODEL_FILE: Final = "model.safetensors"
MANIFEST_FILE: Final = "manifest.json"

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_PROBABILITY_MIN: Final = 1e-9
_LOGIT_MAX: Final = 40.0
_LOG_VARIANCE_MAX: Final = 20.0  # beyond it a forecast means nothing, but must not raise


class ArtifactError(Exception):
    """The folder holds no artifact that may be used; the text says why, in one line."""


class FeatureSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The features a model was trained on; they must be this package's, in order."""

    version: str = FEATURES_VERSION
    names: tuple[str, ...] = FEATURES


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Members, layers, hidden units, features and outputs."""

    members: _Positive
    layers: _Positive
    hidden: _Positive
    features: _Positive
    outputs: _Positive


class Affine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calibration of one head: calibrated = a × x + b, x being a logit or the log variance ratio."""

    a: float = 1.0
    b: float = 0.0

    def __call__(self, x: float) -> float:
        """Calibrate."""
        return self.a * x + self.b


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calibration of one horizon, applied to the members' average."""

    touch: Affine = Affine()
    direction: Affine = Affine()
    log_variance: Affine = Affine()


class DecisionDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator may override."""

    enter_edge_bps: float = 0.0
    exit_edge_bps: float = -2.0
    taker_fee_bps: float = 5.0
    half_spread_bps: float = 1.0


class TrainingRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of each raw feature in training; beyond them the model abstains."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    outside_share_max: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """A candle is in range while at most this share of its features lies outside."""


class TrainingInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of candles the model was made from."""

    name: str
    sha256: str
    candles: int


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured agreement of what is served with what was trained, over whole folds of W + E candles from zero.

    Raw outputs and h must agree with `torch.nn.LSTM` within `PARITY_MAX_ABS`. The cell state grows beyond float32's
    power to say it so finely (at 90 its values lie 7.6e-6 apart), so c must agree within that times max(1, |c|).
    """

    candles: int
    """Candles compared, warm-up included."""
    runs: int = 1
    """Runs of candles they were taken from, with the emptiest and the busiest among them."""
    step_vs_torch_max_abs: float
    """Greatest difference of raw outputs between the carried step and torch."""
    h_max_abs: float
    """Greatest difference of h."""
    c_max_scaled: float
    """Greatest difference of c over max(1, |c|)."""
    features_max_abs: float
    """Greatest difference of features between streaming and the training set."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a model but its weights."""

    format: int = FORMAT
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    created: str
    """Close of the newest candle it was made from, RFC 3339; no clock is read."""
    features: FeatureSet = FeatureSet()
    sizes: Sizes
    specs: tuple[str, ...]
    """Candle specs it was trained for."""
    warmup: _Positive = 256
    """W: candles folded before an epoch."""
    epoch: _Positive = 720
    """E: candles of an epoch."""
    heads: tuple[str, ...] = HEADS
    horizons: tuple[_Positive, ...]
    """Candles ahead, one group of heads each, in the order of outputs."""
    signal_horizon: dict[str, int]
    """Horizon that decides, per spec."""
    barrier_width: float = 1.0
    """A barrier lies at ± width × sigma × √horizon, as a log return."""
    calibration: tuple[Calibration, ...] = ()
    """Per horizon; none: as the model says."""
    decision: DecisionDefaults = DecisionDefaults()
    range: TrainingRange | None = None
    parity: Parity | None = None
    inputs: tuple[TrainingInput, ...] = ()
    recipe: dict[str, Any] = {}
    report: dict[str, Any] = {}
    """The report card: what was measured on candles the model had not seen."""
    content_sha256: str = ""


class Expectation(NamedTuple):
    """What the ensemble, averaged and calibrated, expects of one market over one horizon."""

    p_touch: float
    """Probability that either barrier is touched."""
    p_up: float
    """Probability that the upper one is first, given a touch."""
    volatility_ratio: float
    """Predicted standard deviation over the horizon, in units of sigma × √horizon."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """Weights and what is known of them."""

    weights: Weights
    manifest: Manifest

    @property
    def model_id(self) -> str:
        """Name and the first eight digits of the content's hash."""
        return f"{self.manifest.name}-{self.manifest.content_sha256[:8]}"

    def expect(self, raw: F32, horizon: int, calibration: tuple[Calibration, ...] | None = None) -> Expectation:
        """Read one market's raw outputs [1, M, O] for `horizon`; `calibration` replaces the manifest's.

        Raises:
            ValueError: the model does not speak of this horizon.

        """
        k = self.manifest.horizons.index(horizon)
        touch, up, log_variance = combine_one(raw, 0, k)
        known = self.manifest.calibration if calibration is None else calibration
        if known:
            touch = _calibrated(known[k].touch, touch)
            up = _calibrated(known[k].direction, up)
            log_variance = known[k].log_variance(log_variance)
        return Expectation(touch, up, math.exp(0.5 * _bounded(log_variance, _LOG_VARIANCE_MAX)))

    def in_range(self, x: F32) -> bool:
        """Tell whether raw features [F] lie where the model was trained; true where the manifest does not say."""
        if self._limits is None:
            return True
        low, high, outside_max = self._limits
        return _outside(x, low, high) <= outside_max

    @cached_property
    def _limits(self) -> tuple[F64, F64, float] | None:
        limits = self.manifest.range
        if limits is None:
            return None
        return np.array(limits.low), np.array(limits.high), limits.outside_share_max * len(limits.low)


@jit
def _outside(x: F32, low: F64, high: F64) -> int:
    """Count the features outside their bounds; one that is no number is outside none."""
    count = 0
    for k in range(len(low)):
        count += x[k] < low[k] or x[k] > high[k]
    return count


def _calibrated(affine: Affine, probability: float) -> float:
    p = min(max(probability, _PROBABILITY_MIN), 1.0 - _PROBABILITY_MIN)
    return 1.0 / (1.0 + math.exp(-_bounded(affine(math.log(p / (1.0 - p))), _LOGIT_MAX)))


def _bounded(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)


def sizes_of(weights: Weights) -> Sizes:
    """Return the sizes as the manifest states them."""
    return Sizes(
        members=weights.members, layers=weights.layers, hidden=weights.hidden,
        features=weights.features, outputs=weights.outputs,
    )  # fmt: skip


def content_hash(weights: Weights, manifest: Manifest) -> str:
    """Hash the manifest without its hash, and every tensor's name, shape and bytes, by name."""
    bare = msgspec.structs.replace(manifest, content_sha256="")
    digest = hashlib.sha256(msgspec.json.encode(bare, order="deterministic"))
    for name, array in sorted(weights.tensors().items()):
        digest.update(f"\n{name} {array.shape}\n".encode() + array.astype("<f4").tobytes())
    return digest.hexdigest()


def seal(weights: Weights, manifest: Manifest) -> Artifact:
    """Write the content's hash into the manifest."""
    return Artifact(weights, msgspec.structs.replace(manifest, content_sha256=content_hash(weights, manifest)))


def save(artifact: Artifact, folder: Path) -> None:
    """Seal the artifact and write it, manifest last, so that half a write is no artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    sealed = seal(artifact.weights, artifact.manifest)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    tensors = {name: np.asarray(array, order="C") for name, array in sealed.weights.tensors().items()}
    (folder / MODEL_FILE).write_bytes(safetensors.save(tensors))
    text = msgspec.json.format(msgspec.json.encode(sealed.manifest, order="deterministic"), indent=2)
    (folder / MANIFEST_FILE).write_bytes(text + b"\n")


def resolve(name: str) -> Path:
    """Return the folder that `default` or a path means."""
    return Path(__file__).parent / "artifacts" / "default" if name == "default" else Path(name)


def load(folder: Path) -> Artifact:
    """Read and check an artifact.

    Raises:
        ArtifactError: it may not be used; the text says why.

    """
    manifest = _decode(_read(folder / MANIFEST_FILE))
    try:
        weights = Weights.from_tensors(safetensors.load(_read(folder / MODEL_FILE)))
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{folder / MODEL_FILE}: {error}") from error
    artifact = Artifact(weights, manifest)
    for complaint in _complaints(artifact):
        raise ArtifactError(f"{folder}: {complaint}")
    return artifact


def _read(path: Path) -> bytes:
    if path.resolve().parent != path.parent.resolve():
        raise ArtifactError(f"{path}: leads out of its folder")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES_MAX:
            raise ArtifactError(f"{path}: no file, or larger than {FILE_BYTES_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error


class _Format(msgspec.Struct):
    format: int


def _decode(text: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(text, type=_Format).format
        if version != FORMAT:
            raise ArtifactError(f"{MANIFEST_FILE}: format {version}; this version reads format {FORMAT}")
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{MANIFEST_FILE}: {error}") from error


def _complaints(artifact: Artifact) -> Iterator[str]:
    """Say what is wrong, most telling first."""
    manifest = artifact.manifest
    if manifest.content_sha256 != content_hash(artifact.weights, manifest):
        yield "contents do not match content_sha256; the files were changed or damaged"
    if manifest.features.version != FEATURES_VERSION or manifest.features.names != FEATURES:
        yield f"made for features {manifest.features.version}, this version computes {FEATURES_VERSION}"
    if manifest.sizes != sizes_of(artifact.weights):
        yield "sizes in the manifest are not those of the tensors"
    if manifest.sizes.features != len(FEATURES) or manifest.sizes.outputs != len(HEADS) * len(manifest.horizons):
        yield "sizes do not fit the features and horizons"
    if manifest.heads != HEADS:
        yield f"heads are {', '.join(manifest.heads)}; expected {', '.join(HEADS)}"
    yield from _inconsistent(manifest)
    yield from _disparity(manifest.parity)


def _inconsistent(manifest: Manifest) -> Iterator[str]:
    for spec in manifest.specs:
        if manifest.signal_horizon.get(spec) not in manifest.horizons:
            yield f"signal_horizon of {spec} is not one of the horizons"
    if manifest.calibration and len(manifest.calibration) != len(manifest.horizons):
        yield "calibration is not given for each horizon"
    limits = manifest.range
    if limits is not None and not len(limits.low) == len(limits.high) == len(FEATURES):
        yield "range is not given for each feature"
    if manifest.warmup > manifest.epoch:
        yield "warmup is longer than the epoch, so no fold could take over"
    if manifest.barrier_width <= 0.0:
        yield "barrier_width must be above zero"


def _disparity(parity: Parity | None) -> Iterator[str]:
    if parity is None:
        yield "no measured parity with the torch reference"
    elif parity.candles < PARITY_CANDLES_MIN:
        yield f"parity was measured over {parity.candles} candles; {PARITY_CANDLES_MIN} are required"
    elif not 0.0 <= parity.step_vs_torch_max_abs <= PARITY_MAX_ABS:
        yield f"step differs from torch by {parity.step_vs_torch_max_abs:g}; at most {PARITY_MAX_ABS:g} is allowed"
    elif not 0.0 <= parity.h_max_abs <= PARITY_MAX_ABS:
        yield f"h differs from torch by {parity.h_max_abs:g}; at most {PARITY_MAX_ABS:g} is allowed"
    elif not 0.0 <= parity.c_max_scaled <= PARITY_MAX_ABS:
        yield f"c differs from torch by {parity.c_max_scaled:g} × max(1, |c|); at most {PARITY_MAX_ABS:g} is allowed"
    elif parity.features_max_abs != 0.0:
        yield f"streamed features differ from the training set's by {parity.features_max_abs:g}"
