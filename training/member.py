"""Fit one member: truncated back-propagation over the stream, averaged weights, early stopping per head."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.dataset import Epochs
from training.model import DIRECTION, Network, Normaliser, State, Targets, head_losses, run
from training.recipe import Recipe
from training.splits import Role

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Material:
    """What members are fitted on: normalised epochs [W+E, N, F] and their targets, for training and validation."""

    train_x: Tensor
    mirrored_x: Tensor | None
    """The same epochs with prices turned upside down."""
    train: Targets
    validate_x: Tensor
    validate: Targets
    warmup: int

    def to(self, device: torch.device) -> "Material":
        """Move to a device."""
        mirrored = None if self.mirrored_x is None else self.mirrored_x.to(device)
        return Material(
            self.train_x.to(device), mirrored, self.train.to(device), self.validate_x.to(device),
            self.validate.to(device), self.warmup,
        )  # fmt: skip

    @classmethod
    def of(cls, epochs: Epochs, normaliser: Normaliser, mirrored: Epochs | None = None) -> "Material":
        """Normalise and sort epochs by what they are for; an epoch across a cut serves both sides with its own rows."""

        def normalised(x: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(normaliser.apply(x).swapaxes(0, 1)))

        parts = []
        for role in (Role.TRAIN, Role.VALIDATE):
            usable = epochs.usable(role)
            keep = usable.any(axis=(1, 2))
            parts.append((keep, normalised(epochs.x[keep]), Targets.of(epochs.labels.part(keep), usable[keep])))
        (teach, train_x, train), (_, validate_x, validate) = parts
        turned = None if mirrored is None else normalised(mirrored.x[teach])
        return cls(train_x, turned, train, validate_x, validate, epochs.warmup)


@dataclass(frozen=True, slots=True)
class Member:
    """Averaged weights at the pass that was best on validation, for the direction heads and for the others."""

    main: Weights
    direction: Weights
    main_loss: float
    direction_loss: float
    main_pass: int
    direction_pass: int
    passes: int


def fit_member(
    recipe: Recipe,
    material: Material,
    *,
    seed: int,
    after_step: Callable[[int, int], None],
    like: Member | None = None,
) -> Member:
    """Fit one network where the material lies.

    The same recipe, material, seed and machine give the same weights on the CPU; CUDA does not promise that.

    Args:
        recipe: sizes and pace.
        material: what teaches, and what tells when to stop.
        seed: of the start, the order of epochs and the dropout.
        after_step: is told about progress, (done, total).
        like: an earlier member; its passes are kept, at the same pace, and no validation rows are looked at.

    """
    device = material.train_x.device
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    network = _network(recipe, material).to(device)
    average = _Average(network, recipe.ema)
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    n = material.train_x.shape[1]
    steps = recipe.passes * math.ceil(n / recipe.batch) * math.ceil(recipe.epoch / recipe.bptt)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step / steps))
    weights = torch.tensor([1.0, recipe.direction_weight, recipe.variance_weight], device=device)
    best = _Best()
    done = 0
    for number in range(1, (recipe.passes if like is None else max(like.main_pass, like.direction_pass)) + 1):
        network.train()
        for lanes in _batches(order.permutation(n), recipe.batch):
            turn = torch.from_numpy(order.integers(0, 2, len(lanes)) > 0)
            x, targets = _lanes(material, torch.from_numpy(lanes).to(device), turn.to(device))
            for loss in _chunks(network, x, targets, material.warmup, recipe.bptt, weights):
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                average.fold(network)
                done += 1
                after_step(done, steps)
        if like is not None:
            best.take(average.network, like, number)
            continue
        best.offer(average.network, validation_losses(average.network, material), weights, number)
        if number - best.main_pass >= recipe.patience:
            break
    if like is not None:
        return dataclasses.replace(like, main=best.main, direction=best.direction, passes=number)
    return Member(
        best.main, best.direction, best.main_loss, best.direction_loss, best.main_pass, best.direction_pass, number
    )


def validation_losses(network: Network, material: Material) -> Tensor:
    """Return each head's mean loss on the validation rows, [K, 3]."""
    sums, counts = head_losses(run(network, material.validate_x, warmup=material.warmup), material.validate)
    return sums / counts.clamp(min=1.0)


