"""Sequence models as pure functions over named weights. A model never hears of adaptation.

One model, one file, which brings `Config` and `build(config, n_items)` (`metarec.parts`; docs/new_model.md). A model that
must know more of the data than how many items there are brings `build_of(config, catalogue)` as well, and is built by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def _unnamed() -> Sequence[str]:
    return ()


def _unheard(line: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Catalogue:
    """What the data set says of what is scored: its own words, which no option can contradict."""

    n_items: int
    kind: str = "items"  # items of a log | tokens of a tokenizer, item i standing for token i - 1
    ids: Callable[[], Sequence[str]] = _unnamed  # the log's own ids [V], of item 1 first; read when asked for
    data_dir: Path | None = None  # where files are that are named by a relative path
    tell: Callable[[str], None] = _unheard  # takes a line for the reader
