"""A little running text in the three files of a directory, made of a few words, and the same as Parquet."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = "the cat sat on a mat and the dog ran to the cat".split()


def document(number: int, n_words: int, extra: str = "") -> str:
    draw = random.Random(number)
    return (
        f" = Title {number} = \n \n "
        + " ".join(draw.choice(WORDS) for _ in range(n_words))
        + f" {extra}\n = = Sub = = \n"
    )


def corpus(path: Path, n_words: int = 60) -> Path:
    """Four training articles, the last one short; two of validation, three of test, which has a character of its own."""
    path.mkdir(parents=True, exist_ok=True)
    parts = {
        "wiki.train.tokens": [document(i, n_words) for i in range(3)] + [document(3, 2)],
        "wiki.valid.tokens": [document(i, n_words) for i in (10, 11)],
        "wiki.test.tokens": [document(i, n_words, "é") for i in (20, 21, 22)],
    }
    for name, texts in parts.items():
        (path / name).write_text("".join(texts), encoding="utf-8")
    (path / "README").write_text("not read")
    return path
