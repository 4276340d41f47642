"""Legacy PyTorch files: flat and nested dicts of tensors come in, everything else is refused and nothing runs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from metarec.errors import CheckpointError
from metarec.models.convert import from_state_dict
from metarec.runs import legacy
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


def test_entries_that_overlap_are_refused_before_the_child_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "_child", lambda *given: pytest.fail("the child was started"))
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("m/data/0", bytes(1000))
        for number in range(9):
            twin = zipfile.ZipInfo(f"m/data/{number + 1}")
            twin.file_size = twin.compress_size = 1000
            twin.header_offset = twin.CRC = 0
            archive.filelist.append(twin)
    with pytest.raises(CheckpointError, match="its entries overlap"):
        read_legacy(tmp_path / "m.pth")


def test_shapes_are_compared_before_a_number_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3, 4)}, tmp_path / "m.pth")
    seen = []

    def accept(found: dict[str, torch.Tensor]) -> None:
        seen.append({name: (value.shape, value.dtype, value.is_meta) for name, value in found.items()})
        from_state_dict(found, {"w": (4, 4)}, tmp_path / "m.pth", torch.float32)

    with pytest.raises(CheckpointError, match=r"w \[3, 4\]: .*\[4, 4\] is needed"):
        read_legacy(tmp_path / "m.pth", accept)
    assert seen == [{"w": (torch.Size([3, 4]), torch.float32, True)}]


CHILD = """
import os, sys, torch
import metarec.runs.legacy as legacy
load = torch.load
{planted}
handles = [os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)]
legacy._main(*handles, os.fstat(handles[0]).st_size)
print("went on", flush=True)
"""


def child(tmp_path: Path, planted: str) -> subprocess.CompletedProcess[str]:
    """The child with a line of its source changed, over m.pth."""
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(planted=planted), str(tmp_path / "m.pth"), str(tmp_path / "out")],
        input="go\n", capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(legacy.__file__).parents[2])},
    )  # fmt: skip


def test_a_loader_that_trusts_its_input_is_ended_by_the_hook(tmp_path: Path) -> None:
    """Planted: weights_only=False in the child. The hook is the second lock."""
    torch.save({"w": torch.zeros(1), "x": Runs(tmp_path / "ran")}, tmp_path / "m.pth")
    trusting = "torch.load = lambda *given, weights_only, **more: load(*given, weights_only=False, **more)"
    done = child(tmp_path, trusting)
    assert done.returncode == 3
    assert not (tmp_path / "ran").exists()
    done = child(tmp_path, f"{trusting}; legacy._watch = lambda *given: None")  # both locks gone: it runs
    assert (tmp_path / "ran").exists()


def test_a_child_that_takes_too_much_memory_is_stopped(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "m.pth")
    planted = "named = legacy._named; legacy._named = lambda found: (bytearray(2**31), named(found))[1]"
    done = child(tmp_path, planted)
    assert '"it asks for more memory than its size allows"' in done.stdout
