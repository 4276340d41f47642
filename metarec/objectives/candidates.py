"""Which items the pairs of a batch are judged against when not against all: drawn once, shared by the batch.

Candidates rise and do not repeat, as `Scores.of` takes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def needed(generator: torch.Generator | None, objective: object) -> torch.Generator:
    """The generator, checked: ValueError naming the objective where there is none."""
    if generator is None:
        raise ValueError(
            f"{type(objective).__name__} draws items, but there is no generator: give one to Tasks.loss(pairs, generator), "
            "or use an objective over all items where nothing may be drawn (cross_entropy, chunked_cross_entropy)"
        )
    return generator


def log_uniform(n_items: int, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ranks 0..n_items - 1 of P(k) = log((k + 2) / (k + 1)) / log(n_items + 1), drawn n times.

    Returns the ranks that came up, rising, int64 [C], and the probability of each to come up at all, float64 [C]; from
    `n_items` draws on that is every rank with probability 1.
    """
    if n_draws >= n_items:
        ranks = torch.arange(n_items, device=generator.device)
        return ranks, _numbers(ranks).fill_(1.0)
    drawn = torch.expm1(_uniforms(n_draws, generator) * math.log(n_items + 1))  # the inverse of the sum of P
    ranks = torch.unique(drawn.long().clamp(max=n_items - 1))
    each = torch.log1p(1 / (_numbers(ranks) + 1)) / math.log(n_items + 1)
    return ranks, -torch.expm1(n_draws * torch.log1p(-each))


def by_weight(summed: Tensor, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Items 1..V with the running sums [V] of their weights, drawn n times: (items [C], how often each was drawn [C])."""
    sums = summed.to(generator.device, torch.float32 if generator.device.type == "mps" else torch.float64)
    at = torch.searchsorted(sums, _uniforms(n_draws, generator) * sums[-1], right=True)
    items, often = torch.unique(at.clamp(max=len(sums) - 1) + 1, return_counts=True)
    return items, often


def uniform(n_items: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n + 1 different items, and the place among them of the spare one.

    A pair whose target is among them leaves that out; any other leaves out the spare. So every pair has exactly n
    negatives, drawn uniformly without a repeat from all items but its target. n < n_items.
    Items int64 [n + 1], place bool [n + 1].
    """
    drawn = torch.randperm(n_items, generator=generator, device=generator.device)[: n + 1] + 1
    items, order = drawn.sort()
    return items, order == n  # the last one drawn


def _numbers(like: Tensor) -> Tensor:
    return like.to(torch.float32 if like.device.type == "mps" else torch.float64)  # mps has no float64


def _uniforms(n: int, generator: torch.Generator) -> Tensor:
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    return torch.rand(n, generator=generator, device=generator.device, dtype=dtype)
