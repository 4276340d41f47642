"""Running text by characters: documents cut into blocks, in which every character is a target exactly once.

    document  c_1 ... c_n            block b = c_{bL+1} ... c_{(b+1)L}, the last one shorter
    sequence  c_{bL} | c_{bL+1} ... c_{(b+1)L}        the character before the block is read and is no target there;
                                                     ahead of a document's first character stands BOS
    ids       0..C-1 the characters of training, C = a character that it has not (or too rarely), C + 1 = BOS

A block is an example of `data.prompts` without separator or end, and a document a domain: batches, pretraining, episodes
(some blocks of a document to adapt on, others to judge) and every model are those of text tasks. All blocks of a split
together hold each of its characters once, so the mean cross-entropy over them is that of the text, and its exponential the
perplexity; a state reaches back to the start of its block.

What is read: a Parquet file with the columns split, article and text, or a directory with one file each for training,
validation and test (`train`, `valid` or `test` is a word of the name). In a text file a document begins at a line
` = Title = ` as in WikiText (Merity et al. 2017, arXiv:1609.07843); a file without any is one document.

Shapes: D documents, n blocks, E tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from metarec import plain_files
from metarec.data.prompt_file import SPLITS
from metarec.data.prompts import Prompts
from metarec.data.spec import CharacterSpec, PromptSpec
from metarec.data.tokens import Tokenizer
from metarec.errors import DataError, nearest
from metarec.ragged import running

Ints = NDArray[np.int64]
TITLE = re.compile(r"^ ?= (?!=)[^\n]*(?<! =) = ?$", re.MULTILINE)
COLUMNS = ("split", "article", "text")
FORM = "give a Parquet file with the columns split, article, text, or a directory with a train, a valid and a test file"


@dataclass(frozen=True)
class Document:
    split: str  # train | val | test
    name: str
    text: str  # not empty


def load(spec: CharacterSpec, path: Path, name: str = "characters") -> Prompts:
    """The text at `path` as blocks. Raises DataError for files that are not sound and splits without an episode."""
    documents = read_documents(path)
    made = _tokenizer(spec, [d.text for d in documents if d.split == "train"])
    documents = sorted(documents, key=lambda d: d.name)
    blocks = [_blocks(np.asarray(ids), spec.length, made.begin[0]) for ids in made.encode([d.text for d in documents])]
    lengths = np.concatenate([own for _, own in blocks])
    example_tokens = running(lengths)
    found = Prompts(
        _as_prompts(spec), made, tuple(d.name for d in documents), tuple(d.split for d in documents),
        (None,) * len(documents), running(np.array([len(own) for _, own in blocks])), example_tokens,
        example_tokens[:-1] + 1, np.concatenate([tokens for tokens, _ in blocks]) + np.int32(1), [], path, name,
        running=True,
    )  # fmt: skip
    found.funnel.extend(_funnel(spec, found, made))
    for split in ("train", "val", "test"):
        if not (len(found.candidates(0, 1)) if split == "train" else len(found.episodes(split))):
            each = spec.n_support + spec.n_query
            what = f"no {split} document has the {each:,} blocks of an episode, {each * spec.length:,} characters"
            raise DataError(path, f"no {split} episode", what, "lower dataset.characters.length, n_support or n_query")
    return found


def read_documents(path: Path) -> list[Document]:
    """Every document that is not empty, in the order of the files. Raises DataError naming the file."""
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise DataError(
            path, "not found", "there is no such file or directory", f"did you mean {near}?" if near else FORM
        )
    found = _of_directory(path) if path.is_dir() else _of_parquet(path)
    for split in ("train", "val", "test"):
        if not any(d.split == split for d in found):
            raise DataError(path, f"no {split} text", f"there is no character of {split}", FORM)
    return found


def _of_directory(path: Path) -> list[Document]:
    found = list[Document]()
    of: dict[str, Path] = {}
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        words = set(re.split(r"[^a-z]+", file.name.lower()))
        for split in {SPLITS[word] for word in words & set(SPLITS)}:
            if split in of:
                raise DataError(path, f"{of[split].name}, {file.name}", f"two files of {split}", "leave one of them")
            of[split] = file
    if len(of) < 3:
        missing = ", ".join(sorted({"train", "val", "test"} - set(of)))
        raise DataError(path, f"no file of {missing}", "a file's name says what it is for", FORM)
    for split, file in of.items():
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(file, f"byte {error.start:,}", "the text is not UTF-8", "save the file as UTF-8") from None
        found += [Document(split, f"{split}-{i:05d}", own) for i, own in enumerate(_cut(text))]
    return found


def _cut(text: str) -> list[str]:
    """The documents of a file: each from its title to the next; what stands ahead of the first belongs to it."""
    begins = [0, *[match.start() for match in TITLE.finditer(text)][1:], len(text)]
    return [text[a:b] for a, b in pairwise(begins) if b > a]


def _of_parquet(path: Path) -> list[Document]:
    try:
        table = pq.read_table(plain_files.require_plain(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, str(error).splitlines()[0], "not readable as Parquet", FORM) from None
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(path, f"columns {', '.join(table.column_names)}", f"has no column {missing[0]}", FORM)
    found = list[Document]()
    for number, (split, article, text) in enumerate(zip(*(table.column(c).to_pylist() for c in COLUMNS), strict=True)):
        if not isinstance(split, str) or split.lower() not in SPLITS:
            raise DataError(f"{path}, row {number}", f"split: {split}", "no such split", "write train, valid or test")
        if not isinstance(text, str):
            raise DataError(f"{path}, row {number}", f"text: {type(text).__name__}", "text is no text", FORM)
        name = f"{article:05d}" if isinstance(article, int) else str(article)
        if text:
            found.append(Document(SPLITS[split.lower()], f"{SPLITS[split.lower()]}-{name}", text))
    names = [document.name for document in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(path, twice, "stands in two rows", "give each article of a split a number of its own")
    return found


def _points(text: str) -> Ints:
    """The code points of a text, int64 [n]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)


