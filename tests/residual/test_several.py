"""Several residuals: each as it is alone, over one base; what adapts decides; no weight has two masters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, furthest, meta_gradient, weights

from metarec import build, parts
from metarec.algorithms.maml import MAML
from metarec.core.weights import Factored, FastWeight, Params
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual.several import SeveralResidual
from metarec.tasks import Tasks

BASE, LOG = weights(), small_log(7)
REMEMBERING = replace(LOG, batcher=replace(LOG.batcher, recall=True))
CONTROL = Control(0.2, 3, 0.0, [])


def options(name: str, **of_parts: dict[str, Any]) -> Any:
    found: Any = parts.default("residual", name)
    return replace(found, **{part: replace(getattr(found, part), **own) for part, own in of_parts.items()})


def part(name: str) -> Any:
    on: Any = parts.default("residual", name)
    return replace(on, rank=2) if name == "lora" else on


def with_memory(name: str) -> Any:
    """In a list behind a memory whose gate is all but closed."""
    ranks = {"lora": {"rank": 2}} if name == "lora" else {}
    return options(f"memory+{name}", memory={"start": 1e-16}, **ranks)


def moved(over: Any, seed: int = 5) -> Params:
    """phi away from its start: every name by numbers of its own, whatever stands beside it."""
    return {
        name: value
        + 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)), dtype=value.dtype)
        for name, value in over.init(torch.Generator().manual_seed(seed)).items()
    }


def learner(name: str, on: Any, **options: Any) -> Any:
    config: Any = parts.default("algorithm", name)
    config = replace(config, inner=replace(config.inner, **options))
    return build.algorithm(config, on, MODEL, CONTROL, outer_steps=4, support_share=0.5)


@pytest.mark.parametrize("name", ["off", "on", "context", "ia3", "lora", "head", "bias", "rows"])
def test_beside_a_memory_that_is_off_a_part_is_what_it_is_alone(name: str) -> None:
    """Bit for bit the same start and weights, losses and meta-gradients but for what log softmax twice leaves."""
    on, listed = part(name), with_memory(name)
    alone, both = build.residual(on, MODEL, BASE), build.residual(listed, MODEL, BASE)
    start, of_both = moved(alone), moved(both)
    assert {n for n in of_both if not n.startswith("memory.")} == set(start)
    assert all(torch.equal(of_both[n], start[n]) for n in start)
    one, other = alone.compose(start), both.compose(of_both)
    assert one.keys() == other.keys()
    assert list(other)[: len(BASE)] == list(BASE)  # sums and draws over all weights follow the model's own order
    for n, weight in one.items():
        got = other[n]
        if isinstance(weight, Factored):
            assert isinstance(got, Factored)
            weight, got = weight.dense(), got.dense()
        assert isinstance(weight, torch.Tensor)
        assert isinstance(got, torch.Tensor)
        assert torch.equal(got, weight)
    closed = both.init(torch.Generator().manual_seed(5))
    zero = {n: closed[n] if n.startswith("memory.") else value for n, value in of_both.items()}
    batch = REMEMBERING.episodes(4, 4)
    loop = learner("maml", listed, lr=0.3, steps=2).inner
    tasks = Tasks(MODEL, cross_entropy, both.compose, mix=both.mix, compose_on=both.compose_on)
    mine = meta_gradient(MAML(loop), tasks, zero, batch)
    alone_loop = learner("maml", on, lr=0.3, steps=2).inner
    assert alone_loop.adapted == loop.adapted
    tasks = Tasks(MODEL, cross_entropy, alone.compose, compose_on=getattr(alone, "compose_on", None))
    theirs = meta_gradient(MAML(alone_loop), tasks, start, batch)
    assert mine[0] == pytest.approx(theirs[0], abs=1e-12)
    assert furthest({n: mine[1][n] for n in theirs[1]}, theirs[1]) < 1e-11


@pytest.mark.parametrize(
    ("name", "like"),
    [("memory+context", "context"), ("memory+lora", "lora"), ("memory+off", "off"), ("memory+ia3", "ia3")],
)
def test_what_adapts_decides_the_inner_loop(name: str, like: str) -> None:
    listed, on = with_memory(like), part(like)
    assert listed.name == name
    for algorithm in ("fomaml", "maml", "meta_sgd", "maml_pp", "reptile", "imaml"):
        mine, theirs = (learner(algorithm, one).inner for one in (listed, on))
        assert mine == theirs


def test_what_a_memory_learns_is_no_context() -> None:
    on = options("memory+context")
    made = learner("cavia", on)
    assert made.contexts == {"context.state", "context.shift"}
    over = build.residual(on, MODEL, BASE)
    phi = moved(over)
    from_zero = made.from_zero(phi)
    assert all(torch.equal(from_zero[n], v) for n, v in phi.items() if not n.startswith("context."))
    assert learner("anil", on).inner.adapted == {"context.shift"}
    targets = options("memory+lora", lora={"targets": ["fc.weight", "gru.*"], "rank": 2})
    assert learner("anil", targets).inner.adapted == {"fc.weight.lora_a", "fc.weight.lora_b"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("context+ia3", "residual: context+ia3: context and ia3 both move embedding.weight -- "
                        "set residual.context.train_weights=false or residual.ia3.train_weights=false"),
        ("lora+context", "lora and context both move gru.weight_ih_l0 -- set residual.context.train_weights=false"),
        ("head+bias", "head and bias both move fc.bias -- leave one of them out"),
        ("on+lora", "on and lora both move gru.weight_ih_l0 -- leave one of them out"),
    ],
)  # fmt: skip
def test_no_weight_is_moved_by_two(name: str, said: str) -> None:
    on: Any = parts.default("residual", name)
    if hasattr(on, "lora"):
        on = replace(on, lora=replace(on.lora, rank=2))
    for made in (lambda: build.learnable(on, MODEL), lambda: build.residual(on, MODEL, BASE)):
        with pytest.raises(ConfigError) as caught:
            made()
        assert said in str(caught.value)


def test_parts_that_leave_one_another_alone_go_together() -> None:
    on = options("lora+context+ia3", lora={"rank": 2}, context={"train_weights": False}, ia3={"train_weights": False})
    over = build.residual(on, MODEL, BASE)
    assert isinstance(over, SeveralResidual)
    assert not hasattr(over, "mix")
    phi = moved(over)
    theta = over.compose({name: FastWeight(value) for name, value in phi.items()})
    assert {n for n in theta if n not in BASE} == {*MODEL.context_shapes(), *MODEL.scale_shapes()}
    assert isinstance(theta["gru.weight_ih_l0"], Factored)
    assert all(theta[n] is BASE[n] for n in BASE if n != "gru.weight_ih_l0")


def test_an_error_of_a_part_names_its_section() -> None:
    with pytest.raises(ConfigError) as caught:
        build.learnable(options("memory+lora", lora={"rank": 99}), MODEL)
    assert "residual.lora.rank: 99: is above the smaller side" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        build.learnable(options("memory+ia3", ia3={"targets": ["nothing*"]}), MODEL)
    assert "residual.ia3.targets: nothing*: matches no scale" in str(caught.value)


def test_what_is_of_no_part_stays_as_it_is() -> None:
    over = build.residual(options("memory+context"), MODEL, BASE)
    statistics = torch.zeros(2)
    assert over.compose({**over.init(torch.Generator()), "norm0.mean": statistics})["norm0.mean"] is statistics
    assert not [name for name in over.compose(over.init(torch.Generator())) if name.startswith("memory.")]
