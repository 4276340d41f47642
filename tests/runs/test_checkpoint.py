"""Checkpoints: exact round trips, damage of every kind found, no failing call and no kill loses the last good one."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec.errors import CheckpointError, DivergedError, EnvironmentFault
from metarec.runs import atomic, checkpoint
from metarec.runs.checkpoint import (
    latest_good,
    list_checkpoints,
    load_checkpoint,
    point,
    prune,
    read_pointer,
    resolve,
    save_checkpoint,
    verify_checkpoint,
)
from metarec.runs.manifest import read_sealed, sealed_bytes

FILES = ("tensors.safetensors", "state.json", "manifest.json")


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "theta.weight": torch.randn(7, 5, generator=generator),
        "adam.step": torch.tensor(3, dtype=torch.int64),
        "adam.v": torch.rand(7, 5, generator=generator, dtype=torch.float64).t(),  # strides of a view
        "rng": generator.get_state(),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
    }


STATE: dict[str, Any] = {"step": 500, "best": 0.1 + 0.2, "none": None, "name": "gru4rec", "nested": {"lr": 1e-4}}


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {**some_tensors(), "shared.a": shared, "shared.b": shared, "slice": shared[2:4]}
    path = save_checkpoint(tmp_path, "step-000500", tensors, STATE)
    assert path == tmp_path / "step-000500"
    assert sorted(entry.name for entry in path.iterdir()) == sorted(FILES)
    loaded, state = load_checkpoint(path)
    assert state == STATE
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name
    loaded["shared.a"][0] = 9  # writable, and a tensor of its own
    assert loaded["shared.b"][0] == 0


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = some_tensors()
    one = save_checkpoint(tmp_path, "a", tensors, STATE)
    two = save_checkpoint(tmp_path, "b", dict(reversed(tensors.items())), STATE)
    assert (one / FILES[0]).read_bytes() == (two / FILES[0]).read_bytes()


def _flip(data: bytes, rng: random.Random) -> bytes:
    place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _zero(data: bytes, rng: random.Random) -> bytes:
    size = min(rng.choice([1, 16, 64]), len(data))
    start = rng.randrange(len(data) - size + 1)
    return data[:start] + bytes(size) + data[start + size :]


def _grow(data: bytes, rng: random.Random) -> bytes:
    return data + bytes([rng.randrange(256)])


def silent_damage(path: Path, load: Callable[[Path], object], tries: int) -> int:
    """How many of ``tries`` damaged copies load without CheckpointError."""
    rng = random.Random(0)
    silent = 0
    for _ in range(tries):
        file = path / rng.choice(FILES)
        data = file.read_bytes()
        bad = rng.choice([_flip, _flip, _truncate, _zero, _grow])(data, rng)
        if bad == data:
            bad = _flip(data, rng)  # a block that was zero already
        file.write_bytes(bad)
        try:
            load(path)
            silent += 1
        except CheckpointError as error:
            silent += str(path) not in str(error)  # an error that names no file does not count as one
        file.write_bytes(data)
    load(path)
    return silent


def test_damage_is_never_silent(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "step-000001", some_tensors(), STATE)
    assert silent_damage(path, load_checkpoint, 200) == 0
    assert silent_damage(path, verify_checkpoint, 50) == 0


def test_the_damage_check_catches_a_loader_without_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path, "step-000001", some_tensors(), STATE)
    monkeypatch.setattr(checkpoint, "read_verified", lambda path, expected: path.read_bytes())  # the planted fault
    assert silent_damage(path, load_checkpoint, 60) > 0


def test_a_missing_an_additional_and_a_swapped_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "step-000001", some_tensors(), STATE)
    other = save_checkpoint(tmp_path, "step-000002", some_tensors(1), STATE)
    for file in FILES:
        kept = (path / file).read_bytes()
        (path / file).unlink()
        with pytest.raises(CheckpointError, match=f"{file}: missing"):
            load_checkpoint(path)
        (path / file).write_bytes(kept)
    (path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"notes\.txt: additional file"):
        load_checkpoint(path)
    (path / "notes.txt").unlink()
    shutil.copy(other / FILES[0], path / FILES[0])
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors: damaged: its SHA-256"):
        load_checkpoint(path)


def test_links_and_fifos_are_refused_unread(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "step-000001", some_tensors(), STATE)
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")  # reading it would wait for ever
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(path)


def test_a_later_format_names_both_versions(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "step-000001", some_tensors(), STATE)
    manifest = path / "manifest.json"
    content = read_sealed(manifest, kind=checkpoint.KIND, version=checkpoint.FORMAT)
    manifest.write_bytes(sealed_bytes({**content, "format": 7}, "x"))
    with pytest.raises(CheckpointError, match=r"manifest\.json: format 7: this metarec reads formats up to 1"):
        load_checkpoint(path)


def test_a_well_sealed_file_of_nonsense_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "step-000001", some_tensors(), STATE)
    for file, data in (("tensors.safetensors", b"\xff" * 64), ("state.json", b"[" * 100_000), ("state.json", b"[]\n")):
        shutil.rmtree(path)
        save_checkpoint(tmp_path, "step-000001", some_tensors(), STATE)
        content = read_sealed(path / "manifest.json", kind=checkpoint.KIND, version=1)
        content["files"][file] = checkpoint.digest(data)
        (path / file).write_bytes(data)
        (path / "manifest.json").write_bytes(sealed_bytes(content, "x"))
        with pytest.raises(CheckpointError, match=f"{file}: damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, bad: float) -> None:
    with pytest.raises(DivergedError, match=r"theta\.weight: 1 of 3 entries"):
        save_checkpoint(tmp_path, "step-000001", {"theta.weight": torch.tensor([1.0, bad, 0])}, {})
    with pytest.raises(DivergedError, match=r"state\.json: best"):
        save_checkpoint(tmp_path, "step-000001", {}, {"best": bad})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "best.json", "a\nb"])
def test_names_stay_inside_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no name for a checkpoint"):
        save_checkpoint(tmp_path, name, {}, {})


# --- kills and full disks


def io_calls(tmp_path: Path) -> list[tuple[str, int]]:
    """Every (call, nth) that one save of a second checkpoint makes."""
    counts = dict.fromkeys(("open", "write", "fsync", "mkdir", "rename"), 0)
    tmp_path.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for call in counts:
            patch.setattr(os, call, _counted(counts, call, getattr(os, call)))
        save_checkpoint(tmp_path, "step-000009", some_tensors(9), STATE)
    return [(call, nth) for call, total in counts.items() for nth in range(1, total + 1)]


def _counted(counts: dict[str, int], call: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def counting(*args: Any, **kwargs: Any) -> Any:
        counts[call] += 1
        return real(*args, **kwargs)

    return counting


class Killed(BaseException):
    pass


def _failing(error: BaseException, nth: int, for_good: bool, real: Callable[..., Any]) -> Callable[..., Any]:
    count = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth or (for_good and count > nth):
            raise error
        return real(*args, **kwargs)

    return failing


def error_of(act: Callable[[], object]) -> BaseException | None:
    try:
        act()
    except BaseException as error:  # a kill is one
        return error
    return None


@pytest.mark.parametrize("how", ["kill", "ENOSPC once", "ENOSPC for good", "EIO"])
def test_no_failing_call_of_a_save_loses_the_last_good_one(tmp_path: Path, how: str) -> None:
    calls = io_calls(tmp_path / "count")
    assert len(calls) >= 15
    for call, nth in calls:
        directory = tmp_path / f"{call}-{nth}"
        save_checkpoint(directory, "step-000001", some_tensors(1), STATE)
        point(directory, "last", "step-000001")
        code = errno.EIO if how == "EIO" else errno.ENOSPC
        error = Killed() if how == "kill" else OSError(code, os.strerror(code))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, _failing(error, nth, how.endswith("good"), getattr(os, call)))
            raised = error_of(lambda: save_checkpoint(directory, "step-000002", some_tensors(2), STATE))  # noqa: B023
        if how == "kill":
            assert isinstance(raised, Killed)
        else:
            assert isinstance(raised, EnvironmentFault)
            assert str(directory / "step-000002") in str(raised)
        atomic.clean_leftovers(directory)
        found, skipped = latest_good(directory)
        assert found is not None
        assert skipped == []
        expected = some_tensors(1) if found.name == "step-000001" else some_tensors(2)
        assert torch.equal(load_checkpoint(found)[0]["theta.weight"], expected["theta.weight"])
        assert resolve(directory / "last.json") == directory / "step-000001"
        save_checkpoint(directory, "step-000002", some_tensors(2), STATE)  # and the next save works


@pytest.mark.parametrize("nth", [1, 2])
def test_a_kill_while_one_is_replaced(tmp_path: Path, nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, "step-000001", some_tensors(1), STATE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", _failing(Killed(), nth, False, os.rename))
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, "step-000001", some_tensors(2), STATE)
    atomic.clean_leftovers(tmp_path)
    loaded, _ = load_checkpoint(tmp_path / "step-000001")
    assert torch.equal(loaded["theta.weight"], some_tensors(1)["theta.weight"])
    save_checkpoint(tmp_path, "step-000001", some_tensors(2), STATE)
    assert torch.equal(load_checkpoint(tmp_path / "step-000001")[0]["half"], some_tensors(2)["half"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]


def test_sigkill_in_the_middle_of_saves(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from metarec.runs.checkpoint import *\n"
        "directory, step = Path(sys.argv[1]), 0\n"
        "while True:\n"
        "    step += 1\n"
        "    tensors = {'w': torch.full((200_000,), float(step))}\n"
        "    save_checkpoint(directory, f'step-{step:06d}', tensors, {'step': step})\n"
        "    point(directory, 'last', f'step-{step:06d}'); prune(directory, ())\n"
        "    print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = [int(process.stdout.readline()) for _ in range(8)][-1]
    process.kill()
    process.wait()
    atomic.clean_leftovers(tmp_path)
    found, skipped = latest_good(tmp_path)
    assert found is not None
    assert skipped == []
    tensors, state = load_checkpoint(found)
    assert state["step"] >= done
    assert bool((tensors["w"] == float(state["step"])).all())


# --- pointers, finding, pruning


def test_resolve_takes_a_run_a_checkpoints_directory_a_checkpoint_or_its_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    directory = run / "checkpoints"
    one = save_checkpoint(directory, "step-000001", some_tensors(1), STATE)
    two = save_checkpoint(directory, "step-000002", some_tensors(2), STATE)
    with pytest.raises(CheckpointError, match=r"no best checkpoint yet -- give another one, such as .*step-000002"):
        resolve(run)
    point(directory, "best", "step-000001", step=1, value=0.25)
    point(directory, "last", "step-000002")
    assert resolve(run) == resolve(directory) == resolve(one) == resolve(directory / "best.json") == one
    assert resolve(directory / "last.json") == resolve(two / "tensors.safetensors") == two
    assert read_pointer(directory, "best") == {"checkpoint": "step-000001", "fields": {"step": 1, "value": 0.25}}
    with pytest.raises(CheckpointError, match=r"rum: missing: no such run or checkpoint -- did you mean .*/run\?"):
        resolve(tmp_path / "rum")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        resolve(tmp_path / "empty")


def test_a_pointer_is_sealed_and_knows_its_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "step-000001", some_tensors(1), STATE)
    save_checkpoint(tmp_path, "step-000002", some_tensors(2), STATE)
    point(tmp_path, "best", "step-000001")
    good = (tmp_path / "best.json").read_bytes()
    (tmp_path / "best.json").write_bytes(good.replace(b"step-000001", b"step-000002"))  # a flipped bit or two
    with pytest.raises(CheckpointError, match=r"best\.json: damaged"):
        resolve(tmp_path)
    (tmp_path / "best.json").write_bytes(good)
    shutil.rmtree(tmp_path / "step-000001")
    with pytest.raises(CheckpointError, match="step-000001: the checkpoint it names is not there"):
        resolve(tmp_path)
    shutil.copytree(tmp_path / "step-000002", tmp_path / "step-000001")
    with pytest.raises(CheckpointError, match=r"not the checkpoint that best\.json was set to"):
        resolve(tmp_path)


def test_a_pointer_cannot_leave_its_directory(tmp_path: Path) -> None:
    content = {
        "kind": checkpoint.POINTER_KIND,
        "format": 1,
        "checkpoint": "../../etc",
        "manifest_sha256": "",
        "fields": {},
    }
    (tmp_path / "best.json").write_bytes(sealed_bytes(content, "x"))
    with pytest.raises(CheckpointError, match="no name for a checkpoint"):
        resolve(tmp_path)


def test_automatic_resume_takes_the_previous_good_one_and_says_so(tmp_path: Path) -> None:
    for step in (90, 100, 1000):
        save_checkpoint(tmp_path, f"step-{step}", some_tensors(step), {"step": step})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-90", "step-100", "step-1000"]
    assert latest_good(tmp_path) == (tmp_path / "step-1000", [])
    (tmp_path / "step-1000" / "state.json").write_text("{}")
    found, skipped = latest_good(tmp_path)
    assert found == tmp_path / "step-100"
    assert len(skipped) == 1
    assert "step-1000/state.json" in skipped[0]
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_checkpoint(tmp_path / "step-1000")  # an explicit one is refused
    assert latest_good(tmp_path / "nothing") == (None, [])


def test_prune_keeps_what_is_pointed_at(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, f"step-{step}", {}, {"step": step})
    point(tmp_path, "best", "step-2")
    point(tmp_path, "last", "step-5")
    assert prune(tmp_path, {"step-4"}) == ["step-1", "step-3"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "best.json",
        "last.json",
        "step-2",
        "step-4",
        "step-5",
    ]
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(CheckpointError):
        prune(tmp_path, ())
    assert (tmp_path / "step-4").is_dir()


def test_state_is_json_and_nothing_else(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, "a", {}, STATE)
    assert json.loads((path / "state.json").read_text()) == STATE
    with pytest.raises(TypeError, match="has no place in JSON"):
        save_checkpoint(tmp_path, "b", {}, {"x": object()})
