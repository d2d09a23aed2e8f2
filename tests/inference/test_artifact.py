import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors import numpy as safetensors

from inference import artifact, lstm
from inference.artifact import Affine, Artifact, ArtifactError, Calibration, Manifest, Parity, TrainingRange
from inference.features import FEATURES, N_FEATURES
from tests.inference.ensembles import ensemble

WEIGHTS = ensemble(outputs=6)
PARITY = Parity(candles=10_240, step_vs_torch_max_abs=3e-7, h_max_abs=2e-6, c_max_scaled=1e-6, features_max_abs=0.0)


def manifest(**changes: Any) -> Manifest:
    stated: dict[str, Any] = {
        "name": "test",
        "created": "2025-06-24T00:00:00.000Z",
        "sizes": artifact.sizes_of(WEIGHTS),
        "specs": ("1m", "5m"),
        "horizons": (12, 15),
        "signal_horizon": {"1m": 15, "5m": 12},
        "parity": PARITY,
        "report": {"brier": 0.21, "by_market": {"BTC/USDT:USDT": [1, 2]}},
    }
    return Manifest(**(stated | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifact.save(Artifact(WEIGHTS, manifest()), tmp_path / "model")
    return tmp_path / "model"


def test_loads_what_was_saved(folder: Path) -> None:
    loaded = artifact.load(folder)
    for name, array in WEIGHTS.tensors().items():
        assert loaded.weights.tensors()[name].tobytes() == array.tobytes()
    assert msgspec.structs.replace(loaded.manifest, content_sha256="") == manifest()
    assert loaded.model_id == f"test-{loaded.manifest.content_sha256[:8]}"


def test_saving_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    artifact.save(artifact.load(folder), tmp_path / "again")
    for name in (artifact.MODEL_FILE, artifact.MANIFEST_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_loaded_model_answers_as_the_saved_one(folder: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, (3, N_FEATURES)).astype(np.float32)
    answers = []
    for weights in (WEIGHTS, artifact.load(folder).weights):
        y = weights.answers(3)
        lstm.peek(weights, x, weights.zeros(3), weights.zeros(3), y)
        answers.append(y.tobytes())
    assert answers[0] == answers[1]


def refused(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        artifact.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parity": None}, "no measured parity"),
        ({"parity": replace(PARITY, candles=9_999)}, "9999 candles"),
        ({"parity": replace(PARITY, step_vs_torch_max_abs=2e-5)}, "step differs from torch"),
        ({"parity": replace(PARITY, h_max_abs=2e-5)}, "h differs from torch"),
        ({"parity": replace(PARITY, c_max_scaled=2e-5)}, "c differs from torch"),
        ({"parity": replace(PARITY, features_max_abs=1e-7)}, "streamed features"),
        ({"features": artifact.FeatureSet(version="other")}, "features other"),
        ({"features": artifact.FeatureSet(names=FEATURES[::-1])}, "features"),
        ({"sizes": artifact.sizes_of(ensemble(hidden=7))}, "sizes in the manifest"),
        ({"horizons": (12, 15, 60)}, "do not fit the features and horizons"),
        ({"heads": ("a", "b", "c")}, "heads"),
        ({"signal_horizon": {"1m": 15}}, "signal_horizon of 5m"),
        ({"calibration": (Calibration(),)}, "calibration"),
        ({"range": TrainingRange(low=(0.0,), high=(1.0,))}, "range"),
        ({"barrier_width": 0.0}, "barrier_width"),
    ],
)
def test_refuses_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    artifact.save(Artifact(WEIGHTS, manifest(**changes)), tmp_path)
    assert text in refused(tmp_path)


def test_refuses_a_model_with_other_features(tmp_path: Path) -> None:
    small = ensemble(inputs=5)
    artifact.save(Artifact(small, manifest(sizes=artifact.sizes_of(small))), tmp_path)
    assert "do not fit the features" in refused(tmp_path)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / artifact.MANIFEST_FILE
    raw = msgspec.json.decode(path.read_bytes())
    change(raw)
    path.write_bytes(msgspec.json.encode(raw))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda raw: raw.update(format=3), "format 3"),
        (lambda raw: raw.pop("format"), "format"),
        (lambda raw: raw.update(surprise=1), "surprise"),
        (lambda raw: raw.pop("horizons"), "horizons"),
        (lambda raw: raw.update(warmup=0), "warmup"),
        (lambda raw: raw.update(name="../x"), "name"),
        (lambda raw: raw.update(barrier_width="wide"), "barrier_width"),
        (lambda raw: raw["report"].update(brier=0.1), "do not match content_sha256"),
        (lambda raw: raw.update(content_sha256=""), "do not match content_sha256"),
    ],
)
def test_refuses_an_edited_manifest(folder: Path, change: Callable[[dict[str, Any]], Any], text: str) -> None:
    edit(folder, change)
    assert text in refused(folder)


