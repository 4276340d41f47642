"""The base step of an optimizer that does something around it: torch's own, over the same groups and the same state.

Slots of one's own stand beside the base's in `optimizer.state[parameter]`, and aside while the base steps: torch takes a
parameter without any slot for one that it has not met.

Shapes: parameters and slots are of any shape [*S].
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch


def base_of(
    name: str, groups: list[dict[str, Any]], *, lr: float, betas: list[float], eps: float, momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:  # fmt: skip
    """torch's Adam, AdamW or SGD over parameter groups; what is not the chosen one's is not read."""
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    adam = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


def step(base: torch.optim.Optimizer, own: Collection[str]) -> None:
    """One step of the base, with the slots called `own` out of its sight."""
    held = {value: {slot: state.pop(slot) for slot in own if slot in state} for value, state in base.state.items()}
    base.step()
    for value, slots in held.items():
        base.state[value].update(slots)
