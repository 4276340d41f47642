"""The rank of the target among all items of the catalogue, and the best items, from the scores of all.

    rank = 1 + number of other items that are scored at least as high as the target      ties="conservative"
    rank = 1 + number scored higher + number of equal ones in a lower column             ties="first"
    rank = 1 + number scored higher + number of equal ones in a higher column            ties="last"

With conservative ties a scorer that gives every item the same score lands at rank V, the last one, and not at rank 1
as ``(scores > target).sum()`` would have it. A score that is not finite is an error and never a rank.

What is fast about it: nothing is sorted. Scores are read three times, in pieces of rows that stay in the cache between the
passes: their sum, which is finite only if every score is; a comparison, counted in bytes; the maxima of groups of 64 items.
The k + 1 best scores lie in the k + 1 groups with the largest maxima, since each other score has k + 1 maxima that are no
smaller, so only those groups are searched. Ties cost more in the rows that have them, and only there: the k-th and the next
best are equal (the list), or more than one item is as good as the target (ties="first" and "last").

Source: Krichene & Rendle 2020 (no sampled candidates); Hidasi & Czapp 2023, arXiv:2307.14956 (tie handling).
Shapes: V items of the catalogue; column v holds the score of item v + 1, since index 0 is padding and has no score.
Rows: all leading dimensions [...] together, n of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.errors import DivergedError

TIES = ("conservative", "first", "last")
UNKNOWN = -1  # a target outside the vocabulary of the training users
GROUP = 64  # items whose maximum is taken first
PIECE = 2**20  # scores of one piece on the CPU: 4 MB, which caches of today hold


def rows_at_once(n_items: int, scores: int = 2**22) -> int:
    """How many rows of ``n_items`` scores to compute at once: 16 MB of float32, so that memory does not grow with rows."""
    return max(1, scores // n_items)


def rank_of_target(scores: Tensor, target: Tensor, ties: str = "conservative") -> Tensor:
    """Rank of ``target`` [...] (int64, 1..V, or -1 for an unknown item) in ``scores`` [..., V] -> int64 [...].

    1 is best. An unknown target gets V + 1: a miss at every cut-off (see ``metrics.ranking``).

    Raises DivergedError naming the row when a score is NaN or infinite, ValueError for shapes or targets that no
    caller may pass.
    """
    return _judge(scores, target, ties, 0)[0]


def rank_and_top(scores: Tensor, target: Tensor, ties: str = "conservative", k: int = 10) -> tuple[Tensor, Tensor]:
    """``rank_of_target`` and the min(k, V) best items, int64 [..., k] from 1, best first.

    Of equal scores the item of the lower column comes first, on every device, whatever ``ties`` says of the rank.
    """
    if k < 1:
        raise ValueError(f"k={k}: one item at least")
    return _judge(scores, target, ties, k)


def _judge(scores: Tensor, target: Tensor, ties: str, k: int) -> tuple[Tensor, Tensor]:
    if ties not in TIES:
        raise ValueError(f"ties={ties!r}: one of {TIES}")
    if scores.ndim != target.ndim + 1 or scores.shape[:-1] != target.shape or scores.shape[-1] == 0:
        raise ValueError(f"scores {tuple(scores.shape)} do not fit targets {tuple(target.shape)}")
    n_items = scores.shape[-1]
    known = target != UNKNOWN
    if bool((known & ((target < 1) | (target > n_items))).any()):
        raise ValueError(f"targets must be 1..{n_items} or {UNKNOWN}")

    k = min(k, n_items)
    rows = scores.reshape(-1, n_items)
    column = (target.reshape(-1, 1) - 1).clamp(min=0)
    rank = torch.empty(len(rows), dtype=torch.int64, device=scores.device)
    best = torch.empty(len(rows), k, dtype=torch.int64, device=scores.device)
    step = max(1, PIECE // n_items) if scores.device.type == "cpu" else max(1, len(rows))
    as_good = torch.empty(min(step, len(rows)), n_items, dtype=torch.bool, device=scores.device)
    for begin in range(0, len(rows), step):
        piece, own = rows[begin : begin + step], column[begin : begin + step]
        if not bool(torch.isfinite(piece.sum(-1)).all()):  # or the sum alone has overflowed
            refuse_non_finite(scores)
        rank[begin : begin + step] = _rank(piece, own, ties, as_good[: len(piece)])
        if k:
            best[begin : begin + step] = _best(piece, k)
    return torch.where(known, rank.view(target.shape), n_items + 1), best.view(*target.shape, k) + 1


def _rank(scores: Tensor, column: Tensor, ties: str, found: Tensor) -> Tensor:
    """[n] for ``column`` [n, 1]; ``found`` bool [n, V] is written over."""
    own = scores.gather(-1, column)
    rank = _count(torch.ge(scores, own, out=found))  # the target itself is the "1 +"
    if ties == "conservative":
        return rank
    above = _count(torch.gt(scores, own, out=found))
    tied = (rank - above > 1).nonzero().squeeze(-1)
    if len(tied):
        place = torch.arange(scores.shape[-1], device=scores.device)
        ahead = place <= column[tied] if ties == "first" else place >= column[tied]  # again the target itself
        rank[tied] = above[tied] + ((scores[tied] == own[tied]) & ahead).sum(-1)
    return rank


def _count(found: Tensor) -> Tensor:
    """How many are true in each row, int64 [n]: bytes summed into 32 bits, which the CPU does many at a time."""
    return found.view(torch.uint8).sum(-1, dtype=torch.int32).long()


def _best(scores: Tensor, k: int) -> Tensor:
    """Columns [n, k] of the best, of equal ones the lower first."""
    n_items = scores.shape[-1]
    values, columns = _largest(scores, min(k + 1, n_items))  # which of equal ones it takes is open
    if k < n_items:
        cut = (values[:, k - 1] == values[:, k]).nonzero().squeeze(-1)  # equal ones on both sides of the cut
        values, columns = values[:, :k], columns[:, :k]
        if len(cut):
            columns[cut] = _first_of_equals(scores[cut], values[cut, -1:], k)
    columns = columns.sort(dim=-1).values
    order = scores.gather(-1, columns).argsort(dim=-1, descending=True, stable=True)
    return columns.gather(-1, order)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``scores.topk(k)``; item c is of group c % G for G groups, the last V - 64 G items of none."""
    n_items = scores.shape[-1]
    n_groups = n_items // GROUP
    if n_groups < 4 * k:  # a search through most of the items is no shorter
        found = scores.topk(k, dim=-1)
        return found.values, found.indices
    groups = scores[:, : n_groups * GROUP].reshape(-1, GROUP, n_groups).amax(-2).topk(k, dim=-1, sorted=False).indices
    members = groups.unsqueeze(-1) + torch.arange(GROUP, device=scores.device) * n_groups
    rest = torch.arange(n_groups * GROUP, n_items, device=scores.device).expand(len(scores), -1)
    candidates = torch.cat([members.flatten(1), rest], dim=-1)
    best = scores.gather(-1, candidates).topk(k, dim=-1)
    return best.values, candidates.gather(-1, best.indices)


def _first_of_equals(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """Columns [n, k], rising: all scored above ``last`` [n, 1], and the first of those that equal it."""
    above, equal = scores > last, scores == last
    taken = above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    return taken.nonzero()[:, 1].view(len(scores), k)


def refuse_non_finite(scores: Tensor) -> None:
    """DivergedError naming the row of the first score [..., V] that is NaN or infinite."""
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
        task=row[0] if row else None,
    )
