"""What a checkpoint says of the histories: the first bytes are compared, the rest is cut off."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from metarec.errors import CheckpointError
from metarec.runs import lines


def test_what_was_there_is_compared_and_what_came_later_is_not(tmp_path: Path) -> None:
    history, pretraining = tmp_path / "history.jsonl", tmp_path / "pretrain_history.jsonl"
    history.write_bytes(b'{"step": 1}\n')
    pretraining.write_bytes(b'{"step": 9}\n')
    stored = lines.measured(tmp_path)
    assert stored["history.jsonl"] == {"size": 12, "sha256": hashlib.sha256(b'{"step": 1}\n').hexdigest()}
    assert set(stored) == {"history.jsonl", "pretrain_history.jsonl"}
    history.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    (tmp_path / "events.jsonl").write_bytes(b'{"step": 2}\n')
    lines.check(tmp_path, stored)
    lines.cut(tmp_path, stored)
    assert history.read_bytes() == b'{"step": 1}\n'
    assert not (tmp_path / "events.jsonl").exists()  # of a later step
    assert pretraining.exists()


@pytest.mark.parametrize("damage", [b'{"step": 3}\n', b'{"step": 1}', b""])
def test_a_changed_or_shorter_file_is_named(damage: bytes, tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_bytes(b'{"step": 1}\n')
    stored = lines.measured(tmp_path)
    history.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"history\.jsonl: damaged: its first 12 bytes"):
        lines.check(tmp_path, stored)
    history.unlink()
    with pytest.raises(CheckpointError, match=r"history\.jsonl: missing"):
        lines.check(tmp_path, stored)
    lines.cut(tmp_path, {})  # nothing to cut is no fault
