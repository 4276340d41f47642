"""A search inside a run: which settings a row of the baseline panel tries on validation. `docs/search.md` has the other
kind, whole runs searched by `metarec train -m`.

Every row gets the same `budget` of settings, however many options it has; what a method is worth depends on how hard it
was tuned (Ferrari Dacrema et al. 2019, arXiv:1907.06902), so a row with a larger grid must not be tried more often.
Above the budget the settings are drawn at random, which misses less than a coarser grid when few of the options matter:
Bergstra & Bengio 2012, JMLR 13.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metarec.core.seeding import generator


def settings(
    space: Mapping[str, Sequence[Any]], budget: int, seed: int, default: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """At most `budget` different settings, the default first.

    space: option -> its values, of which repeats are dropped. default: a value for every option; None = the first of
    each. The whole grid where it has at most `budget` settings, in its own order, the last option changing fastest;
    else the default and `budget` - 1 others, all equally likely, in the order drawn: a function of (space, seed), and a
    larger budget only adds to it. Of two settings with the same figure the earlier one should win.
    Raises ValueError for an option without values, a default that is not in the space, a budget below 1.

    >>> settings({"window": [5, 1], "decay": [0.5, 0.9]}, budget=4, seed=1)[:2]
    [{'window': 5, 'decay': 0.5}, {'window': 5, 'decay': 0.9}]
    """
    values = {name: list(dict.fromkeys(of)) for name, of in space.items()}
    if budget < 1:
        raise ValueError(f"budget {budget}: at least the default is tried")
    if default is not None and default.keys() != values.keys():
        raise ValueError(f"default: {sorted(default)} are not the options {sorted(values)}")
    for name, of in values.items():
        if not of or (default is not None and default[name] not in of):
            raise ValueError(f"{name}: {of} has no {f'default {default}' if of else 'value'}")
    first = tuple(0 if default is None else of.index(default[name]) for name, of in values.items())
    if math.prod(len(of) for of in values.values()) <= budget:
        grid = itertools.product(*(range(len(of)) for of in values.values()))
        places = dict.fromkeys([first, *grid])
    else:
        places, stream = {first: None}, generator(seed, "settings")
        while len(places) < budget:  # a setting drawn again is drawn once
            drawn = tuple(int(torch.randint(len(of), (), generator=stream)) for of in values.values())
            places[drawn] = None
    return [{name: of[at] for (name, of), at in zip(values.items(), place, strict=True)} for place in places]
