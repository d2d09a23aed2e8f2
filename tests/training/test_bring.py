"""Networks made elsewhere: what is served is what they answer, and what cannot be served is named."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from inference import artifact as artifacts
from inference import lstm as served
from inference.artifact import PARITY_MAX_ABS, Artifact
from inference.features import FEATURES, N_FEATURES
from tests.training.test_dataset import write
from training import bring, dataset, evaluate, synthetic
from training.bring import ModelError
from training.dataset import CandlesError

DOCUMENT = Path(__file__).parents[2] / "docs" / "bring-your-own-model.md"
torch.set_num_threads(1)  # its threads wait for each other where cores are shared
MEAN, INV_STD = np.full(N_FEATURES, 0.1), np.full(N_FEATURES, 0.8)


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = synthetic.market(synthetic.PLANTED, 10_800, seed=3)
    return write(tmp_path_factory.mktemp("candles") / "binance_BTC-USDT-PERP_1m.parquet", run)


def network(*, hidden: int = 20, layers: int = 1, outputs: int = 6, **options: Any) -> tuple[nn.LSTM, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        inputs = options.pop("inputs", N_FEATURES)
        return nn.LSTM(inputs, hidden, layers, **options), nn.Linear(hidden, outputs)


def brought(models: tuple[nn.LSTM, nn.Linear], candles: Path, **changes: Any) -> Artifact:
    facts: dict[str, Any] = {
        "name": "mine", "mean": MEAN, "inv_std": INV_STD, "clip": 5.0, "horizons": (5, 15),
        "signal_horizon": {"1m": 15}, "candles": [candles],
    }  # fmt: skip
    return bring.from_torch(*models, **facts | changes)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"layers": 2, "dropout": 0.4}, {"layers": 3, "hidden": 7, "batch_first": True}],
)
def test_the_daemon_answers_as_the_network_does(options: dict[str, Any], candles: Path, tmp_path: Path) -> None:
    lstm, heads = network(**options)
    made = brought((lstm, heads), candles)
    assert lstm.training  # ours to measure, not to change
    artifacts.save(made, tmp_path)
    loaded = artifacts.load(tmp_path)
    assert loaded.model_id == made.model_id
    parity = loaded.manifest.parity
    assert parity is not None
    assert parity.candles >= 10_240
    assert 0 < parity.step_vs_torch_max_abs < PARITY_MAX_ABS
    x, _ = dataset.fold_features(dataset.read_series(candles)[0].rows(slice(0, 300)))
    weights = loaded.weights
    h, c, y = weights.zeros(1), weights.zeros(1), weights.answers(1)
    for row in x:
        served.step(weights, row[None], h, c, y)
    scaled = torch.from_numpy(np.clip((x - MEAN.astype("f4")) * INV_STD.astype("f4"), -5, 5))
    scaled = scaled[None] if lstm.batch_first else scaled[:, None]
    with torch.no_grad():
        expected = heads(lstm.eval()(scaled)[0]).reshape(300, -1)[-1].numpy()
    np.testing.assert_allclose(y[0, 0], expected, atol=1e-5, rtol=0)


def test_double_precision_is_served_in_single(candles: Path) -> None:
    lstm, heads = network()
    double = brought((lstm.double(), heads.double()), candles)
    assert double.model_id != brought((lstm.float(), heads.float()), candles).model_id  # its parity is its own
    assert double.manifest.parity is not None
    assert 0 < double.manifest.parity.step_vs_torch_max_abs < PARITY_MAX_ABS


def test_what_is_too_far_from_the_network_is_refused(candles: Path) -> None:
    lstm, heads = network()
    heads.weight.data *= 1e4
    with pytest.raises(ModelError, match="differs from the network by"):
        brought((lstm, heads), candles)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bidirectional": True}, "bidirectional"),
        ({"proj_size": 3}, "proj_size=3"),
        ({"bias": False}, "bias=True"),
        ({"inputs": 7}, f"takes 7 inputs; there are {N_FEATURES} features"),
        ({"outputs": 4}, "4 outputs; 3 for each of 2 horizons"),
    ],
)
def test_what_cannot_be_served_is_named(options: dict[str, Any], said: str, candles: Path) -> None:
    with pytest.raises(ModelError, match=said):
        brought(network(**options), candles)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": MEAN[:-1]}, "mean and inv_std"),
        ({"inv_std": 1.0}, "mean and inv_std"),
        ({"mean": MEAN * np.nan}, "mean holds values that are not finite"),
        ({"signal_horizon": {"1m": 60}}, "signal_horizon of 1m is 60"),
    ],
)
def test_facts_that_do_not_fit_are_named(changes: dict[str, Any], said: str, candles: Path) -> None:
    with pytest.raises(ModelError, match=said):
        brought(network(), candles, **changes)


def test_heads_on_another_hidden_size_are_named(candles: Path) -> None:
    with pytest.raises(ModelError, match="the heads take 21 inputs; the hidden state has 20"):
        brought((network()[0], nn.Linear(21, 6)), candles)


def test_too_few_candles_cannot_show_parity(tmp_path: Path) -> None:
    few = write(tmp_path / "few.parquet", synthetic.market(synthetic.PLANTED, 9_999, seed=1))
    with pytest.raises(CandlesError, match="the most is 9999"):
        brought(network(), few)


def test_the_manifest_says_what_it_came_from_and_evaluation_respects_it(candles: Path, tmp_path: Path) -> None:
    made = brought(network(), candles)
    artifacts.save(made, tmp_path / "model")
    manifest = made.manifest
    assert [(entry.name, entry.candles) for entry in manifest.inputs] == [(candles.name, 10_800)]
    assert manifest.created == "2025-01-08T12:00:00Z"
    assert manifest.range is not None
    assert len(manifest.range.low) == len(FEATURES)
    with pytest.raises(CandlesError, match="no candle is left to score"):
        evaluate.evaluate([candles], tmp_path / "model")
    later = synthetic.market(synthetic.PLANTED, 4_000, seed=8)
    later = dataset.Series(
        later.name, later.spec, later.interval_ns, later.close_time_ns + 30 * 86_400 * 10**9,
        later.open, later.high, later.low, later.close, later.volume,
    )  # fmt: skip
    result = evaluate.evaluate([write(tmp_path / "later.parquet", later)], tmp_path / "model")
    assert result["rows"] > 2_000
    assert result["warnings"] == []


def test_the_documents_example_makes_an_artifact(
    candles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "candles").mkdir()
    (tmp_path / "candles" / candles.name).write_bytes(candles.read_bytes())
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(said):
        torch.manual_seed(0)
        exec(compile(code, str(DOCUMENT), "exec"), {})
    loaded = artifacts.load(tmp_path / "my-model")
    assert said.getvalue().startswith(loaded.model_id)
    assert loaded.manifest.sizes.layers == 2