class _Average:
    """Exponentially averaged weights; young averages forget faster, so that the random start does not linger."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self._decay = decay
        self._steps = 0

    @torch.no_grad()
    def fold(self, network: Network) -> None:
        self._steps += 1
        keep = min(self._decay, self._steps / (10.0 + self._steps))
        for mine, new in zip(self.network.parameters(), network.parameters(), strict=True):
            mine.lerp_(new, 1.0 - keep)


class _Best:
    """The best pass so far, separately for the direction heads and for all the others."""

    def __init__(self) -> None:
        self.main_loss = self.direction_loss = math.inf
        self.main: Weights = {}
        self.direction: Weights = {}
        self.main_pass = self.direction_pass = 0

    def offer(self, network: Network, losses: Tensor, weights: Tensor, number: int) -> None:
        direction = float(losses[:, DIRECTION].mean())
        main = float((losses * weights).sum(1).mean()) - float(weights[DIRECTION]) * direction
        if direction < self.direction_loss:
            self.direction_loss, self.direction, self.direction_pass = direction, _copy(network), number
        if main < self.main_loss:
            self.main_loss, self.main, self.main_pass = main, _copy(network), number

    def take(self, network: Network, like: Member, number: int) -> None:
        if number == like.main_pass:
            self.main = _copy(network)
        if number == like.direction_pass:
            self.direction = _copy(network)


def _copy(network: Network) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}


def _network(recipe: Recipe, material: Material) -> Network:
    network = Network(
        inputs=material.train_x.shape[-1], hidden=recipe.hidden, layers=recipe.layers,
        horizons=len(recipe.horizons), dropout=recipe.dropout,
    )  # fmt: skip
    w, on_touch = material.train.weight, material.train.weight * material.train.touched
    touch = (on_touch.sum((0, 1)) / w.sum((0, 1))).clamp(1e-3, 1 - 1e-3)
    up = ((on_touch * material.train.up).sum((0, 1)) / on_touch.sum((0, 1)).clamp(min=1.0)).clamp(1e-3, 1 - 1e-3)
    variance = (w * material.train.log_ratio).sum((0, 1)) / w.sum((0, 1))
    if material.mirrored_x is not None:
        up = torch.full_like(up, 0.5)
    start = torch.stack((torch.logit(touch), torch.logit(up), variance), -1)
    network.heads.bias.data.copy_(start.flatten())  # the prior: training begins at skill zero
    return network


def _pace(progress: float) -> float:
    """Rise over the first twentieth, then fall on a cosine to a twentieth."""
    return progress / 0.05 if progress < 0.05 else 0.05 + 0.475 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))


def _batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for begin in range(0, len(order), size):
        yield np.sort(order[begin : begin + size])


def _lanes(material: Material, lanes: Tensor, turn: Tensor) -> tuple[Tensor, Targets]:
    """Take some epochs, those in `turn` mirrored: up and down have no names of their own to learn by heart."""
    x, targets = material.train_x[:, lanes], material.train.lanes(lanes)
    if material.mirrored_x is None:
        return x, targets
    x = torch.where(turn[:, None], material.mirrored_x[:, lanes], x)
    up = torch.where(turn[:, None], 1.0 - targets.up, targets.up)
    return x, dataclasses.replace(targets, up=up)


def _chunks(
    network: Network, x: Tensor, targets: Targets, warmup: int, length: int, weights: Tensor
) -> Iterator[Tensor]:
    """Carry the state through epochs side by side; yield the loss of each chunk that counts."""
    state: State
    with torch.no_grad():
        _, state = network(x[:warmup])
    for begin in range(0, targets.weight.shape[0], length):
        part = targets.chunk(begin, begin + length)
        outputs, after = network(x[warmup + begin : warmup + begin + length], state)
        sums, counts = head_losses(outputs, part)
        yield ((sums / counts.clamp(min=1.0)) * weights).sum(1).mean()
        state = (after[0].detach(), after[1].detach())
