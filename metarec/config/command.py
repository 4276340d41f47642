"""A sweep is known by its command: the same one given again goes on with what it has left.

    SWEEP/command.json        the words as typed, from where, a digest of what each job comes to, and the number of starts
    SWEEP/.running-<job>      while a job runs; of one whose process was killed it stays behind

The same command is the same words in the same order from the same directory, and jobs of the same configuration: a YAML
file, a default or METAREC_DATA that changed meanwhile makes it another one. A log that changed under its name is not seen.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metarec.config.arguments import Arguments
from metarec.config.overrides import Checked
from metarec.config.sweep import RECORD, Record, read_record, recorded, write_json, write_record
from metarec.contained import parse_json
from metarec.durable import replace_file
from metarec.errors import CheckpointError, EnvironmentFault
from metarec.runs import parent
from metarec.runs.lock import wait_free
from metarec.runs.manifest import read_sealed, sealed_bytes

FILE, KIND, FORMAT = "command.json", "metarec-sweep", 1
RUNNING = ".running-"
SEALED = ("train", "compare")  # verbs whose runs go on from where they were, and end with a manifest


@dataclass(frozen=True)
class Command:
    """What tells one sweep from another, `asked`; and of one that has begun, words `added` to each job and its starts."""

    asked: dict[str, Any]
    added: tuple[str, ...] = ()
    starts: int = 0

    def write(self, directory: Path) -> None:
        """Put it into the directory of the sweep."""
        content = {"kind": KIND, "format": FORMAT, **asdict(self)}
        replace_file(directory / FILE, sealed_bytes(content, str(directory / FILE)))

    @classmethod
    def read(cls, directory: Path) -> Command:
        """That of a sweep; CheckpointError where it is missing or damaged."""
        found = read_sealed(directory / FILE, kind=KIND, version=FORMAT)
        return cls(found["asked"], tuple(found["added"]), int(found["starts"]))

    def begin(self, directory: Path) -> Command:
        """Written down as started once more, with nothing running."""
        for left in directory.glob(f"{RUNNING}*"):
            left.unlink()
        begun = replace(self, starts=self.starts + 1)
        begun.write(directory)
        return begun


def asked(verb: str, args: Arguments, checked: Checked) -> dict[str, Any]:
    """What the same command has in common."""
    jobs = [[list(job.overrides), asdict(job.config)] for job in checked.jobs]
    digest = hashlib.sha256(json.dumps(jobs, sort_keys=True, default=str).encode()).hexdigest()
    return {"verb": verb, "words": [*args.flags, *checked.words], "from": str(Path.cwd()), "jobs_sha256": digest}


def earlier(output_dir: Path, wanted: dict[str, Any]) -> tuple[Path, Command] | None:
    """The newest sweep of the same command, None where there is none; a damaged card is told and passed over."""
    for path in sorted((output_dir / wanted["verb"]).glob(f"*/{FILE}"), reverse=True):
        try:
            found = Command.read(path.parent)
        except CheckpointError as error:
            print(f"note: {error}; what it began is not gone on with", file=sys.stderr, flush=True)
            continue
        if found.asked == wanted:
            return path.parent, found
    return None


def done(verb: str, directory: Path, words: Sequence[str]) -> Record | None:
    """The record of a job that has nothing left to do, None where it has."""
    record = read_record(directory)
    whole = verb not in SEALED or (directory / "manifest.json").is_file()
    return record if record and record.status == "ok" and record.overrides == list(words) and whole else None


def tried(directory: Path, start: int) -> bool:
    """Whether a job has failed since the command was given for the `start`-th time."""
    record = read_record(directory)
    return record is not None and record.status == "failed" and record.start == start


@contextmanager
def running(sweep: Path, record: Record) -> Iterator[None]:
    """Inside the block the job is known as running; a record of an earlier attempt is gone."""
    marker, directory = sweep / f"{RUNNING}{record.number}", Path(str(record.directory))
    write_json(marker, asdict(record))
    (directory / RECORD).unlink(missing_ok=True)
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


@dataclass(frozen=True)
class Place:
    """Where a job is: its sweep's directory, its own, its number."""

    sweep: Path
    run: Path
    number: int


def job(
    verb: str, words: list[str], at: Place, begin: Callable[[], dict[str, Any]], go_on: Callable[[], dict[str, Any]]
) -> int:
    """One job of a sweep, or what is left of it; its exit code. Only a signal ends more than the job."""
    start = Command.read(at.sweep).starts
    if done(verb, at.run, words):
        return 0
    if tried(at.run, start):  # begun again behind a killed worker; the summary has its code
        return EnvironmentFault.exit_code

    def rest() -> dict[str, Any]:
        if verb not in SEALED or not (at.run / "config.yaml").is_file():
            return begin()
        wait_free(at.run, parent.GONE)
        (at.run / "manifest.json").unlink(missing_ok=True)  # killed before its record: it is measured again
        return go_on()

    with running(at.sweep, Record(at.number, words, "interrupted", directory=str(at.run), start=start)):
        return recorded(at.number, words, at.run, rest, start)


def left(sweep: Path, status: str, exit_code: int, reason: str) -> int:
    """Records of the jobs that were running when their processes ended, and how many there are."""
    found = sorted(sweep.glob(f"{RUNNING}*"))
    for marker in found:
        record = Record(**parse_json(marker.read_text(encoding="utf-8")))
        directory = Path(str(record.directory))
        if read_record(directory) is None and directory.is_dir():
            write_record(directory, replace(record, status=status, exit_code=exit_code, error=reason))
        marker.unlink()
    return len(found)


def worker_killed(sweep: Path, trouble: BaseException) -> bool:
    """Whether `trouble` is that a launcher's worker was killed; the jobs that ran then are recorded as failed.

    One worker takes the others with it, and nobody says whose it was. False where no job was running: then it would
    happen again.
    """
    from concurrent.futures.process import BrokenProcessPool

    if not isinstance(trouble, BrokenProcessPool):
        return False
    name = next((name for name in ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGTERM") if name in str(trouble)), None)
    how = f"ended by {name}" if name else "ended"
    reason = f"error: a worker process of the sweep was {how} while this job ran (out of memory, mostly)"
    return left(sweep, "failed", EnvironmentFault.exit_code, reason) > 0
