"""Every case of the corpus of bad files, ids, times, events, checkpoints and words: one clear line, and nothing left behind.

In full each is a process of its own, as it is typed; else all are met in this process, one in three of the logs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from reliability import hostile_files_drive
from reliability.inputs_config import LINES, STORED, Line, Stored
from reliability.inputs_data import LOGS, Log
from reliability.inputs_drive import faults

NAME = "bad_inputs"


def log(case: Log, folder: Path, *, apart: bool = False) -> list[str]:
    """What is wrong with how a bad log is met."""
    name = case.make(folder)
    path = name if name.startswith("/") else str(folder / name)
    words = ["prepare", f"dataset={case.dataset}", f"dataset.path={path}", *case.words]
    return faults([*words, *_places(folder)], folder, 3, case.parts, apart=apart)


def line(case: Line, folder: Path, *, apart: bool = False) -> list[str]:
    """What is wrong with how a bad command line is met."""
    return faults(case.words, folder, 2, case.parts, apart=apart, lines=case.lines)


def stored(case: Stored, run: Path, cache: Path, folder: Path, *, apart: bool = False) -> list[str]:
    """What is wrong with how a bad run is met; `cache` holds the prepared data of `run`."""
    copy = folder / "RUN"
    shutil.copytree(run, copy)
    case.change(copy)
    words = [word.replace("RUN", str(copy)) for word in case.words]
    words[1:1] = hostile_files_drive.tiny(words)  # ahead: what the case says counts
    words += hostile_files_drive.places(words, cache, folder)
    return faults(words, folder, case.code, case.parts, apart=apart, lines=0 if case.code == 2 else 1)


def _places(folder: Path) -> list[str]:
    return [f"cache_dir={folder / 'cache'}", f"output_dir={folder / 'outputs'}"]


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures of all cases; `out` keeps the run that is changed."""
    cache = out / "cache"
    finished = hostile_files_drive.finished(out / "run", cache)
    wrong: list[str] = []
    cases: list[Log | Line | Stored] = [*(LOGS if full else LOGS[::3]), *LINES, *STORED]
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if isinstance(case, Log):
                found = log(case, folder, apart=full)
            elif isinstance(case, Line):
                found = line(case, folder, apart=full)
            else:
                found = stored(case, finished, cache, folder, apart=full)
        if found:
            wrong.append(f"{case.name}: {'; '.join(found)}")
            print(wrong[-1], flush=True)
    asked = "exit code of its class, one line with a way out, no traceback, nothing left behind, under 5 s"
    return {
        "figures": [
            {"what": "bad inputs", "asked": asked, "measured": f"{len(cases) - len(wrong)} of {len(cases)}",
             "kept": not wrong, "first": wrong[:10]}
        ],
    }  # fmt: skip
