"""Fit members one after the other and keep each on the disk, so that a run that was broken off goes on."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file

from training.member import Material, Member, fit_member
from training.recipe import Recipe

_FIGURES = ("main_loss", "direction_loss", "main_pass", "direction_pass", "passes")


def fit_members(
    recipe: Recipe, material: Material, folder: Path, identity: str, *, like: Sequence[Member] = (), progress: bool
) -> list[Member]:
    """Fit the recipe's members, or take those that lie in `folder` under `identity`.

    Args:
        recipe: sizes, pace, seed and number.
        material: what they are fitted on.
        folder: where they are kept; made if missing.
        identity: names everything that they depend on.
        like: the members of an earlier fit whose passes are kept again.
        progress: show a bar on the terminal.

    """
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    columns = (TextColumn("member {task.fields[member]} of {task.fields[of]}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("", total=None, member=0, of=recipe.members)
        for number in range(recipe.members):
            bar.reset(task, total=None, member=number + 1)
            file = folder / f"{identity}-{number}.safetensors"
            member = load(file)
            if member is None:
                member = fit_member(
                    recipe, material, seed=recipe.seed * 1000 + number, like=like[number] if like else None,
                    after_step=lambda done, total: bar.update(task, completed=done, total=total),
                )  # fmt: skip
                save(member, file)
            members.append(member)
    return members


def save(member: Member, file: Path) -> None:
    """Write a member, whole or not at all; the same member is the same bytes."""
    tensors = {f"main.{k}": v for k, v in member.main.items()} | {
        f"direction.{k}": v for k, v in member.direction.items()
    }
    figures = json.dumps({name: getattr(member, name) for name in _FIGURES})
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata={"figures": figures})  # one key, since safetensors keeps no order of several
    partial.replace(file)


def load(file: Path) -> Member | None:
    """Read a member; None where there is no such file."""
    if not file.exists():
        return None
    with safe_open(file, "pt") as stored:
        figures = json.loads(stored.metadata()["figures"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - it is no mapping
    main, direction = (
        {key.removeprefix(kind): value for key, value in tensors.items() if key.startswith(kind)}
        for kind in ("main.", "direction.")
    )
    return Member(main, direction, **figures)
