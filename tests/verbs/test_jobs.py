"""A job's process: what ended it is told by name, and one that hangs is killed once its patience is over."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_runs import tiny

from metarec.config.overrides import check_words
from metarec.verbs import jobs


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """In place of runs, processes that sleep and do not hear SIGTERM; those that were started."""
    made: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    class Popen(real):  # type: ignore[type-arg,misc,valid-type]
        def __init__(self, command: list[str], **options: Any) -> None:
            job = "metarec" in command  # not git, which the run card asks
            deaf = {"preexec_fn": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)} if job else {}
            sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
            super().__init__(sleep if job else command, **options, **deaf)
            if job:
                made.append(self)

    monkeypatch.setattr(jobs.subprocess, "Popen", Popen)
    return made


def run(directory: Path) -> None:
    (job,) = check_words("train", tiny()).jobs
    jobs.run_job(directory, job.config, [], "go on", echo=False)  # type: ignore[arg-type]


def later(action: Any) -> None:
    """Do it once a job is running."""

    def body() -> None:
        while not jobs._running:
            time.sleep(0.01)
        action()

    threading.Thread(target=body, daemon=True).start()


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "SIGKILL (out of memory, or kill -9)"), (signal.SIGSEGV, "SIGSEGV (a crash)")],
)
def test_a_killed_job_is_told_by_its_signal(
    number: int, said: str, asleep: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    later(lambda: asleep[0].send_signal(number))
    with pytest.raises(jobs.Failed) as failed:
        run(tmp_path / "a")
    assert failed.value.exit_code == 5
    assert failed.value.line == f"its process was ended by {said}, see {tmp_path / 'a' / 'errors.log'}"


def test_a_hung_job_ends_with_its_patience(
    asleep: list[subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked, and killed when PATIENCE is over."""
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    later(jobs.stop_jobs)
    began = time.monotonic()
    with pytest.raises(jobs.Failed):
        run(tmp_path / "a")
    assert time.monotonic() - began < 30  # it would sleep for 60
    assert asleep[0].returncode == -signal.SIGKILL
    assert not jobs._running
