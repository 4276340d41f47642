"""The memory's gradients: slopes, loops over events, and an inner loop without steps where nothing adapts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from reference.memory_cases import BASE, MODEL, K, Q, T, log_of, moved, normal, over, pairs_of, tasks_over
from reference.memory_reference import SlowMemory, mean_loss
from reference.meta_reference import Loop, maml, step_weights
from torch import Tensor

from metarec import build, parts
from metarec.core.weights import Params
from metarec.errors import ConfigError
from metarec.evaluate import Control
from metarec.optimizers import adam
from metarec.residual import memory


def test_the_gradient_of_every_number_is_its_slope() -> None:
    log, made = log_of("cut"), over(gate="state")
    phi, query = moved(made), log.episodes(K, Q).query
    loss = tasks_over(made).loss(query)
    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    grads = torch.autograd.grad(loss(leaves).mean(), list(leaves.values()))
    for (name, value), grad in zip(phi.items(), grads, strict=True):
        for place in range(value.numel()):
            step = torch.zeros(value.numel(), dtype=torch.float64)
            step[place] = 1e-5
            up, down = (float(loss(phi | {name: value + s * step.view(value.shape)}).mean()) for s in (1, -1))
            slope = (up - down) / 2e-5
            assert abs(slope) > 1e-6, name
            assert float(grad.reshape(-1)[place]) == pytest.approx(slope, rel=1e-6, abs=1e-9), name


def learner(algorithm: str, on: Any, **options: Any) -> Any:
    config: Any = parts.default("algorithm", algorithm)
    inner = replace(config.inner, lr=0.4, steps=2, **options)
    control = Control(0.0, 0, 0.0, [])
    return build.algorithm(replace(config, inner=inner), on, MODEL, control, outer_steps=4, support_share=0.5)


@pytest.mark.parametrize("adapt", [None, ["context.*", "memory.*"]])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_meta_gradients_beside_contexts_are_those_of_loops_over_events(algorithm: str, adapt: Any) -> None:
    """The inner loop moves contexts by a support loss that the memory is mixed into, and the memory itself where told to."""
    on: Any = parts.default("residual", "memory+context")
    on = replace(on, memory=replace(on.memory, gate="state"))
    made, log = build.residual(on, MODEL, BASE), log_of("cut")
    phi, tasks, batch = moved(made), tasks_over(made), log.episodes(K, Q)
    method = learner(algorithm, on, adapt=adapt)
    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    losses = method.meta_losses(leaves, tasks.loss(batch.support), tasks.loss(batch.query), T)
    grads = torch.autograd.grad(losses.mean(), list(leaves.values()), materialize_grads=True, allow_unused=True)
    each = []
    for user in range(T):
        support, query = pairs_of(log, user)
        slow = SlowMemory(log, support)
        each.append((partial(mean_loss, slow, support), partial(mean_loss, slow, query)))
    adapted = [name for name in phi if name.startswith(("context.", "memory.") if adapt else "context.")]
    loop = Loop(lr=0.4, steps=2, adapted=adapted)
    wanted, slow_grads = maml(loop, phi, each, step_weights("last", 2), algorithm == "maml")
    torch.testing.assert_close(losses.detach(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    for (name, _), grad in zip(phi.items(), grads, strict=True):
        torch.testing.assert_close(grad, slow_grads[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize(("algorithm", "exact"), [("maml", True), ("fomaml", False)])
def test_second_order_is_the_slope_of_the_meta_loss_and_first_order_is_not(algorithm: str, exact: bool) -> None:
    on: Any = parts.default("residual", "memory+context")
    made, log = build.residual(on, MODEL, BASE), log_of("cut")
    phi, tasks, batch = moved(made), tasks_over(made), log.episodes(K, Q)
    method = learner(algorithm, on)

    def meta(at: Params) -> Tensor:
        found: Tensor = method.meta_losses(at, tasks.loss(batch.support), tasks.loss(batch.query), T).mean()
        return found

    def value(at: Params) -> float:
        return float(meta(at).detach())

    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    grads = dict(zip(leaves, torch.autograd.grad(meta(leaves), list(leaves.values())), strict=True))
    errors = []
    for seed in range(3):
        along = {name: normal(tuple(value.shape), 7 * seed + n) for n, (name, value) in enumerate(phi.items())}
        got = sum(float((grads[name] * value).sum()) for name, value in along.items())
        up, down = (value({n: phi[n] + s * 1e-5 * along[n] for n in phi}) for s in (1, -1))
        errors.append(abs(got - (up - down) / 2e-5) / abs(got))
    assert (max(errors) < 1e-6) == exact
    assert exact or max(errors) > 1e-3


def test_nothing_adapts_and_any_step_is_refused_of_it() -> None:
    on = parts.default("residual", "memory")
    for name in ("maml", "fomaml", "meta_sgd", "maml_pp"):
        config = parts.default("algorithm", name)
        made = build.algorithm(config, on, MODEL, Control(0.1, 3, 0.0, []), outer_steps=4, support_share=0.5)
        assert (made.inner.steps, made.inner.adapted) == (0, frozenset())
        phi = build.residual(on, MODEL, BASE).init(torch.Generator())
        assert made.learned(phi).keys() == phi.keys()


def test_all_first_algorithms_have_one_and_the_same_meta_gradient() -> None:
    on, log = parts.default("residual", "memory"), log_of("whole")
    residual, batch = build.residual(on, MODEL, BASE), log.episodes(K, Q)
    found = []
    for name in ("maml", "fomaml", "meta_sgd", "maml_pp"):
        made = build.algorithm(parts.default("algorithm", name), on, MODEL, Control(0.1, 3, 0.0, []), outer_steps=4,
                               support_share=0.5)  # fmt: skip
        leaves = {n: v.clone().requires_grad_() for n, v in residual.init(torch.Generator()).items()}
        tasks = tasks_over(residual)
        losses = made.meta_losses(leaves, tasks.loss(batch.support), tasks.loss(batch.query), T)
        found.append(torch.stack(torch.autograd.grad(losses.mean(), list(leaves.values()))))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_the_numbers_have_a_step_size_of_their_own_and_the_weights_stay() -> None:
    on = replace(parts.default("residual", "memory"), lr=0.5, train_weights=True)
    made = build.residual(on, MODEL, BASE)
    phi = build.trainable(made.init(torch.Generator()))
    optimizer = build.optimizer(adam.Config(), phi, build.OUTER_LR["weights"], None, build.outer_lrs(on))
    assert [(len(group["params"]), group["lr"]) for group in optimizer.param_groups] == [(len(BASE), 3e-4), (5, 0.5)]
    assert optimizer.param_groups[1]["weight_decay"] == 0
    frozen = build.residual(replace(on, train_weights=False), MODEL, BASE)
    assert set(frozen.init(torch.Generator())) == set(memory.numbers(on, MODEL))
    assert all(frozen.compose(frozen.init(torch.Generator()))[name] is value for name, value in BASE.items())


def test_a_gate_of_the_state_needs_its_width() -> None:
    class Narrow:
        def context_shapes(self) -> dict[str, tuple[int, ...]]:
            return {}

    with pytest.raises(ConfigError, match=r"residual\.gate: state: the model has no context\.shift"):
        memory.numbers(memory.Config(gate="state"), Narrow())  # type: ignore[arg-type]
