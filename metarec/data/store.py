"""Prepared data on disk: columnar arrays read by memory map, JSON for the rest, and a manifest that tells damage.

A directory holds one .npy file per array of ARRAYS, users.parquet and items.parquet (column `id`), meta.json,
funnel.json and manifest.json (size and SHA-256 of every file). Events are stored once; sessions, pairs and episodes
are ranges over them, so a prefix is never copied: prefix = item[pair_begin[p] : pair_event[p]], target =
item[pair_event[p]]. U users, S sessions, E events, P pairs. Item indices: 1..n_items; -1 = not in the vocabulary; 0 =
padding, never stored.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metarec.contained import parse_json
from metarec.data.episodes import EpisodeRanges, last_pairs, sliding_windows
from metarec.durable import sync
from metarec.errors import ConfigError, DataError, nearest

FORMAT = 2  # of the directory; part of the fingerprint, so that another format is another directory
SPLITS = ("train", "val", "test")
ARRAYS = {
    "item": "<i4",  # [E] events: users contiguous, inside a user in the total order
    "time": "<i8",  # [E] microseconds since 1970 UTC, or the position in the user's order
    "session_offsets": "<i8",  # [S+1] session s = events [s, s+1)
    "user_sessions": "<i8",  # [U+1] user u = sessions [u, u+1)
    "pair_event": "<i8",  # [P] event of the target
    "pair_begin": "<i8",  # [P] first event of its session
    "user_pairs": "<i8",  # [U+1] user u = pairs [u, u+1)
    "user_split": "<i1",  # [U] 0 train, 1 validation, 2 test, -1 nothing left after the time cut
    "train_event_end": "<i8",  # [U] the user's events before it are for training; its first event if none is
}
MANIFEST = "manifest.json"
GIVEN_SPLIT = "given_split.parquet"  # split_by=column: (id, split) of every user of the log, for the guard
REAL_ITEM = "real_item.npy"  # order=shuffled: item.npy as it was in the real order, for the guard
FIX = "run `metarec prepare` again, or remove the directory"


@dataclass(frozen=True)
class Meta:
    """What meta.json says; all counts and options that a reader of the arrays needs."""

    fingerprint: str
    name: str
    n_items: int
    n_users: int
    has_clock: bool
    split_by: str
    leaky: bool
    split_note: str
    n_support: int
    n_query: dict[str, int]
    stride: int
    vocabulary_sha256: str
    time_cuts: tuple[int, int] | None  # T1, T2 of split_by=user_time
    repeated_events: bool  # duplicates=keep: a (user, time, item) may stand twice
    given_vocabulary: bool = False  # by episode tables or vocabulary=all: it may hold items that no training user has
    n_read: int | None = None  # vocabulary=all: items above it are in no training event; models do not read them
    order: str = "real"  # or shuffled: the items of a session stand in another order than they came in
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class Prepared(Meta):
    """An opened directory: what meta.json says, and the arrays as in ARRAYS, read-only and mapped; the ids are read when
    first asked for."""

    kind: ClassVar[str] = "items"  # what is scored, for models that ask (`models.Catalogue`)

    root: Path
    item: np.ndarray
    time: np.ndarray
    session_offsets: np.ndarray
    user_sessions: np.ndarray
    pair_event: np.ndarray
    pair_begin: np.ndarray
    user_pairs: np.ndarray
    user_split: np.ndarray
    train_event_end: np.ndarray

    @cached_property
    def user_ids(self) -> np.ndarray:
        """Ids in the log, str [U], sorted."""
        return _read_ids(self.root / "users.parquet")

    @cached_property
    def item_ids(self) -> np.ndarray:
        """Ids in the log, str [n_items], sorted: entry i is the item of index i + 1."""
        return _read_ids(self.root / "items.parquet")

    @cached_property
    def real_item(self) -> np.ndarray:
        """int32 [E]: the items in their real order, which is `item` itself unless order=shuffled."""
        return self.item if self.order == "real" else _map(self.root / REAL_ITEM, ARRAYS["item"])

    @cached_property
    def given_split(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(user ids, words), str [all users of the log] each, as the log's column has them; None unless split_by=column."""
        if self.split_by != "column":
            return None
        return _read_ids(self.root / GIVEN_SPLIT), _read_ids(self.root / GIVEN_SPLIT, "split")

    @cached_property
    def contents(self) -> str:
        """SHA-256 of what the arrays and the vocabulary hold, wherever the log lay and whatever it was called."""
        listed = _read_json(self.root / MANIFEST)["files"]
        digest = hashlib.sha256(self.vocabulary_sha256.encode())
        for name in ARRAYS:
            digest.update(f" {name} {listed[f'{name}.npy']['sha256']}".encode())
        return digest.hexdigest()

    @cached_property
    def funnel(self) -> list[dict[str, Any]]:
        """Steps {step, rows, users, items, sessions, dropped, why}: what is left after each, dropped counts rows."""
        steps: list[dict[str, Any]] = _read_json(self.root / "funnel.json")["steps"]
        return steps

    @cached_property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Per split: users, pairs, episodes, episode_users, and unknown_target_share of the episodes' query targets."""
        counts: dict[str, dict[str, Any]] = _read_json(self.root / "funnel.json")["counts"]
        return counts

    @cached_property
    def train_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Per user the range [begin, end) of pairs whose target may be trained on, int64 [U] each."""
        return self.user_pairs[:-1], _train_pair_end(self)

    def episodes(self, split: str, n_support: int | None = None) -> EpisodeRanges:
        """The episodes of ``train``, ``val`` or ``test``; ConfigError for another name.

        With another ``n_support``: of the users who have so many pairs. The queries of validation and test users are
        the same for every number.
        """
        if split not in SPLITS:
            raise ConfigError("split", split, "no such split", f"say {nearest(split, SPLITS) or ' | '.join(SPLITS)}")
        return episodes_of(self, split, n_support)


def episodes_of(prepared: Prepared, split: str, n_support: int | None = None) -> EpisodeRanges:
    """Windows of the training users, or the last pairs of each user of another split.

    leave_one_out has one kind of user: the last pair is the test query, the one before it the validation query.
    """
    k = prepared.n_support if n_support is None else n_support
    shape = {"n_support": k, "n_query": prepared.n_query[split]}
    begin, end = prepared.user_pairs[:-1], prepared.user_pairs[1:]
    if split == "train":
        user = np.flatnonzero(prepared.user_split == 0)
        first, last = prepared.train_pairs
        return sliding_windows(user, first[user], last[user], stride=prepared.stride, **shape)
    if prepared.split_by == "leave_one_out":
        user = np.arange(prepared.n_users)
        return last_pairs(user, begin, end - (1 if split == "val" else 0), **shape)
    user = np.flatnonzero(prepared.user_split == SPLITS.index(split))
    return last_pairs(user, begin[user], end[user], **shape)


def train_sessions(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Event ranges [begin, end) of the training users' sessions, cut at train_event_end, of two events at least.

    int64 [training sessions] each, in stored order.
    """
    users = np.repeat(np.arange(prepared.n_users), np.diff(prepared.user_sessions))
    begin = np.array(prepared.session_offsets[:-1])
    end = np.minimum(prepared.session_offsets[1:], prepared.train_event_end[users])
    long_enough = end - begin >= 2
    return begin[long_enough], end[long_enough]


