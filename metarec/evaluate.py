"""Ranks of every query target under every method, on the same episodes, candidates and code path.

Candidates are the whole training vocabulary. A method is a way from an episode batch to weights; that is all that differs
between zero-shot, the fine-tune control and few-shot.

Shapes: T episodes, K support and Q query pairs, V items, n = T * Q targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.core.batch import EpisodeBatch, ImageBatch, PairBatch
from metarec.core.weights import Params, Weights
from metarec.data.batches import Batcher
from metarec.data.episodes import EpisodeRanges
from metarec.errors import DivergedError
from metarec.metrics.ranking import METRICS
from metarec.metrics.ranks import rank_of_target
from metarec.metrics.summary import TargetRecords
from metarec.tasks import Tasks

Ints = NDArray[np.int64]
Method = Callable[[EpisodeBatch], Weights]  # weights of the T users of a batch, ready for `Tasks.logits`
TOP = 10


@dataclass(frozen=True)
class Episodes:
    """Fixed episodes under evaluation: the rows of a split, and how many of the stored support pairs are used.

    Fewer support pairs than stored are the latest ones, so that every K has the same users and the same query pairs.
    """

    batcher: Batcher
    ranges: EpisodeRanges
    rows: Ints
    n_support: int
    chunk: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def user(self) -> Ints:
        return self.ranges.user[self.rows]

    def batches(self) -> Iterator[EpisodeBatch]:
        skip = self.ranges.n_support - self.n_support
        for begin in range(0, len(self.rows), self.chunk):
            rows = self.rows[begin : begin + self.chunk]
            first = self.ranges.first_pair[rows]
            yield self.batcher.episodes(self.ranges.user[rows], first, self.n_support, self.ranges.n_query, skip).to(
                self.device
            )

    @property
    def n_query(self) -> int:
        return self.ranges.n_query

    @property
    def sha256(self) -> str:
        return self.ranges.sha256

    def pairs(self) -> tuple[Ints, Ints]:
        """Numbers of the support pairs [N, K] and query pairs [N, Q]."""
        span = self.ranges.first_pair[self.rows][:, None] + np.arange(self.ranges.n_support + self.ranges.n_query)
        return span[:, self.ranges.n_support - self.n_support : self.ranges.n_support], span[:, self.ranges.n_support :]


class Judged(Protocol):
    """Episodes of any kind: what ranks are made of."""

    def __len__(self) -> int: ...

    @property
    def user(self) -> Ints: ...

    @property
    def n_query(self) -> int: ...

    def batches(self) -> Iterator[EpisodeBatch]: ...


def ranks(tasks: Tasks, episodes: Judged, method: Method, ties: str) -> tuple[Ints, Ints]:
    """Rank of every target [N, Q] and the ten best items [N, Q, 10] (1-based; fewer where the catalogue is smaller)."""
    found, top = [], []
    with torch.no_grad():
        for batch in episodes.batches():
            rank, best = _rank(tasks, method(batch), batch.query, ties)
            found.append(rank)
            top.append(best)
    return np.concatenate(found), np.concatenate(top)


def _rank(tasks: Tasks, weights: Weights, query: PairBatch | ImageBatch, ties: str) -> tuple[Ints, Ints]:
    logits = tasks.logits(weights, query)
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices + 1
    return rank_of_target(logits, query.target, ties).cpu().numpy(), best.cpu().numpy()


def monitored(rank: Ints, n_items: int) -> dict[str, float]:
    """Every metric as a mean over targets."""
    return {name: float(metric(rank.reshape(-1), n_items).mean()) for name, metric in METRICS.items()}


def pair_metrics(tasks: Tasks, batcher: Batcher, pairs: Ints, phi: Params, ties: str, device: torch.device,
                 chunk: int = 2048) -> dict[str, float]:  # fmt: skip
    """Metrics of single pairs under shared weights: what pretraining is validated by; `pairs` rising."""
    found = []
    with torch.no_grad():
        for begin in range(0, len(pairs), chunk):
            batch = batcher.pairs(pairs[None, begin : begin + chunk]).to(device)
            found.append(rank_of_target(tasks.logits(phi, batch), batch.target, ties).cpu().numpy().reshape(-1))
    return monitored(np.concatenate(found), tasks.model.n_items)


@dataclass(frozen=True)
class Control:
    """The fine-tune control as tuned on validation: step size, steps, and the score of every choice tried."""

    lr: float
    steps: int
    value: float
    tried: list[dict[str, float]]


def tune_control(
    tasks: Tasks, phi: Params, episodes: Judged, lrs: Sequence[float], steps: Sequence[int], monitor: str, ties: str,
    on_lr: Callable[[float], None] = lambda lr: None,
) -> Control:  # fmt: skip
    """Choose step size and steps of plain fine-tuning by the mean of `monitor` over the episodes (validation users).

    Every step count of one step size comes from one path. Ties go to the smaller step size, then fewer steps. A step
    size that diverges on any user is out.
    """
    wanted, tried = sorted(set(steps)), []
    for lr in sorted(set(lrs)):
        on_lr(lr)
        found: dict[int, list[Ints]] = {count: [] for count in wanted}
        try:
            for batch in episodes.batches():
                path = inner.path(tasks.loss(batch.support), phi, batch.n_tasks, InnerLoop(lr, wanted[-1]))
                for count, weights in enumerate(path):
                    if count in found:
                        with torch.no_grad():
                            found[count].append(_rank(tasks, weights, batch.query, ties)[0])
        except DivergedError:
            continue
        for count in wanted:
            value = monitored(np.concatenate(found[count]), tasks.model.n_items)[monitor]
            tried.append({"lr": lr, "steps": count, monitor: value})
    if not tried:
        raise DivergedError(
            "evaluation.control.lrs", list(lrs), "fine-tuning diverges at every step size", "give smaller step sizes"
        )
    best = max(tried, key=lambda row: (row[monitor], -row["lr"], -row["steps"]))
    return Control(best["lr"], int(best["steps"]), best[monitor], tried)


def records(episodes: Judged, found: Mapping[str, Ints], n_items: int, repeat: NDArray[np.bool_]) -> TargetRecords:
    """One row a target; `repeat` bool [N, Q]: the target is already in its prefix or in the support."""
    n_episodes, n_query = len(episodes), episodes.n_query
    return TargetRecords(
        user=np.repeat(episodes.user, n_query),
        episode=np.repeat(np.arange(n_episodes), n_query),
        position=np.tile(np.arange(n_query), n_episodes),
        repeat=repeat.reshape(-1),
        ranks={name: rank.reshape(-1) for name, rank in found.items()},
        n_items=n_items,
    )


def repeats(batcher: Batcher, episodes: Episodes) -> NDArray[np.bool_]:
    """bool [N, Q]: the target stands in its own prefix or in the support (prefixes and targets)."""
    support, query = episodes.pairs()
    out = np.zeros(query.shape, dtype=bool)
    for i in range(len(query)):
        seen: set[int] = set()
        for pair in support[i]:
            seen.update(batcher.item[batcher.pair_begin[pair] : batcher.pair_event[pair] + 1].tolist())
        for j, pair in enumerate(query[i]):
            begin, event = batcher.pair_begin[pair], batcher.pair_event[pair]
            target = int(batcher.item[event])
            out[i, j] = target > 0 and (target in seen or target in batcher.item[begin:event])
    return out
