"""history.jsonl: what a resume leaves equals what an uninterrupted run writes, byte for byte."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from metarec import durable
from metarec.errors import DataError, DivergedError, EnvironmentFault
from metarec.runs.history import History, read_history, truncate_after


def write(path: Path, first: int, last: int) -> None:
    with History(path) as history:
        for step in range(first, last + 1):
            history.append({"step": step, "kind": "train", "loss": 1 / step})
            if step % 5 == 0:
                history.append({"step": step, "kind": "val", "fewshot": {"ndcg@10": step / 100}})


def test_a_resumed_history_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    write(tmp_path / "whole.jsonl", 1, 20)
    write(tmp_path / "resumed.jsonl", 1, 13)  # a checkpoint at 10, then a kill that tears the last line
    with (tmp_path / "resumed.jsonl").open("ab") as file:
        file.write(b'{"step": 14, "ki')
    assert truncate_after(tmp_path / "resumed.jsonl", 10) == 3
    write(tmp_path / "resumed.jsonl", 11, 20)
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert truncate_after(tmp_path / "whole.jsonl", 20) == 0
    assert truncate_after(tmp_path / "none.jsonl", 3) == 0
    assert not (tmp_path / "none.jsonl").exists()


def test_the_name_of_a_new_history_is_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints vouch for it: without its name none of them would count after a power cut."""
    seen: list[Path] = []
    monkeypatch.setattr(durable, "sync", seen.append)
    for _ in range(2):
        write(tmp_path / "h.jsonl", 1, 1)
        assert seen == [tmp_path]


def test_records_are_read_back_exactly(tmp_path: Path) -> None:
    with History(tmp_path / "h.jsonl") as history:
        history.append({"step": 1, "loss": 0.1 + 0.2})
        assert read_history(tmp_path / "h.jsonl") == [{"step": 1, "loss": 0.1 + 0.2}]  # seen before the end
    with (tmp_path / "h.jsonl").open("ab") as file:
        file.write(b'{"step"')
    assert len(read_history(tmp_path / "h.jsonl")) == 1


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    with History(path) as history:
        with pytest.raises(DivergedError, match=r"history\.jsonl: val\.mrr: nan"):
            history.append({"step": 1, "val": {"mrr": math.nan}})
        with pytest.raises(ValueError, match="int step"):
            history.append({"loss": 1.0})
    assert path.read_bytes() == b""
    path.write_bytes(b'{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"history\.jsonl: line 2"):
        truncate_after(path, 1)
    with pytest.raises(EnvironmentFault, match="ENOENT"):
        History(tmp_path / "no" / "history.jsonl")
    history = History(path)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(EnvironmentFault, match=r"history\.jsonl: ENOSPC"):
        history.sync()


def test_a_full_disk_is_one_fault_and_not_tried_again_on_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer would be written once more when the file is closed, and its error would hide the first one."""
    path = tmp_path / "history.jsonl"

    class Full:
        closed = False

        def __init__(self, real: BinaryIO) -> None:
            self.real = real

        def write(self, data: memoryview) -> int:
            self.real.write(data[:5])  # a nearly full disk takes a part
            raise OSError(28, "No space left on device")

        def fileno(self) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.real.close()

    def two_records() -> None:
        with History(path) as history:
            history.append({"step": 1, "kind": "train", "loss": 1.0})
            history._file = Full(history._file)  # type: ignore[assignment]
            history.append({"step": 2, "kind": "train", "loss": 1.0})

    with pytest.raises(EnvironmentFault, match=r"history\.jsonl: ENOSPC"):
        two_records()
    assert [record["step"] for record in read_history(path)] == [1]


def test_a_bare_nan_in_a_file_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n')
    with pytest.raises(DataError, match="line 1"):
        read_history(path)