def _train_pair_end(prepared: Prepared) -> np.ndarray:
    if prepared.split_by == "leave_one_out":
        # train_event_end is the target of the last-but-one pair wherever there are two pairs, else the end of all
        begin, end = prepared.user_pairs[:-1], prepared.user_pairs[1:]
        return np.where(end - begin >= 2, end - 2, end)
    return np.where(prepared.user_split == 0, prepared.user_pairs[1:], prepared.user_pairs[:-1])


# --- writing ----------------------------------------------------------------------------------------------------------


class ArrayWriter:
    """A .npy file of one dimension written piece by piece; the length goes into the header when it is closed.

    Plain writes instead of a writable map: the pages of a map count as memory of the process.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self._file: IO[bytes] = path.open("wb")
        self._header()

    def _header(self) -> None:
        # numpy pads the header so that the length can grow to 21 digits in place
        self._file.seek(0)
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, description)

    def append(self, values: np.ndarray) -> None:
        """values [n], any length and layout, cast to the dtype of the file."""
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Write the length into the header: until then the file reads as empty."""
        self._header()
        self._file.close()


def write_arrays(root: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of ARRAYS by name, each cast to its type there; of one dimension, [n]."""
    for name, array in arrays.items():
        writer = ArrayWriter(root / f"{name}.npy", ARRAYS[name])
        writer.append(array)
        writer.close()


def write_ids(root: Path, user_ids: pa.ChunkedArray | Sequence[str], item_ids: pa.ChunkedArray | Sequence[str]) -> None:
    """Write the ids as text, users and items each in the order of their rows and indices."""
    for name, ids in (("users", user_ids), ("items", item_ids)):
        column = ids if isinstance(ids, pa.ChunkedArray) else pa.array(list(ids), pa.string())
        pq.write_table(pa.table({"id": column}), root / f"{name}.parquet")


def seal(root: Path, meta: Meta, funnel: Mapping[str, Any]) -> None:
    """Complete a directory of arrays and ids: meta, funnel {"steps": [...], "counts": {...}} and manifest, all fsynced.

    The caller renames the directory into place.
    """
    said = asdict(meta)
    if meta.order == "real":  # not said, so that these directories keep the bytes that they had before
        del said["order"]
    write_json(root / "meta.json", said)
    write_json(root / "funnel.json", funnel)
    files = {path.name: measure(path) for path in sorted(root.iterdir()) if path.is_file()}
    write_json(root / MANIFEST, {"format": FORMAT, "files": files})
    for path in (*(root / name for name in files), root / MANIFEST, root):
        sync(path)


def vocabulary_hash(item_ids: Iterable[str]) -> str:
    """SHA-256 of the item ids in the order of their indices, each after its length, so that no two lists collide."""
    digest = hashlib.sha256()
    for item in item_ids:
        text = str(item).encode()
        digest.update(b"%d:" % len(text) + text)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Sorted, indented, with a newline at the end, so equal values are equal bytes; ValueError for NaN and infinity."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def measure(path: Path) -> dict[str, Any]:
    """{"size", "sha256"} of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# --- reading ----------------------------------------------------------------------------------------------------------


def open_prepared(root: Path, *, verify: bool = True) -> Prepared:
    """Map the arrays of ``root``; ``verify`` compares every file with its SHA-256 first (about a second a gigabyte).

    DataError naming the file if one is missing, has another size or other bytes, or is of another format.
    """
    manifest = _read_json(root / MANIFEST)
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise DataError(root / MANIFEST, f"not format {FORMAT}", "the directory is of another version of metarec", FIX)
    listed = manifest["files"]
    for name, entry in listed.items():
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"} or Path(name).name != name:
            raise DataError(root / MANIFEST, name, "the manifest is damaged: it gives no size and SHA-256", FIX)
    for name in (*(f"{array}.npy" for array in ARRAYS), "users.parquet", "items.parquet", "meta.json", "funnel.json"):
        if name not in listed:
            raise DataError(root / MANIFEST, name, "the manifest does not list this file", FIX)
    for name, expected in listed.items():
        path = root / name
        if not path.is_file():
            raise DataError(path, "missing", "a file of the prepared data is gone", FIX)
        if path.stat().st_size != expected["size"]:
            raise DataError(path, f"{path.stat().st_size} bytes", f"the manifest says {expected['size']}", FIX)
        if verify and measure(path)["sha256"] != expected["sha256"]:
            raise DataError(
                path, "other SHA-256", "the file is damaged: its bytes are not those that were written", FIX
            )
    stored = _read_json(root / "meta.json")
    cuts = stored.pop("time_cuts")
    return assemble(root, Meta(**stored, time_cuts=None if cuts is None else (cuts[0], cuts[1])))


def assemble(root: Path, meta: Meta) -> Prepared:
    """Map the arrays of ``root``, which may still lack its manifest, under ``meta``."""
    arrays: dict[str, Any] = {name: _map(root / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
    return Prepared(**vars(meta), **arrays, root=root)


def _map(path: Path, dtype: str) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r")
    if array.dtype != np.dtype(dtype) or array.ndim != 1:
        raise DataError(path, f"{array.dtype} {array.shape}", f"expected one dimension of {np.dtype(dtype)}", FIX)
    return array


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(path, "missing", "a file of the prepared data is gone", FIX) from None
    except ValueError:
        raise DataError(path, "not JSON", "the file is damaged", FIX) from None


def _read_ids(path: Path, column: str = "id") -> np.ndarray:
    with pq.ParquetFile(path) as file:
        ids = np.array(file.read([column]).column(column).to_pylist(), dtype=np.str_)
    ids.flags.writeable = False
    return ids


def blocks(array: np.ndarray, size: int = 2_000_000, overlap: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(first index, copy of the entries) for consecutive blocks of a mapped array, each followed by ``overlap`` more.

    Pages already copied are given back, so that a pass over a large array does not keep it in memory.
    Copies are [size + overlap], at the end of the array less.
    """
    for first in range(0, len(array), size):
        yield first, np.array(array[first : first + size + overlap])
        give_back(array)


def give_back(array: np.ndarray) -> None:
    """Let go of the pages read of a mapped array, [n]; any other array is left alone."""
    base = getattr(array, "base", None)
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
