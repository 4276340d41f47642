"""Rows beside a generator's few-shot: whose support is whose, what a teacher and a mean of teachers score, what is said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference.generated_run import WORDS, At, open_at
from reference.tiny_runs import Work, metrics

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.core.batch import EpisodeBatch
from metarec.errors import ConfigError
from metarec.evaluate import scored
from metarec.metrics.summary import TargetRecords
from metarec.verbs import amortised
from metarec.verbs import measure as m
from metarec.verbs.amortised import Crossed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return Work(tmp_path_factory.mktemp("generated"), cache).train(*WORDS, "evaluation.ks=[0,5]")


@pytest.fixture(scope="module")
def at(run: Path, cache: Path) -> At:
    return open_at(run, cache)


def test_a_run_has_the_rows_their_differences_and_why_one_is_not_there(run: Path) -> None:
    document = metrics(run)
    own = ["pretrained", "control", "zeroshot", "fewshot", "inner_loop", "refined", "other_support"]
    assert [name for name in document["metrics"] if not name.startswith(("bayes", "popularity"))] == [*own, "teacher"]
    assert {"gain_over_inner_loop", "gain_over_refined", "gain_over_other_support", "gain_over_teacher"} <= set(
        document["differences"]
    )
    assert {"inner_loop", "refined"} <= set(document["k_curve"]["methods"])
    assert all(document["intervals"][name]["hr@5"] is not None for name in own)


def test_without_a_panel_none_of_them_is_there(at: At) -> None:
    for panel, there in (("none", False), ([], False), ("quick", True), (["popularity"], True)):
        evaluation = replace(at.bench.evaluation, panel=panel)
        assert amortised.generates(at.trained.algorithm, evaluation) is there
        bench = replace(at.bench, evaluation=evaluation)
        assert ("inner_loop" in m.scorers(bench, at.trained, at.control)) is there
    assert not amortised.generates(SimpleNamespace(inner=None), at.bench.evaluation)  # type: ignore[arg-type]


def test_few_shot_with_steps_has_a_row_without_and_the_other_way_round(at: At) -> None:
    found = m.scorers(at.bench, at.trained, at.control), m.scorers(at.bench, at.trained, at.control, steps=3)
    assert ["refined" in found[0], "generated" in found[0]] == [True, False]
    assert ["refined" in found[1], "generated" in found[1]] == [False, True]
    assert (at.ranks(found[0]["refined"]) == at.ranks(found[1]["fewshot"])).all()
    assert (at.ranks(found[0]["fewshot"]) == at.ranks(found[1]["generated"])).all()
    assert (at.ranks(found[0]["fewshot"]) != at.ranks(found[0]["refined"])).any()


def test_another_users_support_is_the_next_ones_user_by_user(at: At) -> None:
    """One user at a time: his query scored by the adapter of the next; the last has the first one's."""
    found = at.rows("not now")
    assert (found.left_out, found.document) == ({"teacher": "not now"}, {})
    alone = [next(iter(at.bench.episodes("test", rows=np.array([row])).batches())) for row in range(len(at.episodes))]
    method, tasks = m.adapted(at.bench, at.trained), at.bench.tasks(at.trained.residual)
    for number in (0, 1, len(alone) - 1):
        own, other = alone[number], alone[(number + 1) % len(alone)]
        with torch.no_grad():
            scores = tasks.logits(method(other), own.query)[0]
        target = own.query.target[0]
        for query, rank in enumerate(found.ranks["other_support"][number]):
            mine = scores[query]
            at_least = int((mine >= mine[target[query] - 1]).sum())  # ties are conservative
            assert rank == (at_least if target[query] > 0 else rank)
    assert (found.ranks["other_support"] != at.ranks(m.scorers(at.bench, at.trained, at.control)["fewshot"])).any()


@dataclass(frozen=True)
class Several:
    rows: Any
    user_of: Any

    @property
    def user(self) -> Any:
        return self.user_of[self.rows]

    def __len__(self) -> int:
        return len(self.rows)


