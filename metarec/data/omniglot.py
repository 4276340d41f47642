"""Omniglot: N-way K-shot episodes of handwritten characters, in the split of Vinyals et al.

    episode = n_way characters, n_shot of the 20 drawings of each as support, n_query others of each as query

Training characters (1,028) may also stand turned by 90, 180 and 270 degrees, each turn a class of its own, as published.
Validation (172 characters) and test (423) episodes are drawn once from a seed of their own and hashed. Training episodes
are a pure function of (seed, step), so a resumed run needs no saved state. Images are 28 x 28, 1 = ink.

Source: Lake, Salakhutdinov & Tenenbaum 2015; Vinyals et al. 2016, arXiv:1606.04080, sec. 4.1.1.
Files: omniglot28.npz (images_packed uint8 [n, 98], class_id, drawer), classes.parquet (class_id, vinyals_split).
Shapes: T episodes, N images a set (classes in turn: N = n_way * n_shot or n_way * n_query).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from metarec import plain_files
from metarec.core.batch import EpisodeBatch, ImageBatch
from metarec.data.spec import ImageSpec
from metarec.errors import ConfigError, DataError

Ints = NDArray[np.int64]
SIZE, TURNS = 28, 4
SPLITS = ("train", "val", "test")
FIX = "give the directory with omniglot28.npz and classes.parquet"


@dataclass(frozen=True)
class Drawn:
    """Episodes by number of class and drawing: class_id [T, W], turn [T, W], drawing [T, W, K + Q]."""

    class_id: Ints
    turn: Ints
    drawing: Ints
    n_shot: int

    @cached_property
    def sha256(self) -> str:
        """Identity of the episodes, whatever the machine."""
        digest = hashlib.sha256(str(self.n_shot).encode())
        for array in (self.class_id, self.turn, self.drawing):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.class_id)


@dataclass(frozen=True)
class Omniglot:
    """The images [classes, 20, 28, 28] uint8, and the classes of each split."""

    images: NDArray[np.uint8]
    classes: dict[str, Ints]
    spec: ImageSpec
    root: Path = Path()
    name: str = "omniglot"

    kind: ClassVar[str] = "classes"  # what is scored (`models.Catalogue`)

    @staticmethod
    def load(directory: Path, spec: ImageSpec) -> Omniglot:
        """Raises DataError naming the file that is missing or not what it should be."""
        path, table = directory / "omniglot28.npz", directory / "classes.parquet"
        try:
            held = np.load(plain_files.require_plain(path), allow_pickle=False)
            if isinstance(held, np.ndarray):
                raise ValueError("one array, not an archive of three")
            with held:
                packed, class_id, drawer = (held[key] for key in ("images_packed", "class_id", "drawer"))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as reason:
            raise DataError(path, reason, "not readable as the Omniglot archive", FIX) from reason
        try:
            columns = pq.read_table(plain_files.require_plain(table), columns=["class_id", "vinyals_split"]).to_pydict()
        except (OSError, pa.ArrowException, KeyError) as reason:
            raise DataError(table, reason, "not readable as the list of classes", FIX) from reason
        n_classes = len(columns["class_id"])
        for column, values in columns.items():
            if None in values:
                raise DataError(
                    table, f"row {values.index(None)}, {column}: null", "a class or its split is missing", FIX
                )
        if packed.shape[1:] != (SIZE * SIZE // 8,) or sorted(columns["class_id"]) != list(range(n_classes)):
            raise DataError(path, packed.shape, f"not {SIZE} x {SIZE} packed images of classes 0, 1, ...", FIX)
        if packed.dtype != np.uint8:
            raise DataError(path, f"images_packed of {packed.dtype}", "packed images are uint8", FIX)
        if not len(packed) == len(class_id) == len(drawer):
            raise DataError(
                path,
                f"{len(packed)} images, {len(class_id)} class_id, {len(drawer)} drawer",
                "not one label an image",
                FIX,
            )
        if any(not np.issubdtype(label.dtype, np.integer) or label.min(initial=0) < 0 for label in (class_id, drawer)):
            raise DataError(path, "class_id, drawer", "a class or drawer that is no number from 0 on", FIX)
        order = np.lexsort((drawer, class_id))
        counts = np.bincount(class_id, minlength=n_classes)
        if len(counts) != n_classes or len(set(counts.tolist())) != 1:
            raise DataError(path, f"{len(packed)} images of {len(counts)} classes", "not as many of each class", FIX)
        images = np.unpackbits(packed[order], axis=1).reshape(n_classes, int(counts[0]), SIZE, SIZE)
        of = np.array(columns["vinyals_split"])[np.argsort(columns["class_id"])]
        classes = {split: np.flatnonzero(of == split).astype(np.int64) for split in SPLITS}
        if sum(len(own) for own in classes.values()) != n_classes:
            raise DataError(table, sorted(set(of.tolist())), f"vinyals_split knows {', '.join(SPLITS)} only", FIX)
        found = Omniglot(images, classes, spec, directory)
        found.check()
        return found

    def check(self) -> None:
        """Raises ConfigError where an episode asks for more than there is."""
        drawings, fewest = self.images.shape[1], min(len(own) for own in self.classes.values())
        if self.spec.n_shot + self.spec.n_query > drawings:
            raise ConfigError(
                "dataset.images.n_query", self.spec.n_query,
                f"with n_shot={self.spec.n_shot} more than the {drawings} drawings of a character",
                f"give at most {drawings - self.spec.n_shot}",
            )  # fmt: skip
        if self.spec.n_way > fewest:
            what = f"more classes than the smallest split has ({fewest})"
            raise ConfigError("dataset.images.n_way", self.spec.n_way, what, f"give at most {fewest}")

    # what a run asks of any prepared data

    @property
    def n_items(self) -> int:
        """Classes of an episode, n_way, not of the data set."""
        return self.spec.n_way

    @property
    def vocabulary_sha256(self) -> str:
        """What a model fits: the images, the classes of each split, n_way."""
        return hashlib.sha256(f"{self.contents} {self.spec.n_way}".encode()).hexdigest()

    @property
    def split_by(self) -> str:
        """What is disjoint between train, validation and test."""
        return "characters"

    @property
    def split_note(self) -> str:
        """A line for the table of a run."""
        return f"{self.spec.n_way}-way {self.spec.n_shot}-shot, split of Vinyals et al., classes disjoint"

    @property
    def n_support(self) -> int:
        """Images, n_way * n_shot."""
        return self.spec.n_way * self.spec.n_shot

    @property
    def funnel(self) -> list[dict[str, object]]:
        """One step: nothing is filtered out of images."""
        return [{"step": "images", "rows": int(np.prod(self.images.shape[:2])), "items": len(self.images), "why": ""}]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Classes (turned ones of training counted as their own) and fixed episodes of each split."""
        turns = TURNS if self.spec.rotations else 1
        n_classes = {split: len(own) * (turns if split == "train" else 1) for split, own in self.classes.items()}
        return {"classes": n_classes, "fixed episodes": {split: len(own) for split, own in self.fixed.items()}}

    def episodes(self, split: str) -> Drawn:
        """The fixed episodes of a split; of training, those of the first step (their identity is the sampler's)."""
        return self.training(self.spec.seed, 0, 1) if split == "train" else self.fixed[split]

    @cached_property
    def fingerprint(self) -> str:
        """Of the images, and of the episodes that are made of them."""
        asked = json.dumps(asdict(self.spec), sort_keys=True)
        return hashlib.sha256(f"{self.contents} {asked}".encode()).hexdigest()

    @cached_property
    def contents(self) -> str:
        """SHA-256 of the images and of the classes of each split, whatever episodes are drawn from them."""
        digest = hashlib.sha256(np.packbits(self.images).tobytes())
        for split in SPLITS:
            digest.update(np.ascontiguousarray(self.classes[split], dtype="<i8").tobytes())
        return digest.hexdigest()

    def training(self, seed: int, step: int, n_tasks: int) -> Drawn:
        """The episodes of an outer step."""
        turns = TURNS if self.spec.rotations else 1
        return self._draw(np.random.Philox(key=[seed, step]), self.classes["train"], turns, n_tasks)

    @cached_property
    def fixed(self) -> dict[str, Drawn]:
        """The validation and test episodes."""
        return {
            split: self._draw(np.random.Philox(key=[self.spec.seed, number]), self.classes[split], 1, count)
            for number, (split, count) in enumerate((("val", self.spec.n_val), ("test", self.spec.n_test)))
        }

    def _draw(self, stream: np.random.Philox, classes: Ints, turns: int, n_tasks: int) -> Drawn:
        """Classes without replacement inside an episode, and drawings without replacement inside a class."""
        n_way, n_each = self.spec.n_way, self.spec.n_shot + self.spec.n_query
        chosen = _order(stream, n_tasks, len(classes) * turns)[:, :n_way]
        drawing = _order(stream, n_tasks * n_way, self.images.shape[1])[:, :n_each].reshape(n_tasks, n_way, n_each)
        return Drawn(classes[chosen // turns], chosen % turns, drawing, self.spec.n_shot)

    def batch(self, drawn: Drawn, rows: slice | Ints = slice(None)) -> EpisodeBatch:
        """The images of some of the episodes: support and query, classes in turn, labels 1..n_way."""
        class_id, turn, drawing = drawn.class_id[rows], drawn.turn[rows], drawn.drawing[rows]
        found = self.images[class_id[..., None], drawing]  # [T, W, K + Q, 28, 28]
        for number in range(1, TURNS):
            where = turn == number
            if where.any():
                found[where] = np.rot90(found[where], number, axes=(-2, -1))
        n_tasks, n_way = class_id.shape
        images = torch.from_numpy(np.ascontiguousarray(found)).float()
        label = torch.arange(1, n_way + 1)[None, :, None]

        def part(own: torch.Tensor) -> ImageBatch:
            target = label.expand(n_tasks, -1, own.shape[2]).reshape(n_tasks, -1)
            return ImageBatch(own.flatten(1, 2).unsqueeze(2), target)

        first = np.arange(len(drawn))[rows]
        k = drawn.n_shot
        return EpisodeBatch(part(images[:, :, :k]), part(images[:, :, k:]), torch.from_numpy(first))


def _order(stream: np.random.Philox, n_rows: int, n: int) -> Ints:
    """A random order of 0..n-1 in every row: the raw stream, which numpy keeps frozen, sorted."""
    raw = stream.random_raw(n_rows * n).reshape(n_rows, n)
    return np.argsort(raw, axis=1, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class ImageEpisodes:
    """Fixed episodes under evaluation, as `evaluate.ranks` reads them; a "user" is the number of an episode."""

    data: Omniglot
    drawn: Drawn
    rows: Ints
    chunk: int
    place: Callable[[EpisodeBatch], EpisodeBatch]  # onto the device, in the precision of the run

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def user(self) -> Ints:
        """Numbers of the episodes, int64 [T]."""
        return self.rows

    @property
    def n_support(self) -> int:
        """Images of the support of each, n_way * n_shot."""
        return self.drawn.n_shot * int(self.drawn.class_id.shape[1])

    @property
    def n_query(self) -> int:
        """Images that are ranked in each, n_way * n_query."""
        return (int(self.drawn.drawing.shape[2]) - self.drawn.n_shot) * int(self.drawn.class_id.shape[1])

    @property
    def sha256(self) -> str:
        """Of all that are drawn, chosen or not."""
        return self.drawn.sha256

    def batches(self) -> Iterator[EpisodeBatch]:
        """`chunk` episodes at a time, in order and where `place` puts them; the last batch may be smaller."""
        for begin in range(0, len(self.rows), self.chunk):
            yield self.place(self.data.batch(self.drawn, self.rows[begin : begin + self.chunk]))
