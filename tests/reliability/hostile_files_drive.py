"""Drives `hostile_files`: a copy of a finished run is changed, and the command that meets it runs under the audit hook."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from reference.tiny_runs import MEASURE, MODEL, OUTER, PRETRAIN, SHOWN, WORLD, Work
from reliability.hostile_files import Hostile
from reliability.hostile_hook import watched
from reliability.inputs_drive import run_apart, run_here

SECONDS = 20.0  # some of these start a process that imports torch, and the machine may be busy


def finished(root: Path, cache: Path) -> Path:
    """A small finished run: FOMAML over a residual."""
    return Work(root, cache).train()


def wrong_with(case: Hostile, run: Path, cache: Path, folder: Path, *, apart: bool = False) -> list[str]:
    """What is wrong with how a hostile file is met; none where it is refused in one line and nothing ran."""
    outside, mark, work = folder / "outside", folder / "MARK", folder / "work"
    for place in (outside, work):
        place.mkdir()
    secret = outside / "secret.yaml"
    secret.write_text("secret: 1\n")
    copy = folder / "run"
    shutil.copytree(run, copy)
    words = case.make(copy, folder)
    full = [*words, *tiny(words), *places(words, cache, work)]
    before, here = _files(folder, work), Path.cwd()
    os.chdir(work)
    try:
        with watched(work, cache, copy, folder / "search") as ran:
            code, err = (run_apart if apart else run_here)(full)
    finally:
        os.chdir(here)
    wrong = [] if code in case.codes else [f"exit code {code}, none of {case.codes}"]
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    if "Traceback" in err:
        wrong.append("a traceback")
    if not told or any(" -- " not in line for line in told):
        wrong.append("no line with a way out")
    wrong += [f"{part!r} is not said" for part in case.parts if part not in err]
    wrong += [f"ran: {what}" for what in ran if not apart]
    if mark.exists():
        wrong.append("the marker file is there")
    if secret.read_text() != "secret: 1\n":
        wrong.append("a file outside was written to")
    wrong += [f"left behind: {name}" for name in sorted(_files(folder, work) - before)[:3]]
    return [f"{what}   [{err.strip()[-700:]}]" for what in wrong]


def tiny(words: Sequence[str]) -> list[str]:
    """Options that make a training command small, where it trains."""
    if words[0] != "train" or any(word.startswith(("resume=", "dataset=")) for word in words):
        return []
    if "model=causal_lm" in words:
        return [*WORLD, *PRETRAIN, *OUTER, *MEASURE, *SHOWN]
    method = () if any(word.startswith("algorithm=") for word in words) else ("algorithm=fomaml", "residual=on")
    pretrain = () if any(word.startswith("warm_start=") for word in words) else PRETRAIN
    return [*method, *WORLD, *MODEL, *pretrain, *OUTER, *MEASURE, *SHOWN]


def places(words: Sequence[str], cache: Path, work: Path) -> list[str]:
    """Where a command keeps its cache and its output, where it takes such words."""
    if any(word.startswith("resume=") for word in words):
        return []
    own = [] if words[0] in ("report", "compare") else [f"cache_dir={cache}"]
    return [*own, f"output_dir={work / 'outputs'}"]


def _files(folder: Path, work: Path) -> set[str]:
    """What a refused command may not leave: anything in the directory of its output, or outside."""
    found = [*(work / "outputs").rglob("*"), *(folder / "outside").rglob("*")]
    return {path.relative_to(folder).as_posix() for path in found if path.parent != work / "outputs"}