def test_nobody_ever_has_his_own_support() -> None:
    for users in ([0, 1, 2, 3], [0, 0, 1, 1, 2], [3, 1, 3, 1, 2, 2], [5, 9]):
        episodes: Any = Several(np.arange(len(users)), np.array(users))
        crossed: Any = Crossed(episodes)
        assert (crossed.other.user != crossed.user).all()
        assert sorted(crossed.other.rows) == list(range(len(users)))  # every support serves once
    for users in ([0], [0, 0, 1], [4, 4]):
        with pytest.raises(ValueError, match="fewer than two users"):
            Crossed(Several(np.arange(len(users)), np.array(users)))  # type: ignore[arg-type]


def test_a_teacher_of_the_support_alone_is_the_inner_loop(at: At) -> None:
    found = at.rows(at.reference())
    assert (found.ranks["teacher"] == at.ranks(m.scorers(at.bench, at.trained, at.control)["inner_loop"])).all()
    assert "mean_teacher" not in found.ranks
    assert found.document["teacher"] == {"lr": at.reference().lr, "steps": at.reference().steps, "pairs": None}
    assert found.document["closeness"]["users"] == len(at.episodes)


def test_a_teacher_of_more_history_is_another(at: At) -> None:
    """Here: of the query's own pairs, which no row may see."""

    class More:
        def batches(self) -> Any:
            for batch in at.episodes.batches():
                yield replace(batch, support=batch.query)

    more: Any = More()
    found, less = at.rows(at.reference(past=more, lr=1.0, steps=5)), at.rows(at.reference(lr=1.0, steps=5))
    assert found.ranks["teacher"].mean() < less.ranks["teacher"].mean()


def teacher_of(at: At, batch: EpisodeBatch) -> Any:
    trained = at.trained
    assert trained.phi is not None
    assert trained.algorithm is not None
    start = inner.start(trained.phi, trained.algorithm.inner)
    names = frozenset(name for name in start if trained.algorithm.inner.moves(name))
    tasks = at.bench.tasks(trained.residual)
    return inner.adapt(tasks.loss(batch.support), start, batch.n_tasks, InnerLoop(1.0, 3, adapted=names))


def test_the_mean_of_one_teacher_scores_as_that_teacher_and_of_none_as_the_base(at: At) -> None:
    batch = next(iter(at.episodes.batches()))
    trained, algorithm = at.trained, at.trained.algorithm
    assert trained.phi is not None
    assert isinstance(algorithm, object)
    products: Any = algorithm.products  # type: ignore[union-attr]
    own = teacher_of(at, batch)
    mean = {w: (s * torch.bmm(own[b].dense(), own[a].dense().expand(batch.n_tasks, -1, -1)))[2]
            for w, (a, b, s) in products.items()}  # fmt: skip
    scorer = amortised.mean_scorer(at.bench, trained.phi, trained.residual, algorithm, mean)
    nothing = {name: torch.zeros_like(value) for name, value in mean.items()}
    still = amortised.mean_scorer(at.bench, trained.phi, trained.residual, algorithm, nothing)
    with torch.no_grad():
        wanted = at.bench.tasks(trained.residual).logits(own, batch.query)[2]
        assert torch.allclose(scorer(batch)[2], wanted, atol=1e-5)
        assert torch.equal(still(batch), at.bench.tasks().logits(trained.base, batch.query))
    assert not torch.allclose(scorer(batch)[2], still(batch)[2], atol=1e-3)
    row = at.rows(at.reference(mean=mean)).ranks["mean_teacher"]
    assert (row == at.ranks(scorer)).all()


