"""Processes of a tree, told apart from later ones of the same number: what the drivers of workers look for orphans with."""

from __future__ import annotations

import time
from pathlib import Path

Process = tuple[int, str]  # (pid, when it was started)


def fields(pid: int) -> list[str] | None:
    """/proc/PID/stat behind the name: state, parent, ...; None of one that is gone or only waits to be collected."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if found[0] in "ZX" else found


def below(pid: int) -> list[Process]:
    """Every process below `pid`, not itself."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := fields(int(entry.name))):
            parents[int(entry.name)] = (int(found[1]), found[19])
    seen, look = list[Process](), [pid]
    while look:
        above = look.pop()
        for child, (parent, started) in parents.items():
            if parent == above:
                seen.append((child, started))
                look.append(child)
    return seen


def alive(processes: list[Process]) -> list[int]:
    """Those that are still there."""
    return [pid for pid, started in processes if (found := fields(pid)) and found[19] == started]


def seconds_until_gone(processes: list[Process], longest: float) -> float | None:
    """None where some are there after `longest` seconds."""
    began = time.monotonic()
    while alive(processes):
        if time.monotonic() - began > longest:
            return None
        time.sleep(0.02)
    return time.monotonic() - began
