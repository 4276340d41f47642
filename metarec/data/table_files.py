"""The files of published tables, read and checked column by column; what they mean together is `metarec.data.tables`.

A directory with pairs_{train,val,test}.parquet, episodes_{train,val,test}_K{K}_Q{Q}.parquet and, usually,
course2id.json ({item id: number}). All columns but `prefix` fit in memory; prefixes, whose sum grows with the square
of a session, are streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metarec import plain_files, strict_json
from metarec.data.faults import engine_faults
from metarec.errors import DataError

SPLITS = ("train", "val", "test")
SCALARS = ("pair_id", "user_id", "session_id", "label", "label_ts_epoch")
ROWS = 1 << 16  # of a streamed batch


@dataclass(frozen=True)
class Pairs:
    """The columns of the three pair files one after the other; n pairs.

    split int8 [n] 0 train, 1 val, 2 test; pair_id, label, ts (label_ts_epoch), length (of the prefix) int64 [n];
    user, session str [n].
    """

    split: np.ndarray
    pair_id: np.ndarray
    user: np.ndarray
    session: np.ndarray
    label: np.ndarray
    ts: np.ndarray
    length: np.ndarray


def table_paths(directory: Path, n_support: int, n_query: int) -> dict[str, Path]:
    """``pairs_train`` ... ``episodes_test`` -> file; DataError for one that is missing, naming the K and Q that are
    there."""
    if not directory.is_dir():
        raise DataError(
            directory,
            "not a directory" if directory.exists() else "not found",
            "episode tables are a directory of Parquet files",
            "check dataset.path",
        )
    paths = {}
    for split in SPLITS:
        paths[f"pairs_{split}"] = directory / f"pairs_{split}.parquet"
        paths[f"episodes_{split}"] = directory / f"episodes_{split}_K{n_support}_Q{n_query}.parquet"
    for path in paths.values():
        if not path.is_file():
            there = sorted(p.name for p in directory.glob("episodes_*_K*_Q*.parquet"))
            fix = (
                "say dataset.episodes.n_support and n_query as in " + ", ".join(there)
                if "_K" in path.name and there
                else ("a directory holds pairs_{train,val,test}.parquet and episodes_{train,val,test}_K5_Q10.parquet")
            )
            raise DataError(path, "not found", "a table is missing", fix)
    return paths


def read_pairs(paths: dict[str, Path]) -> Pairs:
    """All three pair files but for the prefixes themselves."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("split", *SCALARS, "length")}
    for code, split in enumerate(SPLITS):
        path = paths[f"pairs_{split}"]
        _require(path, (*SCALARS, "prefix"))
        for name in SCALARS:
            column = _column(path, name)
            parts[name].append(_text(column) if name in ("user_id", "session_id") else _whole(path, name, column))
        lengths = [length for length, _ in prefix_batches(path)]
        parts["length"].append(np.concatenate(lengths) if lengths else np.zeros(0, np.int64))
        parts["split"].append(np.full(len(parts["length"][-1]), code, np.int8))
    # object arrays: numpy's fixed-width strings would cut a trailing NUL and blow up one long id
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    return Pairs(
        whole["split"],
        whole["pair_id"],
        whole["user_id"],
        whole["session_id"],
        whole["label"],
        whole["label_ts_epoch"],
        whole["length"],
    )


def prefix_batches(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(length int64 [B], all entries one after the other int64 [sum of length]) for consecutive rows of a pair file."""
    with engine_faults(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(ROWS, columns=["prefix"]):
            yield _lists(path, "prefix", batch.column(0))


def read_episodes(path: Path, n_support: int, n_query: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(episode_id [N], user str [N], pair ids int64 [N, K+Q]: support, then query); DataError for another number of
    pairs."""
    _require(path, ("episode_id", "user_id", "support_pair_ids", "query_pair_ids"))
    episode = _text(_column(path, "episode_id"))
    ids = []
    for name, size in (("support_pair_ids", n_support), ("query_pair_ids", n_query)):
        column = _column(path, name)
        length, flat = _lists(path, name, column)
        wrong = np.flatnonzero(length != size)
        if len(wrong):
            raise DataError(
                f"{path}: episode_id {episode[wrong[0]]}",
                f"{length[wrong[0]]} pairs",
                f"{name} must hold {size}, as the file's name says",
                "write the episode again or leave it out",
            )
        ids.append(flat.reshape(-1, size))
    return episode, _text(_column(path, "user_id")), np.concatenate(ids, axis=1)


def read_numbers(directory: Path) -> tuple[list[str], int] | None:
    """(item ids in the order of their numbers, the first number: 0 or 1) of course2id.json; None without that file."""
    path = directory / "course2id.json"
    if not path.exists():
        return None
    try:
        numbers = strict_json.loads(plain_files.read_bytes(path))
    except (OSError, ValueError) as error:
        raise DataError(path, error, "not a JSON file in UTF-8", "write it again: {item id: number}") from None
    if not isinstance(numbers, dict) or not numbers or not all(type(n) is int for n in numbers.values()):
        raise DataError(
            path, type(numbers).__name__, "not an object of item id -> whole number", "write {item id: number}"
        )
    ordered = sorted(numbers, key=numbers.__getitem__)
    first = numbers[ordered[0]]
    if first not in (0, 1) or [numbers[item] for item in ordered] != list(range(first, first + len(ordered))):
        bad = next((i for n, i in enumerate(ordered) if numbers[i] != first + n), ordered[0])
        raise DataError(
            f"{path}: {bad}",
            numbers[bad],
            "the numbers must run from 0 or 1 without gap or repeat",
            "number the items anew",
        )
    return ordered, first


def _require(path: Path, names: tuple[str, ...]) -> None:
    with engine_faults(path):
        there = pq.read_schema(path).names
    for name in names:
        if name not in there:
            raise DataError(
                f"{path}: schema", name, f"no such column; the file has {', '.join(there)}", "use the published names"
            )


def _column(path: Path, name: str) -> pa.Array:
    with engine_faults(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        column = file.read(columns=[name]).column(0).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"{path}: row {row + 1}: column {name}", "null", "a value is missing", "fill it in or remove the row"
        )
    return column


def _whole(path: Path, name: str, column: pa.Array) -> np.ndarray:
    if not pa.types.is_integer(column.type):
        raise DataError(f"{path}: column {name}", str(column.type), "not whole numbers", "store the column as int64")
    with engine_faults(path):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _text(column: pa.Array) -> np.ndarray:
    return np.array(column.cast(pa.string()).to_pylist(), dtype=object)


def _lists(path: Path, name: str, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and entries of a list column, both int64."""
    kind = column.type
    if not len(column):  # a frame without rows is often written without a type either
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_integer(kind.value_type):
        raise DataError(
            f"{path}: column {name}", str(kind), "not lists of whole numbers", "store the column as list<int64>"
        )
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise DataError(
            f"{path}: column {name}", "null", "a list or an entry of one is missing", "fill it in or remove the row"
        )
    lengths = pc.list_value_length(column).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(lengths), np.asarray(flat.cast(pa.int64()).to_numpy(zero_copy_only=False))