def test_divergences_are_those_of_the_rows_of_the_episodes(at: At) -> None:
    """By numpy, of probabilities written out."""
    said = at.rows(at.reference(lr=1.0, steps=3)).document["closeness"]["kl"]
    trained, total, count = at.trained, np.zeros(3), 0
    assert trained.phi is not None
    tasks, method = (
        at.bench.tasks(trained.residual),
        scored(at.bench.tasks(trained.residual), m.adapted(at.bench, trained)),
    )
    for batch in at.episodes.batches():
        with torch.no_grad():
            every = [at.bench.tasks().logits(trained.base, batch.query), method(batch),
                     tasks.logits(teacher_of(at, batch), batch.query)]  # fmt: skip
        p, g, t = (np.exp(one.double().numpy()) for one in every)
        p, g, t = (one / one.sum(-1, keepdims=True) for one in (p, g, t))
        total += [(a * np.log(a / b)).sum() for a, b in ((p, g), (p, t), (t, g))]
        count += p.shape[0] * p.shape[1]
    names = ("generated_from_pretrained", "teacher_from_pretrained", "generated_from_teacher")
    assert [said[name] for name in names] == pytest.approx(list(total / count), rel=1e-4)
    assert min(said.values()) > 0


def records(**hits: list[int]) -> TargetRecords:
    """Rank 1 or 50 of two targets a user."""
    n = len(hits["fewshot"])
    found = {name: np.where(np.array(own) > 0, 1, 50) for name, own in hits.items()}
    return TargetRecords(
        user=np.arange(n) // 2, episode=np.arange(n) // 2, position=np.arange(n) % 2, repeat=np.zeros(n, dtype=bool),
        ranks=found, n_items=50,
    )  # fmt: skip


def test_recovered_by_hand() -> None:
    """Of 8 targets pretrained hits 2, few-shot 4, the teacher 6: half of the gain."""
    found = records(pretrained=[1, 0, 1, 0, 0, 0, 0, 0] * 20, fewshot=[1, 1, 1, 0, 1, 0, 0, 0] * 20,
                    teacher=[1, 1, 1, 1, 1, 0, 1, 0] * 20)  # fmt: skip
    said = amortised.recovered(found, "hr@10", n_resamples=200, confidence=0.95, seed=0)
    assert said["value"] == pytest.approx(0.5)
    assert said["low"] < 0.5 < said["high"]
    assert "why" not in said


def test_where_the_teacher_gains_nothing_it_says_so() -> None:
    flat = records(pretrained=[1, 0] * 9, fewshot=[1, 1] * 9, teacher=[0, 1] * 9)
    said = amortised.recovered(flat, "hr@10", n_resamples=50, confidence=0.95, seed=0)
    assert said == {"metric": "hr@10", "value": None, "low": None, "high": None,
                    "why": "the teachers gain nothing over the pretrained model"}  # fmt: skip
    rare = records(pretrained=[0, 0] * 9, fewshot=[0, 0] * 8 + [0, 1], teacher=[0, 0] * 8 + [1, 1])
    said = amortised.recovered(rare, "hr@10", n_resamples=50, confidence=0.95, seed=0)
    assert said["value"] == pytest.approx(0.5)
    assert said["low"] is None
    assert "in some draws" in said["why"]


def test_coverage_names_modules_and_numbers_and_refuses_what_lacks_a_head(at: At) -> None:
    """gru.weight_ih_l0 [48, 8] with rank 2: 2 * 8 + 48 * 2 numbers of a user's own."""
    phi, algorithm = at.trained.phi, at.trained.algorithm
    assert phi is not None
    line = "generated: 1 of 1 modules of what adapts (100 %), 112 numbers a user"
    assert amortised.coverage(algorithm, phi) == line
    assert amortised.coverage(SimpleNamespace(inner=None), phi) is None
    headless = {name: value for name, value in phi.items() if "/head/gru.weight_ih_l0.lora_b" not in name}
    with pytest.raises(ConfigError, match=r"0 of 1 modules of what adapts are generated, gru\.weight_ih_l0 is not"):
        amortised.coverage(algorithm, headless)


def test_of_a_basis_a_user_has_its_weights_alone(at: At) -> None:
    """Rank 2: two weights."""
    algorithm: Any = replace(at.trained.algorithm, head="basis")  # type: ignore[type-var]
    assert at.trained.phi is not None
    start = inner.start(at.trained.phi, algorithm.inner)
    assert amortised.coverage(algorithm, algorithm.learned(start)) == (
        "generated: 1 of 1 modules of what adapts (100 %), 2 numbers a user"
    )
