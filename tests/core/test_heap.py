"""Freed arrays stay with the process when it says so, and go back when it says that; each in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from pathlib import Path
from metarec.core import heap

def resident():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024

if "keep" in sys.argv:
    assert heap.keep_freed()
before = resident()
held = [torch.ones(2**20) for _ in range(50)]  # 200 MB in arrays of 4
assert resident() - before > 190 * 2**20
del held
if "give" in sys.argv:
    heap.give_back()
print(resident() - before > 150 * 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize(("words", "kept"), [([], False), (["keep"], True), (["keep", "give"], False)], ids=str)
def test_freed_arrays_stay_or_go(words: list[str], kept: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(kept)
