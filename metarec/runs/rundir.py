"""The directory of one run: made by one process only, described at the start, sealed at the end.

card.json          size and SHA-256 of the next three, and of itself; written first
overrides.json     what was typed                      environment.json   versions, machine, commit
config.yaml        the resolved configuration, last: where it is, the run can be carried on
manifest.json      size and SHA-256 of every file, at the end
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from metarec.contained import refuse_links
from metarec.durable import make_directory, sync
from metarec.errors import CheckpointError, EnvironmentFault
from metarec.runs import atomic
from metarec.runs.environment import capture
from metarec.runs.lock import HOLDER, LOCK
from metarec.runs.manifest import damaged, digest, digest_file, read_sealed, read_verified, sealed_bytes

MANIFEST, KIND, FORMAT = "manifest.json", "metarec-run", 1
CARD, CARD_KIND = "card.json", "metarec-card"
_UNSEALED_SUFFIX = ".log"  # a log may still be written to after the seal


def fresh_name(now: datetime | None = None) -> str:
    """``<timestamp>_<random>``, such as 2026-01-31_14-05-09_3fa2c1."""
    return f"{now or datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


def create_run_dir(path: Path) -> Path:
    """Create ``path``, with parents, for this process alone; EnvironmentFault when it exists already."""
    try:
        make_directory(path.parent)
        path.mkdir()
        sync(path.parent)
    except FileExistsError as error:
        raise EnvironmentFault(
            path,
            "exists",
            "a run never shares a directory",
            "choose another output_dir, or resume that run by resume=RUN",
        ) from error
    except OSError as error:
        raise atomic.fault(path, error) from error
    return path


def fresh_run_dir(output_dir: Path, verb: str) -> Path:
    """Create ``<output_dir>/<verb>/<timestamp>_<random>/``; two starts never get the same one."""
    parent = output_dir / verb
    while True:
        path = parent / fresh_name()
        if not os.path.lexists(path):
            try:
                return create_run_dir(path)
            except EnvironmentFault as error:
                if error.value != "exists":
                    raise  # a real fault; "exists" is another start that drew the same name in the same second


def write_run_card(
    run_dir: Path, *, config_yaml: str, overrides: Sequence[str], command: Sequence[str] | None = None
) -> None:
    """Write card.json, overrides.json, environment.json and config.yaml, in this order."""
    contents = {
        "overrides.json": atomic.json_bytes(list(overrides), "overrides.json"),
        "environment.json": atomic.json_bytes(capture(command), "environment.json"),
        "config.yaml": config_yaml.encode("utf-8"),
    }
    files = {name: digest(data) for name, data in contents.items()}
    card = {"kind": CARD_KIND, "format": FORMAT, "files": files}
    atomic.write_bytes(run_dir / CARD, sealed_bytes(card, str(run_dir / CARD)))
    for name, data in contents.items():
        atomic.write_bytes(run_dir / name, data)


def check_card(run_dir: Path) -> list[str]:
    """CheckpointError naming the file of the run card that is not as it was written: no run goes on by a damaged one.

    Returns a line where nothing vouches for the card, for the run is of a metarec that wrote none.
    """
    if not os.path.lexists(run_dir / CARD):
        return [f"{run_dir}: {CARD} is missing, so nothing vouches for its config.yaml; going on by it as it is"]
    files = read_sealed(run_dir / CARD, kind=CARD_KIND, version=FORMAT).get("files")
    if not isinstance(files, dict) or "config.yaml" not in files:
        raise damaged(run_dir / CARD, "it lists no config.yaml")
    for name, expected in files.items():
        try:
            read_verified(run_dir / name, expected)
        except CheckpointError as error:
            fix = "a run carries on as it began: copy the file again from where it is intact, or start a new run"
            raise CheckpointError(error.where, error.value, error.what, fix) from error
    return []


@contextmanager
def whole_or_nothing(run_dir: Path) -> Iterator[None]:
    """Empty ``run_dir`` when the block ends by an exception, whichever: half a record is worth nothing."""
    try:
        yield
    except BaseException:
        empty(run_dir)
        raise


def empty(run_dir: Path) -> None:
    """Remove everything in the directory of a run that failed before it had anything to keep; what cannot be removed stays,
    for the failure that is on its way is what matters."""
    with suppress(OSError):
        for path in run_dir.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def seal(run_dir: Path) -> Path:
    """Write manifest.json over every file of the finished run (not the lock, not logs) and return its path."""
    path = run_dir / MANIFEST
    try:
        files = {name: digest_file(run_dir / name) for name in _files(run_dir)}
    except OSError as error:
        raise atomic.fault(Path(error.filename or run_dir), error) from error
    atomic.write_bytes(path, sealed_bytes({"kind": KIND, "format": FORMAT, "files": files}, str(path)))
    return path


def verify(run_dir: Path) -> list[str]:
    """Compare a sealed run with its manifest; returns the files that it does not list.

    Raises CheckpointError naming the first file that is missing or altered, or the manifest of an unfinished run.
    """
    if not (run_dir / MANIFEST).exists():
        raise CheckpointError(run_dir / MANIFEST, "missing", "the run did not finish", "go on with it by resume=RUN")
    refuse_links(run_dir)
    files = read_sealed(run_dir / MANIFEST, kind=KIND, version=FORMAT).get("files")
    if not isinstance(files, dict):
        raise damaged(run_dir / MANIFEST, "it lists no files")
    present = _files(run_dir)
    for name, expected in files.items():
        path = run_dir / name
        if name not in present:
            raise damaged(path, "the file is missing")
        if digest_file(path) != expected:
            raise damaged(path, "size or SHA-256 is not the one in its manifest")
    return [name for name in present if name not in files]


def _files(run_dir: Path) -> list[str]:
    """Relative names with "/" of the regular files under ``run_dir`` that a seal covers, sorted."""
    out = []
    for path in run_dir.rglob("*"):
        name = path.relative_to(run_dir).as_posix()
        if name in (MANIFEST, LOCK, HOLDER) or path.suffix == _UNSEALED_SUFFIX or not path.is_file():
            continue
        if not any(atomic.is_temporary(part) for part in name.split("/")):  # of what is in it; it may be one itself
            out.append(name)
    return sorted(out)
