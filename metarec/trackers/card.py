"""What a tracker is told: who the run is, a row of numbers for each record of history.jsonl, and the closing figures.

A name is the path of the number in its file, joined by "/": train/loss, val/fewshot/ndcg@10 (history.jsonl),
metrics/fewshot/hr@10, intervals/fewshot/hr@10/low, cost/seconds (metrics.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from metarec.runs.history import numbers

Row = tuple[int, dict[str, float]]  # step, name -> value
SECTIONS = ("metrics", "comparison", "intervals", "training", "cost", "seconds")  # of metrics.json


@dataclass(frozen=True)
class Card:
    """Known before the first step."""

    id: str  # the same for all parts of a run that was stopped and carried on
    name: str  # of the run directory
    group: str | None  # the sweep or comparison that the run is a job of
    config: Mapping[str, Any]
    notes: Mapping[str, Any]  # dataset, split, funnel


@dataclass(frozen=True)
class Closing:
    """Known after the measurement."""

    step: int  # the last one
    figures: Mapping[str, float]
    notes: Mapping[str, Any]  # the protocol of the measurement
    files: tuple[Path, ...]  # of the run directory, for trackers that keep files


class Backend(Protocol):
    """One tracker. Every method may raise whatever its library raises: `tracker.Tracker` deals with it."""

    name: str
    where: str  # the place of its store, for messages and tracker.json

    def connect(self) -> None:
        """Load the library and reach the store: before anything of the run, so that a refusal costs nothing."""

    def begin(self, card: Card, rows: list[Row]) -> None:
        """Have the store hold the run with exactly these rows, whatever it holds of it already; ready for more."""

    def tell(self, rows: list[Row]) -> None:
        """Rows that follow."""

    def finish(self, closing: Closing) -> None:
        """The closing figures, and the end: nothing is open or unwritten afterwards."""

    def close(self, ended: str | None) -> None:
        """End without closing figures: "stopped" (to be carried on), "failed", or None: let go, the store is broken."""


def rows(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row for each record of history.jsonl."""
    return [(record["step"], numbers(record, "/")) for record in records]


def figures(document: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json in SECTIONS; [low, high] becomes two, null and what is no number is left out."""
    found: dict[str, float] = {}

    def walk(node: object, name: str) -> None:
        if isinstance(node, Mapping):
            for key, below in node.items():
                walk(below, f"{name}/{key}")
        elif isinstance(node, list | tuple) and len(node) == 2:
            walk(node[0], f"{name}/low")
            walk(node[1], f"{name}/high")
        elif isinstance(node, int | float) and not isinstance(node, bool):
            found[name] = float(node)

    for section in SECTIONS:
        walk(document.get(section), section)
    return found


def text(value: object) -> str:
    """A value as the text it has in a YAML file; lists as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
