"""The corpus of bad input, met in this process: exit code, one line, a way out, nothing left behind, quick.

Every case as a process of its own: `python -m tests.reliability bad_inputs`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability import hostile_files_drive, inputs_corpus
from reliability.inputs_config import LINES, STORED, Line, Stored
from reliability.inputs_data import LOGS, Log
from reliability.inputs_drive import faults


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a small finished run, the cache that has its data); not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    return hostile_files_drive.finished(root, root / "cache"), root / "cache"


def names(cases: list[Log] | list[Line] | list[Stored]) -> list[str]:
    return [case.name for case in cases]


def test_the_corpus_is_large_and_of_all_kinds() -> None:
    assert len(LOGS) + len(LINES) + len(STORED) >= 90
    assert {case.kind for case in LOGS} == {"files", "csv", "ids", "times", "events", "other files"}
    assert len({(case.kind, case.name) for case in LOGS}) == len(LOGS)


@pytest.mark.parametrize("case", LOGS[::3], ids=names(LOGS[::3]))
def test_a_bad_log(case: Log, tmp_path: Path) -> None:
    assert inputs_corpus.log(case, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", LOGS, ids=names(LOGS))
def test_every_bad_log(case: Log, tmp_path: Path) -> None:
    assert inputs_corpus.log(case, tmp_path) == []


@pytest.mark.parametrize("case", LINES, ids=names(LINES))
def test_a_bad_command_line(case: Line, tmp_path: Path) -> None:
    assert inputs_corpus.line(case, tmp_path) == []


@pytest.mark.parametrize("case", STORED, ids=names(STORED))
def test_a_bad_run(case: Stored, finished: tuple[Path, Path], tmp_path: Path) -> None:
    assert inputs_corpus.stored(case, *finished, tmp_path) == []


def test_a_case_that_is_not_refused_is_seen(tmp_path: Path) -> None:
    """The judge can fail: exit code, missing words and what is left behind are told."""
    (tmp_path / "outputs").mkdir()
    wrong = faults(["train", "train.stesp=5"], tmp_path, 3, ("no such words",))
    assert any("exit code 2, not 3" in line for line in wrong)
    assert any("'no such words' is not said" in line for line in wrong)
    wrong = faults(["--version"], tmp_path, 0, ())
    assert any("0 lines of error" in line for line in wrong)
