"""How the teachers of the users under test are found: as the run's own were, or would be.

A run whose losses learn from teachers has step size, steps and pairs in their directory. One that learns end to end has them
tuned on validation as teachers' are, and kept in the cache with those (`verbs.teachers`), so that both are judged alike.
"""

from __future__ import annotations

from typing import Any

from metarec.benches import AnyBench, SequenceBench
from metarec.config.schema import TrainConfig
from metarec.verbs import teachers
from metarec.verbs.amortised import NOT_ASKED, Reference, generates
from metarec.verbs.measure import Trained

WHY_EPISODES = "a task has no history beyond its episode"
WHY_HISTORY = "dataset.history=user: prefixes hold all that a user did before already"
WHY_SUPPORT = "what a user has follows from the support of an episode"


def reference_of(config: TrainConfig, bench: AnyBench, trained: Trained, episodes: Any, split: str) -> Reference | str:
    """Of the users of `episodes` of `split`, in their order and chunks; or why there are no such teachers.

    Raises CheckpointError where `algorithm.teacher.path` holds no teachers of this run any more; evaluation.panel=none asks
    for none.
    """
    if not generates(trained.algorithm, bench.evaluation):
        return NOT_ASKED
    if not isinstance(bench, SequenceBench):
        return WHY_EPISODES
    if bench.batcher.stream is not None:
        return WHY_HISTORY
    on, asked = config.residual, config.algorithm.teacher  # type: ignore[union-attr]
    if getattr(on, "of_support", False) or getattr(on, "reads_memory", False):
        return WHY_SUPPORT
    if not config.algorithm.loss.taught:  # type: ignore[union-attr]
        chosen = teachers.tune_teacher(config, bench, trained.base, trained.residual)
        past = bench.past(split, episodes.rows, asked.pairs)
        tuning = {"value": chosen.value, "metric": bench.evaluation.monitor, "tried": chosen.tried}
        return Reference(chosen.lr, chosen.steps, past, None, asked.pairs, tuning)
    found = teachers.teachers_for(config, bench, trained.base, trained.residual, _silent)
    terms = found.terms
    past = bench.past(split, episodes.rows, terms.pairs)
    return Reference(terms.lr, terms.steps, past, {name: found.mean(name) for name in found.modules}, terms.pairs)


def _silent(line: str) -> None:
    """Training has told of them."""
