"""A disk without room refuses a run before it trains; failures of a disk anywhere are one line and exit code 5."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from reference.tiny_runs import Work, tensors, tiny

from metarec import cli
from metarec.runs import disk
from metarec.verbs import measure


@pytest.mark.parametrize("words", [(), ("algorithm=supervised",)], ids=["meta", "supervised"])
def test_a_run_without_room_is_refused_before_it_trains(
    words: tuple[str, ...], work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(work.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=disk.RESERVE))
    assert work.main("train", *tiny(*words), *words) == 5
    told = capsys.readouterr().err
    assert "error: " in told
    assert " MiB free: the run will write about " in told
    assert "set output_dir to another disk" in told
    assert work.directories("train") == []  # nothing half-written


def test_what_is_reckoned_covers_what_is_written(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is above the finished directory, and what it takes a checkpoint for is what its tensors are."""
    asked: list[int] = []
    real = disk.refuse
    monkeypatch.setattr(disk, "refuse", lambda where, needed, way: (asked.append(needed), real(where, needed, way)))
    run = work.train()
    written = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert asked[0] + disk.RESERVE > written
    held = sum(value.numel() * value.element_size() for value in tensors(run, "last").values())
    assert abs(asked[0] - 7 * (held + disk.STATE)) < 7 * 2000  # steps 0 and 4 are periodic; step counters


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_that_nobody_expected_is_no_bug(
    code: int, work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object) -> None:
        raise OSError(code, os.strerror(code), "some/file")

    monkeypatch.setattr(measure, "write_per_user", broken)
    assert work.main("train", *tiny()) == 5
    told = capsys.readouterr().err
    assert f"error: some/file: {errno.errorcode[code]}: {os.strerror(code)} -- " in told
    assert "Traceback" not in told
    (run,) = work.directories("train")
    monkeypatch.undo()
    assert cli.main(["train", f"resume={run}"]) == 0


def test_an_os_error_that_is_a_bug_keeps_its_traceback(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "write_per_user", lambda *args: Path("not/there").read_text())
    assert work.main("train", *tiny()) == 1
    assert "Traceback" in capsys.readouterr().err
