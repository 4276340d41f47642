"""What a search draws from: the values that override words leave open.

    optimizer.lr=1e-3,1e-2   choice(1,3,5)   glob(*)      one of a list; the values stay the text they are typed as
    range(1,10)   range(0,1,0.25)                         numbers in steps, the end left out as in Hydra's own sweeps
    interval(0.1,0.9)   int(interval(1,8))                numbers between two, both included; whole ones
    tag(log, interval(1e-4,1e-2))   tag(int, log, ...)    drawn evenly on the logarithm

Nothing here knows Optuna; `metarec.verbs.storage` turns a dimension into one of its distributions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from metarec.errors import ConfigError

TAGS = {"int", "log"}
MOST_VALUES = 10_000  # of a list that is gone through


@dataclass(frozen=True)
class Dimension:
    """One key and its values. `kind`: choice (values are texts, in no order) | int | float."""

    key: str
    kind: str
    values: Sequence[Any] | None  # all of them; None where they are a continuum
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    def word(self, value: Any) -> str:
        """``key=value`` as it would be typed."""
        return f"{self.key}={value if self.kind == 'choice' else repr(value)}"

    def probes(self) -> list[str]:
        """The words whose check vouches for all: every element of a list, both ends of numbers."""
        ends = self.values if self.kind == "choice" else dict.fromkeys((self.low, self.high))
        return [self.word(value) for value in ends or ()]

    def nearest(self, value: Any) -> Any:
        """The value that is meant by a drawn number, whose steps may have been added up with rounding."""
        if self.kind == "choice" or self.values is None or value in self.values:
            return value
        return min(self.values, key=lambda own: abs(own - value))


def size(space: Sequence[Dimension]) -> float:
    """How many settings there are; infinite with a continuum."""
    return math.prod(math.inf if one.values is None else len(one.values) for one in space)


def grid(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Every setting of a finite space, the last key changing fastest, as a sweep without a sampler runs them."""
    for values in itertools.product(*(one.values or () for one in space)):
        yield {one.key: value for one, value in zip(space, values, strict=True)}


def endless(override: Override) -> str | None:
    """What is wrong with a range whose end nobody waits for; it is not counted through."""
    found = override.value()
    if not isinstance(found, RangeSweep):
        return None
    if found.step == 0:
        return "its step is 0"
    assert found.start is not None
    assert found.stop is not None
    count = (found.stop - found.start) / found.step
    if not math.isfinite(count):
        return "has no number of values"
    return f"has {math.ceil(count):,} values" if count > MOST_VALUES else None


def dimension(override: Override, texts: Sequence[str]) -> Dimension:
    """A word with several values; `texts`: those of a list, as typed. Raises ConfigError."""
    key, found = override.get_key_element(), override.value()
    tags = set(getattr(found, "tags", ()))

    def refused(what: str, fix: str) -> ConfigError:
        return ConfigError(key, override.get_value_string(), what, fix)

    if wrong := sorted(tags - TAGS):
        raise refused(f"tag {wrong[0]} is not known", "the tags are int and log")
    if getattr(found, "shuffle", False):
        raise refused("does nothing: a sampler has an order of its own", "leave shuffle out")
    if isinstance(found, IntervalSweep):
        low, high, step = found.start, found.end, None
    elif isinstance(found, RangeSweep):
        if (trouble := endless(override)) is not None:
            raise refused(
                trouble,
                f"give at most {MOST_VALUES:,}, or interval(LOW,HIGH), of whole numbers int(interval(LOW,HIGH))",
            )
        elements: list[Any] = list(override.sweep_iterator())
        steps = sorted(float(value) if isinstance(value, float) else int(value) for value in elements)
        if not steps:
            raise refused("an empty range", "let it begin below its end")
        low, high, step = steps[0], steps[-1], abs(found.step)
    else:
        if tags:
            raise refused(f"a list takes no tag {sorted(tags)[0]}", "give interval(LOW,HIGH) or range(LOW,HIGH)")
        return Dimension(key, "choice", tuple(dict.fromkeys(texts)))
    assert low is not None
    assert high is not None
    whole = "int" in tags or (isinstance(low, int) and isinstance(high, int))
    if whole and (low != int(low) or high != int(high) or (step or 1) != int(step or 1)):
        raise refused("whole numbers between numbers that are not whole", "give whole ones")
    if isinstance(found, IntervalSweep) and low >= high:
        raise refused("an interval that holds nothing", "give interval(LOW,HIGH) with LOW < HIGH")
    if "log" in tags and (low <= 0 or (step or 1) != 1 or (step and not whole)):
        raise refused(
            "no logarithm of it", "give an interval above 0, or a range of whole numbers above 0 in steps of 1"
        )
    if whole:
        low, high, step = int(low), int(high), int(step or 1)
        return Dimension(key, "int", range(low, high + 1, step), low, high, step, "log" in tags)
    values = None if step is None else tuple(steps)
    return Dimension(
        key, "float", values, float(low), float(high), None if step is None else float(step), "log" in tags
    )
