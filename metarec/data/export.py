"""The published tables, written from prepared data: pairs, episodes and the numbering of items.

    pairs_{train,val,test}.parquet                pair_id, user_id, session_id, prefix, label, label_ts_epoch
    episodes_{train,val,test}_K{K}_Q{Q}.parquet   episode_id, user_id, support_pair_ids, query_pair_ids
    course2id.json                                {item id: number}
    README.json                                   what the numbers mean

**Item numbers start at 0 there**, as in the published tables: our index less 1, and -1 for an item outside the
vocabulary. The Parquet metadata (key ``metarec``) and README.json say so. label_ts_epoch is in whole seconds since
1970 UTC, or the position in the user's order where the log has no clock. Rows go out in batches of bounded size, so a
prefix is expanded only on its way to disk.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarec.data.store import SPLITS, Prepared
from metarec.durable import sync
from metarec.errors import ConfigError, EnvironmentFault

BATCH_ITEMS = 4_000_000  # prefix entries or pair ids in one row group: 16 to 32 MB
OURS = re.compile(
    r"pairs_(train|val|test)\.parquet|episodes_(train|val|test)_K\d+_Q\d+\.parquet|course2id\.json|README\.json"
)
PAIRS = pa.schema(
    [
        ("pair_id", pa.int64()),
        ("user_id", pa.string()),
        ("session_id", pa.int64()),
        ("prefix", pa.list_(pa.int32())),
        ("label", pa.int32()),
        ("label_ts_epoch", pa.int64()),
    ]
)
EPISODES = pa.schema(
    [
        ("episode_id", pa.int64()),
        ("user_id", pa.string()),
        ("support_pair_ids", pa.list_(pa.int64())),
        ("query_pair_ids", pa.list_(pa.int64())),
    ]
)


def export_tables(prepared: Prepared, directory: Path) -> list[Path]:
    """Write the tables of ``prepared`` into ``directory``, all or nothing; returns the files.

    The directory may be missing, empty, or hold an earlier export, which is replaced; anything else in it is refused
    (ConfigError), as are shuffled sessions. A full or read-only disk is an EnvironmentFault, and nothing is left behind.
    """
    if prepared.order != "real":
        raise ConfigError("export", directory, f"dataset.sessions.order={prepared.order}, and tables that are read again "
                          "do not say so", "export with dataset.sessions.order=real")  # fmt: skip
    directory = Path(directory).expanduser().absolute()
    if directory.exists() and not directory.is_dir():
        raise ConfigError("export", directory, "is a file", "give a directory")
    foreign = [p.name for p in directory.iterdir() if not OURS.fullmatch(p.name)] if directory.exists() else []
    if foreign:
        raise ConfigError(
            "export", directory, f"the directory holds other files ({foreign[0]})", "give a new or empty directory"
        )
    work: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-partial-", dir=directory.parent))
        work.chmod(0o755)  # mkdtemp makes it private; the tables are the user's own like any other output
        names = _write_all(prepared, work)
        for path in (*(work / name for name in names), work):
            sync(path)
        _move(work, directory)
    except OSError as error:
        raise EnvironmentFault(
            directory,
            error.strerror or str(error),
            "the tables cannot be written",
            "free space, or give another directory as export=DIR",
        ) from None
    finally:
        if work is not None and work.exists():
            shutil.rmtree(work, ignore_errors=True)
    return [directory / name for name in names]


def _move(work: Path, directory: Path) -> None:
    """Put ``work`` in the place of ``directory``; an earlier export steps aside first and is removed last."""
    aside = work.with_name(work.name + "-old")
    if directory.exists():
        directory.rename(aside)
    try:
        work.rename(directory)
    except OSError:
        with suppress(OSError):
            aside.rename(directory)
        raise
    sync(directory.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _write_all(prepared: Prepared, work: Path) -> list[str]:
    about = _about(prepared)
    for split in SPLITS:
        _write(work / f"pairs_{split}.parquet", PAIRS, about, _pair_batches(prepared, split))
        name = f"episodes_{split}_K{prepared.n_support}_Q{prepared.n_query[split]}.parquet"
        _write(work / name, EPISODES, about, _episode_batches(prepared, split))
    numbers = {item: number for number, item in enumerate(prepared.item_ids.tolist())}
    (work / "course2id.json").write_text(json.dumps(numbers, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    (work / "README.json").write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return sorted(p.name for p in work.iterdir())


def _about(prepared: Prepared) -> dict[str, Any]:
    return {
        "dataset": prepared.name,
        "fingerprint": prepared.fingerprint,
        "item_numbers": "0-based (course2id.json); -1 = an item outside the vocabulary of the training users",
        "label_ts_epoch": "seconds since 1970-01-01 UTC"
        if prepared.has_clock
        else "position in the user's order (no clock)",
        "pair_id": "one numbering over all three splits; prefix = items of the session before the label",
        "n_support": prepared.n_support,
        "n_query": prepared.n_query,
        "stride": prepared.stride,
        "split": prepared.split_note,
        "n_items": prepared.n_items,
    }


def _write(path: Path, schema: pa.Schema, about: dict[str, Any], batches: Iterator[pa.RecordBatch]) -> None:
    schema = schema.with_metadata({"metarec": json.dumps(about)})
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _ranges(prepared: Prepared, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranges [begin, end) of pairs that belong to ``split``, int64 [R] each, ascending."""
    if prepared.split_by == "leave_one_out" and split != "train":
        # every user is in every split: only the pairs of the episode belong to this one
        episodes = prepared.episodes(split)
        return episodes.first_pair, episodes.first_pair + episodes.n_support + episodes.n_query
    users = np.flatnonzero(np.asarray(prepared.user_split) == SPLITS.index(split))
    if split == "train":
        begin, end = prepared.train_pairs
        return begin[users], end[users]
    return np.asarray(prepared.user_pairs[:-1])[users], np.asarray(prepared.user_pairs[1:])[users]


