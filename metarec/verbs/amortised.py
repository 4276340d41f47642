"""Rows of a run that generates adapters: what shows whether they are a user's own, and how near they come to teachers.

    inner_loop      the inner loop from the start that all share, its own step size and steps, on the same support
    refined         what is generated, and REFINED inner steps from there; `generated`, no step, where few-shot has some
    other_support   generated from the support of the next user under test, for this one's queries: what a user's own gains
    mean_teacher    the mean of what the training users' teachers do to each weight, for everybody; of runs with teachers
    teacher         the inner loop from the shared start on all that the user did before his first query pair

All but the first two are asked of the episodes themselves and stand in the table alone. `evaluation.panel=none` leaves all
of them out. Beside them a run says how much of the teachers' gain is generated, with an interval over users, and how near
the generated adapters are to the teachers of the very users under test (`core.closeness`):

    recovered = (few-shot - pretrained) / (teacher - pretrained)         of the monitored metric

Shapes: N episodes, T of a batch, Q query pairs, V items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.algorithms import Algorithm, inner
from metarec.algorithms.inner import InnerLoop
from metarec.benches import AnyBench
from metarec.config.schema import EvaluationConfig
from metarec.core.batch import EpisodeBatch
from metarec.core.closeness import Closeness
from metarec.core.weights import FastWeight, Params, Weights
from metarec.errors import ConfigError
from metarec.evaluate import Judged, Scorer, joined, rank_batch, ranks, scored
from metarec.metrics import intervals as iv
from metarec.metrics.bootstrap import bootstrap
from metarec.metrics.finite import or_none
from metarec.metrics.records import TargetRecords
from metarec.residual import Residual

Ints = NDArray[np.int64]
REFINED = 3  # inner steps of `refined`
ALONE = "fewer than two users are under test"
NOT_ASKED = "teachers were not asked for"
Adapting = Callable[[EpisodeBatch], Mapping[str, FastWeight]]


class Rolled(Judged, Protocol):
    """Episodes whose order is a matter of their rows."""

    @property
    def rows(self) -> Ints:
        """int64 [N]."""


@dataclass(frozen=True)
class Reference:
    """What the teachers of the users under test are found with, and what the run's own teachers do on average."""

    lr: float
    steps: int
    past: Judged  # the same users in the same order and chunks, with more of their history as support
    mean: Mapping[str, Tensor] | None = (
        None  # module -> [out, in] of a product, else [*S]; None: the run has no teachers
    )
    pairs: int | None = None  # support pairs at most
    tuning: dict[str, Any] | None = None  # how step size and steps were chosen, where they were


@dataclass(frozen=True)
class Found:
    """Ranks [N, Q] and best items [N, Q, 10] by row, what was left out and why, and the block `amortised`."""

    ranks: dict[str, Ints] = field(default_factory=dict)
    tops: dict[str, Ints] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)


def generates(algorithm: Algorithm | None, evaluation: EvaluationConfig) -> bool:
    """Whether there are such rows: the algorithm generates, and rows to compare with are asked for."""
    return hasattr(algorithm, "by_inner_loop") and evaluation.panel not in ("none", [])


def coverage(algorithm: Any, phi: Params) -> str | None:
    """How much of what adapts is generated, for the reader; None for an algorithm that generates nothing.

    `phi` [*S] each. Raises ConfigError for a module of which a number adapts and is not generated.
    """
    if not hasattr(algorithm, "gives"):
        return None
    gives = algorithm.gives(phi)
    moving = [name for name in inner.start(phi, algorithm.inner) if algorithm.inner.moves(name)]
    of = {name: weight for weight, (a, b, _) in algorithm.products.items() for name in (a, b)}
    modules = {of.get(name, name) for name in moving}
    lacking = sorted({of.get(name, name) for name in moving if name not in gives})
    if lacking:
        what = (
            f"{len(modules) - len(lacking)} of {len(modules)} modules of what adapts are generated, {lacking[0]} is not"
        )
        raise ConfigError("algorithm.inner.adapt", lacking[0], what, "give patterns that leave it out")
    n = len(modules)
    return f"generated: {n} of {n} modules of what adapts (100 %), {sum(gives.values()):,} numbers a user"


class Crossed:
    """Episodes in which each user has the support of another: of the next one, and the last has the first one's.

    Where users have several episodes, that of the next user, so that nobody ever has his own.
    """

    def __init__(self, episodes: Rolled) -> None:
        """Raises ValueError where no such order is: one user, or one who has more than half of the episodes."""
        self.own = episodes
        order = np.argsort(episodes.user, kind="stable")
        shift = int(np.unique(episodes.user, return_counts=True)[1].max())
        other = np.empty_like(order)
        other[order] = np.roll(order, -shift)
        if (episodes.user[other] == episodes.user).any():
            raise ValueError(ALONE)
        self.other: Judged = replace(episodes, rows=episodes.rows[other])  # type: ignore[type-var]

    def __len__(self) -> int:
        return len(self.own)

    @property
    def user(self) -> Ints:
        """Whose queries they are, int64 [N]."""
        return self.own.user

    @property
    def n_query(self) -> int:
        """Q, of the queries."""
        return self.own.n_query

    def batches(self) -> Iterator[EpisodeBatch]:
        """In the order of `user`."""
        for own, other in zip(self.own.batches(), self.other.batches(), strict=True):
            yield with_support(own, other)


