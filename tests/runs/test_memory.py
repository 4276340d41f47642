"""Peak memory of a part of a run sees what that part allocates, and not what was freed before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metarec.runs.memory import Peak

SIZE = 200 * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system cannot reset its high-water mark")
def test_growth_is_what_is_allocated_since() -> None:
    torch.ones(SIZE // 4).sum()  # before: not to be seen
    quiet = Peak(torch.device("cpu"))
    assert quiet.growth is not None
    assert quiet.growth < SIZE / 4
    busy = Peak(torch.device("cpu"))
    torch.ones(SIZE // 4).sum()
    assert busy.growth is not None
    assert 0.9 * SIZE < busy.growth < 1.3 * SIZE
    assert busy.bytes >= busy.growth
