"""The same command twice gives the same bits; so do other chunks, workers, row orders, file formats and names of ids.

Pairs of whole runs, pretraining included, each with a cache of its own: nothing that one has made serves the other. Equal
means every tensor of both checkpoints, the optimizer's among them, every line of the histories, the figures of every user,
and metrics.json byte for byte, less `seconds` and `cost` (time, memory, host), `config` of where files lie, and, where
the log is another file, what names it. Ids are told apart by their order (a user's split, an item's row), so the contract is
for new names that keep it; with any other renaming other users are tested.
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
OF_PLACE = ("dataset", "cache_dir", "output_dir", "data_dir")  # keys of `config` that may differ


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


def document(run: Path, *, same_log: bool) -> bytes:
    """metrics.json less what may differ, as bytes."""
    found = {key: value for key, value in metrics(run).items() if key not in ("seconds", "cost")}
    places = OF_PLACE if not same_log else OF_PLACE[1:]
    found["config"] = {key: value for key, value in found["config"].items() if key not in places}
    if not same_log:
        found = {key: value for key, value in found.items() if key not in ("data_fingerprint", "vocabulary_sha256")}
        found["funnel"] = None  # its first line names the file
    return json.dumps(found, indent=1).encode()


def differences(a: Path, b: Path, *, same_log: bool, chunks: bool = False) -> list[str]:
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
    left, right = (json.loads(document(run, same_log=same_log)) for run in (a, b))
    keys = [key for key in {**left, **right} if not (chunks and key == "config")]
    found += [f"metrics.json: {key}" for key in keys if left.get(key) != right.get(key)]
    ours, theirs = (pq.read_table(run / "per_user.parquet") for run in (a, b))
    names = [name for name in ours.column_names if same_log or name not in ("user", "user_id")]
    if not ours.select(names).equals(theirs.select([name for name in names if name in theirs.column_names])):
        found.append("per_user.parquet")
    if same_log and not chunks and document(a, same_log=True) != document(b, same_log=True):
        found.append("bytes of metrics.json")
    return found


def measure(number: int, root: Path) -> dict[str, Any]:
    """One pair."""
    pair, root = PAIRS[number], root / f"pair-{number}"
    runs = [one_side(root / name, side, pair.words) for name, side in (("a", pair.a), ("b", pair.b))]
    same_log = pair.a.write is None
    wrong = differences(runs[0], runs[1], same_log=same_log, chunks=pair.a.words != pair.b.words)
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