def _pair_batches(prepared: Prepared, split: str) -> Iterator[pa.RecordBatch]:
    begin, end = _ranges(prepared, split)
    pair = _concatenated(begin, end)
    length = prepared.pair_event[pair] - prepared.pair_begin[pair]
    for rows in _cut(length):
        ids, size = pair[rows], length[rows]
        first = prepared.pair_begin[ids]
        prefix = _zero_based(prepared.item[_concatenated(first, first + size)])
        target = prepared.pair_event[ids]
        seconds = prepared.time[target] // 1_000_000 if prepared.has_clock else prepared.time[target]
        user = np.searchsorted(prepared.user_pairs, ids, side="right") - 1
        session = np.searchsorted(prepared.session_offsets, first, side="right") - 1
        columns = [
            pa.array(ids),
            pa.array(prepared.user_ids[user]),
            pa.array(session, pa.int64()),
            _lists(size, prefix),
            pa.array(_zero_based(prepared.item[target])),
            pa.array(seconds),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=PAIRS)


def _episode_batches(prepared: Prepared, split: str) -> Iterator[pa.RecordBatch]:
    episodes = prepared.episodes(split)
    n_support, n_query, total = episodes.n_support, episodes.n_query, episodes.n_episodes
    step = max(1, BATCH_ITEMS // (n_support + n_query))
    for start in range(0, total, step):
        window = np.arange(start, min(start + step, total), dtype=np.int64)
        row = np.searchsorted(episodes.windows_up_to, window, side="right")
        inside = window - (episodes.windows_up_to[row] - episodes.n_windows[row])
        first = episodes.first_pair[row] + inside * episodes.stride
        support = (first[:, None] + np.arange(n_support)).ravel()
        query = (first[:, None] + n_support + np.arange(n_query)).ravel()
        columns = [
            pa.array(window),
            pa.array(prepared.user_ids[episodes.user[row]]),
            _lists(np.full(len(window), n_support), support),
            _lists(np.full(len(window), n_query), query),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=EPISODES)


def _zero_based(item: np.ndarray) -> np.ndarray:
    """Our indices (1.., -1 unknown) as the tables have them (0.., -1 unknown), int32."""
    return np.where(item > 0, item - 1, -1).astype(np.int32)


def _concatenated(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The numbers begin[0]..end[0]-1, begin[1]..end[1]-1, ... in one int64 array."""
    size = (end - begin).astype(np.int64)
    before = np.cumsum(size) - size
    return np.repeat(begin.astype(np.int64) - before, size) + np.arange(int(size.sum()), dtype=np.int64)


def _lists(size: np.ndarray, values: np.ndarray) -> pa.ListArray:
    offsets = np.zeros(len(size) + 1, dtype=np.int32)
    np.cumsum(size, out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, pa.array(values))


def _cut(length: np.ndarray) -> Iterator[slice]:
    """Consecutive slices whose entries of ``length`` sum to about BATCH_ITEMS (a longer single row is a slice of its
    own)."""
    up_to, start = np.cumsum(length), 0
    while start < len(length):
        done = int(up_to[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(up_to, done + BATCH_ITEMS, side="right")))
        yield slice(start, min(stop, start + BATCH_ITEMS // 8))
        start = min(stop, start + BATCH_ITEMS // 8)
