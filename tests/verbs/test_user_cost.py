"""What a user costs: hand values of each residual, and what is counted against what one user really holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reference.tiny_runs import Work, metrics, state, tensors, tiny
from torch import Tensor

from metarec import build
from metarec.config.overrides import check_words
from metarec.core import ops
from metarec.core.offsets import Rows
from metarec.core.offsets import tensors as parts_of
from metarec.core.seeding import generator
from metarec.core.weights import Factored
from metarec.evaluate import Control
from metarec.verbs import measure as m
from metarec.verbs.user_cost import UserCost, in_words, user_cost


def cost_of(work: Work, *words: str) -> tuple[UserCost, Any, m.Trained]:
    """Of weights at random: what is counted does not depend on them."""
    _, *rest = work.words("train", *tiny(*words), *words)
    (job,) = check_words("train", rest).jobs
    config: Any = job.config
    on = build.hardware(config.hardware)
    bench: Any = build.bench(config, config.evaluation, build.data(config, config.dataset, print), on)
    over = build.residual(config.residual, bench.model, bench.model.init(generator(1, "init"), on.dtype))
    algorithm = m.algorithm_of(bench, config, config.algorithm, Control(0.1, 2, 0.0, []))
    trained = m.Trained(over.base, algorithm.learned(over.init(generator(1, "residual"))), over, algorithm)
    return user_cost(bench, trained), bench, trained


@pytest.mark.parametrize(
    ("words", "numbers", "line"),
    [
        # hidden_dim=16: a start and a shift of the state
        (("residual=context", "algorithm=fomaml"), 32, "adapted: 32 numbers a user (128 B)"),
        # 3H + H + H of the input projections and of the state, H = 16
        (("residual=ia3", "algorithm=fomaml"), 64, "adapted: 64 numbers a user (256 B)"),
        # 48 + 48 of the GRU, 30 of the output layer
        (("residual=bias", "algorithm=fomaml"), 126, "adapted: 126 numbers a user (504 B)"),
    ],
)  # fmt: skip
def test_by_hand(words: tuple[str, ...], numbers: int, line: str, work: Work) -> None:
    found, _, _ = cost_of(work, *words)
    assert (found.numbers, found.bytes) == (numbers, 4 * numbers)
    assert found.line == line


@pytest.mark.parametrize("residual", ["off", "lora"])
def test_what_is_counted_is_what_a_user_holds(residual: str, work: Work) -> None:
    """In the form that is kept; of the table that is looked up, the rows of the user with the most."""
    found, bench, trained = cost_of(work, f"residual={residual}", "algorithm=maml")
    held = []
    for row in bench.tuning_rows()[:8]:
        batch = next(iter(bench.episodes("val", rows=[row]).batches()))
        offsets = [weight.offset for weight in m.adapted(bench, trained)(batch).values() if weight.offset is not None]  # type: ignore[union-attr]
        held.append(sum(value.numel() for offset in offsets for value in parts_of(offset)))
    assert max(held) == found.numbers
    moving = sum(value.numel() for value in trained.phi.values())  # type: ignore[union-attr]
    assert found.line.startswith(f"adapted: {moving:,} numbers a user")
    assert ("kept as" in found.line) == (found.numbers != moving)


def test_rows_are_those_of_the_user_with_the_most_items(work: Work) -> None:
    """embedding_dim=8, hidden_dim=16: rows of 8 + 16 + 1 numbers, three numbers of rows; counted in plain Python."""
    found, bench, trained = cost_of(work, "residual=rows", "algorithm=meta_sgd")
    prepared, episodes = bench.prepared, bench.episodes("val")
    support, _ = episodes.pairs()
    most = 0
    for own in support:
        items = set[int]()
        for pair in own:
            items.update(prepared.item[prepared.pair_begin[pair] : prepared.pair_event[pair] + 1].tolist())
        most = max(most, len({item for item in items if item > 0}))
    assert (found.numbers, found.bytes) == (25 * most, 100 * most + 24 * most)
    assert found.line == f"adapted: up to {most} rows of 8 + 16 + 1 numbers a user ({in_words(found.bytes)})"
    own = m.adapted(bench, trained)(next(iter(episodes.batches())))
    assert all(isinstance(weight.offset, Rows) for weight in own.values())  # type: ignore[union-attr]


def test_words() -> None:
    assert [in_words(size) for size in (512, 1536, 3 * 2**20, 2**31)] == ["512 B", "1.5 KiB", "3.0 MiB", "2.0 GiB"]


def test_a_run_says_it_and_keeps_it(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    run = work.train(
        "residual=context", "algorithm=fomaml", "logger.console=plain", "train.steps=1", "train.eval_every=1"
    )
    assert "adapted: 32 numbers a user (128 B)" in capsys.readouterr().out
    cost = metrics(run)["cost"]
    assert (cost["adapted_numbers"], cost["adapted_bytes"]) == (32, 128)


# -- residuals of which this file is the whole run ------------------------------------------------------------------


def changed(run: Path, prefix: str) -> set[str]:
    return {name for name, value in tensors(run, "last").items() if name.startswith(prefix) and value.any()}


def test_rows_through_whole_runs(work: Work) -> None:
    """Deltas stay zero where nobody learns them and step sizes move; learned, they move; evaluation says it again."""
    short = ("train.steps=2", "train.eval_every=1", "evaluation.divergence=true")
    frozen = work.train("residual=rows", "algorithm=meta_sgd", "algorithm.inner.lr=0.5", *short)
    names = {"embedding.weight", "fc.weight", "fc.bias"}
    assert changed(frozen, "phi/") == {f"phi/rates/{name}" for name in names}
    start = torch.tensor(0.5).log()
    assert all((tensors(frozen, "last")[f"phi/rates/{name}"] != start).any() for name in names)
    found = metrics(frozen)
    assert found["metrics"]["zeroshot"] == found["metrics"]["pretrained"]
    assert found["divergence"]["zeroshot"]["kl"] == 0.0
    assert found["divergence"]["fewshot"]["kl"] > 0
    assert work.eval(frozen)["metrics"] == found["metrics"]
    learned = work.train("residual=rows", "algorithm=fomaml", "residual.learn_start=true", *short)
    assert changed(learned, "phi/") == {f"phi/{name}" for name in names}
    anchored = work.train(
        "residual=rows", "algorithm=maml_pp", "objective.kl_anchor.weight=1", "objective.kl_anchor.where=both", *short
    )
    assert work.eval(anchored)["metrics"] == metrics(anchored)["metrics"]
    again = work.train("residual=on", f"warm_start={learned}", "train.steps=1", "train.eval_every=1")
    assert metrics(again)["metrics"]["pretrained"] == metrics(learned)["metrics"]["zeroshot"]
    assert state(learned, "best")["config"]["residual"]["learn_start"] is True


def test_the_inner_loop_drops_nothing(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that the inner loop reads carries a tap, one of the query loss none."""
    seen, true = list[bool](), ops._dropped

    def noted(x: Tensor, weight: Factored) -> Tensor:
        if weight.drop is not None:
            seen.append(weight.a.tap is not None or weight.b.tap is not None)
        return true(x, weight)

    monkeypatch.setattr(ops, "_dropped", noted)
    work.train("residual=lora", "residual.rank=2", "residual.dropout=0.5", "train.steps=2", "train.eval_every=1")
    assert seen == [False, False]  # one target, one query loss in each of two outer steps


def test_dropout_of_factors_is_of_training_alone(work: Work) -> None:
    words = ("residual=lora", "residual.rank=2", "train.steps=2", "train.eval_every=1")
    plain, dropped, again = (work.train(*words, *more) for more in ((), *[("residual.dropout=0.5",)] * 2))
    assert all(torch.equal(value, tensors(again, "last")[name]) for name, value in tensors(dropped, "last").items())
    name = "phi/gru.weight_ih_l0.lora_a"
    assert not torch.equal(tensors(dropped, "last")[name], tensors(plain, "last")[name])
    assert work.eval(dropped)["metrics"] == metrics(dropped)["metrics"]
