"""Laws of the inner steps: learned step sizes, another number of steps at test, what clip and prox bound, which weights
adapt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.small_cases import CASES, CONV4, Case, dense, every_model, outer, plainly
from reference.small_models import MODEL, furthest, leaves
from reference.small_tensors import LR, T, close, differ, normal
from torch import Tensor

from metarec import build
from metarec.algorithms import inner, maml
from metarec.algorithms.imaml import IMAML
from metarec.algorithms.inner import RATE, RATES, InnerLoop
from metarec.algorithms.maml import MAML
from metarec.algorithms.meta_sgd import meta_sgd
from metarec.algorithms.reptile import Reptile
from metarec.core.weights import Params
from metarec.errors import ConfigError
from metarec.options import LearnedInner
from metarec.residual import off

# -- learned step sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", RATES[1:])
@every_model
def test_with_rates_all_alike_the_inner_loop_is_that_of_maml(case: Case, rates: str) -> None:
    """As every run begins; Meta-SGD learns one for each element."""
    algorithm = meta_sgd(InnerLoop(LR, 2)) if rates == "element" else MAML(InnerLoop(LR, 2, rates=rates))
    support, _ = case.losses()
    got = dense(algorithm.adapt(algorithm.learned(case.phi), support, T))
    assert furthest(got, dense(MAML(InnerLoop(LR, 2)).adapt(case.phi, support, T))) < 1e-12


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_gradient_of_a_rate_is_its_central_difference(case: Case, order: str) -> None:
    """Also in first order where one step is taken: nothing of that path is cut."""
    algorithm, size = meta_sgd(InnerLoop(LR, 2 if order == "second" else 1), order), 1e-5
    phi = algorithm.learned(case.phi)
    _, grads = outer(algorithm, case, phi)
    reached = [name for name in case.phi if bool(grads[RATE + name].any())]
    assert len(reached) > 0.8 * len(case.phi)  # a bias before a norm, or of a key, has no effect
    for name in reached:
        at = int(grads[RATE + name].abs().argmax())
        assert grads[RATE + name].shape == case.phi[name].shape

        def objective(sign: float, name: str = name, at: int = at) -> float:
            there = phi[RATE + name].clone()
            there.view(-1)[at] += sign * size
            return float(algorithm.meta_losses(phi | {RATE + name: there}, *case.losses(), T).mean().detach())

        wanted = (objective(1) - objective(-1)) / (2 * size)
        assert float(grads[RATE + name].view(-1)[at]) == pytest.approx(wanted, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("rates", RATES[1:])
def test_rates_stay_positive_whatever_the_outer_step(rates: str) -> None:
    """They are exp of what is trained."""
    case = CASES["gru4rec"]
    loop = InnerLoop(LR, 2, rates=rates)
    phi = leaves(loop.learned(case.phi))
    MAML(loop).meta_losses(phi, *case.losses(), T).mean().backward()
    moved = 0
    for outer_lr in (-1e3, 0.1, 1e3):
        there = {n: v.detach() if v.grad is None else (v - outer_lr * v.grad).detach() for n, v in phi.items()}
        for name in case.phi:
            for step in range(3):
                rate = torch.as_tensor(loop.rate(there, name, step))
                assert bool((rate > 0).all())
                moved += int(differ(rate, torch.tensor(LR, dtype=torch.float64), 1e-6))
    assert moved


def test_reptile_and_imaml_refuse_to_learn_rates() -> None:
    loop = InnerLoop(LR, 1, rates="tensor")
    with pytest.raises(ValueError, match="no gradient by which step sizes could be learned"):
        Reptile(loop).learned(CASES["gru4rec"].phi)
    with pytest.raises(ValueError, match="no step size can be learned"):
        IMAML(loop).learned(CASES["gru4rec"].phi)


# -- other numbers of steps at test ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", ["fixed", "tensor_step", "element_step"])
@every_model
def test_more_steps_than_learned_go_on_with_the_last_rate_and_none_is_the_start(case: Case, rates: str) -> None:
    """And fewer stop on the way."""
    algorithm = MAML(InnerLoop(LR, 2, rates=rates))
    phi = algorithm.learned(case.phi)
    phi = {n: v + 0.5 * normal(*v.shape, seed=len(n)) if n.startswith(RATE) else v for n, v in phi.items()}
    support, _ = case.losses()
    still = algorithm.adapt(phi, support, T, steps=0)
    assert set(still) == set(case.phi)
    assert all(w.offset is None and w.shared is phi[name] for name, w in still.items())
    longer = {n: torch.cat([v, v[-1:], v[-1:]]) if n.startswith(RATE) else v for n, v in phi.items()}
    for steps in (1, 2, 4):
        wanted = inner.adapt(support, longer, T, InnerLoop(LR, steps, rates=rates))
        assert furthest(dense(algorithm.adapt(phi, support, T, steps=steps)), dense(wanted)) == 0.0
    slower = algorithm.adapt(phi, support, T, lr=0.01, steps=1)  # a step size at test is that of all weights
    assert furthest(dense(slower), dense(inner.adapt(support, case.phi, T, InnerLoop(0.01, 1)))) == 0.0


def test_weights_of_single_steps_are_read_step_by_step_and_the_last_one_beyond() -> None:
    """What is learned per step never moves inside; the query is judged by the weights of step K."""
    case, steps = CASES["conv4"], 2
    loop = InnerLoop(LR, steps, per_step=frozenset(CONV4.norms))
    phi = loop.learned(case.phi)
    assert all(phi[name].shape == (steps + 1, 2) for name in CONV4.norms)
    phi = phi | {n: phi[n] + 0.3 * normal(*phi[n].shape, seed=len(n)) for n in CONV4.norms}
    (support, _), now = case.losses([0]), leaves(case.phi)
    for step in range(4):
        own_norms = {name: phi[name][min(step, steps)] for name in CONV4.norms}
        found = inner.adapt(support, phi, 1, replace(loop, steps=step))
        assert furthest({n: w.dense().view_as(now[n]) for n, w in found.items()}, now | own_norms) < 1e-12
        moving = replace(loop, steps=1, adapted=frozenset(case.phi) - set(CONV4.norms))
        now = plainly(support, {n: v.detach().requires_grad_() for n, v in (now | own_norms).items()}, moving)


# -- clip and prox ------------------------------------------------------------------------------------------------

HARMLESS = [{"clip": 1e300}, {"prox": 0.0}, {"prox": 1e-300}, {"pull": 0.0}, {"pull": 1e-300}]


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("options", HARMLESS, ids=str)
@every_model
def test_a_huge_clip_and_no_strength_change_nothing(case: Case, options: dict[str, Any], second_order: bool) -> None:
    """Bit for bit: 1e-300 goes through the code of a strength and vanishes beside any number but zero."""
    order = "second" if second_order else "first"
    plain, other = InnerLoop(LR, 2), InnerLoop(LR, 2, **options)
    (losses, grads), (wanted_losses, wanted) = outer(MAML(other, order), case), outer(MAML(plain, order), case)
    assert torch.equal(losses, wanted_losses)
    assert furthest(grads, wanted) < 1e-290
    support, _ = case.losses()
    assert (
        furthest(dense(inner.adapt(support, case.phi, T, other)), dense(inner.adapt(support, case.phi, T, plain))) == 0
    )


@pytest.mark.parametrize("clip", [1e-3, 0.3, 2.0])
@every_model
def test_no_step_of_a_task_is_longer_than_the_clip(case: Case, clip: float) -> None:
    """|phi_t[j+1] - phi_t[j]| / lr <= clip over all weights of a task, and equal to it where it acts."""
    support, _ = case.losses()
    found = [dense(weights) for weights in inner.path(support, case.phi, T, InnerLoop(LR, 3, clip=clip))]
    free = [dense(weights) for weights in inner.path(support, case.phi, T, InnerLoop(LR, 1))]
    gradient = length(free[1], free[0]) / LR
    for n, (now, before) in enumerate(zip(found[1:], found, strict=False)):
        step = length(now, before) / LR
        assert bool((step <= clip * (1 + 1e-12)).all())
        if n == 0:
            close(step, gradient.clamp(max=clip))
    if clip == 0.3:
        assert bool((gradient > clip).any())  # so it did act


def length(a: Params, b: Params) -> Tensor:
    """Of the difference of all weights, [T]."""
    return torch.stack([(a[name] - b[name]).flatten(1).square().sum(1) for name in a]).sum(0).sqrt()


# -- what adapts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", [["nothing.*"], ["fc.*", "nothing"], [""]])
def test_a_pattern_that_matches_nothing_is_refused(patterns: list[str]) -> None:
    config = maml.Config(inner=LearnedInner(adapt=patterns))
    with pytest.raises(ConfigError, match=r"algorithm.inner.adapt: .*: matches no weight"):
        build.adapted(config, off.Config(), MODEL)
    assert build.adapted(maml.Config(), off.Config(), MODEL) == frozenset(MODEL.shapes())
    some = maml.Config(inner=LearnedInner(adapt=["fc.*"]))
    assert build.adapted(some, off.Config(), MODEL) == {"fc.weight", "fc.bias"}
