"""What a task has of its own in what the output layer reads: the same for every model.

Shapes: T tasks, N pairs, d numbers of a state.
"""

from __future__ import annotations

from torch import Tensor

from metarec.core.weights import Weights, own, rescaled


def personal(states: Tensor, params: Weights) -> Tensor:
    """states [T, N, d] with `context.shift` [d] added, then scaled by `scale.state` [d], where `params` holds them."""
    if "context.shift" in params:
        states = states + own(params["context.shift"], states.shape[0])[:, None, :]
    if "scale.state" in params:
        states = rescaled(states, own(params["scale.state"], states.shape[0]))
    return states
