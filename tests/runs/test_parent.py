"""A child ends with the one that started it: by the end of its standard input, or by another parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reliability.processes import Process, alive, fields, seconds_until_gone

from metarec.runs import parent

# says that it watches, then how it ends; DEAF does not
CHILD = """
import os, signal, sys, time
from metarec.runs import parent
parent.GRACE = 0.5
def end(number, frame):
    os.write(1, b"saved\\n")  # print may be in the middle of a line of its own
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "DEAF" in sys.argv else end)
parent.watch()
parent.watch_launcher("LAUNCHED" in sys.argv)
print("there", flush=True)
time.sleep(60)
"""
STARTER = """
import os, subprocess, sys, time
from metarec.runs import parent
how, child, out = sys.argv[1:4]
told = {parent.STDIN: "1"} if how == "stdin" else {parent.PID: str(os.getpid())}
words = [sys.executable, "-c", child, *sys.argv[4:]]
made = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=open(out, "w"), env=os.environ | told)
print(made.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "words", "said"),
    [
        ("stdin", [], ["there", "saved"]),
        ("stdin", ["DEAF"], ["there"]),
        ("pid", ["LAUNCHED"], ["there", "saved"]),
        ("pid", ["LAUNCHED", "DEAF"], ["there"]),
    ],
)
def test_kill_9_leaves_no_orphan(how: str, words: list[str], said: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, how, CHILD, str(out), *words], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    child: Process = (pid, (fields(pid) or [""] * 20)[19])
    try:
        for _ in range(3000):
            if out.read_text():
                break
            time.sleep(0.02)
        assert alive([child]) == [pid]
        starter.kill()
        starter.wait()
        assert seconds_until_gone([child], 5) is not None
    finally:
        if alive([child]):
            os.kill(pid, signal.SIGKILL)
    assert out.read_text().split() == said


def test_a_parent_that_was_gone_before_anybody_looked(tmp_path: Path) -> None:
    """The pipe is closed already, and the parent another one: both are seen at once."""
    for told, words in (({parent.STDIN: "1"}, []), ({parent.PID: "1"}, ["LAUNCHED"])):
        made = subprocess.run(
            [sys.executable, "-c", CHILD, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | told,
        )  # fmt: skip
        assert made.returncode == 143


def test_nobody_watches_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.delenv(parent.STDIN, raising=False)
    monkeypatch.setenv(parent.PID, str(os.getpid()))  # as the process that told it has it
    before = threading.active_count()
    parent.watch()
    parent.watch_launcher(True)
    monkeypatch.setenv(parent.PID, "1")
    parent.watch_launcher(False)
    assert threading.active_count() == before
