import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from inference import artifact as artifacts
from tests.training.test_dataset import write
from training import fit, member, recipe, synthetic, unseen
from training.dataset import CandlesError
from training.recipe import Recipe, RecipeError
from training.splits import Role

TINY = Recipe(
    name="tiny", hidden=16, members=2, direction_members=1, passes=2, batch=4, bptt=240, resample=(), horizons=(5, 15),
    signal_horizon={"1m": 15},
)  # fmt: skip
REFIT = msgspec.structs.replace(TINY, refit=True)


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("candles")
    runs = [synthetic.market(synthetic.PLANTED, 12_000, seed=seed) for seed in (1, 2)]
    return [write(folder / f"m{i}.parquet", run) for i, run in enumerate(runs)]


@pytest.fixture(scope="module")
def made(candles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> fit.Summary:
    return fit.train(candles, tmp_path_factory.mktemp("made") / "artifact", TINY)


def test_what_training_writes_may_be_used(made: fit.Summary, candles: list[Path]) -> None:
    loaded = artifacts.load(made.folder)
    manifest = loaded.manifest
    assert loaded.model_id == made.model_id
    assert manifest.parity is not None
    assert manifest.parity.candles >= 10_000
    assert [entry.name for entry in manifest.inputs] == ["m0.parquet", "m1.parquet"]
    assert manifest.sizes.members == 3  # two, and the direction of one of them
    assert manifest.recipe["passes"] == 2
    assert {"all", "m0 1m", "m1 1m"} == set(manifest.report["test"])
    assert sorted(p.name for p in made.folder.iterdir()) == ["manifest.json", "model.safetensors"]
    text = (made.folder / "manifest.json").read_text()
    assert str(candles[0].parent) not in text


def test_it_learns_what_is_planted(made: fit.Summary) -> None:
    test = made.report["test"]["all"]
    assert test["log_loss_skill_pct"]["value"] > 3
    assert test["variance_r2"]["value"] > 0.2


def test_same_recipe_candles_and_machine_give_the_same_hash(
    made: fit.Summary, candles: list[Path], tmp_path: Path
) -> None:
    again = fit.train(candles[::-1], tmp_path, TINY)
    assert again.model_id == made.model_id
    assert (tmp_path / "manifest.json").read_bytes() == (made.folder / "manifest.json").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == (made.folder / "model.safetensors").read_bytes()


def test_another_seed_gives_another_model(made: fit.Summary, candles: list[Path], tmp_path: Path) -> None:
    other = fit.train(candles, tmp_path, msgspec.structs.replace(TINY, seed=1))
    assert other.model_id != made.model_id


@pytest.fixture(scope="module")
def refitted(candles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> fit.Summary:
    return fit.train(candles, tmp_path_factory.mktemp("refitted") / "artifact", REFIT)


def test_a_refit_teaches_what_validated_and_keeps_the_calibration(made: fit.Summary, refitted: fit.Summary) -> None:
    assert refitted.artifact.manifest.calibration == made.artifact.manifest.calibration
    assert refitted.artifact.manifest.range == made.artifact.manifest.range
    assert not np.array_equal(refitted.artifact.weights.recurrent, made.artifact.weights.recurrent)
    for first, second in zip(made.report["folds"], refitted.report["folds"], strict=True):
        assert second == first | {"validate_from_ns": first["test_from_ns"]}
    for key in ("rows", "prior", "passes", "linear"):
        assert refitted.report[key] == made.report[key]
    assert refitted.report["test"]["all"]["rows"] == made.report["test"]["all"]["rows"]


def test_rows_of_a_refit_do_not_reach_over_the_cut(made: fit.Summary) -> None:
    run = synthetic.market(synthetic.PLANTED, 12_000, seed=1)
    first, again = (fit.epochs_of([run], TINY, refit=refit) for refit in (False, True))
    cut_ns = made.report["folds"][0]["test_from_ns"]
    reach = again.close_time_ns + max(TINY.horizons) * run.interval_ns
    assert reach[again.role == Role.TRAIN].max() == cut_ns
    assert not (again.role == Role.VALIDATE).any()
    assert (again.role == Role.TRAIN).sum() > (first.role == Role.TRAIN).sum() + (first.role == Role.VALIDATE).sum()


def test_rows_that_taught_in_a_refit_are_no_history_of_forecasts(
    made: fit.Summary, refitted: fit.Summary, candles: list[Path]
) -> None:
    roles = []
    for summary in (made, refitted):
        runs = unseen.runs_of(summary.artifact, candles)
        roles.append(unseen.epochs_of(summary.artifact, runs, since_ns=0).role)
    assert (roles[0] == Role.VALIDATE).any()
    assert not (roles[1] == Role.VALIDATE).any()
    np.testing.assert_array_equal(roles[0] == Role.TEST, roles[1] == Role.TEST)


@pytest.mark.parametrize(("refit", "stop_at", "fitted"), [(False, 2, [0, 1, 1]), (True, 4, [0, 1, 0, 1, 1])])
def test_a_run_that_was_broken_off_goes_on(
    refit: bool, stop_at: int, fitted: list[int], made: fit.Summary, refitted: fit.Summary, candles: list[Path],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seeds: list[int] = []

    def once(*args: object, seed: int, **rest: object) -> object:
        seeds.append(seed)
        if len(seeds) == stop_at:
            raise KeyboardInterrupt
        return member.fit_member(*args, seed=seed, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr("training.kept.fit_member", once)
    wanted = refitted if refit else made
    recipe = REFIT if refit else TINY
    with pytest.raises(KeyboardInterrupt):
        fit.train(candles, tmp_path, recipe)
    assert not (tmp_path / "manifest.json").exists()
    assert fit.train(candles, tmp_path, recipe).model_id == wanted.model_id
    assert (tmp_path / "model.safetensors").read_bytes() == (wanted.folder / "model.safetensors").read_bytes()
    assert seeds == fitted


def test_too_few_candles_are_refused(tmp_path: Path) -> None:
    short = write(tmp_path / "short.parquet", synthetic.market(synthetic.PLANTED, 1500, seed=0))
    with pytest.raises(CandlesError, match="in a row"):
        fit.train([short], tmp_path / "out", TINY)


def test_a_random_walk_teaches_no_direction(tmp_path: Path) -> None:
    walk = write(tmp_path / "walk.parquet", synthetic.market(synthetic.RANDOM_WALK, 20_000, seed=3))
    report = fit.train([walk], tmp_path / "out", TINY).report
    assert report["test"]["all"]["direction_skill_pct"]["value"] < 0.5


def test_a_device_that_is_not_there_is_refused(candles: list[Path], tmp_path: Path) -> None:
    assert fit.device_of("cpu") == torch.device("cpu")
    assert fit.device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(fit.DeviceError, match="abacus"):
        fit.train(candles, tmp_path / "out", TINY, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(fit.DeviceError, match="no CUDA"):
            fit.device_of("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_learns_what_is_planted_too(candles: list[Path], tmp_path: Path) -> None:
    report = fit.train(candles, tmp_path / "out", TINY, device="cuda").report
    assert report["test"]["all"]["log_loss_skill_pct"]["value"] > 3


def test_the_default_recipe_loads_and_a_wrong_one_names_its_key(tmp_path: Path) -> None:
    assert recipe.load(recipe.DEFAULT).eras
    for text, complaint in (
        ("pases = 3", "pases"),
        ("horizons = [15, 5]", "ascend"),
        ("signal_horizon = { 1m = 7 }", "7"),
        ("batch = 0", "batch"),
    ):
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(RecipeError, match=complaint):
            recipe.load(tmp_path / "r.toml")


def test_the_report_card_is_json_without_nan(made: fit.Summary) -> None:
    assert json.loads(json.dumps(made.report, allow_nan=False))["passes"] == [2, 2]
    assert np.isfinite(made.report["prior"]["1m"]["touch"])
