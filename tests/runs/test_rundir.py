"""Run directories: exclusive, described, sealed; nothing about the host beyond what moves numbers."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from metarec.errors import CheckpointError, EnvironmentFault
from metarec.runs import rundir
from metarec.runs.environment import capture
from metarec.runs.rundir import create_run_dir, fresh_run_dir, seal, verify, write_run_card


def test_a_run_directory_is_never_shared(tmp_path: Path) -> None:
    create_run_dir(tmp_path / "a" / "b")
    with pytest.raises(EnvironmentFault, match="exists: a run never shares a directory"):
        create_run_dir(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=str(tmp_path / "file")):
        create_run_dir(tmp_path / "file" / "run")


def test_fifty_starts_in_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter([f"2026-01-01_00-00-00_{i // 2:06x}" for i in range(200)])  # every name is drawn twice
    monkeypatch.setattr(rundir, "fresh_name", lambda: next(names))
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: fresh_run_dir(tmp_path, "train"), range(50)))
    assert len(set(made)) == 50
    assert all(path.is_dir() for path in made)


def test_names_carry_time_and_chance() -> None:
    now = datetime(2026, 1, 31, 14, 5, 9)
    names = {rundir.fresh_name(now) for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith("2026-01-31_14-05-09_") for name in names)


def test_the_run_card_holds_what_moves_numbers_and_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    write_run_card(tmp_path, config_yaml="seed: 1\n", overrides=["seed=1"], command=["metarec", "train", "seed=1"])
    text = (tmp_path / "environment.json").read_text()
    found = json.loads(text)
    assert found["command"] == ["metarec", "train", "seed=1"]
    assert found["packages"]["torch"]
    assert found["cpus"]["usable"] >= 1
    assert found["python"].startswith("3.")
    assert "hunter2" not in text
    assert not platform.node() or platform.node() not in text
    assert json.loads((tmp_path / "overrides.json").read_text()) == ["seed=1"]
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"
    assert "user" not in found


def test_capture_outside_a_repository_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import json, sys; from metarec.runs.environment import capture\n"
        "import metarec.runs.rundir, metarec.runs.lock, metarec.runs.history\n"
        "print(json.dumps([capture(), 'torch' in sys.modules, 'duckdb' in sys.modules]))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PYTHONPATH": root}
    )
    found, torch_loaded, duckdb_loaded = json.loads(done.stdout)
    assert not torch_loaded
    assert not duckdb_loaded
    assert found["torch"] is None
    assert found["git"] is None
    assert "-c" in found["command"]


def test_the_commit_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "f").write_text("1")
    for arguments in (["init", "-q"], ["add", "f"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    first = capture()["git"]
    assert len(first["commit"]) == 40
    assert first["modified"] is False
    (tmp_path / "f").write_text("2")
    assert capture()["git"] == {"commit": first["commit"], "modified": True}


def test_a_seal_finds_every_change(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the run did not finish"):
        verify(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for name in ("metrics.json", "checkpoints/x", "train.log", ".lock"):
        (tmp_path / name).write_text("content")
    seal(tmp_path)
    (tmp_path / "train.log").write_text("written to later")
    assert verify(tmp_path) == []
    (tmp_path / "notes.txt").write_text("mine")
    assert verify(tmp_path) == ["notes.txt"]
    (tmp_path / "checkpoints" / "x").write_text("Content")
    with pytest.raises(CheckpointError, match="checkpoints/x: damaged: size or SHA-256"):
        verify(tmp_path)
    (tmp_path / "checkpoints" / "x").unlink()
    with pytest.raises(CheckpointError, match="checkpoints/x: damaged: the file is missing"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text().replace("metrics", "metrixs"))
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        verify(tmp_path)
