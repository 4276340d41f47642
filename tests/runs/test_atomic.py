"""Atomic writes: every I/O call failed in turn, a kill at every call, and what a kill leaves behind."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from metarec import durable
from metarec.errors import DivergedError, EnvironmentFault
from metarec.runs import atomic

CALLS = ("open", "write", "fsync", "replace")


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test may run to its end, so nothing catches it."""


def fail_on(monkeypatch: pytest.MonkeyPatch, call: str, nth: int, error: BaseException) -> None:
    """Let the nth ``os.<call>`` raise ``error``, before it does anything."""
    real: Callable[..., object] = getattr(os, call)
    count = 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == nth:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    atomic.write_text(path, "n\u00e9w")
    assert path.read_bytes() == "n\u00e9w".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("code", "fix"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "grant the permission"), (errno.EIO, "hardware")],
)
def test_a_failing_call_names_the_path_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, fix: str
) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    with monkeypatch.context() as patch:
        fail_on(patch, call, 1, OSError(code, os.strerror(code)))
        with pytest.raises(EnvironmentFault) as caught:
            atomic.write_text(path, "new")
    line = str(caught.value)
    assert line.startswith(f"{path}: {errno.errorcode[code]}: {os.strerror(code)} -- ")
    assert fix in line
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_keeps_the_old_file_and_its_leftover_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    with monkeypatch.context() as patch:
        fail_on(patch, call, 1, Killed())
        with pytest.raises(Killed):
            atomic.write_text(path, "new")
    assert path.read_text() == "old"
    atomic.clean_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_partial_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data)[:3]))
    atomic.write_bytes(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_json_is_never_nan_and_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(DivergedError, match=r"metrics\.json: metrics\.fewshot\.mrr: nan"):
        atomic.write_json(path, {"metrics": {"fewshot": {"mrr": math.nan}}})
    assert not path.exists()
    atomic.write_json(path, {"b": 0.1 + 0.2, "a": "\u00fc"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 0.1 + 0.2, "a": "\u00fc"}


def test_leftovers_of_both_kinds(tmp_path: Path) -> None:
    kept = tmp_path / "step-000001"
    (durable.temporary(kept, "old") / "x").mkdir(parents=True)  # the only copy: put back
    (durable.temporary(tmp_path / "step-000002", "new")).mkdir()
    (tmp_path / ".other.tmp").write_text("not ours")
    lines = atomic.clean_leftovers(tmp_path)
    assert len(lines) == 2
    assert any("put back" in line for line in lines)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".other.tmp", "step-000001"]
    assert atomic.clean_leftovers(tmp_path / "missing") == []
