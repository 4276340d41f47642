"""What every row of the panel is to its caller: something that is fitted, options to tune, and what it needs.

A scorer is handed an `Asked` and returns float64 [T, Q, V], column v the score of item v + 1. Scores only order: a row that
counts has its count (or a level in its place) before the decimal point and popularity behind it. Rank them as they are, in
float64; float32 would lose what decides between equal counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.baselines.asked import Asked
from metarec.baselines.log import TrainingLog
from metarec.errors import ConfigError, nearest
from metarec.ragged import Floats, Ints

Scorer = Callable[[Asked], Floats]
Value = bool | int | float | str
Votes = Callable[[Ints], tuple[Ints, Floats]]  # a history -> distinct items and their levels, > 0

DIGITS = 1e9  # votes that agree to nine digits of the largest are equal: sums of the same terms in another order are


@dataclass(frozen=True)
class Baseline:
    """A row of the panel; called with a log and options it gives its scorer."""

    fit: Callable[..., Scorer]
    default: Mapping[str, Value] = field(default_factory=dict)  # every option
    space: Mapping[str, tuple[Value, ...]] = field(
        default_factory=dict
    )  # those tuned on validation users; default inside
    label: str = ""  # in tables, at most 22 characters; where none is given, `BASELINES` puts the name with spaces
    in_full: bool = True  # part of `evaluation.panel=full`; else only measured where it is asked for by name
    needs_clock: bool = False
    max_items: int | None = None  # of the catalogue, where a dense item x item matrix is made
    uses_support: bool = (
        False  # may look at the user's support, under some options at least; else it has no curve over K
    )

    def __post_init__(self) -> None:
        """A grid that cannot be searched is told where it is written, and not when it is searched."""
        for name, values in self.space.items():
            if name not in self.default or self.default[name] not in values:
                raise ValueError(f"space: {name}: its default, {self.default.get(name)}, is not among {values}")

    def __call__(self, log: TrainingLog, **options: Value) -> Scorer:
        """Fit with these options, the others at their defaults; ConfigError for an option that is not one."""
        for name in options:
            if name not in self.default:
                close = nearest(name, self.default)
                raise ConfigError(name, options[name], "this baseline has no such option",
                                  f"say {close or ' | '.join(self.default) or 'none: it has no options'}")  # fmt: skip
        if reason := self.why_not(log.has_clock, log.n_items):
            raise ConfigError("baselines", self.label or "a row", reason, "leave it out, or give it another log")
        return self.fit(log, **{**self.default, **options})

    def why_not(self, has_clock: bool, n_items: int) -> str | None:
        """Why a log is refused, if it is: known before anything is trained or fitted."""
        if self.needs_clock and not has_clock:
            return "the log has an order and no clock, so nothing is recent"
        if self.max_items is not None and n_items > self.max_items:
            return f"a dense item x item matrix is made for {self.max_items:,} items at most, and there are {n_items:,}"
        return None


def scored(asked: Asked, base: Floats, histories: Iterable[Ints], votes: Votes) -> Floats:
    """[T, Q, V]: `base` [V], and on top of it what the history of each query votes for; an empty one for nothing."""
    out = np.tile(base, (len(asked) * asked.n_query, 1))
    for row, history in zip(out, histories, strict=True):
        if len(history):
            items, level = votes(history)
            row[items - 1] += level
    return out.reshape(len(asked), asked.n_query, len(base))


def levels(votes: NDArray[Any]) -> Floats:
    """Whole numbers from 1 on in the order of the votes, all > 0, equal where these agree to nine digits: [n] -> [n]."""
    return np.maximum(np.rint(votes * (DIGITS / votes.max())), 1.0) if len(votes) else np.empty(0)
