from pathlib import Path

import pytest
import torch

from training import kept
from training.member import Member

MEMBER = Member(
    {"lstm.weight": torch.rand(3, 2)}, {"lstm.weight": torch.rand(3, 2)},
    main_loss=0.1 + 0.2, direction_loss=1 / 3, main_pass=2, direction_pass=4, passes=5,
)  # fmt: skip


def test_a_kept_member_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    kept.save(MEMBER, tmp_path / "m.safetensors")
    found = kept.load(tmp_path / "m.safetensors")
    assert found is not None
    assert torch.equal(found.main["lstm.weight"], MEMBER.main["lstm.weight"])
    assert torch.equal(found.direction["lstm.weight"], MEMBER.direction["lstm.weight"])
    for name in ("main_loss", "direction_loss", "main_pass", "direction_pass", "passes"):
        assert getattr(found, name) == getattr(MEMBER, name)


def test_the_same_member_is_the_same_bytes(tmp_path: Path) -> None:
    for n in range(8):
        kept.save(MEMBER, tmp_path / f"{n}.safetensors")
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_a_member_that_was_not_written_whole_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("training.kept.save_file", broken_off)
    with pytest.raises(KeyboardInterrupt):
        kept.save(MEMBER, tmp_path / "m.safetensors")
    assert kept.load(tmp_path / "m.safetensors") is None
