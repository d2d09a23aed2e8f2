import dataclasses

import msgspec
import numpy as np
import pytest
import torch

from tests.training.test_fit import TINY
from training import dataset, fit, member, metrics, synthetic
from training.calibration import logistic
from training.member import Material
from training.model import DIRECTION, TOUCH, Network, Normaliser, Targets, head_losses, run
from training.splits import Role

NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def epochs() -> dataset.Epochs:
    return fit.epochs_of([synthetic.market(synthetic.PLANTED, 12_000, seed=5)], TINY)


@pytest.fixture(scope="module")
def material(epochs: dataset.Epochs) -> Material:
    return Material.of(epochs, Normaliser.fit(epochs.x[:, 256:].reshape(-1, epochs.x.shape[-1]), clip=6.0))


def test_training_and_validation_rows_do_not_mix(epochs: dataset.Epochs, material: Material) -> None:
    assert int(material.train.weight.sum()) == int(epochs.usable(Role.TRAIN).sum())
    assert int(material.validate.weight.sum()) == int(epochs.usable(Role.VALIDATE).sum())


def test_touch_and_direction_losses_add_up_to_the_three_class_loss(material: Material) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(*material.train.weight.shape, 3)
    sums, counts = head_losses(outputs, material.train)
    used = material.train.weight[..., 1].numpy() > 0
    touch, up = (logistic(outputs[..., 1, head].numpy()[used].astype(np.float64)) for head in (TOUCH, DIRECTION))
    touched, rose = (t[..., 1].numpy()[used] > 0 for t in (material.train.touched, material.train.up))
    expected = metrics.barrier_log_loss(touch, up, touched, rose).sum()
    assert float(sums[1, TOUCH] + sums[1, DIRECTION]) == pytest.approx(expected, rel=1e-5)
    assert counts[1, TOUCH] == used.sum()
    assert counts[1, DIRECTION] == touched.sum()


def test_it_starts_at_the_prior(material: Material) -> None:
    start = member.validation_losses(member._network(TINY, material), material)
    touched = float((material.train.touched * material.train.weight).sum() / material.train.weight.sum())
    held = float((material.validate.touched * material.validate.weight).sum() / material.validate.weight.sum())
    expected = -(held * np.log(touched) + (1 - held) * np.log(1 - touched))
    assert float(start[:, TOUCH].mean()) == pytest.approx(expected, abs=0.02)


def test_chunks_carry_the_state(material: Material) -> None:
    torch.manual_seed(1)
    network = Network(inputs=44, hidden=16, layers=1, horizons=2)
    torch.nn.init.normal_(network.heads.weight)
    lanes = torch.arange(3)
    x, targets = material.train_x[:, lanes], material.train.lanes(lanes)
    weights = torch.tensor([1.0, 0.0, 0.0])
    whole, parts = (
        [loss.item() for loss in member._chunks(network, x, targets, 256, length, weights)] for length in (720, 120)
    )
    assert (len(whole), len(parts)) == (1, 6)
    assert sum(parts) / 6 == pytest.approx(whole[0], rel=1e-5)  # equal rows a chunk, so means average


def test_a_mirrored_lane_has_the_other_direction(epochs: dataset.Epochs) -> None:
    run_ = synthetic.market(synthetic.PLANTED, 12_000, seed=5)
    turned = fit.epochs_of([dataset.mirrored(run_)], TINY)
    normaliser = Normaliser.fit(epochs.x[:, 256:].reshape(-1, epochs.x.shape[-1]), clip=6.0)
    material = Material.of(epochs, normaliser, turned)
    lanes = torch.arange(2)
    x, targets = member._lanes(material, lanes, torch.tensor([False, True]))
    plain, told = material.train_x[:, lanes], material.train.lanes(lanes)
    assert torch.equal(x[:, 0], plain[:, 0])
    assert not torch.equal(x[:, 1], plain[:, 1])
    assert torch.equal(targets.up[:, 0], told.up[:, 0])
    assert torch.equal(targets.up[:, 1], 1 - told.up[:, 1])
    assert isinstance(targets, Targets)


def test_mirroring_turns_moves_and_barriers_and_nothing_else(epochs: dataset.Epochs) -> None:
    run_ = synthetic.market(synthetic.PLANTED, 3000, seed=5)
    turned = dataset.mirrored(run_)
    assert (turned.low <= np.minimum(turned.open, turned.close)).all()
    np.testing.assert_allclose(np.diff(np.log(turned.close)), -np.diff(np.log(run_.close)), atol=1e-12)
    np.testing.assert_allclose(dataset.mirrored(turned).high, run_.high)
    both = [fit.epochs_of([r], TINY).labels for r in (run_, turned)]
    np.testing.assert_array_equal(both[0].side(), -both[1].side())


def test_each_seed_makes_the_same_member_twice(material: Material) -> None:
    recipe = msgspec.structs.replace(TINY, passes=1)
    first, second, other = (
        member.fit_member(recipe, material, seed=seed, after_step=lambda done, total: None) for seed in (3, 3, 4)
    )
    assert all(torch.equal(first.main[name], second.main[name]) for name in first.main)
    assert not torch.equal(first.main["heads.weight"], other.main["heads.weight"])


def test_a_second_fit_keeps_the_passes_of_the_first_and_looks_at_no_validation(material: Material) -> None:
    recipe = msgspec.structs.replace(TINY, passes=3, learning_rate=0.02)
    first = member.fit_member(recipe, material, seed=3, after_step=lambda done, total: None)
    unseen = dataclasses.replace(
        material, validate_x=material.validate_x[:, :0], validate=material.validate.lanes(NONE)
    )
    again = member.fit_member(recipe, unseen, seed=3, after_step=lambda done, total: None, like=first)
    assert all(torch.equal(first.main[name], again.main[name]) for name in first.main)
    assert all(torch.equal(first.direction[name], again.direction[name]) for name in first.direction)
    earlier = dataclasses.replace(first, main_pass=1, direction_pass=2)
    other = member.fit_member(recipe, unseen, seed=3, after_step=lambda done, total: None, like=earlier)
    assert other.passes == 2
    assert not torch.equal(other.main["heads.weight"], other.direction["heads.weight"])


def test_it_stops_when_validation_no_longer_gains(material: Material) -> None:
    recipe = msgspec.structs.replace(TINY, passes=40, patience=1, learning_rate=0.05, weight_decay=0.0)
    made = member.fit_member(recipe, material, seed=0, after_step=lambda done, total: None)
    assert made.passes < 40
    network = Network(inputs=44, hidden=16, layers=1, horizons=2)
    network.load_state_dict(made.main)
    losses = member.validation_losses(network, material)
    weighted = losses[:, 0] + recipe.variance_weight * losses[:, 2]
    assert float(weighted.mean()) == pytest.approx(made.main_loss, rel=1e-4)


def test_run_starts_every_epoch_from_zero(material: Material) -> None:
    torch.manual_seed(2)
    network = Network(inputs=44, hidden=16, layers=1, horizons=2)
    torch.nn.init.normal_(network.heads.weight)
    together = run(network, material.validate_x, warmup=256)
    alone = run(network, material.validate_x[:, 1:2], warmup=256)
    torch.testing.assert_close(together[:, 1:2], alone)
