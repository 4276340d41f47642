"""Mutated CSV, JSON lines, Parquet, manifests and vocabularies: each ends in a value or in one line of metarec's own.

A mutation is a function of (seed, kind, number), so that a failure can be made again:

    python -c "from reliability.fuzz_readers import mutant; print(mutant('csv', 123))"          with tests/ on the path

The text kinds are read in this process, under a watchdog that turns a hang into a failure. Parquet goes to worker
processes, since a damaged file may end pyarrow's: a worker that dies is a crash with the number of its input, counted as a
failure, and a new worker goes on behind it.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from metarec.data.source import open_log
from metarec.data.spec import DatasetSpec
from metarec.data.store import vocabulary_hash
from metarec.data.table_files import read_numbers
from metarec.errors import MetarecError
from metarec.runs.manifest import read_sealed, sealed_bytes

NAME = "fuzz"
SEED, SECONDS = 20_260_000, 10
FULL = {"csv": 40_000, "jsonl": 10_000, "manifest": 40_000, "vocabulary": 10_000, "parquet": 10_000}
QUICK = {"csv": 150, "jsonl": 60, "manifest": 1_500, "vocabulary": 500, "parquet": 60}
HEAD = "user_id,item_id,timestamp\n"
TOKENS = (
    b",", b'"', b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b";", b"\t", b"NaN", b"null", b"-1", b"1e999", b"9" * 40,
    b"2020-01-01", b"{", b"}", b"[", b"]", b":", b"\\u0000", b"\xc3", b"  ", b"=", b"'", b"true", b"\x1f\x8b", b"PAR1",
)  # fmt: skip

OF_JSON = (b"\\ud800", b"[" * 700 + b"]" * 700, b"[" * 2_000, b"[" * 70 + b"]" * 70, b'"a":1,"a":2')


def originals() -> dict[str, bytes]:
    """One good input of each kind."""
    rows = [(f"u{user}", f"i{(user + n) % 7}", 1_600_000_000 + 60 * n) for user in range(4) for n in range(5)]
    table = pa.table(dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows, strict=True)), strict=True)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    names = ("user_id", "item_id", "timestamp")
    lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    files = {
        name: {"size": 10 * n, "sha256": "ab" * 32} for n, name in enumerate(("tensors.safetensors", "state.json"))
    }
    return {
        "csv": (HEAD + "".join(f"{u},{i},{t}\n" for u, i, t in rows)).encode(),
        "jsonl": "\n".join(lines).encode(),
        "manifest": sealed_bytes({"kind": "metarec-checkpoint", "format": 1, "metarec": "0", "files": files}, "x"),
        "vocabulary": json.dumps({f"i{n}": n for n in range(7)}).encode(),
        "parquet": sink.getvalue().to_pybytes(),
    }


ORIGINALS = originals()


def mutant(kind: str, number: int) -> bytes:
    """Input `number` of a kind: the good one after one to eight changes of bytes, tokens or stretches."""
    rng = random.Random(f"{SEED} {kind} {number}")
    data = bytearray(ORIGINALS[kind])
    tokens = TOKENS if kind in ("csv", "parquet") else (*TOKENS, *OF_JSON)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        change = rng.randrange(7)
        if change == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at:at] = rng.choice(tokens)
        elif change == 2:
            token = rng.choice(tokens)
            data[at : at + len(token)] = token
        elif change == 3:
            del data[at : at + rng.randint(1, 40)]
        elif change == 4:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + rng.randint(1, 40)]
        elif change == 5:
            data[at:] = data[at:][: rng.randrange(200)]
        else:
            data[at : at + 4] = rng.randbytes(4)
    return bytes(data)


def resealed(data: bytes) -> bytes:
    """A mutated manifest that is JSON still, with the SHA-256 that it then has: what stands behind the seal is met."""
    try:
        content = json.loads(data)
        content.pop("sha256", None)
        return sealed_bytes(content, "x")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, MetarecError):
        return data


def read(kind: str, path: Path, data: bytes) -> None:
    """Read one input; raises MetarecError, or whatever is a fault."""
    path.write_bytes(data)
    if kind == "manifest":
        from metarec.runs.checkpoint import STATE, TENSORS
        from metarec.runs.manifest import read_verified

        files = read_sealed(path, kind="metarec-checkpoint", version=1).get("files")
        if isinstance(files, dict):
            for name in (TENSORS, STATE):
                read_verified(path, files.get(name))
        return
    if kind == "vocabulary":
        path = path.with_name("course2id.json")
        path.write_bytes(data)
        items, _ = read_numbers(path.parent) or ([], 0)
        vocabulary_hash(items)
        return
    with duckdb.connect(config={"threads": 1}) as con:
        open_log(con, DatasetSpec(path=str(path)), None)
        con.execute("SELECT count(*), min(t), max(user_id), max(item_id) FROM log").fetchall()


def fault_of(kind: str, number: int, path: Path) -> str | None:
    """What is wrong with how an input ends; None for a value or one line of metarec's own."""
    data = mutant(kind, number)
    if kind == "manifest" and number % 2:
        data = resealed(data)
    try:
        with deadline(SECONDS):
            read(kind, path, data)
    except MetarecError as error:
        line = str(error)
        return (
            None
            if "\n" not in line and " -- " in line and len(line) < 2_000
            else f"{kind} {number}: not one line: {line!r}"
        )
    except BaseException as error:
        return f"{kind} {number}: {type(error).__name__}: {str(error)[:200]}"
    return None


