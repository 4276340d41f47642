"""A training run in a process of its own: its peak memory is its own, and what kills it kills nothing else.

It ends with the command that started it (`runs.parent`), and one that hangs holds up nobody who wants to stop: it is asked,
and killed PATIENCE seconds later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from metarec.config.compose import config_to_yaml
from metarec.config.schema import TrainConfig
from metarec.errors import EnvironmentFault, MetarecError, Stopped
from metarec.runs import parent, rundir
from metarec.runs.lock import wait_free

PATIENCE = 60.0  # seconds that a job may take to save and end once it was asked to
_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


class Failed(MetarecError):
    """The failure of a job, passed on with its exit code; `line`: the reason it gave."""

    def __init__(self, where: object, value: object, what: str, line: str, code: int) -> None:
        super().__init__(where, value, what, line)
        self.line, self.exit_code = line, code


def run_job(directory: Path, job: TrainConfig, overrides: Sequence[str], way_out: str, *, echo: bool) -> None:
    """Run (or carry on with) `job` in `directory`; its output lies there too, and with `echo` its progress is shown.

    Raises Stopped where the job was stopped by a signal (`way_out` says how to go on), Failed where it failed.
    """
    if not (directory / "config.yaml").exists():
        directory.mkdir(parents=True, exist_ok=True)
        rundir.write_run_card(directory, config_yaml=config_to_yaml(job), overrides=overrides)
    else:
        wait_free(directory, parent.GONE)
    with (directory / "output.log").open("a") as out, (directory / "errors.log").open("w+") as errors:
        process = _start(["train", f"resume={directory}"], out)
        assert process.stderr is not None
        assert process.stdin is not None
        with _lock:
            _running.add(process)
        try:
            for line in process.stderr:  # progress goes on to whoever watches, failures into the table
                errors.write(line)
                if echo and job.logger.console != "quiet":
                    sys.stderr.write(line)
            code = process.wait()
        except KeyboardInterrupt:  # the job has had the signal as well, and saves
            _wait(process)
            raise
        except BaseException:
            process.terminate()
            _wait(process)
            raise
        finally:
            process.stdin.close()
            with _lock:
                _running.discard(process)
        errors.seek(0)
        said = [line.removeprefix("error: ").strip() for line in errors if line.startswith("error: ")]
    if code in (130, 143):
        raise Stopped(signal.Signals(code - 128).name, directory.name, "stopped as asked", way_out, code - 128)
    if code < 0:
        reason = f"its process was ended by {ended_by(-code)}, see {directory / 'errors.log'}"
        raise Failed("job", directory.name, "failed", reason, EnvironmentFault.exit_code)
    if code:
        reason = said[-1] if said else f"exit code {code}, see {directory / 'errors.log'}"
        raise Failed("job", directory.name, "failed", reason, code)


def _start(words: Sequence[str], out: IO[str]) -> subprocess.Popen[str]:
    """`metarec WORDS...`, which ends with this process; what it prints goes to `out`, its stderr comes here."""
    return subprocess.Popen(
        [sys.executable, "-m", "metarec", *words], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE, text=True,
        env={**os.environ, parent.STDIN: "1"},
    )  # fmt: skip


def ended_by(number: int) -> str:
    """A signal that ended a process, by its name, with what it mostly means."""
    name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
    means = {"SIGKILL": "out of memory, or kill -9", "SIGSEGV": "a crash", "SIGBUS": "a crash", "SIGABRT": "a crash"}
    return f"{name} ({means[name]})" if name in means else name


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_jobs() -> None:
    """Ask every running job to save and end; they are waited for by whoever runs them, and killed where they hang."""
    with _lock:
        for process in _running:
            process.terminate()
            threading.Thread(target=_wait, args=(process,), daemon=True).start()
