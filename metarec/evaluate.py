"""Ranks of every query target under every method, on the same episodes, candidates and code path.

A scorer is a way from an episode batch to the scores of all items for every query; everything else (episodes, candidates,
ties, metrics) is the same code for all. Most scorers are a method, a way from the batch to weights, read by the model: that
is all that differs between zero-shot, the fine-tune control and few-shot.

Candidates are the whole training vocabulary; with `seen`, without what the user is known to have had.

Shapes: T episodes, K support and Q query pairs, V items, n = T * Q targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.core.batch import EpisodeBatch, PairBatch
from metarec.core.weights import Params, Weights
from metarec.data.batches import Batcher
from metarec.data.episodes import EpisodeRanges
from metarec.errors import DivergedError
from metarec.metrics import METRICS
from metarec.metrics.finite import no_figure
from metarec.metrics.lists import Had
from metarec.metrics.perplexity import exponential
from metarec.metrics.ranks import UNKNOWN, rank_and_top, rank_of_target, refuse_non_finite
from metarec.metrics.summary import TargetRecords
from metarec.ragged import ranges
from metarec.tasks import Tasks

Ints = NDArray[np.int64]
Method = Callable[[EpisodeBatch], Weights]  # weights of the T users of a batch, ready for `Tasks.logits`
Scorer = Callable[[EpisodeBatch], Tensor]  # scores [T, Q, V]
Seen = Callable[[EpisodeBatch], Tensor]  # places int64 [n] in scores.flatten() that are no candidates
TOP = 10
LIKELIHOOD = "log_likelihood"  # what stands for perplexity where larger must be better


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
        """Rows of the users in the prepared data, int64 [T]."""
        return self.ranges.user[self.rows]

    def batches(self) -> Iterator[EpisodeBatch]:
        """`chunk` episodes at a time, in order, on `device`; the last batch may be smaller."""
        skip = self.ranges.n_support - self.n_support
        for begin in range(0, len(self.rows), self.chunk):
            rows = self.rows[begin : begin + self.chunk]
            first = self.ranges.first_pair[rows]
            yield self.batcher.episodes(self.ranges.user[rows], first, self.n_support, self.ranges.n_query, skip).to(
                self.device
            )

    @property
    def n_query(self) -> int:
        """Q, the same for every number of support pairs."""
        return self.ranges.n_query

    @property
    def sha256(self) -> str:
        """Of the split's stored episodes, whatever rows and support are used."""
        return self.ranges.sha256

    def pairs(self) -> tuple[Ints, Ints]:
        """Numbers of the support pairs [N, K] and query pairs [N, Q]."""
        span = self.ranges.first_pair[self.rows][:, None] + np.arange(self.ranges.n_support + self.ranges.n_query)
        return span[:, self.ranges.n_support - self.n_support : self.ranges.n_support], span[:, self.ranges.n_support :]


class Judged(Protocol):
    """Episodes of any kind: what ranks are made of."""

    def __len__(self) -> int: ...

    @property
    def user(self) -> Ints:
        """Who is measured, int64 [T]; figures of one user belong together."""

    @property
    def n_query(self) -> int:
        """Q, the same for every episode."""

    def batches(self) -> Iterator[EpisodeBatch]:
        """All episodes once, in the order of `user`."""


def scored(tasks: Tasks, method: Method, *, support: bool = True) -> Scorer:
    """The model's scores under the weights that `method` gives; without `support`, no memory holds any of it either."""
    return lambda batch: tasks.logits(method(batch), batch.query if support else batch.query.without_support())


def ranks(episodes: Judged, scorer: Scorer, ties: str, seen: Seen | None = None) -> tuple[Ints, Ints]:
    """Rank of every target [N, Q] and the ten best items [N, Q, 10] (1-based; fewer where the catalogue is smaller).

    A place that holds no target (0: batches of unequal width) has rank 0; Q is that of the widest batch. Raises
    DivergedError, with its user, where adaptation or a score is not finite.
    """
    found, top = [], []
    with torch.no_grad():
        for batch in episodes.batches():
            try:
                rank, best = rank_batch(scorer(batch), batch, ties, seen)
            except DivergedError as error:
                error.user = None if error.task is None else int(batch.user[error.task])
                raise
            found.append(rank)
            top.append(best)
    return joined(found), joined(top)


