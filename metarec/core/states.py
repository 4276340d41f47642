"""What sequence models do alike with the states of packed sequences: a linear layer, dropout, scores of items.

    linear_states    y[s] = h[s] (W + D[task of s])^T + b + c[task of s]
    score_items      score[t, n, i] = h[t, n] . (W + D[t])[i] + (b + c[t])[i]      by an output layer or an item embedding

Shapes: T tasks, N pairs a task, S states of the batch (`core.batch`), H hidden, V items, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarec.core import inputs
from metarec.core.attention import Layout
from metarec.core.batch import Sequences
from metarec.core.ops import linear, linear_rows, through_factors
from metarec.core.weights import Factored, FastWeight, Weight, own

# (name of a level, what it puts out [T + S, d]) -> the same, to go on with: who watches a model sees it (`tasks`)
Watch = Callable[[str, Tensor], Tensor]


def linear_states(states: Tensor, sequences: Sequences, weight: Weight, bias: Weight | None = None) -> Tensor:
    """states [S, in], weight [out, in], bias [out] -> [S, out]: laid out by tasks for the operator, and back."""
    layout = Layout.of(sequences)
    tokens = states.new_zeros(len(layout.event), states.shape[1]).index_copy(0, layout.state, states)
    tokens = tokens.view(-1, layout.width, states.shape[1])
    with inputs.only(layout.real):
        y = linear(tokens, layout.spread(weight), None if bias is None else layout.spread(bias))
    return y.flatten(0, 1).index_select(0, layout.state)


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """x with each number zero by chance `rate`, the others larger to make up; as it is without a generator."""
    if generator is None or rate == 0:
        return x
    keep = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) >= rate
    return x * keep / (1 - rate)


def score_items(
    states: Tensor, weight: Weight, bias: Weight | None, items: Tensor | None, *, padded: bool = False
) -> Tensor:
    """states [T, N, H], weight [V, H], bias [V] -> [T, N, V], column i - 1 for item i: the three ways of `score`.

    `padded`: the weight is an item embedding [V + 1, H], whose row 0 stands for padding and has no score.
    items int64 [C], rising without a repeat -> only their columns, [T, N, C]; [T, N] -> one for each pair, [T, N].
    """
    if items is not None:
        return linear_rows(states, weight, bias, items if padded else items - 1, items - 1)
    if not padded:
        return linear(states, weight, bias)
    if isinstance(weight, Factored):
        return score_items(states, weight.base, bias, None, padded=True) + through_factors(states, weight)[..., 1:]
    if not isinstance(weight, FastWeight):
        return linear(states, weight[1:], bias)
    if weight.offset is None and weight.tap is None:
        return linear(states, weight.shared[1:], bias)
    scores = linear(states, weight)[..., 1:]  # a task's own row 0 as well, which has no score
    return scores if bias is None else scores + own(bias, states.shape[0])[:, None, :]