class Hang(Exception):
    """An input that took too long."""


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise Hang in the block after so many seconds; code that never returns to Python is ended with a dump of its stack."""

    def ring(number: int, frame: Any) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(6 * seconds, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _worker(kind: str, begin: int, end: int, at: Any, found: Any, folder: str) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # what C++ says when it ends the process
    for number in range(begin, end):
        at.value = number
        if (fault := fault_of(kind, number, Path(folder) / f"x.{kind}")) is not None:
            found.put(fault)
    at.value = end
    found.put(None)


def apart(kind: str, count: int, say: Callable[[str], None]) -> list[str]:
    """The faults of inputs 0 ... count - 1, read in worker processes that may die."""
    context = multiprocessing.get_context("spawn")
    faults, begin = [], 0
    while begin < count:
        at, found = context.Value("q", begin), context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            worker = context.Process(target=_worker, args=(kind, begin, count, at, found, folder))
            worker.start()
            while worker.is_alive():
                worker.join(0.2)
                while not found.empty():
                    if (fault := found.get()) is not None:
                        faults.append(fault)
            while not found.empty():
                if (fault := found.get()) is not None:
                    faults.append(fault)
        if worker.exitcode != 0:
            faults.append(f"{kind} {at.value}: the process ended with {worker.exitcode}")
            say(faults[-1])
            begin = at.value + 1
        else:
            begin = count
    return faults


def here(kind: str, count: int) -> list[str]:
    """The faults of inputs 0 ... count - 1, read in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{'json' if kind == 'manifest' else kind}"
        found = (fault_of(kind, number, path) for number in range(count))
        return [fault for fault in found if fault is not None]


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures of each kind; what is finished stands in `out` and is not done again."""
    figures = []
    for kind, count in (FULL if full else QUICK).items():
        done = out / f"{kind}.json"
        if not done.exists():
            began = time.monotonic()
            faults = apart(kind, count, print) if kind == "parquet" else here(kind, count)
            seconds = round(time.monotonic() - began, 1)
            done.write_text(json.dumps({"faults": faults, "count": count, "seconds": seconds}))
        found = json.loads(done.read_text())
        faults = found["faults"]
        asked = f"{found['count']:,} mutated inputs: no traceback, no hang, no crash"
        measured = f"{len(faults)} of {found['count']:,} failed, {found['seconds']} s"
        figures.append({"what": kind, "asked": asked, "measured": measured, "kept": not faults, "first": faults[:10]})
    return {"figures": figures}
