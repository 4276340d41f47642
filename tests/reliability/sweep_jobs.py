"""A sweep survives its jobs: of six two fail, four complete; killed or stopped, the same command runs what is missing.

Real processes. The two that fail start from a run that is not there yet; at the end it is, and only those two are run. What
a sweep that was killed or stopped has made at the end is bitwise what one that was left alone has made.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from reference.tiny_runs import Work, ended, metrics, same_bits, tensors, tiny, wait_for
from reliability.figures import figure, none_of, remembered

from metarec.config.sweep import read_record

NAME = "sweep_jobs"
WAIT = 500.0  # seconds for a sweep on a busy machine
BASIC: tuple[str, ...] = ()
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
OUTER = ("train.steps=20", "train.eval_every=4", "train.checkpoint_every=4", "train.patience=0")


def words(root: Path, launcher: tuple[str, ...]) -> list[str]:
    """Six jobs: three starts with two seeds; the third start is there later."""
    steps = [word for word in tiny(f"warm_start={root}") if not word.startswith("train.")]
    starts = f"warm_start={root / 'start'},{root / 'other'},{root / 'later'}"
    return ["-m", *launcher, *steps, *OUTER, "evaluation.panel=none", starts, "seed=1,2"]


def finished(sweep: Path) -> dict[str, int]:
    """Job -> when its figures were written, where its record says ok: one killed in between is measured again."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in sweep.glob("*/manifest.json")
        if (record := read_record(path.parent)) and record.status == "ok"
    }


def case(root: Path, launcher: tuple[str, ...], number: int | None) -> dict[str, Any]:
    """One sweep from its first start to the last; `number`: the signal that it gets on its way."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    work, wrong = Work(root, root.parent / "cache"), list[str]()
    for name in ("start", "other"):
        shutil.copytree(start_run(root.parent), root / name)
    command = work.words("train", *words(root, launcher))
    if number is not None:
        process = work.start(*command, daemon=False)
        wait_for(lambda: len(list(work.root.glob("outputs/train/*/*/manifest.json"))) >= 1
                 and any(_going(work.root)), process, WAIT)  # fmt: skip
        os.kill(process.pid or 0, number)
        code = ended(process, WAIT)
        if code not in (-number, 128 + number):
            wrong.append(f"after {signal.Signals(number).name} the sweep ended with {code}")
    before = finished(next(work.root.glob("outputs/train/*"))) if number is not None else {}
    process = work.start(*command, daemon=False)
    code = ended(process, WAIT)
    (sweep, *others) = work.directories("train")
    summary = json.loads((sweep / "sweep.json").read_text())
    failed = [job for job in summary["jobs"] if job["status"] == "failed"]
    if others or code != 4 or summary["counts"]["ok"] != 4 or len(failed) != 2:
        wrong.append(f"code {code}, {len(others)} other sweeps, {summary['counts']}")
    if not all("later" in job["error"] and job["exit_code"] == 4 for job in failed):
        wrong.append(f"reasons: {[job['error'] for job in failed]}")
    said = work.output(process)
    if any(f"job {job['number']}: {job['error']}" not in said for job in failed) or "4 of 6 jobs ok" not in said:
        wrong.append("the table does not tell the failures")
    if not before.items() <= finished(sweep).items():
        wrong.append("a finished job was run again")
    before = finished(sweep)
    shutil.copytree(root / "start", root / "later")
    code = ended(work.start(*command, daemon=False), WAIT)
    after = finished(sweep)
    if code != 0 or len(work.directories("train")) > 1 or len(after) != 6 or not before.items() <= after.items():
        wrong.append(f"with the cause mended: code {code}, {len(after)} of 6 done")
    return {"wrong": wrong, "kept": sorted(after)}


def _going(root: Path) -> list[Path]:
    """Runs with a checkpoint that are not finished."""
    found = root.glob("outputs/train/*/*/checkpoints/last.json")
    return [path.parent.parent for path in found if not (path.parent.parent / "manifest.json").exists()]


def start_run(out: Path) -> Path:
    """The run that jobs start from."""
    work = Work(out / "starts", out / "cache")
    if not work.directories("train"):
        work.root.mkdir(parents=True, exist_ok=True)
        work.train()
    return work.directories("train")[0]


CASES: dict[str, tuple[tuple[str, ...], int | None]] = {
    "killed": (BASIC, signal.SIGKILL),
    "left alone": (BASIC, None),
    "stopped": (BASIC, signal.SIGTERM),
    "joblib killed": (JOBLIB, signal.SIGKILL),
    "joblib stopped": (JOBLIB, signal.SIGTERM),
    "joblib left alone": (JOBLIB, None),
}  # a comma in a name would stand in the words of the jobs
QUICK = ("killed",)


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures; quick: one sweep, killed."""
    names = list(CASES) if full else list(QUICK)
    done = remembered(out / "cases.jsonl", names, lambda name: {"name": name, **case(out / name, *CASES[name])})
    wrong = [f"{one['name']}: {line}" for one in done for line in one["wrong"]]
    figures = [none_of("not as promised", wrong, len(done), "sweeps of six jobs, two of which fail")]
    if full:
        unequal, pairs = list[str](), 0
        for name in names:
            whole = "joblib left alone" if name.startswith("joblib") else "left alone"
            for job in done[names.index(name)]["kept"] if name != whole else ():
                pairs += 1
                ours, theirs = (_job(out / case, job) for case in (name, whole))
                unequal += [f"{name}, job {job}: {what}" for what in different(ours, theirs)]
        figures.append(none_of("not bitwise those of a sweep left alone", unequal, pairs, "jobs"))
    figures.append(figure("sweeps", len(names), len(done), len(done) == len(names)))
    return {"figures": figures}


def _job(root: Path, job: str) -> Path:
    """The job of that number; its name has a path of its case in it."""
    return next(root.glob(f"outputs/train/*/{job.partition('_')[0]}_*"))


def different(a: Path, b: Path) -> list[str]:
    """What of two jobs is not bitwise equal."""
    found = [name for name in ("best", "last") if not same_bits(tensors(a, name), tensors(b, name))]
    found += [
        name for name in ("history.jsonl", "per_user.parquet") if (a / name).read_bytes() != (b / name).read_bytes()
    ]
    return found + (["metrics"] if metrics(a)["metrics"] != metrics(b)["metrics"] else [])
