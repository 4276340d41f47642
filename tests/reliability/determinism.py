"""The same command twice gives the same bits; so do other chunks, workers, row orders, file formats and names of ids.

Pairs of whole runs, pretraining included, each with a cache of its own: nothing that one has made serves the other. Equal
means every tensor of both checkpoints, the optimizer's among them, every line of the histories, the figures of every user,
and metrics.json byte for byte, less `seconds` and `cost` (time, memory, host), the directories in `config`, and, where the
log is another file, its path and the key of its cached weights; where ids are others, the SHA-256 of the ids. Ids are told
apart by their order (a user's split and an item's row follow from it), so the contract is for new names that keep it; with
any other renaming other users are tested.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from reference.tiny_runs import Work, metrics, same_bits, state, tensors
from reliability.figures import figure, none_of, remembered

NAME = "determinism"
USERS, SESSIONS, EVENTS, ITEMS = 120, 10, 8, 25
SHAPE = ("dataset.split.time_quantiles=[0.34,0.67]", "dataset.episodes.n_support=4", "dataset.episodes.n_query=4")
Rows = list[tuple[Any, Any, int]]
PLACES = ("cache_dir", "output_dir")  # keys of `config` that may differ


def log(seed: int = 0) -> Rows:
    """(user, item, time) of sessions in which an item is mostly followed by the next one."""
    rng, rows = random.Random(seed), []
    for user in range(USERS):
        time, item = 1_600_000_000 + rng.randrange(20_000), rng.randrange(ITEMS)
        for _ in range(SESSIONS):
            for _ in range(EVENTS):
                rows.append((user * 7 + 3, item * 11 + 5, time))
                item = (item + 1) % ITEMS if rng.random() < 0.7 else rng.randrange(ITEMS)
                time += rng.randrange(60, 600)
            time += 7_200 + rng.randrange(600)
    return rows


def csv(path: Path, rows: Rows) -> Path:
    """The rows as CSV."""
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return path


def zipped(path: Path, rows: Rows) -> Path:
    """The rows as CSV.gz."""
    plain = csv(path.with_suffix(".txt"), rows)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return path


def parquet(path: Path, rows: Rows) -> Path:
    """The rows as Parquet."""
    pq.write_table(
        pa.table(dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))), path
    )
    return path


def mixed(rows: Rows) -> Rows:
    """The rows in another order."""
    found = list(rows)
    random.Random(1).shuffle(found)
    return found


def renamed(rows: Rows) -> Rows:
    """Ids as words that sort as the numbers did."""
    return [(f"u{u:06d}", f"item {i:06d}", t) for u, i, t in rows]


@dataclass(frozen=True)
class Side:
    """One run of a pair: its words, and how its log is written; none = the embedded world."""

    words: tuple[str, ...] = ()
    write: Callable[[Path, Rows], Path] | None = None
    file: str = "log.csv"
    change: Callable[[Rows], Rows] = list


@dataclass(frozen=True)
class Pair:
    """Two runs that are to be equal. `quick`: in the suite as well; `words` for both."""

    what: str
    a: Side
    b: Side
    words: tuple[str, ...] = ()
    quick: bool = False


TABLE = Side(write=csv)
SUPERVISED = ("algorithm=supervised", "pretrain.epochs=3")
GENERATOR = (
    "algorithm=generator", "residual=lora", "residual.rank=2", "schedule.warmup_steps=2", "algorithm.width=8",
    "algorithm.hidden=8", "evaluation.panel=none",
)  # fmt: skip
PAIRS = (
    Pair("the same command, fomaml", Side(), Side(), quick=True),
    Pair("the same command, maml_pp", Side(), Side(), ("algorithm=maml_pp",)),
    Pair("the same command, supervised", Side(), Side(), SUPERVISED),
    Pair("the same command, generator", Side(), Side(), GENERATOR),
    Pair("the same command, optimizer=cms", Side(), Side(), ("residual=off", "optimizer=cms", "optimizer.chunks=[1,5]")),
    Pair("evaluation in chunks of 7 and of 16 tasks", Side(("evaluation.task_chunk=7",)),
         Side(("evaluation.task_chunk=16",))),
    Pair("rows in another order", TABLE, Side(write=csv, change=mixed), quick=True),
    Pair("CSV and Parquet, other order", TABLE, Side(write=parquet, file="log.parquet", change=mixed)),
    Pair("CSV and CSV.gz", TABLE, Side(write=zipped, file="log.csv.gz")),
    Pair("ids renamed in their order, numbers to words, Parquet", TABLE,
         Side(write=parquet, file="words.parquet", change=renamed), quick=True),
)  # fmt: skip


def one_side(root: Path, side: Side, words: Sequence[str]) -> Path:
    """Its run, made from nothing."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    given = [*words, *side.words]
    if side.write is not None:
        given += ["dataset=events", *SHAPE, f"dataset.path={side.write(root / side.file, side.change(log()))}"]
    return Work(root, root / "cache").train(*given)


