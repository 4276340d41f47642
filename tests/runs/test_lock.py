"""One writer: eight starters, one winner, losers out within two seconds; a killed holder's lock is free at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from metarec.errors import EnvironmentFault
from metarec.runs.lock import HOLDER, hold, wait_free

HOLD = """
import sys, time
from pathlib import Path
from metarec.errors import EnvironmentFault
from metarec.runs.lock import hold
started = time.monotonic()
try:
    with hold(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except EnvironmentFault as error:
    print(f"refused {time.monotonic() - started:.2f} {error}", flush=True)
    raise SystemExit(error.exit_code)
"""


def start(directory: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_eight_processes_one_lock(tmp_path: Path) -> None:
    processes = [start(tmp_path, 6) for _ in range(8)]
    out = [process.communicate(timeout=60)[0].strip() for process in processes]
    held = [process for process, text in zip(processes, out, strict=True) if text == "held"]
    assert len(held) == 1
    assert held[0].returncode == 0
    refused = [text for text in out if text.startswith("refused")]
    assert len(refused) == 7
    for text in refused:
        assert float(text.split()[1]) < 2.0
        assert f"{tmp_path}: held by pid {held[0].pid} since 20" in text
        assert "another process is writing this run" in text
    assert {process.returncode for process in processes} == {0, 5}
    assert not (tmp_path / HOLDER).exists()


def test_a_killed_holder_is_no_obstacle(tmp_path: Path) -> None:
    process = start(tmp_path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(EnvironmentFault, match=f"held by pid {process.pid}"), hold(tmp_path):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / HOLDER).exists()  # what the dead holder wrote does not count
    started = time.monotonic()
    with hold(tmp_path):
        assert time.monotonic() - started < 0.4


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold(tmp_path):
        raise RuntimeError
    with hold(tmp_path):
        pass
    with pytest.raises(EnvironmentFault, match="no run directory to lock"), hold(tmp_path / "missing"):
        pass
    assert not (tmp_path / "missing").exists()


def test_the_same_thread_may_hold_it_twice_and_another_may_not(tmp_path: Path) -> None:
    """The command takes it before it imports torch, the verb where it writes."""
    told: list[str] = []

    def other() -> None:
        try:
            with hold(tmp_path, timeout=0.05):
                told.append("held")
        except EnvironmentFault as error:
            told.append(str(error))

    with hold(tmp_path), hold(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / HOLDER).exists()
    assert not (tmp_path / HOLDER).exists()
    assert "another process is writing this run" in told[0]
    other()
    assert told[1] == "held"


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(self: object, **options: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(EnvironmentFault, match="no locks, so two writers could not be told apart"), hold(tmp_path):
        pass


def test_who_waits_for_an_orphan_waits_no_longer_than_it_lives(tmp_path: Path) -> None:
    """Held by another thread, as by another process: for a moment, and for longer than anybody waits."""
    for lives, waits in ((0.2, 10.0), (1.0, 0.1)):
        taken = threading.Event()

        def holder(lives: float = lives, taken: threading.Event = taken) -> None:
            with hold(tmp_path):
                taken.set()
                time.sleep(lives)

        thread = threading.Thread(target=holder)
        thread.start()
        assert taken.wait(60)
        began = time.monotonic()
        wait_free(tmp_path, waits)
        assert thread.is_alive() == (waits < lives)
        assert time.monotonic() - began < 9
        thread.join()