def joined(parts: Sequence[Ints]) -> Ints:
    """Batches [T, Q, ...] one behind the other, narrower ones filled up with 0."""
    width = max(part.shape[1] for part in parts)
    rest = [((0, 0), (0, width - part.shape[1]), *[(0, 0)] * (part.ndim - 2)) for part in parts]
    return np.concatenate([np.pad(part, own) if own[1][1] else part for part, own in zip(parts, rest, strict=True)])


def divergences(
    episodes: Judged, reference: Scorer, scorers: Mapping[str, Scorer]
) -> dict[str, dict[str, float | None]]:
    """Of every scorer, in nats: the mean cross-entropy of the query targets, and the mean KL(reference || scorer) there.

    Over the whole vocabulary, whatever is ranked. Targets outside of it are left out of both; None where none is left.
    """
    count, sums = 0, {name: [0.0, 0.0] for name in scorers}
    with torch.no_grad():
        for batch in episodes.batches():
            known = batch.query.target > 0
            column = batch.query.target[known][:, None] - 1
            log_p = reference(batch)[known].log_softmax(-1)  # [n, V]
            p = log_p.exp()
            count += len(column)
            for name, scorer in scorers.items():
                log_q = scorer(batch)[known].log_softmax(-1)
                sums[name][0] -= float(log_q.gather(1, column).sum())
                sums[name][1] += float((p * (log_p - log_q)).sum())
    return {
        name: {"cross_entropy": ce / count if count else None, "kl": kl / count if count else None}
        for name, (ce, kl) in sums.items()
    }


def rank_batch(scores: Tensor, batch: EpisodeBatch, ties: str, seen: Seen | None) -> tuple[Ints, Ints]:
    """Rank of every target [T, Q] under scores [T, Q, V], and the ten best items, as `ranks` has them of all batches."""
    if seen is not None:
        refuse_non_finite(scores)  # before some are put aside
        scores = scores.clone()
        scores.view(-1)[seen(batch)] = torch.finfo(scores.dtype).min / (2 * scores.shape[-1])  # sums stay finite
    target = batch.query.target
    absent = target == 0
    ragged = bool(absent.any())
    rank, best = rank_and_top(scores, target.where(~absent, UNKNOWN) if ragged else target, ties, TOP)
    if ragged:
        rank = rank.where(~absent, 0)
    return rank.cpu().numpy(), best.cpu().numpy()


def seen(batcher: Batcher, n_items: int) -> Seen:
    """What is no candidate where items are never had twice: the items of a query's own prefix, whole."""

    def places(batch: EpisodeBatch) -> Tensor:
        assert batch.query_pairs is not None
        begin, event = (part.ravel() for part in batcher.ends(batch.query_pairs))
        item = np.asarray(batcher.item[ranges(begin, event - begin)], dtype=np.int64)
        row = np.repeat(np.arange(len(begin)), event - begin)
        return torch.from_numpy((row * n_items + item - 1)[item > 0]).to(batch.user.device)

    return places


def monitored(rank: Ints, n_items: int) -> dict[str, float]:
    """Every metric as a mean over targets, of any shape; rank 0 is no target. DivergedError where one is not finite."""
    there = rank[rank > 0]
    means = {name: float(metric(there, n_items).mean()) for name, metric in METRICS.items()}
    for name, mean in means.items():
        if not math.isfinite(mean):
            values = METRICS[name](there, n_items)
            bad = int(np.argmin(np.isfinite(values)))
            task = int(np.argwhere(rank > 0)[bad][0]) if rank.ndim > 1 else None
            raise no_figure(f"{name} of target {bad}", values[bad], task)
    return means


def pair_metrics(tasks: Tasks, batcher: Batcher, pairs: Ints, phi: Params, ties: str, device: torch.device,
                 chunk: int = 2048, *, likelihood: bool = False) -> dict[str, float]:  # fmt: skip
    """Metrics of single pairs under shared weights: what pretraining is validated by; `pairs` rising.

    With `likelihood` also LIKELIHOOD, the mean log-probability of the known targets in nats (larger is better), and their
    perplexity, exp(-it).
    """
    found, costs = [], []
    with torch.no_grad():
        for begin in range(0, len(pairs), chunk):
            batch = batcher.pairs(pairs[None, begin : begin + chunk]).to(device)
            scores = tasks.logits(phi, batch)
            found.append(rank_of_target(scores, batch.target, ties).cpu().numpy().reshape(-1))
            if likelihood:
                costs.append(target_costs(scores, batch.target).cpu().numpy())
    values = monitored(np.concatenate(found), tasks.model.n_items)
    if likelihood:
        mean = float(np.concatenate(costs).mean())
        values |= {LIKELIHOOD: -mean, "perplexity": exponential(mean)}
    return values