def document(run: Path, names: str = "") -> dict[str, Any]:
    """metrics.json less what may differ; `names`: also what names the "log", or the log and its "ids"."""
    found = {key: value for key, value in metrics(run).items() if key not in ("seconds", "cost")}
    found["config"] = {key: value for key, value in found["config"].items() if key not in PLACES}
    if names:
        found["config"]["dataset"].pop("path")
        if isinstance(source := found["training"]["warm_start"], dict):
            source.pop("key", None)  # in the cache, where pretrained weights lie by the files that they are made of
    if names == "ids":
        for key in ("data_sha256", "vocabulary_sha256"):
            found["protocol"].pop(key)
    return found


def differences(a: Path, b: Path, names: str = "", *, chunks: bool = False) -> list[str]:
    """What of two runs is not bitwise equal; `chunks`: their configurations differ in that, and are left out."""
    found = []
    for pointer in ("best", "last"):
        if not same_bits(tensors(a, pointer), tensors(b, pointer)):
            found.append(f"weights or optimizer of {pointer}")
        if state(a, pointer)["progress"] != state(b, pointer)["progress"]:
            found.append(f"progress of {pointer}")
    for name in ("history.jsonl", "pretrain_history.jsonl"):
        here, there = ((run / name).read_bytes() if (run / name).exists() else None for run in (a, b))
        if here != there:
            found.append(name)
    left, right = (document(run, names) for run in (a, b))
    if chunks:
        left.pop("config"), right.pop("config")
    found += [f"metrics.json: {key}" for key in {**left, **right} if _text(left.get(key)) != _text(right.get(key))]
    if _text(left) != _text(right) and not found:
        found.append("bytes of metrics.json")  # the same values in another order
    users = [pq.read_table(run / "per_user.parquet") for run in (a, b)]
    if names == "ids":
        users = [table.drop_columns("user_id") for table in users]
    return found if users[0].equals(users[1]) else [*found, "per_user.parquet"]


def _text(value: object) -> str:
    """As it is written: 1 and 1.0, 0.0 and -0.0 differ, and so does the order of keys."""
    return json.dumps(value, indent=1)


def measure(number: int, root: Path) -> dict[str, Any]:
    """One pair."""
    pair, root = PAIRS[number], root / f"pair-{number}"
    runs = [one_side(root / name, side, pair.words) for name, side in (("a", pair.a), ("b", pair.b))]
    names = "ids" if pair.b.change is renamed else "log" if pair.a.write else ""
    wrong = differences(runs[0], runs[1], names, chunks=pair.a.words != pair.b.words)
    if not wrong:
        shutil.rmtree(root)
    return {"what": pair.what, "wrong": wrong}


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures; quick: three pairs."""
    numbers = [number for number, pair in enumerate(PAIRS) if full or pair.quick]
    done = remembered(out / "pairs.jsonl", numbers, lambda number: measure(number, out))
    wrong = [f"{one['what']}: {', '.join(one['wrong'])}" for one in done if one["wrong"]]
    return {
        "figures": [
            none_of("not bitwise equal", wrong, len(done), "pairs of runs"),
            figure("pairs", len(numbers), len(done), len(done) == len(numbers)),
        ],
        "pairs": done,
    }
