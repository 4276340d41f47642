"""ANIL: only the head adapts; the body is learned for all tasks and stays as it is in the inner loop.

Nearly all of MAML's gain comes from features that are reused, not relearned; so the inner loop moves the head alone. The
outer loop trains both. MAML (`algorithms.maml`) with the adapted subset narrowed; with head = everything it is MAML.

Source: Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157, sec. 4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML


def anil(inner: InnerLoop, head: Collection[str], order: str = "second") -> MAML:
    """`head`: names of the head's weights; what the inner loop may not adapt stays out."""
    kept = frozenset(name for name in head if inner.moves(name))
    if not kept:
        raise ValueError(f"the head {sorted(head)} has nothing that adapts")
    return MAML(replace(inner, adapted=kept), order=order)
