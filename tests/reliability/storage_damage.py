"""Flipped bits, truncations, zeroed blocks and swapped files in every file of a run and of the cache: none is silent.

One file at a time of a finished run, of a run that goes on, of prepared data, pretrained weights, tuned choices, teachers
and a trained tokenizer is damaged and then read by what the package reads it by. Counted as silent is a reader that says
nothing, and one whose error does not name the file. What a start writes anew and never reads (funnel.json of a run that
goes on, the empty files of locks) is left out.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference.tiny_runs import Work
from reliability.figures import figure, none_of

from metarec.data import tokens
from metarec.data.store import open_prepared
from metarec.errors import MetarecError
from metarec.runs import checkpoint, rundir
from metarec.runs.checkpoint import load_checkpoint
from metarec.runs.manifest import read_sealed
from metarec.runs.teachers import Teachers
from metarec.verbs import train as verb
from metarec.verbs import tuned

NAME = "damage"
WORDS = ("train.steps=12", "train.eval_every=4", "train.checkpoint_every=4", "train.patience=0",
         "evaluation.panel=[popularity,markov]")  # fmt: skip
TAUGHT = ("algorithm=generator", "residual=lora", "residual.rank=2", "schedule.warmup_steps=2", "algorithm.width=8",
          "algorithm.hidden=8", "algorithm.teacher.users=20", "algorithm.teacher.steps=1", "algorithm.teacher.lr=0.5",
          "algorithm.teacher.pairs=8", "algorithm.loss.delta_w=1", "algorithm.loss.task=0", "algorithm.fine_tune=0.5",
          "evaluation.panel=none")  # fmt: skip
KINDS = ("flip", "flip", "truncate", "zero", "swap")
TEXTS = [f"the user {number} watched item {number * 7} and then item {number * 3}" for number in range(60)]


@dataclass(frozen=True)
class Target:
    """A file, and what reads it: an error names the file, or the reader says which files it passed over."""

    path: Path
    read: Callable[[], str]  # what was said; raises MetarecError
    of: str


def _verified(run: Path) -> str:
    rundir.verify(run)
    return ""


def _going_on(run: Path) -> str:
    """As `verbs.train` does before a resume: the card, then the checkpoints from the newest on, and the pointers."""
    rundir.check_card(run)
    directory = run / "checkpoints"
    _, skipped = checkpoint.latest_good(directory, verb._usable)
    for path in checkpoint.list_checkpoints(directory):
        verb._usable(path) if not skipped else None
    if not skipped:
        for pointer in checkpoint.POINTERS:
            checkpoint.read_pointer(directory, pointer)
    return "\n".join(skipped)


def _read(what: Callable[[], object]) -> Callable[[], str]:
    def read() -> str:
        what()
        return ""

    return read


def _tokenizer(cache: Path) -> Callable[[], str]:
    def read() -> str:
        said: list[str] = []
        tokens.tokenizer("bpe:280", TEXTS, cache, said.append)
        return "\n".join(said)

    return read


def targets(root: Path) -> list[Target]:
    """Everything that a run leaves behind, made once."""
    work = Work(root / "work", root / "cache")
    work.root.mkdir()
    finished = work.train(*WORDS)
    taught = work.train(*TAUGHT, *WORDS[:4])
    going = root / "going"
    shutil.copytree(finished, going)
    for name in ("manifest.json", "metrics.json", "per_user.parquet", "funnel.json"):
        (going / name).unlink()
    tokens.tokenizer("bpe:280", TEXTS, work.cache, lambda line: None)
    found = []
    for run, read, of in ((finished, _verified, "finished run"), (taught, _verified, "finished run, taught"),
                          (going, _going_on, "run that goes on")):  # fmt: skip
        for path in sorted(run.rglob("*")):
            if path.is_file() and path.stat().st_size:
                found.append(Target(path, lambda run=run, read=read: read(run), of))  # type: ignore[misc]
    for path in sorted(work.cache.rglob("*")):
        if not path.is_file() or path.suffix == ".lock" or not path.stat().st_size:
            continue
        kind, name = path.relative_to(work.cache).parts[:2]
        whole = work.cache / kind / name
        if kind == "prepared":
            found.append(Target(path, _read(lambda whole=whole: open_prepared(whole)), kind))  # type: ignore[misc]
        elif kind == "pretrained":
            found.append(Target(path, _read(lambda whole=whole: load_checkpoint(whole)), kind))  # type: ignore[misc]
        elif kind == "teachers":
            found.append(Target(path, _read(lambda whole=whole: _all_of(whole)), kind))  # type: ignore[misc]
        elif kind == "tokenizers":
            found.append(Target(path, _tokenizer(work.cache), kind))
        else:
            sealed = _read(lambda path=path: read_sealed(path, kind=tuned.KIND, version=tuned.FORMAT))  # type: ignore[misc]
            found.append(Target(path, sealed, kind))
    return found


def _all_of(directory: Path) -> None:
    found = Teachers.open(directory)
    _ = found.start, found.users


def damaged(data: bytes, other: bytes, kind: str, rng: random.Random) -> bytes:
    """`data` with one thing wrong; never equal to it."""
    if kind == "swap" and other != data:
        return other
    if kind == "truncate":
        return data[: rng.randrange(len(data))]
    if kind == "zero":
        size = min(rng.choice((16, 512, 4096)), len(data))
        start = rng.randrange(len(data) - size + 1)
        found = data[:start] + bytes(size) + data[start + size :]
        if found != data:
            return found
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def silent(target: Target, data: bytes) -> str | None:
    """What is wrong with how the reader took `data` in place of the file; None where it named the file."""
    kept = target.path.read_bytes()
    target.path.write_bytes(data)
    try:
        said = target.read()
    except MetarecError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        return f"{target.of}: {target.path.name}: not in one line: {said}"
    finally:
        target.path.write_bytes(kept)
    if not said:
        return f"{target.of}: {target.path.name}: silent"
    return (
        None
        if str(target.path) in said or _stands_for(target.path, said)
        else f"{target.of}: {target.path.name}: {said}"
    )


def _stands_for(path: Path, said: str) -> bool:
    """A manifest or card that differs from what it lists names what it lists; so does a pointer its checkpoint."""
    return path.name in ("manifest.json", "card.json", "best.json", "last.json") and str(path.parent) in said


def run(full: bool, out: Path) -> dict[str, Any]:
    """1,000 damages, quick 150; every file at least once in full."""
    tries, rng = (1000 if full else 150), random.Random(0)
    with tempfile.TemporaryDirectory() as where:
        every = targets(Path(where))
        for target in {id(one.read): one for one in every}.values():
            assert not target.read(), f"{target.of}: not whole to begin with"
        order = [*every, *(rng.choice(every) for _ in range(max(tries - len(every), 0)))][:tries]
        if not full:
            order = [rng.choice(every) for _ in range(tries)]
        wrong, files = [], set()
        for number, target in enumerate(order):
            kind = KINDS[number % len(KINDS)]
            data, other = target.path.read_bytes(), rng.choice(every).path.read_bytes()
            if found := silent(target, damaged(data, other, kind, rng)):
                wrong.append(f"{found} [{kind}]")
            files.add(target.path)
        kinds = sorted({target.of for target in every})
        return {
            "figures": [
                none_of("damaged in " + ", ".join(sorted(set(KINDS))), wrong, len(order), "damages silent or not named"),
                figure("files", "every one" if full else "some", f"{len(files)} of {len(every)}: {', '.join(kinds)}",
                       not full or len(files) == len(every)),
            ]
        }  # fmt: skip
