import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import lstm
from inference.kernels import reference
from inference.lstm import F32, Weights
from tests.inference.candles import fold, read
from tests.inference.ensembles import ensemble

SHAPES = [
    {"members": 1, "layers": 2, "hidden": 100, "inputs": 100, "outputs": 3},  # STAC-ML's LSTM_A
    {"members": 3, "layers": 1, "hidden": 64, "outputs": 12},
    {"members": 2, "layers": 3, "hidden": 17, "inputs": 5, "outputs": 18},  # nothing divides by 16
    {"members": 1, "layers": 1, "hidden": 44, "inputs": 9, "outputs": 3},  # a tile and a rest
]


def features(count: int, inputs: int, seed: int = 1) -> F32:
    return np.random.default_rng(seed).normal(0, 1.5, (count, inputs)).astype(np.float32)


def carried(weights: Weights, x: F32) -> tuple[F32, F32, F32]:
    h, c, y = weights.zeros(1), weights.zeros(1), weights.answers(1)
    outputs = np.empty((len(x), *y.shape[1:]), np.float32)
    for t in range(len(x)):
        lstm.step(weights, x[t : t + 1], h, c, y)
        outputs[t] = y[0]
    return outputs, h[0], c[0]


def assert_equal_to_torch(weights: Weights, x: F32) -> None:
    for ours, torchs in zip(carried(weights, x), reference.full_pass(weights, x), strict=True):
        assert np.max(np.abs(ours - torchs)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_carried_steps_equal_one_torch_pass(shape: dict[str, int], gain: float) -> None:
    weights = ensemble(**shape, gain=gain)
    assert_equal_to_torch(weights, features(10_000, weights.features))


def test_carried_steps_equal_one_torch_pass_on_real_candles() -> None:
    x, _ = fold(read("binance_um/BTCUSDT_1m_2025-05_2025-06.parquet", 10_000))
    assert_equal_to_torch(ensemble(members=2, hidden=64, gain=2.0), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_bit_depends_on_the_batch(shape: dict[str, int]) -> None:
    """The same markets in batches of any size, order and position: outputs and states are the same to the bit."""
    weights, random, markets = ensemble(**shape), np.random.default_rng(2), 23
    x = features(markets, weights.features)
    h0, c0 = (random.uniform(-1, 1, weights.zeros(markets).shape).astype(np.float32) for _ in range(2))
    alone = [_stepped(weights, x[[b]], h0[[b]], c0[[b]]) for b in range(markets)]
    for _ in range(60):
        rows = random.permutation(markets)[: random.integers(1, markets + 1)]
        together = _stepped(weights, x[rows], h0[rows], c0[rows])
        for kind in range(3):
            assert together[kind].tobytes() == b"".join(alone[b][kind].tobytes() for b in rows)


def _stepped(weights: Weights, x: F32, h: F32, c: F32) -> tuple[F32, F32, F32]:
    y = weights.answers(len(x))
    lstm.step(weights, x, h, c, y)
    return y, h, c


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_peek_answers_as_step_and_changes_nothing(shape: dict[str, int], batch: int) -> None:
    weights = ensemble(**shape)
    h, c = weights.zeros(batch) + np.float32(0.25), weights.zeros(batch) - np.float32(0.5)
    kept, peeked, x = (h.copy(), c.copy()), weights.answers(batch), features(batch, weights.features)
    lstm.peek(weights, x, h, c, peeked)
    assert (h.tobytes(), c.tobytes()) == tuple(array.tobytes() for array in kept)
    stepped, h, c = _stepped(weights, x, h, c)
    assert peeked.tobytes() == stepped.tobytes()
    assert not np.array_equal(h, kept[0])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32) | st.floats(-12, 12, width=32), min_size=1, max_size=50))
def test_activations_are_right_to_a_few_units_in_the_last_place(values: list[float]) -> None:
    """One unit whose candidate gate is fed by the feature alone: c = σ(big)·tanh(x); and one whose output gate is."""
    weights = ensemble(members=1, hidden=2, inputs=1, outputs=2)
    tensors = {name: np.zeros_like(array) for name, array in weights.tensors().items()}
    tensors["inv_std"][:], tensors["clip"] = 1.0, np.array(1e9, np.float32)
    tensors["first"][0, 4, 0] = 1.0  # unit 0: candidate = tanh(x), input gate open: cell = tanh(x)
    tensors["bias"][0, 0, 0] = 40.0
    tensors["first"][0, 1, 0] = 1.0  # unit 1: input gate = σ(x), candidate = 1: cell = σ(x)
    tensors["bias"][0, 0, 5] = 40.0
    x = np.array(values, np.float32)[:, None]
    _, _, c = _stepped(wired := Weights.from_tensors(tensors), x, wired.zeros(len(x)), wired.zeros(len(x)))
    exact = x[:, 0].astype(float)
    assert np.max(np.abs(c[:, 0, 0, 0] - np.tanh(exact))) < 4e-7
    assert np.max(np.abs(c[:, 0, 0, 1] - 0.5 * (1 + np.tanh(exact / 2)))) < 3e-7
    assert np.all((c[:, 0, 0, 1] >= 0) & (c[:, 0, 0, 1] <= 1))


def test_normalisation_clips() -> None:
    weights = ensemble()
    x = np.stack([np.full(weights.features, 1e30, np.float32), weights.mean + 5 / weights.inv_std])
    y, _, _ = _stepped(weights, x, weights.zeros(2), weights.zeros(2))
    np.testing.assert_allclose(y[0], y[1], atol=1e-5)


