"""Everything that a user can get wrong: the exit code of its class, one line that names the place, nothing half-written.

Each goes through the whole command, as it is typed.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reference.tiny_runs import Work

from metarec import cli

HEAD = "user_id,item_id,timestamp\n"
WHOLE = "dataset.sessions.by=user"


def rows(n_users: int = 30, n_events: int = 24, line: str = "{user},{item},{time}") -> str:
    """Users who walk through 20 items, one event an hour."""
    return "".join(
        line.format(user=f"u{user}", item=f"i{(user + 3 * n) % 20}", time=1_600_000_000 + 3600 * n + user) + "\n"
        for user in range(n_users)
        for n in range(n_events)
    )


def text(content: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / "log.csv").write_text(content)
        return "log.csv"

    return write


def missing(folder: Path) -> str:
    (folder / "logs.csv").write_text(HEAD + rows())
    return "log.csv"


def mixed_units(folder: Path) -> str:
    """One file in seconds, the other in milliseconds."""
    (folder / "log").mkdir()
    seconds = np.arange(1_600_000_000, 1_600_000_000 + 3600 * 24, 3600)
    for name, times in (("a", seconds), ("b", seconds * 1000)):
        columns = {"user_id": [f"u{name}"] * 24, "item_id": [f"i{n}" for n in range(24)], "timestamp": times}
        pq.write_table(pa.table(columns), folder / "log" / f"{name}.parquet")
    return "log"


def cut_gzip(folder: Path) -> str:
    whole = gzip.compress((HEAD + rows()).encode())
    (folder / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    return "log.csv.gz"


LOGS: dict[str, tuple[Callable[[Path], str], list[str], int, list[str]]] = {
    "missing file": (missing, [], 3, ["log.csv", "logs.csv"]),
    "missing column": (
        text(HEAD.replace("item_id", "itme_id") + rows()), [], 3, ["item_id", "itme_id"],
    ),
    "empty item id": (text(HEAD + rows() + "u1,,1600000000\n"), [], 3, ["log.csv", "item_id"]),
    "empty user id": (text(HEAD + rows() + ",i1,1600000000\n"), [], 3, ["log.csv", "user_id"]),
    "mixed units over files": (mixed_units, [], 3, ["timestamp"]),
    "mixed units in a column": (text(HEAD + rows() + rows(line="{user},{item},{time}000")), [], 3, ["timestamp"]),
    "an extra field in every row": (text(HEAD + rows(line="{user},{item},{time},5.0")), [], 3, ["log.csv"]),
    "K above what users have": (text(HEAD + rows()), [WHOLE, "dataset.episodes.n_support=40"], 3, ["n_support", "40"]),
    "Q above what users have": (text(HEAD + rows()), [WHOLE, "dataset.episodes.n_query=40"], 3, ["episodes.n_"]),
    "header only": (text(HEAD), [], 3, ["log.csv"]),
    "empty file": (text(""), [], 3, ["log.csv", "empty"]),
    "truncated gzip": (cut_gzip, [], 3, ["log.csv.gz"]),
    "duplicates": (text(HEAD + rows() + rows()), [], 3, ["dataset.duplicates"]),
    "one user": (text(HEAD + rows(1)), [], 3, []),
}  # fmt: skip


def assert_told(work: Work, capsys: pytest.CaptureFixture[str], begun: float, *parts: str) -> None:
    """One line with all parts, within 5 s; no run directory and no prepared data is left."""
    assert time.monotonic() - begun < 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    assert " -- " in error
    assert "Traceback" not in error
    for part in parts:
        assert part in error, f"{part!r} not in {error!r}"
    for verb in ("prepare", "train", "eval"):
        assert work.directories(verb) == []
    prepared = work.cache / "prepared"
    assert [path for path in prepared.glob("*") if path.suffix != ".lock"] == []


@pytest.fixture
def own(work: Work) -> Work:
    """With a cache of its own, which must stay empty."""
    return Work(work.root, work.root / "cache")


@pytest.mark.parametrize(
    ("verb", "kind"),
    [*(("prepare", kind) for kind in LOGS), ("train", "missing file"), ("train", "an extra field in every row")],
)
def test_a_bad_log(verb: str, kind: str, own: Work, capsys: pytest.CaptureFixture[str]) -> None:
    write, words, code, parts = LOGS[kind]
    begun = time.monotonic()
    assert own.main(verb, "dataset=events", f"dataset.path={write(own.root)}", *words) == code
    assert_told(own, capsys, begun, *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train.stesp=5"], ["train.stesp", "train.steps"]),
        (["residual=maybe"], ["residual: maybe", "on", "off"]),
        (["train.steps=many"], ["train.steps: many"]),
        (["train.steps=0"], ["train.steps: 0"]),
        (["algorithm=fomaml2"], ["algorithm: fomaml2", "fomaml"]),
        (["hardware=cpu", "hardware.precision=float16"], ["hardware.precision: float16"]),
        (["dataset=events"], ["dataset.path"]),
        (["dataset=ml1m", "data_dir=null"], ["data_dir"]),
        (["algorithm=supervised", "residual=on"], ["residual"]),
        (["evaluation.test_steps=-1"], ["evaluation.test_steps: -1"]),
        (["resume=nowhere"], ["resume: nowhere", "no such run directory"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_bad_command_line(words: list[str], parts: list[str], own: Work, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert cli.main(["train", *words]) == 2
    assert_told(own, capsys, begun, *parts)
    assert not (own.root / "outputs").exists()


def test_several_mistakes_are_told_together(own: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert own.main("train", "train.stesp=5", "residual=maybe", "seed=-1") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert all(line.startswith("error: ") for line in told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(own: Work, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert own.main("train", "hardware=cuda") == 5
    assert_told(own, capsys, begun, "hardware.device: cuda", "hardware=cpu")


def test_an_output_directory_that_cannot_be_made(own: Work, capsys: pytest.CaptureFixture[str]) -> None:
    (own.root / "file").write_text("")
    begun = time.monotonic()
    assert cli.main(["train", "output_dir=file", "cache_dir=cache"]) == 5
    assert_told(own, capsys, begun, "file")


def test_a_cache_that_cannot_be_made(own: Work, capsys: pytest.CaptureFixture[str]) -> None:
    (own.root / "cache").write_text("")
    begun = time.monotonic()
    assert own.main("prepare", "dataset.world.n_users=60") == 5
    assert_told(own, capsys, begun, "cache")
