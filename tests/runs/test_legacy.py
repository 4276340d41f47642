"""Legacy PyTorch files: flat and nested dicts of tensors come in, everything else is refused and nothing runs."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from metarec.errors import CheckpointError
from metarec.runs.legacy import read_legacy


def legacy_tensors() -> OrderedDict[str, torch.Tensor]:
    gru = torch.nn.GRU(4, 6)
    return OrderedDict({f"gru.{key}": value for key, value in gru.state_dict().items()})


@pytest.mark.parametrize("nest", [None, "model_state_dict", "state_dict"])
def test_flat_and_nested(tmp_path: Path, nest: str | None) -> None:
    tensors = legacy_tensors()
    torch.save(tensors if nest is None else {"epoch": 3, nest: tensors, "optimizer": {"lr": 1}}, tmp_path / "m.pth")
    found = read_legacy(tmp_path / "m.pth")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[key], tensors[key]) and not found[key].requires_grad for key in tensors)


class Runs:
    """Touches a file when it is unpacked by a loader that trusts its input."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_never_runs_code(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1), "x": Runs(tmp_path / "ran")}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth: .*not a file of plain tensors"):
        read_legacy(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "m.pth", weights_only=False)  # the planted fault: the test would notice
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "no dict of named tensors"),
        ({}, "no dict of named tensors"),
        ({"w": torch.zeros(1), "n": 3}, "n: int: not a dense tensor"),
        ({1: torch.zeros(1)}, "name must be text"),
        ({"w": torch.eye(3).to_sparse()}, "not a dense tensor"),
        ({"w": torch.zeros(1).expand(10**9)}, "a tensor larger than its file"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=words):
        read_legacy(tmp_path / "m.pth")


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.pth: missing"):
        read_legacy(tmp_path / "m.pth")
    (tmp_path / "m.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no PyTorch archive"):
        read_legacy(tmp_path / "m.pth")
    torch.save(legacy_tensors(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="no PyTorch archive"):
        read_legacy(tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_legacy(tmp_path)
    torch.save(legacy_tensors(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:500])
    with pytest.raises(CheckpointError, match="no PyTorch archive"):
        read_legacy(tmp_path / "cut.pth")


def test_a_compressed_entry_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    assert (tmp_path / "m.pth").stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="archive/data/0: a compressed entry"):
        read_legacy(tmp_path / "m.pth")
