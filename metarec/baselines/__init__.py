"""The rows of the panel that are not neural: counts and neighbours. One source, one file; docs/baselines.md compares.

A row knows plain arrays and nothing else: `TrainingLog` is what it learns from, `Asked` what it is asked, and it returns one
score for every item (`baseline.Scorer`). Its file holds `ROWS`, row name -> `Baseline`, and has a line in `NAMES`.

Names cost nothing: a row's file, and numpy with it, is imported when the row is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metarec.baselines.baseline import Baseline

NAMES: Mapping[str, str] = {  # row -> its file, in the order of tables
    "random": "chance",
    "popularity": "popularity",
    "recent_popularity": "popularity",
    "repeat_last": "repeats",
    "frequent_prefix": "repeats",
    "frequent_support": "repeats",
    "markov": "markov",
    "session_knn": "session_knn",
    "v_sknn": "v_sknn",
    "ease": "ease",
    "pair_knn": "pair_knn",
    "leaky_popularity": "popularity",
}


class _Baselines(Mapping[str, "Baseline"]):
    """`NAMES` with the rows themselves; whether a name is there is known without its file."""

    def __getitem__(self, name: str) -> Baseline:
        file = f"{__name__}.{NAMES[name]}"
        rows: dict[str, Baseline] = getattr(importlib.import_module(file), "ROWS", {})
        if name not in rows:
            raise ImportError(f"{file}: its ROWS hold {', '.join(rows) or 'nothing'}, and no {name}, as NAMES says")
        return replace(rows[name], label=rows[name].label or name.replace("_", " "))

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


BASELINES: Mapping[str, Baseline] = _Baselines()
