"""Examples of text -> packed batches: the batches of logs, in which tasks have unequal numbers of pairs.

Each example is one sequence; its pairs look behind its tokens from the separator on. A task with fewer pairs than the
largest of its batch is filled up with places that hold no pair (target 0), which no loss and no rank counts.

Shapes: T tasks, R examples a task, N pairs of the task with the most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.core.batch import EpisodeBatch, PairBatch
from metarec.data.batches import Batcher
from metarec.data.prompts import Drawn, Prompts
from metarec.ragged import ranges

Ints = NDArray[np.int64]


def batcher_of(prompts: Prompts, max_len: int, device: torch.device) -> Batcher:
    """Over the tokens of all examples; `max_len` cuts none, as the options are checked."""
    return Batcher(prompts.tokens, prompts.pair_begin, prompts.pair_event, max_len, device=device)


def examples_batch(prompts: Prompts, batcher: Batcher, examples: Ints) -> PairBatch:
    """All pairs of `examples` int64 [T, R], those of an example behind those of the one before."""
    first, counts = prompts.example_pairs[examples], np.diff(prompts.example_pairs)[examples]
    sizes = counts.sum(1)
    n_pairs = int(sizes.max(initial=0))
    there = np.arange(n_pairs) < sizes[:, None]
    pairs = np.zeros((len(examples), n_pairs), dtype=np.int64)
    pairs[there] = ranges(first.ravel(), counts.ravel())
    if n_pairs:  # the last pair again: it adds no sequence
        last = pairs[np.arange(len(pairs)), np.maximum(sizes - 1, 0)]
        pairs = np.where(there, pairs, last[:, None])
    batch = batcher.pairs(pairs)
    kept = torch.from_numpy(there).to(batch.at.device)
    return PairBatch(batch.sequences, batch.at.where(kept, 0), batch.target.where(kept, 0))


def episodes_batch(
    prompts: Prompts, batcher: Batcher, drawn: Drawn, rows: slice | Ints, n_support: int
) -> EpisodeBatch:
    """Some of the episodes, `n_support` of the support examples of each; `user` is the number of the domain."""
    query = drawn.example[rows, : drawn.n_query]
    support = drawn.example[rows, drawn.n_query : drawn.n_query + n_support]
    parts = [examples_batch(prompts, batcher, own) for own in (support, query)]
    return EpisodeBatch(parts[0], parts[1], torch.from_numpy(drawn.domain[rows]))


@dataclass(frozen=True)
class TextEpisodes:
    """Fixed episodes under evaluation, as `evaluate.ranks` reads them; a "user" is a domain, of several episodes."""

    prompts: Prompts
    batcher: Batcher
    drawn: Drawn
    rows: Ints
    n_support: int  # examples that are used of each support
    chunk: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def user(self) -> Ints:
        """Numbers of the domains, int64 [T]."""
        return self.drawn.domain[self.rows]

    @property
    def n_query(self) -> int:
        """Query examples of each episode."""
        return self.drawn.n_query

    @property
    def width(self) -> int:
        """N of the query: tokens of the episode with the most."""
        own = self.drawn.example[self.rows, : self.n_query]
        return int(np.diff(self.prompts.example_pairs)[own].sum(1).max(initial=0))

    @property
    def sha256(self) -> str:
        """Of all that are drawn, chosen or not."""
        return self.drawn.sha256

    def batches(self) -> Iterator[EpisodeBatch]:
        """`chunk` episodes at a time, in order, on `device`; each as wide as its own largest."""
        for begin in range(0, len(self.rows), self.chunk):
            rows = self.rows[begin : begin + self.chunk]
            yield episodes_batch(self.prompts, self.batcher, self.drawn, rows, self.n_support).to(self.device)
