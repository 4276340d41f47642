"""The drivers of storage in the sizes of the suite, and that each of them sees what it is there to see."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
from reliability import (
    kill_anywhere,
    soak,
    storage_damage,
    storage_faults,
    storage_locks,
    storage_mutations,
    storage_signals,
    storage_tiny,
)
from reliability.__main__ import drivers
from reliability.kill_runs import METHODS
from reliability.soak import Sample

from metarec.errors import CheckpointError
from metarec.runs import checkpoint, lock, manifest

OURS = (kill_anywhere, soak, storage_damage, storage_faults, storage_locks, storage_mutations, storage_signals)


def test_every_driver_is_found() -> None:
    found = drivers()
    assert {module.NAME for module in OURS} <= found.keys()
    assert all(found[module.NAME].__name__ == module.__name__ for module in OURS)


@pytest.mark.parametrize("driver", [storage_faults, storage_mutations, storage_damage], ids=lambda module: module.NAME)
def test_promises_are_kept(driver: ModuleType, tmp_path: Path) -> None:
    result = driver.run(False, tmp_path)
    assert [one for one in result["figures"] if not one["kept"]] == []


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_any_instant(method: str, tmp_path: Path) -> None:
    """The quick size of the driver, a method at a time."""
    of_method = range(list(METHODS).index(method), kill_anywhere.QUICK, len(METHODS))
    done = kill_anywhere.measured(of_method, tmp_path, 1)
    assert len(done) == 5
    assert [one["wrong"] for one in done if one["wrong"]] == []
    assert sum(len(one["kills"]) for one in done) > 0


@pytest.mark.slow
@pytest.mark.parametrize("driver", [storage_locks, storage_signals, soak], ids=lambda module: module.NAME)
def test_promises_of_processes_are_kept(driver: ModuleType, tmp_path: Path) -> None:
    result = driver.run(False, tmp_path)
    assert [one for one in result["figures"] if not one["kept"]] == []


def test_a_lost_checkpoint_is_seen(tmp_path: Path) -> None:
    """The mutations that are seen by a failure only, each with a few of them; the others are in the quick driver."""
    base, whole = storage_faults.prepare(tmp_path)
    calls, _ = storage_faults.traced(base, whole)
    with storage_mutations.broken("the best one pruned"):
        found = [line for nth in (60, 100) for line in storage_faults.trial(base, whole, nth, "before")]
    assert any(line.startswith("lost: step ") for line in found)
    with storage_mutations.broken("an error of the disk that is not put in words"):
        nth = next(n for n, call in enumerate(calls) if call.startswith("write checkpoints/"))
        found = storage_faults.trial(base, whole, nth, "ENOSPC")
    assert any(line.startswith("not told in one line: OSError") for line in found)


def test_silent_damage_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "step-000001"
    checkpoint.save_checkpoint(tmp_path, file.name, {}, {"loss": 1.25})
    path = file / "state.json"
    target = storage_damage.Target(path, lambda: str(checkpoint.load_checkpoint(file) and ""), "checkpoint")
    data = path.read_bytes().replace(b"1.25", b"1.75")
    assert storage_damage.silent(target, data) is None
    with mock.patch.object(checkpoint, "read_verified", lambda path, expected: path.read_bytes()):
        assert storage_damage.silent(target, data) == "checkpoint: state.json: silent"
    with mock.patch.object(manifest, "damaged", lambda path, why: KeyError(why)):
        assert "not in one line: KeyError" in str(storage_damage.silent(target, data))


def test_a_pointer_in_the_place_of_the_other_is_seen(tmp_path: Path) -> None:
    """Found by the full driver: last.json copied onto best.json was whole, and named a checkpoint that is there."""
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, f"step-{step}", {}, {})
    checkpoint.point(tmp_path, "best", "step-1")
    checkpoint.point(tmp_path, "last", "step-2")
    (tmp_path / "best.json").write_bytes((tmp_path / "last.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"best\.json: damaged: it is the file of another pointer, last"):
        checkpoint.resolve(tmp_path)


@pytest.mark.parametrize("pointer", ["best", "last"])
def test_a_checkpoint_in_the_place_of_another_is_seen(pointer: str, tmp_path: Path) -> None:
    """Each file of it is what its manifest says; as the last one it ended the resume with a traceback, as the best one the
    run ended with the weights of another step."""
    base, whole = storage_faults.prepare(tmp_path)
    directory = base / "checkpoints"
    found = checkpoint.read_pointer(directory, pointer)
    assert found is not None
    target, other = directory / found["checkpoint"], checkpoint.list_checkpoints(directory)[0]
    assert other != target
    shutil.rmtree(target)
    shutil.copytree(other, target)
    told = storage_tiny.go(base)
    assert f"skipped step-000004: {target}: damaged: it is the checkpoint of another step, 0" in told
    assert storage_tiny.differences(base, whole) == []


def test_damage_is_damage() -> None:
    rng, data = random.Random(0), bytes(1000)
    for kind in storage_damage.KINDS:
        for other in (data, b"other"):
            assert storage_damage.damaged(data, other, kind, rng) != data


def samples(rss_mb: float = 0.0, files: int = 0, slower: float = 0.0, steps: int = 20_000) -> list[Sample]:
    """A run that takes so much memory, opens so many files and gets so much slower over its steps."""
    at, found = 0.0, []
    for step in range(0, steps, steps // 100):
        share = step / steps
        at += 1 + slower * share
        found.append(Sample(step, at, int(4e8 + rss_mb * 1e6 * share), 20 + int(files * share), 3))
    return found


def test_a_soak_sees_what_grows() -> None:
    def kept(**leak: float) -> list[bool]:
        return [one["kept"] for one in soak.judged(samples(**leak), 20_000, strict=True)]  # type: ignore[arg-type]

    assert kept() == [True] * 4
    assert kept(rss_mb=19) == [True] * 4  # 0.95 MB in 1,000 steps
    assert kept(rss_mb=21) == [False, True, True, True]
    assert kept(files=10) == [True, False, True, True]
    assert kept(slower=0.5) == [True, True, True, False]
    assert soak.slope(samples(rss_mb=40)) == pytest.approx(2.0, rel=0.01)
    assert np.median(soak.step_seconds(samples())) == pytest.approx(1 / 200)


def test_two_writers_are_seen(tmp_path: Path) -> None:
    """With no lock at all both would run; names of one second are as many as there are processes."""
    assert storage_locks.same_second(tmp_path, 20) == 20
    with lock.hold(tmp_path), lock.hold(tmp_path):  # the same thread, as the command and the verb do
        pass
