"""CAVIA against one task at a time and a central difference; contexts that start at zero whatever happens; refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.model_reference import gru4rec
from reference.small_episodes import Pair, SmallLog, small_log
from reference.small_models import MODEL, furthest, leaves, meta_gradient, tasks_over, weights
from torch import Tensor

from metarec import build
from metarec.algorithms import cavia as cavia_file
from metarec.algorithms.cavia import CAVIA, cavia
from metarec.algorithms.inner import RATE, InnerLoop
from metarec.algorithms.maml import MAML
from metarec.core.weights import Params
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.optimizers import adamw, sgd
from metarec.options import LearnedInner
from metarec.residual import context
from metarec.residual.context import ContextResidual

LR, STEPS, K, Q = 0.8, 3, 4, 4
CONTEXTS = ("context.state", "context.shift")
ORDERS = ("first", "second")


def start(context: float = 0.0) -> Params:
    """Weights and contexts; CAVIA is to behave as if `context` were 0."""
    generator = torch.Generator().manual_seed(3)
    numbers = {name: torch.randn(4, generator=generator, dtype=torch.float64) for name in CONTEXTS}
    return weights() | {name: context * value for name, value in numbers.items()}


def made(order: str = "second", **loop: Any) -> CAVIA:
    return cavia(InnerLoop(**{"lr": LR, "steps": STEPS, **loop}), CONTEXTS, order)


# -- one task at a time ---------------------------------------------------------------------------------------------


def slow_loss(params: Mapping[str, Tensor], pairs: list[Pair]) -> Tensor:
    """Mean cross-entropy of the pairs with a known target, one prefix at a time."""
    known = [(gru4rec(dict(params), prefix), target) for prefix, target in pairs if target > 0]
    return torch.stack([F.cross_entropy(row, torch.tensor(target - 1)) for row, target in known]).mean()


def slow_objective(shared: Params, tasks: list[tuple[list[Pair], list[Pair]]], order: str) -> list[Tensor]:
    """Algorithm 1, as it is printed: a context of zeros, a few steps of it, the query loss there."""
    found = []
    for support, query in tasks:
        own = {name: torch.zeros(4, dtype=torch.float64, requires_grad=True) for name in CONTEXTS}
        for _ in range(STEPS):
            slope = torch.autograd.grad(
                slow_loss(shared | own, support), list(own.values()), create_graph=order == "second"
            )
            own = {name: value - LR * grad for (name, value), grad in zip(own.items(), slope, strict=True)}
        found.append(slow_loss(shared | own, query))
    return found


def slow(phi: Params, log: SmallLog, order: str) -> tuple[list[float], Params]:
    shared = leaves({name: value for name, value in phi.items() if name not in CONTEXTS})
    losses = slow_objective(shared, log.plain_episodes(K, Q), order)
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(shared.values()))
    nothing = {name: torch.zeros_like(phi[name]) for name in CONTEXTS}
    return [loss.item() for loss in losses], dict(zip(shared, grads, strict=True)) | nothing


def check_against_one_task_at_a_time(order: str, context: float = 0.0, algorithm: MAML | None = None) -> None:
    log, phi = small_log(7), start(context)
    losses, wanted = slow(phi, log, order)
    got_losses, got = meta_gradient(algorithm or made(order), tasks_over(), phi, log.episodes(K, Q))
    assert got_losses == pytest.approx(losses, abs=1e-10)
    assert furthest(got, wanted) < 1e-10


@pytest.mark.parametrize("context", [0.0, 0.5])
@pytest.mark.parametrize("order", ORDERS)
def test_equals_one_task_at_a_time(order: str, context: float) -> None:
    check_against_one_task_at_a_time(order, context)


def relative_error(grads: Params, phi: Params, log: SmallLog) -> float:
    """Of the gradient along a random direction against a central difference of the slow objective."""
    generator, size = torch.Generator().manual_seed(5), 1e-5
    along = {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in phi.items()}

    def objective(sign: float) -> float:
        there = {name: value + sign * size * along[name] for name, value in phi.items() if name not in CONTEXTS}
        return torch.stack(slow_objective(there, log.plain_episodes(K, Q), "first")).mean().item()

    wanted = (objective(1.0) - objective(-1.0)) / (2 * size)
    return abs(sum(float((grads[name] * along[name]).sum()) for name in phi) - wanted) / abs(wanted)


def test_second_order_passes_the_central_difference_and_first_order_fails() -> None:
    log, phi = small_log(7), start()
    _, first_order = meta_gradient(made("first"), tasks_over(), phi, log.episodes(K, Q))
    _, second_order = meta_gradient(made(), tasks_over(), phi, log.episodes(K, Q))
    assert relative_error(second_order, phi, log) < 1e-6
    assert relative_error(first_order, phi, log) > 1e-3


@pytest.mark.parametrize("fault", ["start kept", "start learned", "order", "a context lost", "weights adapted"])
def test_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm: MAML = made()
    if fault == "start kept":  # a start that is not zero, though not learned
        monkeypatch.setattr(CAVIA, "from_zero", lambda self, phi: phi | {n: phi[n].detach() for n in CONTEXTS})
    elif fault == "start learned":  # what MAML makes of the same loop
        algorithm = MAML(algorithm.inner)
    elif fault == "order":
        algorithm = made("first")
    elif fault == "a context lost":
        algorithm = replace(made(), inner=replace(algorithm.inner, adapted=frozenset(CONTEXTS[:1])))
    else:
        algorithm = replace(made(), inner=replace(algorithm.inner, adapted=frozenset([*CONTEXTS, "fc.bias"])))
    with pytest.raises(AssertionError):
        check_against_one_task_at_a_time("second", 0.5 if fault == "start kept" else 0.0, algorithm)


# -- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_from_zero_it_is_maml_over_contexts_but_for_the_gradient_of_their_start(order: str) -> None:
    """Bit for bit."""
    algorithm, phi, batch = made(order), start(), small_log(7).episodes(K, Q)
    losses, grads = meta_gradient(algorithm, tasks_over(), phi, batch)
    other_losses, others = meta_gradient(MAML(algorithm.inner, order), tasks_over(), phi, batch)
    assert losses == other_losses
    for name in phi:
        assert torch.equal(grads[name], others[name]) == (name not in CONTEXTS)
        assert bool(grads[name].any()) == (name not in CONTEXTS)


def test_recomputed_steps_and_learned_step_sizes() -> None:
    batch, tasks = small_log(7).episodes(K, Q), tasks_over()
    plain = made(rates="tensor_step")
    phi = plain.learned(start())
    assert {name for name in phi if name.startswith(RATE)} == {RATE + name for name in CONTEXTS}
    _, grads = meta_gradient(plain, tasks, phi, batch)
    assert all(bool(grads[RATE + name].all()) for name in CONTEXTS)
    _, again = meta_gradient(made(rates="tensor_step", recompute=True), tasks, phi, batch)
    assert furthest(again, grads) < 1e-12


def test_a_user_adapts_from_zero_and_weights_are_shared() -> None:
    batch, tasks = small_log(7).episodes(K, Q), tasks_over()
    zero, other = (made().adapt(start(c), tasks.loss(batch.support), 4) for c in (0.0, 0.5))
    for name in zero:
        assert (zero[name].offset is not None) == (name in CONTEXTS)
        assert torch.equal(zero[name].own(4), other[name].own(4))
    still = made().adapt(start(0.5), tasks.loss(batch.support), 4, steps=0)
    assert torch.equal(tasks.logits(still, batch.query), tasks.logits(weights(), batch.query))


@pytest.mark.parametrize("optimizer", [adamw.Config(weight_decay=0.1), sgd.Config(lr=0.1, momentum=0.9)])
def test_an_outer_step_leaves_contexts_at_zero(optimizer: Any) -> None:
    """As a run is put together: from the configuration, with the outer optimizer."""
    residual, batch = ContextResidual(weights(), MODEL.context_shapes()), small_log(7).episodes(K, Q)
    algorithm = built(cavia_file.Config())
    phi = build.trainable(algorithm.learned(residual.init(torch.Generator())))
    before, tasks = {name: value.detach().clone() for name, value in phi.items()}, tasks_over()
    outer = build.optimizer(optimizer, phi, build.OUTER_LR["contexts"])
    for step in range(3):
        outer.zero_grad(set_to_none=True)
        algorithm.meta_losses(phi, tasks.loss(batch.support), tasks.loss(batch.query), 4, step).mean().backward()
        outer.step()
    assert {name for name in phi if torch.equal(phi[name], before[name])} == set(CONTEXTS)
    assert not any(bool(phi[name].any()) for name in CONTEXTS)


# -- refusals -------------------------------------------------------------------------------------------------------


def built(config: cavia_file.Config, model: Any = MODEL) -> Any:
    control = Control(0.0, 0, 0.0, [])  # contexts take nothing from it
    on = context.Config()
    return build.algorithm(config, on, model, control, outer_steps=20, support_share=0.5)


def test_built_from_its_defaults() -> None:
    algorithm = built(cavia_file.Config())
    assert algorithm == cavia(InnerLoop(3.0, 1), CONTEXTS)
    one = built(cavia_file.Config(order="first", inner=LearnedInner(adapt=["*.shift"])))
    assert (one.order, one.inner.adapted, one.contexts) == ("first", {"context.shift"}, set(CONTEXTS))


def test_weights_that_are_no_contexts_are_refused() -> None:
    config = cavia_file.Config(inner=LearnedInner(adapt=["fc.bias", "context.*"]))
    with pytest.raises(
        ConfigError, match=r"adapts contexts alone, and fc\.bias is none -- choose among context\.shift"
    ):
        built(config)


def test_a_model_without_contexts_is_refused() -> None:
    class Plain(type(MODEL)):  # type: ignore[misc]
        def context_shapes(self) -> dict[str, tuple[int, ...]]:
            return {}

    with pytest.raises(ConfigError, match=r"nothing that it could adapt -- use residual=off with algorithm=maml"):
        built(cavia_file.Config(), Plain(11))
    with pytest.raises(ValueError, match="nothing adapts"):
        cavia(InnerLoop(adapted=frozenset({"fc.bias"})), CONTEXTS)
