"""The rows of the baseline panel that need no gradient: what the training users did, and what a user's support shows.

`metarec.baselines` knows nothing of episodes; here its rows are given the log and each batch's prefixes and supports, and
are tuned: every row tries as many settings on the validation episodes as the fine-tune control does.

Shapes: T users, Q queries, V items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarec.baselines import BASELINES
from metarec.baselines.asked import Asked
from metarec.baselines.log import TrainingLog
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params
from metarec.data.batches import Batcher
from metarec.data.store import Prepared, train_sessions
from metarec.evaluate import Judged, Scorer, Seen, monitored, ranks
from metarec.ragged import ranges
from metarec.search import settings
from metarec.tasks import Tasks


@dataclass(frozen=True)
class Row:
    """A row of the panel, ready to be measured; `tuning`: what was tried on validation, where there was a choice."""

    scorer: Scorer
    tuning: dict[str, Any] | None = None


@dataclass(frozen=True)
class Panel:
    """Rows by name, and why others were left out."""

    rows: dict[str, Row] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """What a row is tuned by: `metric` on the validation `episodes`, at most `budget` settings of every row."""

    episodes: Judged
    metric: str
    ties: str
    seen: Seen | None
    n_items: int
    budget: int
    seed: int

    def value(self, scorer: Scorer) -> float:
        """The metric of a fitted row on the validation episodes; larger is better."""
        return monitored(ranks(self.episodes, scorer, self.ties, self.seen)[0], self.n_items)[self.metric]

    def n_settings(self, space: Mapping[str, Any]) -> int:
        """How many settings of `space` are tried."""
        return min(self.budget, math.prod(len(values) for values in space.values()))

    def choose(
        self,
        space: Mapping[str, Any],
        default: Mapping[str, Any] | None,
        make: Callable[[dict[str, Any]], Scorer],
        on_setting: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The best setting of `space`, and all that were tried; of equal ones the earlier."""
        tried = []
        for options in settings(space, self.budget, self.seed, default):
            tried.append({**options, self.metric: self.value(make(options))})
            on_setting()
        best = max(tried, key=lambda row: row[self.metric])
        chosen = {name: value for name, value in best.items() if name != self.metric}
        return {"chosen": chosen, "value": best[self.metric], "metric": self.metric, "users": len(self.episodes),
                "tried": tried}  # fmt: skip


def training_log(prepared: Prepared) -> TrainingLog:
    """What baselines learn from: sessions and pairs of the training users, cut where training ends."""
    begin, end = train_sessions(prepared)
    first, last = (np.asarray(part, dtype=np.int64) for part in prepared.train_pairs)
    session = np.searchsorted(prepared.session_offsets, begin, side="right") - 1
    pairs = ranges(first, np.maximum(last - first, 0))
    return TrainingLog(
        item=np.asarray(prepared.item),
        time=np.asarray(prepared.time),
        has_clock=prepared.has_clock,
        begin=np.asarray(begin, dtype=np.int64),
        end=np.asarray(end, dtype=np.int64),
        n_items=prepared.n_items,
        pair_begin=np.asarray(prepared.pair_begin[pairs], dtype=np.int64),
        pair_event=np.asarray(prepared.pair_event[pairs], dtype=np.int64),
        user=np.searchsorted(prepared.user_sessions, session, side="right") - 1,
    )


def asked(batcher: Batcher, batch: EpisodeBatch) -> Asked:
    """What the queries of a batch ask of a baseline."""
    support, query = batch.support_pairs, batch.query_pairs
    assert support is not None
    assert query is not None
    return Asked.of_pairs(
        batcher.item, batcher.pair_begin, batcher.pair_event, batch.user.cpu().numpy(), support, query
    )


def baseline_row(name: str, log: TrainingLog, batcher: Batcher, options: Mapping[str, Any]) -> Row:
    """A row of `metarec.baselines`."""
    scorer = BASELINES[name](log, **options)
    return Row(lambda batch: torch.from_numpy(scorer(asked(batcher, batch))).to(batch.user.device))


def in_context_row(tasks: Tasks, base: Params, batcher: Batcher, judge: Judge | None, n_support: int) -> Row:
    """The support in front of every query's prefix, nothing adapted.

    A model that was trained on whole histories (`batcher.stream`) reads a break between sessions; any other reads them
    joined, and how many of the latest support pairs are put in front is tuned by `judge`.
    """

    def make(options: Mapping[str, Any]) -> Scorer:
        most = options.get("pairs")  # None = all

        def scores(batch: EpisodeBatch) -> Tensor:
            assert batch.support_pairs is not None
            assert batch.query_pairs is not None
            of = batch.support_pairs[:, -most:] if most else batch.support_pairs
            breaks = batcher.stream is not None
            return tasks.logits(base, batcher.behind(of, batch.query_pairs, breaks=breaks)[1].to(batch.user.device))

        return scores

    if judge is None:
        return Row(make({}))
    space = {"pairs": [None, *(k for k in (3, 2, 1) if k < n_support)]}
    tuning = judge.choose(space, None, make)
    return Row(make(tuning["chosen"]), tuning)