def with_support(own: EpisodeBatch, other: EpisodeBatch) -> EpisodeBatch:
    """The queries of `own` behind the support of `other`, T tasks each."""
    return replace(own, support=other.support, reliability=other.reliability, support_pairs=other.support_pairs)


def rows(
    bench: AnyBench, base: Params, phi: Params, over: Residual, algorithm: Any, adapting: Adapting, episodes: Any,
    reference: Reference | str,
) -> Found:  # fmt: skip
    """The rows that need more than a batch; `reference`: of the teachers, or why there are none.

    `adapting`: as few-shot adapts. `phi` [*S] each: as learned, with what all users start from.
    """
    found, tasks, judge = Found(), bench.tasks(over), (bench.evaluation.ties, bench.seen())
    try:
        crossed = Crossed(episodes)
    except ValueError as why:
        found.left_out["other_support"] = str(why)
    else:
        found.ranks["other_support"], found.tops["other_support"] = ranks(crossed, scored(tasks, adapting), *judge)
    if isinstance(reference, str):
        found.left_out["teacher"] = reference
        return found
    if reference.mean is not None:
        scorer = mean_scorer(bench, phi, over, algorithm, reference.mean)
        found.ranks["mean_teacher"], found.tops["mean_teacher"] = ranks(episodes, scorer, *judge)
    start = inner.start(phi, algorithm.inner)
    moving = {name: value for name, value in start.items() if algorithm.inner.moves(name)}
    loop = InnerLoop(reference.lr, reference.steps, adapted=frozenset(moving))
    close, plain, sums = Closeness(algorithm.products, moving, reference.mean), bench.tasks(), _Divergences()
    rank: list[Ints] = []
    top: list[Ints] = []
    with torch.no_grad():
        for own, more in zip(episodes.batches(), reference.past.batches(), strict=True):
            told = inner.adapt(tasks.loss(more.support), start, own.n_tasks, loop)
            made = adapting(own)
            scores = tasks.logits(told, own.query)
            close.add(made, told, own.n_tasks)
            sums.add(own.query.target != 0, plain.logits(base, own.query), tasks.logits(made, own.query), scores)
            for parts, part in zip((rank, top), rank_batch(scores, own, *judge), strict=True):
                parts.append(part)
    found.ranks["teacher"], found.tops["teacher"] = joined(rank), joined(top)
    chosen = {"lr": reference.lr, "steps": reference.steps, "pairs": reference.pairs}
    found.document["teacher"] = chosen | ({} if reference.tuning is None else {"tuning": reference.tuning})
    found.document["closeness"] = close.document() | {"kl": sums.document()}
    return found


def mean_scorer(bench: AnyBench, phi: Params, over: Residual, algorithm: Any, mean: Mapping[str, Tensor]) -> Scorer:
    """Everybody has the mean of what teachers do: base + mean dW [out, in] where that is a product, else start + mean."""
    tasks, start = bench.tasks(over), inner.start(phi, algorithm.inner)
    products = {weight for weight in mean if weight in algorithm.products}
    whole = {weight: over.base[weight] + mean[weight].to(over.base[weight]) for weight in products}
    begun = start | {name: start[name] + own.to(start[name]) for name, own in mean.items() if name not in products}

    def compose(weights: Weights) -> Weights:
        return dict(over.compose(weights)) | whole

    return scored(replace(tasks, compose=compose), lambda batch: begun)


class _Divergences:
    """Sums over query pairs that are there of KL divergences between three models, in nats."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = {"generated_from_pretrained": 0.0, "teacher_from_pretrained": 0.0, "generated_from_teacher": 0.0}

    def add(self, there: Tensor, pretrained: Tensor, made: Tensor, told: Tensor) -> None:
        """Scores [T, Q, V] of the same queries, of which `there` bool [T, Q] are counted."""
        p, g, t = (scores[there].double().log_softmax(-1) for scores in (pretrained, made, told))
        self.count += len(p)
        pairs = {
            "generated_from_pretrained": (p, g),
            "teacher_from_pretrained": (p, t),
            "generated_from_teacher": (t, g),
        }
        for name, (one, other) in pairs.items():
            self.sums[name] += float((one.exp() * (one - other)).sum())

    def document(self) -> dict[str, float]:
        """KL(the model behind `from` || the model before it), mean over query pairs."""
        return {name: total / max(self.count, 1) for name, total in self.sums.items()}


def recovered(records: TargetRecords, metric: str, *, n_resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    """How much of the teachers' gain over the pretrained model few-shot has: {metric, value, low, high}, and why a null."""
    columns = [records.column(name, metric) for name in ("fewshot", "pretrained", "teacher")]
    drawn = bootstrap(records.values[:, columns], records.user, n_resamples=n_resamples, seed=seed)
    value, low, high = (or_none(one) for one in iv.gap_ratio(drawn, confidence))
    out = {"metric": metric, "value": value, "low": low, "high": high}
    if value is None:
        out["why"] = "the teachers gain nothing over the pretrained model"
    elif low is None:
        out["why"] = "no interval: in some draws of users the teachers gain nothing"
    return out
