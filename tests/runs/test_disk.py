"""The disk is asked before a run is: how many checkpoints a run will have, and what is said where there is no room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from metarec.errors import EnvironmentFault
from metarec.runs import disk


@pytest.mark.parametrize(
    ("steps", "done", "every", "periodic"), [(400, 0, 100, 5), (400, 250, 100, 2), (399, 0, 100, 4), (40, 0, 100, 1)]
)
def test_checkpoints_to_come(steps: int, done: int, every: int, periodic: int) -> None:
    """Counted by hand: steps 0, 100, 200, 300, 400; from 250 on 300 and 400."""
    counted = sum(step % every == 0 for step in range(done if done == 0 else done + 1, steps + 1))
    assert counted == periodic
    assert disk.checkpoints_bytes(1000, steps, done, every) == (periodic + 5) * (1000 + disk.STATE)


def test_no_room_is_one_line_and_room_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100 * disk.MIB))
    disk.refuse(tmp_path, 84 * disk.MIB, "or buy one")
    with pytest.raises(EnvironmentFault) as caught:
        disk.refuse(tmp_path, 84 * disk.MIB + 1, "or buy one")
    wanted = f"{tmp_path}: 100 MiB free: the run will write about 100 MiB there -- free some space, or buy one"
    assert str(caught.value) == wanted
    assert caught.value.exit_code == 5
