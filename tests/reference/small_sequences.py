"""Small sequences of ragged and empty, shuffled and overlapping rows for the tests of the GRU, and how results compare."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from metarec.core.batch import Sequences

D, H = 4, 5
LENGTHS = [[5, 3, 3, 0], [1, 0, 0, 0], [0, 0, 0, 0], [7, 7, 2, 1], [4, 0, 0, 0]]  # one task has no event at all


def packed(
    lengths: list[list[int]], extra_columns: int = 0, extra_rows: int = 0, shuffle: int | None = None
) -> Sequences:
    """Sequences of these lengths, one behind the other; `shuffle` seeds another order of rows in memory and in time."""
    width = max(map(sum, lengths)) + extra_columns
    items = torch.zeros(len(lengths), width, dtype=torch.int64)
    starts = torch.zeros(len(lengths), len(lengths[0]) + extra_rows, dtype=torch.int64)
    sizes = torch.zeros_like(starts)
    for task, own in enumerate(lengths):
        places = list(range(len(own)))
        if shuffle is not None:
            random.Random(shuffle + task).shuffle(places)
        at = 0
        for row in places:
            starts[task, row], sizes[task, row] = at, own[row]
            items[task, at : at + own[row]] = 1 + torch.arange(own[row])
            at += own[row]
    return Sequences(items, starts, sizes)


OVERLAPPING = Sequences(  # windows of one session: sequences of their own over the same events
    torch.ones(3, 9, dtype=torch.int64),
    torch.tensor([[0, 2, 4, 1], [0, 5, 7, 0], [0, 0, 0, 0]]),
    torch.tensor([[5, 5, 5, 2], [4, 2, 2, 0], [1, 0, 0, 0]]),
)
LAYOUTS = {
    "ragged": packed(LENGTHS),
    "overlapping": OVERLAPPING,
    "one heavy task": packed([[9] * 6, *[[2] + [0] * 5] * 9]),
}


def mixing(shape: torch.Size) -> Tensor:
    """Fixed numbers that a result is multiplied by, so that every entry of it has another gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max().item() <= tolerance if got.numel() else True
