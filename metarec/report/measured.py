"""Which metrics a metrics.json has, in the order of every table.

Figures come from the version that measured: an older document lacks the metrics that came since, and a table has no column
for what no method has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarec.metrics import LISTS, METRICS, heading

Json = Mapping[str, Any]
CLASSES = ("hr@1", "mrr")  # all that is shown of a classification: few classes, one right; and the headline of text
TOKENS = ("hr@1", "hr@5", "mrr")  # what is shown of text


def classification(document: Json) -> bool:
    """Whether the run was of images: hr@1 is then called accuracy."""
    return bool(document.get("protocol", {}).get("classification"))


def tokens(document: Json) -> bool:
    """Whether the run was of text: hr@1 is then called token accuracy, and domains stand in place of users."""
    return bool(document.get("protocol", {}).get("unit") == "token")


def accuracy(document: Json) -> str | None:
    """What hr@1 is called where it is an accuracy; None where it is a hit rate."""
    return "accuracy" if classification(document) else "token accuracy" if tokens(document) else None


def drawn(document: Json) -> str:
    """What intervals draw: users of a log, tasks of images, domains of text."""
    return "tasks" if classification(document) else "domains" if tokens(document) else "users"


def metrics_of(document: Json) -> tuple[str, ...]:
    """The metrics of ranks that are shown and that some method has."""
    there = {name for figures in document["metrics"].values() for name in figures}
    shown = CLASSES if classification(document) else TOKENS if tokens(document) else METRICS
    return tuple(name for name in shown if name in there)


def lists_of(document: Json) -> dict[str, str]:
    """name -> what it is called, of the metrics of lists that some method has."""
    there = {name for figures in document.get("beyond", {}).values() for name in figures}
    return {name: heading(name) for name in LISTS if name in there}


def n_tested(document: Json) -> int:
    """At how many metrics each difference was tested: with the differences, the family of Holm's correction."""
    return sum(isinstance(entry, dict) for entry in next(iter(document["differences"].values())).values())
