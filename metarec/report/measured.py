"""Which metrics a metrics.json has, in the order of every table.

Figures come from the version that measured: an older document lacks the metrics that came since, and a table has no column
for what no method has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarec.metrics import LISTS, METRICS, heading

Json = Mapping[str, Any]
CLASSES = ("hr@1", "mrr")  # all that is shown of a classification: few classes, one right


def classification(document: Json) -> bool:
    """Whether the run was of images: hr@1 is then called accuracy."""
    return bool(document.get("protocol", {}).get("classification"))


def metrics_of(document: Json) -> tuple[str, ...]:
    """The metrics of ranks that are shown and that some method has."""
    there = {name for figures in document["metrics"].values() for name in figures}
    return tuple(name for name in (CLASSES if classification(document) else METRICS) if name in there)


def lists_of(document: Json) -> dict[str, str]:
    """name -> what it is called, of the metrics of lists that some method has."""
    there = {name for figures in document.get("beyond", {}).values() for name in figures}
    return {name: heading(name) for name in LISTS if name in there}


def n_tested(document: Json) -> int:
    """At how many metrics each difference was tested: with the differences, the family of Holm's correction."""
    return sum(isinstance(entry, dict) for entry in next(iter(document["differences"].values())).values())