def test_refuses_damaged_or_missing_files(folder: Path, tmp_path: Path) -> None:
    model = (folder / artifact.MODEL_FILE).read_bytes()
    for name, contents, text in (
        (artifact.MODEL_FILE, model[:-1] + bytes([model[-1] ^ 1]), "do not match content_sha256"),
        (artifact.MODEL_FILE, model[:100], artifact.MODEL_FILE),
        (artifact.MODEL_FILE, None, "No such file"),
        (artifact.MANIFEST_FILE, b"{", artifact.MANIFEST_FILE),
        (artifact.MANIFEST_FILE, b"\xff", artifact.MANIFEST_FILE),
        (artifact.MANIFEST_FILE, None, "No such file"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        if contents is None:
            (broken / name).unlink()
        else:
            (broken / name).write_bytes(contents)
        assert text in refused(broken)
        shutil.rmtree(broken)


class Payload:
    """What runs a command where it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self._victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._victim,)


@pytest.mark.parametrize("name", [artifact.MODEL_FILE, artifact.MANIFEST_FILE])
@pytest.mark.parametrize("packed", [False, True])
def test_executes_nothing(name: str, packed: bool, folder: Path, tmp_path: Path) -> None:
    """A pickle, as it is or in a zip as torch writes it, is refused like any other nonsense."""
    victim, contents = tmp_path / "victim", io.BytesIO()
    pickled = pickle.dumps(Payload(victim))
    with zipfile.ZipFile(contents, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    (folder / name).write_bytes(contents.getvalue() if packed else pickled)
    assert name in refused(folder)
    assert not victim.exists()
    pickle.loads(pickled)
    assert victim.exists(), "it would have run"


@pytest.mark.parametrize("name", [artifact.MODEL_FILE, artifact.MANIFEST_FILE])
def test_reads_nothing_outside_of_its_folder_and_nothing_but_files(name: str, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / name, elsewhere)
    for target in (elsewhere, Path("..") / "elsewhere", Path("/dev/zero")):
        (folder / name).symlink_to(target)
        assert "leads out of its folder" in refused(folder)
        (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "no file" in refused(folder), "nobody waits for what is never written"
    (folder / name).unlink()
    shutil.move(elsewhere, folder / name)
    (tmp_path / "link").symlink_to(folder)
    artifact.load(tmp_path / "link")


def test_refuses_weights_that_are_not_finite(folder: Path) -> None:
    tensors = {name: array.copy() for name, array in WEIGHTS.tensors().items()}
    tensors["head_bias"] = tensors["head_bias"] * np.float32(np.inf)
    (folder / artifact.MODEL_FILE).write_bytes(safetensors.save(tensors))
    assert "not finite" in refused(folder)


def test_expectation_is_the_calibrated_average() -> None:
    plain = Artifact(WEIGHTS, manifest())
    raw = np.array([[[9, 9, 9, 0.4, -0.3, 0.2], [9, 9, 9, 0.8, 0.5, -0.6]]], np.float32)
    expected = plain.expect(raw, 15)
    combined = lstm.combine(raw)
    assert expected[:2] == (combined.p_touch[0, 1], combined.p_up[0, 1])
    assert expected.volatility_ratio == pytest.approx(np.exp(-0.1))
    identity = (Calibration(), Calibration())
    assert plain.expect(raw, 15, identity) == pytest.approx(expected, rel=1e-12)
    shrunk = Calibration(touch=Affine(a=1.0, b=1.0), direction=Affine(a=0.0), log_variance=Affine(a=0.5, b=0.1))
    calibrated = Artifact(WEIGHTS, manifest(calibration=(Calibration(), shrunk))).expect(raw, 15)
    odds = expected.p_touch / (1 - expected.p_touch) * np.e
    assert calibrated == pytest.approx((odds / (1 + odds), 0.5, 1.0), rel=1e-6)
    with pytest.raises(ValueError, match="tuple"):
        plain.expect(raw, 60)


def test_certainty_stays_finite_when_calibrated() -> None:
    raw = np.full((1, 2, 6), 1e6, np.float32)
    steep = Calibration(touch=Affine(a=-1.0), direction=Affine(a=-1e9))
    expected = Artifact(WEIGHTS, manifest(calibration=(steep,) * 2)).expect(raw, 12)
    assert expected.p_touch == pytest.approx(1e-9)
    assert 0.0 < expected.p_up < 1e-9
    assert expected.volatility_ratio == pytest.approx(np.exp(10))


def test_range_counts_features_outside() -> None:
    limits = TrainingRange(low=(-1.0,) * N_FEATURES, high=(1.0,) * N_FEATURES, outside_share_max=2 / N_FEATURES)
    narrow, free = Artifact(WEIGHTS, manifest(range=limits)), Artifact(WEIGHTS, manifest())
    x = np.zeros(N_FEATURES, np.float32)
    x[:2] = 5.0, -5.0
    assert narrow.in_range(x)
    x[2] = 1.5
    assert not narrow.in_range(x)
    assert free.in_range(x)


def test_names_resolve_to_folders() -> None:
    assert artifact.resolve("default") == Path(artifact.__file__).parent / "artifacts" / "default"
    assert artifact.resolve("/a/b") == Path("/a/b")