def _tokenizer(spec: CharacterSpec, training: Sequence[str]) -> Tokenizer:
    """Ids by the characters that training has at least `min_count` times, in the order of their code points."""
    known, counts = np.unique(np.concatenate([_points(text) for text in training]), return_counts=True)
    known = known[counts >= spec.min_count]
    unknown = len(known)

    def encode(texts: Sequence[str]) -> list[Any]:
        found = []
        for text in texts:
            points = _points(text)
            at = np.searchsorted(known, points).clip(max=max(unknown - 1, 0))
            found.append(np.where(known[at] == points, at, unknown) if unknown else np.zeros_like(points))
        return found

    digest = hashlib.sha256(json.dumps(["characters", known.tolist()]).encode()).hexdigest()
    return Tokenizer("characters", unknown + 2, digest, encode, (unknown + 1,), (), unknown + 1)


def _blocks(ids: Ints, length: int, begin: int) -> tuple[NDArray[np.int32], Ints]:
    """(tokens [n + blocks], tokens of each block [blocks]): the id before a block, then its own."""
    first = np.arange(0, len(ids), length)
    tokens = np.insert(ids, first, np.concatenate([[begin], ids[first[1:] - 1]])).astype(np.int32)
    return tokens, np.minimum(len(ids) - first, length) + 1


def _as_prompts(spec: CharacterSpec) -> PromptSpec:
    return PromptSpec(
        n_support=spec.n_support, n_query=spec.n_query, n_episodes=spec.n_episodes, tokenizer="characters",
        max_tokens=spec.length + 1, seed=spec.seed,
    )  # fmt: skip


def _funnel(spec: CharacterSpec, found: Prompts, made: Tokenizer) -> list[dict[str, Any]]:
    """Counts of what was read; `tokens` are characters."""
    targets = np.ones(len(found.tokens), dtype=bool)
    targets[found.example_tokens[:-1]] = False
    unknown = int((found.tokens[targets] == made.n_tokens - 1).sum())
    why = f"{made.n_tokens - 2} characters of training, {unknown:,} unknown in all; blocks of {spec.length}"
    return [
        {"step": "characters", "examples": len(found.answer), "domains": len(found.domains), "tokens": int(targets.sum()),
         "dropped": 0, "why": why}
    ]  # fmt: skip
