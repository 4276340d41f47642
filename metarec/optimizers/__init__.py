"""How a gradient becomes a step of what a loop trains. One paper, one file.

Its file brings `Config` (with `lr`, `clip_norm`, and the class attributes that the loops ask for) and `build(config, given)`
(`metarec.parts`). What is built is a torch optimizer, all of whose state stands in `optimizer.state[parameter]` as tensors:
so it is in every checkpoint, and what the guard rolls back to. It may bring, beside torch's own,

    recording()   a context around the forward passes of a step: what it must see of them (`core.inputs`)
    finish()      called behind the last step of a training, before its last validation
    shown()       name -> number for the lines of history.jsonl
    timescales()  what a run tells of its timescales (`runs.timescales`): `levels`, by number, or `largest`, by matrix

With `asks_names` among its class attributes a run builds it once of shapes alone, before anything is pretrained, so that
what it cannot make of the names is refused then.

Shapes: parameters are of any shape [*S].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Given:
    """What a run gives an optimizer to be built from: of a model it has names, and no more."""

    groups: list[dict[str, Any]]  # as torch takes them: `params`, and `lr` and `weight_decay` of what has its own
    lr: float  # what `lr: null` stands for
    params: Mapping[str, Tensor]  # name -> what is trained [*S]
    slower: tuple[
        tuple[str, ...], ...
    ] = ()  # names, as shell patterns, of the second level of a model's timescales, ...
