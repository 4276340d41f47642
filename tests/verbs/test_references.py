"""Teachers of the users under test: all that each did before his query; step sizes tuned, or the run's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.generated_run import WORDS, At, open_at
from reference.tiny_runs import Work, metrics

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.verbs import references
from metarec.verbs import teachers as verb
from metarec.verbs.amortised import Reference


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return Work(tmp_path_factory.mktemp("generated"), cache).train(*WORDS)


@pytest.fixture(scope="module")
def at(run: Path, cache: Path) -> At:
    return open_at(run, cache)


def config(at: At, cache: Path, **loss: float) -> Any:
    trained_as: Any = at.run.trained_as
    own = trained_as.algorithm
    return replace(
        trained_as, cache_dir=str(cache), algorithm=replace(own, loss=replace(own.loss, **loss)),
    )  # fmt: skip


def reference(at: At, cache: Path, **loss: float) -> Reference:
    found = references.reference_of(config(at, cache, **loss), at.bench, at.trained, at.episodes, "test")
    assert isinstance(found, Reference)
    return found


def test_a_teacher_sees_all_pairs_before_the_query_user_by_user(at: At, cache: Path) -> None:
    found, prepared = reference(at, cache), at.bench.prepared
    assert (found.mean, found.pairs) == (None, 64)
    said = at.rows(replace(found, lr=1.0, steps=3)).ranks["teacher"]
    phi, algorithm, tasks = at.trained.phi, at.trained.algorithm, at.bench.tasks(at.trained.residual)
    assert phi is not None
    assert algorithm is not None
    start = inner.start(phi, algorithm.inner)
    loop = InnerLoop(1.0, 3, adapted=frozenset(name for name in start if algorithm.inner.moves(name)))
    _, query = at.episodes.pairs()
    more = 0
    for number in (0, 7, len(query) - 1):
        begin = int(prepared.user_pairs[at.episodes.user[number]])
        own = np.arange(begin, query[number, 0])[None]
        assert len(own[0]) < 64
        more += len(own[0]) > at.episodes.n_support
        support, asked = at.bench.batcher.pairs(own), at.bench.batcher.pairs(query[number][None])
        with torch.no_grad():
            scores = tasks.logits(inner.adapt(tasks.loss(support), start, 1, loop), asked)[0]
        for rank, mine, target in zip(said[number], scores, asked.target[0].tolist(), strict=True):
            assert target <= 0 or rank == int((mine >= mine[target - 1]).sum())
    assert more  # or nothing was shown


def test_what_is_tuned_is_what_the_verb_tunes_and_stands_in_metrics(at: At, run: Path, cache: Path) -> None:
    chosen = verb.tune_teacher(config(at, cache), at.bench, at.trained.base, at.trained.residual)
    said = metrics(run)["amortised"]["teacher"]
    assert (said["lr"], said["steps"], said["pairs"]) == (chosen.lr, chosen.steps, 64)
    assert said["tuning"]["tried"] == chosen.tried
    assert max(row["ndcg@10"] for row in chosen.tried) == pytest.approx(said["tuning"]["value"])


def test_with_teachers_step_size_and_mean_are_theirs(at: At, cache: Path) -> None:
    """The mean of dW by hand: over the users of the directory, s B A written out."""
    found = reference(at, cache, delta_w=1.0)
    own = verb.teachers_for(config(at, cache, delta_w=1.0), at.bench, at.trained.base, at.trained.residual)
    assert (found.lr, found.steps, found.tuning) == (own.terms.lr, own.terms.steps, None)
    assert found.mean is not None
    every = own.of(own.users)
    for weight, (a, b, scale) in own.terms.products.items():
        wanted = scale * torch.einsum("tor,tri->oi", every[b].double(), every[a].double()) / len(own)
        assert torch.allclose(found.mean[weight].double(), wanted, atol=1e-6)
    rows = at.rows(found)
    assert {"mean_teacher", "teacher", "other_support"} == set(rows.ranks)
    assert set(rows.document["closeness"]["all"]) == {"generated", "mean_teacher"}


def test_where_there_can_be_none_it_says_why(at: At, cache: Path) -> None:
    def why(bench: Any, on: Any = None) -> Any:
        asked = config(at, cache) if on is None else replace(config(at, cache), residual=on)
        return references.reference_of(asked, bench, at.trained, at.episodes, "test")

    class Rows:
        of_support = True

    none = replace(at.bench, evaluation=replace(at.bench.evaluation, panel="none"))
    joined = replace(at.bench, batcher=replace(at.bench.batcher, stream=object()))
    assert why(none) == "teachers were not asked for"
    assert why(joined).startswith("dataset.history=user: prefixes hold")
    assert why(at.bench, Rows()) == "what a user has follows from the support of an episode"


def test_an_evaluation_repeats_all_of_it(run: Path, work: Work) -> None:
    first, again = metrics(run), work.eval(run)
    assert again["amortised"] == first["amortised"]
    assert again["metrics"] == first["metrics"]
    few = work.eval(run, "evaluation.panel=none")
    assert "amortised" not in few
    assert not {"teacher", "inner_loop", "other_support", "refined"} & set(few["metrics"])
