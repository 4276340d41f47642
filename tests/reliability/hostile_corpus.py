"""Hostile files, words and YAML: none of them runs code, imports a module, or has a file outside written to.

Each is met under an audit hook (`hostile_hook`), in this process: a hook sees nothing of another.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from reliability import hostile_files, hostile_files_drive, hostile_words, hostile_words_drive

NAME = "hostile"


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures of both tables; of the legacy files, which start a process each, one in four unless `full`."""
    cache = out / "cache"
    finished = hostile_files_drive.finished(out / "run", cache)
    legacy = hostile_files.LEGACY if full else hostile_files.LEGACY[::4]
    files = [*legacy, *hostile_files.CHECKPOINTS, *hostile_files.RUNS, *hostile_files.OTHERS]
    figures = []
    for name, cases in (
        ("hostile words and YAML files", hostile_words.ALL),
        ("hostile checkpoints, runs and models", files),
    ):  # fmt: skip
        wrong = []
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                if isinstance(case, hostile_words.Words):
                    found = hostile_words_drive.wrong_with(case, Path(folder))
                else:
                    found = hostile_files_drive.wrong_with(case, finished, cache, Path(folder))
            if found:
                wrong.append(f"{case.name}: {'; '.join(found)}")
                print(wrong[-1], flush=True)
        measured = f"{len(cases) - len(wrong)} of {len(cases)}"
        asked = "refused in lines with a way out; 0 executions, 0 foreign imports, 0 files written outside"
        figures.append({"what": name, "asked": asked, "measured": measured, "kept": not wrong, "first": wrong[:10]})
    return {"figures": figures}
