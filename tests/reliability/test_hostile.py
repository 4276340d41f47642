"""Hostile words, YAML files, checkpoints, runs and models: refused in a line, and nothing runs (`hostile_hook`)."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from reliability import hostile_files, hostile_files_drive, hostile_making, hostile_words, hostile_words_drive
from reliability.hostile_files import Hostile
from reliability.hostile_hook import watched
from reliability.hostile_words import Words

from metarec.config import overrides

FILES = [*hostile_files.LEGACY[::4], *hostile_files.CHECKPOINTS, *hostile_files.RUNS, *hostile_files.OTHERS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a small finished run, the cache that has its data); not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    return hostile_files_drive.finished(root, root / "cache"), root / "cache"


def test_there_are_many() -> None:
    assert len(hostile_words.ALL) >= 60
    assert len(hostile_files.ALL) >= 40


@pytest.mark.parametrize(
    "case", hostile_words.ALL, ids=[f"{n} {case.name}" for n, case in enumerate(hostile_words.ALL)]
)
def test_hostile_words(case: Words, tmp_path: Path) -> None:
    assert hostile_words_drive.wrong_with(case, tmp_path) == []


@pytest.mark.parametrize("case", FILES, ids=[case.name for case in FILES])
def test_a_hostile_file(case: Hostile, finished: tuple[Path, Path], tmp_path: Path) -> None:
    assert hostile_files_drive.wrong_with(case, *finished, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", hostile_files.LEGACY, ids=[case.name for case in hostile_files.LEGACY])
def test_every_hostile_legacy_file(case: Hostile, finished: tuple[Path, Path], tmp_path: Path) -> None:
    assert hostile_files_drive.wrong_with(case, *finished, tmp_path) == []


# --- the hook and the marker see what runs ------------------------------------------------------------------------------


def _module(folder: Path) -> None:
    (folder / "in" / "evil_module_of_a_test.py").write_text("x = 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "in")
        __import__("evil_module_of_a_test")


def _connect(folder: Path) -> None:
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda folder: os.system("true"), "os.system"),
        (lambda folder: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda folder: os.mkdir(folder / "out" / "x"), "os.mkdir"),
        (lambda folder: (folder / "out" / "x").write_text("x"), "open"),
        (lambda folder: pickle.loads(hostile_making.evil(folder / "in" / "x")), "pickle.find_class"),
        (lambda folder: os.environ.update(LD_OF_A_TEST="x"), "os.putenv"),
        (_connect, "socket.connect"),
        (_module, "new module"),
    ],
)
def test_the_hook_sees_what_runs(action: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    with watched(tmp_path / "in") as ran:
        action(tmp_path)
    os.environ.pop("LD_OF_A_TEST", None)
    assert any(said in line for line in ran), ran


def test_the_hook_lets_reading_and_writing_inside_pass(tmp_path: Path) -> None:
    with watched(tmp_path) as ran:
        (tmp_path / "x").write_text("1")
        assert (tmp_path / "x").read_text() == "1"
    assert ran == []


def test_without_the_check_of_files_a_callback_would_still_be_guarded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second lock: what Hydra composed is compared with metarec's own files alone."""
    monkeypatch.setattr(overrides, "check_directory", lambda root, groups: [])
    (case,) = [case for case in hostile_words.FILES if case.name == "a callback"]
    assert hostile_words_drive.wrong_with(case, tmp_path) == []


def test_without_both_locks_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The marker can be found: with the check of files and the guard gone, Hydra calls what a file names."""
    monkeypatch.setattr(overrides, "check_directory", lambda root, groups: [])
    monkeypatch.setattr("metarec.config.compose.guard", lambda *nodes: None)
    case = hostile_words.experiment(
        "a callback on a verb that fails early", f"GLOBAL\nhydra: {{callbacks: {{x: {hostile_words.MAKE}}}}}"
    )
    case = Words(case.name, (*case.words, "dataset=events", "dataset.path=/no/such.csv"), case.files)
    wrong = hostile_words_drive.wrong_with(case, tmp_path)
    assert any("the marker file is there" in line for line in wrong), wrong
