"""What a user costs once he has adapted: the numbers and the memory of his offset, in the form that is really kept.

A user's own part of a weight is kept dense, as factors or as rows, whichever follows from sizes (`core.offsets`); so a
few users of the validation split are adapted once, before the run, and what they hold is counted. Where a residual keeps
rows of items, how many follows from the support, and the most of any validation user is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metarec.benches import AnyBench
from metarec.core.offsets import Both, Offset, Rows, tensors
from metarec.core.weights import FastWeight
from metarec.verbs.measure import Trained, adapted
from metarec.verbs.naming import named

USERS = 8  # that are adapted to be counted
INDEX_BYTES = 8  # of the number of a row


@dataclass(frozen=True)
class UserCost:
    """Numbers and bytes of one user, and the line that says so."""

    numbers: int
    bytes: int
    line: str


def user_cost(bench: AnyBench, trained: Trained, steps: int | None = None) -> UserCost:
    """At the start of a run; `steps`: of adaptation, None = as in training. Raises DivergedError where it diverges."""
    assert trained.phi is not None
    assert trained.algorithm is not None
    batch = next(iter(bench.episodes("val", rows=bench.tuning_rows()[:USERS]).batches()))
    with named(bench, batch.user, "before the first step"):
        own = adapted(bench, trained, steps=steps)(batch)
    offsets = [w.offset for w in own.values() if isinstance(w, FastWeight) and w.offset is not None]
    size = next(iter(trained.phi.values())).element_size()
    if (most_rows := most_rows_of(trained.residual)) is not None:
        most = max(most_rows(batch.support) for batch in bench.episodes("val").batches())
        widths = [offset.values.shape[2] for offset in offsets if isinstance(offset, Rows)]
        others = [value for o in offsets if not isinstance(o, Rows) for value in tensors(o)]
        beside = sum(value.numel() for value in others) // batch.n_tasks
        numbers = most * sum(widths) + beside
        held = numbers * size + most * len(widths) * INDEX_BYTES
        text = f"up to {most:,} rows of {' + '.join(map(str, widths))} numbers a user"
        text += f" and {beside:,} numbers beside" if beside else ""
        return UserCost(numbers, held, f"adapted: {text} ({in_words(held)})")
    numbers = sum(value.numel() for offset in offsets for value in tensors(offset)) // batch.n_tasks
    held = numbers * size + INDEX_BYTES * sum(_indices(offset) for offset in offsets) // batch.n_tasks
    moving = sum(value.numel() for name, value in trained.phi.items() if trained.algorithm.inner.moves(name))
    kept = "" if numbers == moving else f", kept as {numbers:,}"
    return UserCost(numbers, held, f"adapted: {moving:,} numbers a user{kept} ({in_words(held)})")


def most_rows_of(residual: Any) -> Callable[[Any], int] | None:
    """What tells the most rows that a task of a batch keeps, of a residual or a part of it; None where none keeps rows."""
    parts = [residual, *(part.residual for part in getattr(residual, "parts", ()))]
    return next((part.most_rows for part in parts if hasattr(part, "most_rows")), None)


def _indices(offset: Offset) -> int:
    rows = offset if isinstance(offset, Rows) else offset.rows if isinstance(offset, Both) else None
    return 0 if rows is None else rows.ids.numel()


def in_words(size: float) -> str:
    """1.5 KiB for 1536 bytes."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:g} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
