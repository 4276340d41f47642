"""The rank of the target among all items of the catalogue.

    rank = 1 + number of other items that are scored at least as high as the target      ties="conservative"
    rank = 1 + number scored higher + number of equal ones in a lower column             ties="first"

With conservative ties a scorer that gives every item the same score lands at rank V, the last one, and not at rank 1
as ``(scores > target).sum()`` would have it. A score that is not finite is an error and never a rank.

Source: Krichene & Rendle 2020 (no sampled candidates); Hidasi & Czapp 2023, arXiv:2307.14956 (tie handling).
Shapes: V items of the catalogue; column v holds the score of item v + 1, since index 0 is padding and has no score.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.errors import DivergedError

TIES = ("conservative", "first")
UNKNOWN = -1  # a target outside the vocabulary of the training users


def rank_of_target(scores: Tensor, target: Tensor, ties: str = "conservative") -> Tensor:
    """Rank of ``target`` [...] (int64, 1..V, or -1 for an unknown item) in ``scores`` [..., V] -> int64 [...].

    1 is best. An unknown target gets V + 1: a miss at every cut-off (see ``metrics.ranking``). One comparison pass,
    no sort, so the memory needed is one boolean for each score.

    Raises DivergedError naming the row when a score is NaN or infinite, ValueError for shapes or targets that no
    caller may pass.
    """
    if ties not in TIES:
        raise ValueError(f"ties={ties!r}: one of {TIES}")
    if scores.ndim != target.ndim + 1 or scores.shape[:-1] != target.shape or scores.shape[-1] == 0:
        raise ValueError(f"scores {tuple(scores.shape)} do not fit targets {tuple(target.shape)}")
    n_items = scores.shape[-1]
    known = target != UNKNOWN
    if bool((known & ((target < 1) | (target > n_items))).any()):
        raise ValueError(f"targets must be 1..{n_items} or {UNKNOWN}")
    _refuse_non_finite(scores)

    column = (target - 1).clamp(min=0).unsqueeze(-1)
    own = scores.gather(-1, column)
    if ties == "conservative":
        rank = (scores >= own).sum(-1)  # the target itself is the "1 +"
    else:
        earlier = torch.arange(n_items, device=scores.device) <= column  # <=: again the target itself
        rank = ((scores > own) | ((scores == own) & earlier)).sum(-1)
    return torch.where(known, rank, n_items + 1)


def _refuse_non_finite(scores: Tensor) -> None:
    if scores.numel() == 0:
        return
    low, high = torch.aminmax(scores, dim=-1)  # a NaN reaches both ends; no temporary of the size of scores
    bad = ~(torch.isfinite(low) & torch.isfinite(high))
    if not bool(bad.any()):
        return
    row = tuple(int(i) for i in bad.nonzero()[0])
    line = scores[row]
    column = int((~torch.isfinite(line)).nonzero()[0, 0])
    raise DivergedError(
        f"scores, row {', '.join(map(str, row)) or '0'}, item {column + 1}",
        line[column].item(),
        "a score that is not finite has no rank",
        "lower the step sizes (algorithm.inner.lr, optimizer.lr) or evaluate an earlier checkpoint",
    )
