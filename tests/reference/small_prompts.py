"""A few hand-made text tasks in JSON lines, and what stands in them, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metarec.data.prompts import Prompts
from metarec.data.spec import PromptSpec

BOS, SEP, EOS = 257, 258, 259  # of bytes: 256, 257, 258, plus 1
SPEC = PromptSpec(n_support=2, n_query=1, n_episodes=2, seed=3)


def line(prompt: Any, response: Any, domain: Any, difficulty: Any = "easy", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "metadata": {"domain": domain, "difficulty": difficulty, **more}}


# responses of unequal length, domains in no order
ROWS = [
    line("ab", "b", "tail", "easy"), line("xyz", "z", "tail", "easy"), line("q", "q", "tail", "easy"),
    line("ab", "ab", "copy", "easy"), line("c", "c", "copy", "easy"), line("xyz", "xyz", "copy", "easy"),
    line("ab", "ba", "back", "hard"), line("abcd", "dcba", "back", "hard"), line("x", "x", "back", "hard"),
    line("ab", "abab", "twice", "hard"), line("x", "xx", "twice", "hard"), line("", "é", "twice", "hard"),
]  # fmt: skip
SPLIT = {"copy": "train", "twice": "train", "tail": "val", "back": "test"}


def write(path: Path, rows: Iterable[Any] = ROWS, split: dict[str, str] | None = SPLIT) -> Path:
    """Rows as JSON lines, text and bytes as they are; `split` is written into the rows of its domains."""
    lines = []
    for row in rows:
        if isinstance(row, dict) and split:
            own = row.get("metadata")
            if isinstance(own, dict) and own.get("domain") in split:
                row = {**row, "metadata": {"split": split[own["domain"]], **own}}
        lines.append(row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode())
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def load(path: Path, spec: PromptSpec = SPEC, tell: Any = lambda line: None) -> Prompts:
    return Prompts.load(spec, path, path.parent / "cache", "prompts", tell)


def bytes_of(prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Ids + 1 of an example ahead of the response, and from it on."""
    ahead = [BOS, *(byte + 1 for byte in prompt.encode()), SEP]
    return ahead, [*(byte + 1 for byte in response.encode()), EOS]