def target_costs(scores: Tensor, target: Tensor) -> Tensor:
    """-log softmax(scores)[target] of the known targets, float64 [n]: scores [T, N, V], target int64 [T, N]."""
    known = target > 0
    log_p = scores[known].double().log_softmax(-1)
    return -log_p.gather(1, target[known][:, None] - 1)[:, 0]


def costs_of_targets(
    tasks: Tasks, phi: Weights, batches: Iterable[PairBatch], device: torch.device
) -> NDArray[np.float64]:
    """Cross-entropy in nats of every known target of the batches, under shared weights, in their order: [n]."""
    with torch.no_grad():
        found = [
            target_costs(tasks.logits(phi, own := batch.to(device)), own.target).cpu().numpy() for batch in batches
        ]
    return np.concatenate(found) if found else np.zeros(0)


@dataclass(frozen=True)
class Control:
    """The fine-tune control as tuned on validation: step size, steps, and the score of every choice tried."""

    lr: float
    steps: int
    value: float
    tried: list[dict[str, float]]


def tune_control(
    tasks: Tasks, phi: Params, episodes: Judged, lrs: Sequence[float], steps: Sequence[int], monitor: str, ties: str,
    on_lr: Callable[[float], None] = lambda lr: None, *, adapted: frozenset[str] | None = None, seen: Seen | None = None,
    paths: Callable[[EpisodeBatch, InnerLoop], Iterable[Weights]] | None = None,
) -> Control:  # fmt: skip
    """Choose step size and steps of plain fine-tuning by the mean of `monitor` over the episodes (validation users).

    Every step count of one step size comes from one path. Ties go to the smaller step size, then fewer steps. A step
    size that diverges on any user is out. `adapted`: names of what is fine-tuned, None = all. `paths`: what gives the
    weights of a batch after 0, 1, ... steps of a loop, in place of plain fine-tuning of `phi`.
    """
    wanted, tried = sorted(set(steps)), []
    for lr in sorted(set(lrs)):
        on_lr(lr)
        found: dict[int, list[Ints]] = {count: [] for count in wanted}
        try:
            for batch in episodes.batches():
                loop = InnerLoop(lr, wanted[-1], adapted=adapted)
                if paths is not None:
                    path: Iterable[Weights] = paths(batch, loop)
                else:
                    path = inner.path(tasks.loss(batch.support), phi, batch.n_tasks, loop)
                for count, weights in enumerate(path):
                    if count in found:
                        with torch.no_grad():
                            scores = tasks.logits(weights, batch.query)
                            found[count].append(rank_batch(scores, batch, ties, seen)[0].reshape(-1))
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


def records(
    episodes: Judged, found: Mapping[str, Ints], n_items: int, repeat: NDArray[np.bool_],
    about: Mapping[str, Ints] = MappingProxyType({}),
) -> TargetRecords:  # fmt: skip
    """One row a target; `repeat` bool [N, Q]: the target is already in its prefix or in the support.

    `about`: further columns of `TargetRecords`, [N, Q] where they are of targets. Places without a target (rank 0) have
    no row.
    """
    n_episodes, n_query = next(iter(found.values())).shape
    there = next(iter(found.values())).reshape(-1) > 0
    return TargetRecords(
        user=np.repeat(episodes.user, n_query)[there],
        episode=np.repeat(np.arange(n_episodes), n_query)[there],
        position=np.tile(np.arange(n_query), n_episodes)[there],
        repeat=repeat.reshape(-1)[there],
        ranks={name: rank.reshape(-1)[there] for name, rank in found.items()},
        n_items=n_items,
        **{name: column.reshape(-1) for name, column in about.items()},
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


def known(batcher: Batcher, pairs: Ints, *, targets: bool) -> Had:
    """Distinct known items of each row of `pairs` [N, n]: those of the prefixes, whole, and with `targets` the targets."""
    begin, event = batcher.ends(pairs)
    counts = event + targets - begin
    item = np.asarray(batcher.item[ranges(begin.ravel(), counts.ravel())], dtype=np.int64)
    row = np.repeat(np.arange(len(pairs)), counts.sum(axis=1))
    size = int(item.max(initial=0)) + 1
    return Had(*np.divmod(np.unique((row * size + item)[item > 0]), size))
