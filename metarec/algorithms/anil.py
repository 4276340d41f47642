"""ANIL: only the head adapts; the body is learned for all tasks and stays as it is in the inner loop.

Nearly all of MAML's gain comes from features that are reused, not relearned; so the inner loop moves the head alone. The
outer loop trains both. MAML (`algorithms.maml`) with the adapted subset narrowed; with head = everything it is MAML.

Source: Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157, sec. 4.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import ClassVar

from metarec.algorithms import Given
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.errors import ConfigError
from metarec.options import LearnedInner, matching, ranged


@dataclass
class Config:
    """conf/algorithm/anil.yaml"""

    name: str = "anil"
    inner: LearnedInner = field(default_factory=LearnedInner)
    order: str = ranged("second", choices=["first", "second"])
    head: list[str] | None = None  # None = the model's own; with contexts, what of them the head reads

    needs_adapted: ClassVar[bool] = True


def build(config: Config, given: Given) -> MAML:
    """The head: `config.head` as names or patterns; null: the model's, or where contexts adapt, those of them that it reads.

    Raises ConfigError where nothing of the head adapts.
    """
    head = given.head & given.beside if given.beside else given.head
    if config.head is not None:
        head = matching("algorithm.head", config.head, given.names)
    moves = frozenset(name for name in given.names if given.inner.moves(name))
    if not moves & head:
        raise ConfigError(
            "algorithm.head", sorted(head), f"nothing of it adapts; what adapts is {sorted(moves)}",
            "choose the head among what adapts, or let the residual have a part of the head (docs/lora.md)",
        )  # fmt: skip
    return anil(given.inner, head, config.order)


def anil(inner: InnerLoop, head: Collection[str], order: str = "second") -> MAML:
    """`head`: names of the head's weights; what the inner loop may not adapt stays out."""
    kept = frozenset(name for name in head if inner.moves(name))
    if not kept:
        raise ValueError(f"the head {sorted(head)} has nothing that adapts")
    return MAML(replace(inner, adapted=kept), order=order)
