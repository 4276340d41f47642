"""The KL anchor through whole runs: what it changes and leaves alone, evaluation again, divergence by its weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_runs import Work, metrics, same_bits, tensors
from torch import Tensor

from metarec.objectives.kl_anchor import Anchor
from metarec.tasks import Tasks
from metarec.verbs.anchoring import Anchoring

WEIGHT = "objective.kl_anchor.weight="
INSIDE, BOTH = "objective.kl_anchor.where=inner", "objective.kl_anchor.where=both"
RUN = (
    "algorithm=maml",
    "residual=on",
    "algorithm.inner.steps=2",
    "algorithm.inner.lr=0.5",
    "evaluation.divergence=true",
)
SHORT = ("train.steps=2", "train.eval_every=1")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Callable[..., Path]:
    """The run of some words, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            made[words] = Work(tmp_path_factory.mktemp("once"), cache).train(*RUN, *SHORT, *words)
        return made[words]

    return run


def phi(run: Path) -> dict[str, Tensor]:
    return {name: value for name, value in tensors(run, "last").items() if name.startswith("phi/")}


def test_weight_0_computes_nothing_and_changes_no_bit(
    once: Callable[..., Path], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> Any:
        raise AssertionError("an anchor was made")

    monkeypatch.setattr(Anchor, "at", refuse)
    run = work.train(*RUN, *SHORT, f"{WEIGHT}0")
    assert same_bits(tensors(run, "last"), tensors(once(), "last"))
    assert metrics(run)["metrics"] == metrics(once())["metrics"]


def test_what_an_anchor_changes(once: Callable[..., Path]) -> None:
    """Training and few-shot, and with an anchor inside the evaluation as well; never base, control or pretraining."""
    plain = metrics(once())
    for words in ((f"{WEIGHT}5",), (f"{WEIGHT}5", INSIDE), (f"{WEIGHT}5", BOTH)):
        run = once(*words)
        assert not same_bits(phi(run), phi(once()))
        found = metrics(run)
        for row in ("pretrained", "control"):
            assert found["metrics"][row] == plain["metrics"][row]
            assert found["divergence"][row] == plain["divergence"][row]
        assert found["control"] == plain["control"]
        assert found["training"]["warm_start"]["key"] == plain["training"]["warm_start"]["key"]
        assert found["divergence"]["fewshot"] != plain["divergence"]["fewshot"]
    assert plain["divergence"]["pretrained"]["kl"] == 0.0


def test_the_reference_is_made_once_a_batch_and_inside_for_validation_too(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One outer step of one chunk, three inner steps; the validation episodes in one chunk, before and after."""
    made, asked = list[str](), list[bool]()
    at, support = Anchor.at, Anchoring.support

    def counted(*given: Any) -> Anchor:
        made.append("made")
        return at(*given)

    def noted(self: Anchoring, *given: Any) -> Anchor | None:
        asked.append(True)
        return support(self, *given)

    monkeypatch.setattr(Anchor, "at", staticmethod(counted))
    monkeypatch.setattr(Anchoring, "support", noted)
    words = ("algorithm.inner.steps=3", "train.steps=1", "train.eval_every=1", "evaluation.task_chunk=10000")
    run = work.train("residual=on", f"{WEIGHT}1", BOTH, *words)
    assert metrics(run)["training"]["steps"] == 1
    assert len(made) == len(asked) + 1  # and one of the only query loss


@pytest.mark.parametrize("reference", ["pretrained", "initial"])
def test_an_evaluation_says_the_same_again(reference: str, once: Callable[..., Path], work: Work) -> None:
    run = once(f"{WEIGHT}5", BOTH, f"objective.kl_anchor.reference={reference}")
    again = work.eval(run)
    for key in ("metrics", "divergence"):
        assert again[key] == metrics(run)[key]
    further = work.eval(run, "steps=6")
    assert further["metrics"]["zeroshot"] == again["metrics"]["zeroshot"]
    assert further["divergence"]["fewshot"] != again["divergence"]["fewshot"]


def test_references_differ(once: Callable[..., Path]) -> None:
    pretrained, initial = (
        once(f"{WEIGHT}5", BOTH, f"objective.kl_anchor.reference={name}") for name in ("pretrained", "initial")
    )
    assert not same_bits(phi(pretrained), phi(initial))


def test_few_shot_is_nearer_to_the_base_the_more_the_anchor_weighs(once: Callable[..., Path]) -> None:
    kl = [metrics(once(f"{WEIGHT}{weight}", INSIDE))["divergence"]["fewshot"]["kl"] for weight in (0.1, 1, 5)]
    kl = [metrics(once())["divergence"]["fewshot"]["kl"], *kl]
    assert kl == sorted(kl, reverse=True)
    assert kl[-1] < 0.7 * kl[0]


def test_dropout_is_off_in_the_reference_and_in_the_inner_loop(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()
    logits = Tasks.logits

    def noted(self: Tasks, phi: Any, pairs: Any, generator: Any = None) -> Tensor:
        asked.append(generator is not None)
        return logits(self, phi, pairs, generator)

    monkeypatch.setattr(Tasks, "logits", noted)
    work.train("residual=on", f"{WEIGHT}1", BOTH, "train.dropout=0.5", "algorithm.inner.steps=1", *SHORT)
    assert asked
    assert not any(asked)


@pytest.mark.parametrize(
    "words",
    [
        ("algorithm=reptile", BOTH), ("algorithm=imaml", BOTH), ("algorithm=cavia", "residual=context", BOTH),
        ("algorithm=maml_pp", BOTH), ("objective=gbce", "objective.n_negatives=5"),
        ("objective=chunked_cross_entropy", BOTH),
    ],
    ids=lambda words: words[0].split("=")[1],
)  # fmt: skip
def test_other_algorithms_and_objectives(words: tuple[str, ...], work: Work) -> None:
    found = metrics(work.train(*words, f"{WEIGHT}1", "train.steps=1", "train.eval_every=1"))
    assert set(found["metrics"]) >= {"pretrained", "fewshot"}
    assert "divergence" not in found  # nobody asked for it
