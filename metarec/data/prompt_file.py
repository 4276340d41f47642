"""Examples of text tasks in JSON lines, every line checked.

    {"prompt": "abc", "response": "bcd", "metadata": {"domain": "shift-1", "difficulty": "easy", "split": "train"}}

`prompt` may be empty, `response` and `domain` may not. `difficulty` (a number, or easy, medium, hard = 0, 1, 2) and `split`
(train, val, test) may be left out; a split stands in every line or in none, and is the same for a whole domain. Other keys
are not read. Lines of nothing but blanks are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarec import plain_files, strict_json
from metarec.data.faults import shown
from metarec.errors import DataError, nearest

LEVELS = {"easy": 0.0, "medium": 1.0, "hard": 2.0}
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
FORM = 'write {"prompt": TEXT, "response": TEXT, "metadata": {"domain": NAME, "difficulty": easy|medium|hard|NUMBER}}'


@dataclass(frozen=True)
class Example:
    prompt: str
    response: str
    domain: str
    difficulty: float | None = None
    split: str | None = None  # train | val | test, where it is given


def read_examples(path: Path) -> list[Example]:
    """Every example of the file, in its order. Raises DataError naming file and line of the first that is not sound."""
    try:
        content = plain_files.read_bytes(path)
    except FileNotFoundError:
        others = [p.name for p in path.parent.iterdir() if p.exists()] if path.parent.is_dir() else []
        near = nearest(path.name, others)
        fix = f"did you mean {path.parent / near}?" if near else "check dataset.path"
        raise DataError(path, "not found", "there is no such file", fix) from None
    except OSError as error:
        raise DataError(path, error.strerror or "unreadable", "the file cannot be read", "give a JSONL file") from None
    found, first = list[Example](), dict[str, tuple[int, Example]]()
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            found.append(_checked(f"{path}, line {number}", line))
            _agrees(path, number, found[-1], *first.setdefault(found[-1].domain, (number, found[-1])))
    if not found:
        raise DataError(path, "empty", "there is no example in the file", FORM)
    _split_everywhere(path, first.values())
    return found


def _checked(where: str, line: bytes) -> Example:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        value = f"byte {line[error.start]:#04x} at {error.start}"
        raise DataError(where, value, "the line is not UTF-8", "save the file as UTF-8") from None
    try:
        row = strict_json.loads(text)
    except ValueError as error:
        raise DataError(where, shown(text), f"the line is not JSON: {error}", FORM) from None
    if not isinstance(row, dict):
        raise DataError(where, shown(text), "the line is no JSON object", FORM)
    about = row.get("metadata")
    if not isinstance(about, dict):
        raise DataError(where, _said(row, "metadata"), "metadata is no object", FORM)
    prompt, response, domain = _text(where, row, "prompt"), _text(where, row, "response"), _text(where, about, "domain")
    for name, value in (("response", response), ("domain", domain)):
        if not value:
            raise DataError(where, f"{name}: empty", f"the {name} is empty: there is nothing to learn", FORM)
    return Example(prompt, response, domain, _difficulty(where, about), _split(where, about))


def _text(where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(where, _said(row, key), f"{key} is no text", FORM)
    return value


def _said(row: dict[str, Any], key: str) -> str:
    return f"{key}: {shown(json.dumps(row[key]))}" if key in row else f"{key}: missing"


def _difficulty(where: str, about: dict[str, Any]) -> float | None:
    value = about.get("difficulty")
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in LEVELS:
        return LEVELS[value.lower()]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        what = "difficulty is neither easy, medium, hard nor a finite number"
        raise DataError(where, _said(about, "difficulty"), what, "write one of them, or leave it out")
    return float(value)


def _split(where: str, about: dict[str, Any]) -> str | None:
    value = about.get("split")
    if value is None:
        return None
    if not isinstance(value, str) or value.lower() not in SPLITS:
        raise DataError(where, _said(about, "split"), "no such split", "write train, val or test, or leave it out")
    return SPLITS[value.lower()]


def _agrees(path: Path, number: int, example: Example, before: int, other: Example) -> None:
    """The split of a domain is the same in all of its lines."""
    if example.split != other.split:
        raise DataError(
            f"{path}, line {number}", f"split: {example.split or 'missing'}",
            f"line {before} says {other.split or 'nothing'} of the same domain {shown(example.domain)}",
            "a domain is in one split: write the same in all of its lines",
        )  # fmt: skip


def _split_everywhere(path: Path, first: Iterable[tuple[int, Example]]) -> None:
    with_split, without = _by(first, True), _by(first, False)
    if with_split and without:
        number, example = without[0]
        raise DataError(
            f"{path}, line {number}", "split: missing",
            f"line {with_split[0][0]} has a split, and domain {shown(example.domain)} has none",
            "write the split of every domain, or of none",
        )  # fmt: skip


def _by(first: Iterable[tuple[int, Example]], has: bool) -> list[tuple[int, Example]]:
    return [(number, example) for number, example in first if (example.split is not None) == has]


def distinct(examples: Iterable[Example]) -> Iterator[Example]:
    """Each (domain, prompt, response) once, the first of them: one that stood twice could be in support and query."""
    seen = set[tuple[str, str, str]]()
    for example in examples:
        key = (example.domain, example.prompt, example.response)
        if key not in seen:
            seen.add(key)
            yield example
