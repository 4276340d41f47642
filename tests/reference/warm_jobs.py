"""The jobs of a comparison as processes of their own that cost no import: forked from `reference.warm_server`.

What a job is started with and how it is ended are those of the real thing, which `test_jobs` and the harness of reliability
start: the command's words, a standard input that ends with the parent, stderr as a pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import IO

import pytest
from reference.tiny_runs import forked

from metarec import cli
from metarec.runs import parent
from metarec.verbs import jobs


class Job:
    """What `subprocess.Popen` offers a comparison."""

    def __init__(self, words: Sequence[str], out: IO[str]) -> None:
        stdin, self_in = os.pipe()
        self_err, stderr = os.pipe()
        theirs = [Connection(stdin, writable=False)]
        theirs += [Connection(fd, readable=False) for fd in (os.dup(out.fileno()), stderr)]
        env = {**os.environ, parent.STDIN: "1"}
        self._process = forked(_run, list(words), os.getcwd(), env, *theirs)
        for one in theirs:
            one.close()
        self.stdin, self.stderr = os.fdopen(self_in, "w"), os.fdopen(self_err)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("job", timeout or 0.0)
        self.returncode = self._process.exitcode
        return self.returncode

    def send_signal(self, number: int) -> None:
        """A signal, where it still runs."""
        if self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@contextmanager
def warm() -> Iterator[None]:
    """Inside, jobs are started so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_start", Job)
        yield


def _run(words: list[str], cwd: str, env: dict[str, str], *streams: Connection) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, one in enumerate(streams):
        os.dup2(one.fileno(), number)
        one.close()
    code = cli.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