def test_weights_survive_torch_and_tensors() -> None:
    weights = ensemble(layers=2)
    for again in (
        Weights.from_tensors(weights.tensors()),
        reference.from_torch(
            reference.to_torch(weights), mean=weights.mean, inv_std=weights.inv_std, clip=float(weights.clip)
        ),
    ):
        for name, array in weights.tensors().items():
            assert array.tobytes() == again.tensors()[name].tobytes(), name


def test_bad_weights_are_refused() -> None:
    good = ensemble().tensors()
    cases = {
        "missing or unknown": {name: array for name, array in good.items() if name != "head"},
        "expected float32": good | {"mean": good["mean"][1:]},
        "is float64": good | {"mean": good["mean"].astype(np.float64)},
        "not finite": good | {"head_bias": good["head_bias"] * np.float32(np.nan)},
    }
    for text, tensors in cases.items():
        with pytest.raises(ValueError, match=text):
            Weights.from_tensors(tensors)


def test_arrays_of_wrong_size_are_refused() -> None:
    weights, other = ensemble(), ensemble(hidden=40)
    x = features(2, weights.features)
    for batch in (
        (x[:, 1:].copy(), weights.zeros(2), weights.zeros(2), weights.answers(2)),
        (x, weights.zeros(3), weights.zeros(3), weights.answers(3)),
        (x, weights.zeros(2), weights.zeros(1), weights.answers(2)),
        (x, other.zeros(2), other.zeros(2), other.answers(2)),
        (x, weights.zeros(2), weights.zeros(2), np.empty((2, 2, 40), np.float32)),
    ):
        with pytest.raises(ValueError, match=r"differ|sizes"):
            lstm.step(weights, *batch)


def test_combine_averages_probabilities_in_a_fixed_order() -> None:
    y = np.random.default_rng(3).normal(0, 3, (11, 5, 9)).astype(np.float32)
    y[0, 0, :2] = 1000.0, -1000.0
    combined = lstm.combine(y)
    wide = np.clip(y.astype(np.float64), -700, 700)
    np.testing.assert_allclose(combined.p_touch, (1 / (1 + np.exp(-wide[:, :, 0::3]))).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(combined.p_up, (1 / (1 + np.exp(-wide[:, :, 1::3]))).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(combined.log_variance_ratio, wide[:, :, 2::3].mean(axis=1), rtol=1e-12, atol=1e-12)
    for b in range(len(y)):
        for one, many in zip(lstm.combine(y[[b]]), combined, strict=True):
            assert one[0].tobytes() == many[b].tobytes()


def python(script: str, **environment: str) -> str:
    """Run a script in a fresh interpreter at the project's root; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_runtime_imports_no_torch_and_compiles_without_a_place_for_its_cache() -> None:
    """As in a service whose folders are all read-only; then nothing is cached, and all works."""
    script = """
import sys
import numpy as np
from inference import artifact, explain, features, lstm
assert "torch" not in sys.modules
assert type(lstm._logistic._cache).__name__ == "NullCache"
print(lstm.combine(np.zeros((1, 1, 3), np.float32)).p_up[0, 0])
"""
    # only the folder in NUMBA_CACHE_DIR may serve as a cache, and there is none
    assert python(script, NUMBA_CACHE_DIR="", NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator") == "0.5\n"


DIGEST = """
import hashlib
import numpy as np
from inference import features, lstm
random = np.random.default_rng(6)
F, H, O = features.N_FEATURES, 20, 6
shapes = {"first": (2, 4 * H, F), "deeper": (2, 1, 4 * H, H), "recurrent": (2, 2, 4 * H, H), "bias": (2, 2, 4 * H),
          "head": (2, O, H), "head_bias": (2, O), "mean": (F,), "inv_std": (F,)}
arrays = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
weights = lstm.Weights(**arrays, clip=np.array(5, np.float32))
close = np.exp(np.cumsum(random.normal(0, 1e-3, 300)))
x, raw = np.empty((300, F), np.float32), np.empty((300, features.N_INDICATORS))
closed = np.arange(300) * 60 * 10**9
high, low = close * 1.001, close * 0.999
features.update_many(features.new_state(), close, high, low, close, close, closed, 60 * 10**9, x, raw)
h, c, y = weights.zeros(5), weights.zeros(5), weights.answers(5)
for t in range(0, 300, 5):
    lstm.step(weights, x[t : t + 5], h, c, y)
print(hashlib.sha256(x.tobytes() + raw.tobytes() + h.tobytes() + c.tobytes() + y.tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of this family")
def test_other_instruction_sets_give_the_same_bits(tmp_path: Path) -> None:
    """The oldest x86-64 has neither wide registers nor a fused multiply-add; it computes the same."""
    oldest = python(DIGEST, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(tmp_path))
    assert oldest == python(DIGEST)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 5])
def test_step_and_peek_of_a_batch_are_those_of_the_torch_reference(shape: dict[str, int], batch: int) -> None:
    weights = ensemble(**shape, seed=9, gain=2.0)
    models = reference.to_torch(weights)
    random = np.random.default_rng(4)
    h, c, y = weights.zeros(batch), weights.zeros(batch), weights.answers(batch)
    for _ in range(50):
        x = random.normal(0, 2, (batch, weights.features)).astype(np.float32)
        expected = reference.step(models, weights, x, h, c)
        lstm.peek(weights, x, h, c, y)
        np.testing.assert_allclose(y, expected[0], atol=1e-5, rtol=0)
        lstm.step(weights, x, h, c, y)
        for ours, torchs in zip((y, h, c), expected, strict=True):
            np.testing.assert_allclose(ours, torchs, atol=1e-5, rtol=0)
