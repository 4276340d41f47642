"""Laws of the meta-gradient of MAML and FOMAML: closed forms on a quadratic, one task at a time, central differences, the
multi-step loss, the annealed order, and that recomputed steps change no number."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.quadratic import FORMS, OUT, D, gradient_of, power, quadratics
from reference.small_cases import CASES, Case, every_model, outer, plainly, same
from reference.small_episodes import small_log
from reference.small_models import furthest, leaves
from reference.small_tensors import LR, T, close, differ, normal
from torch import Tensor

from metarec.algorithms import inner
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import RATE, RATES, InnerLoop
from metarec.algorithms.maml import MAML, MULTI_STEP
from metarec.algorithms.maml_pp import maml_pp
from metarec.core.offsets import Dense, LowRank, tensors
from metarec.core.weights import Params, Weights, own

# -- the quadratic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_the_inner_loop_contracts_by_its_closed_form(form: str, steps: int) -> None:
    """phi_K - c = (phi - c) (I - aH)^K."""
    support, _, phi = quadratics(form)
    found = inner.adapt(support, phi, T, InnerLoop(LR, steps))["w"]
    close(found.dense().expand(T, OUT, D), support.c + (phi["w"] - support.c) @ power(support.h, LR, steps))
    if steps == 1:
        assert isinstance(found.offset, LowRank if form == "factored" else Dense)


@pytest.mark.parametrize("form", FORMS)
def test_the_meta_gradient_of_maml_has_the_factor_and_that_of_fomaml_lacks_it(form: str) -> None:
    """MAML: mean over tasks of H_q (phi_K - c_q) (I - aH)^K; FOMAML: without the power."""
    (support, query, phi), steps = quadratics(form), 3
    loop, through = InnerLoop(LR, steps), power(support.h, LR, steps)
    end = support.c + (phi["w"] - support.c) @ through
    first, second = query.slope(end).mean(0), (query.slope(end) @ through).mean(0)
    close(gradient_of(MAML(loop), support, query, phi), second)
    close(gradient_of(fomaml(loop), support, query, phi), first)
    assert differ(first, second)


@pytest.mark.parametrize(("pull", "prox"), [(0.7, 0.0), (0.0, 0.9), (0.3, 0.4)])
def test_pull_and_prox_bend_the_quadratic(pull: float, prox: float) -> None:
    """The loop contracts by I - a (H + pull + prox) towards where H (w - c) + pull w + prox (w - phi) = 0."""
    (support, query, phi), steps = quadratics(), 3
    bent = support.h + (pull + prox) * torch.eye(D, dtype=torch.float64)

    def end(w: Tensor) -> Tensor:
        rest = (support.c @ support.h + prox * w) @ torch.linalg.inv(bent)
        return rest + (w - rest) @ power(bent, LR, steps)

    loop = InnerLoop(LR, steps, pull, prox)
    close(inner.adapt(support, phi, T, loop)["w"].dense(), end(phi["w"]))
    e = end(phi["w"]) - query.c
    judged = 0.5 * (e @ query.h * e).flatten(1).sum(1) + 0.5 * pull * end(phi["w"]).flatten(1).square().sum(1)
    (wanted,) = torch.autograd.grad(judged.mean(), phi["w"])
    close(gradient_of(MAML(loop), support, query, phi), wanted)


@pytest.mark.parametrize("used", [True, False])
def test_with_a_constant_loss_a_pull_shrinks_and_prox_and_clip_do_nothing(used: bool) -> None:
    """phi_K = (1 - a pull)^K phi, whether the loss reads the weight or not."""
    phi = quadratics()[2]

    def constant(weights: Weights) -> Tensor:
        flat = own(weights["w"], T).flatten(1).sum(1) * 0.0 if used else torch.zeros(T, dtype=torch.float64)
        return flat + 3.0

    for order in (False, True):
        found = inner.adapt(constant, phi, T, InnerLoop(LR, 4, pull=0.6), second_order=order)["w"].dense()
        close(found.expand(T, OUT, D), (1 - LR * 0.6) ** 4 * phi["w"].expand(T, OUT, D))
        still = inner.adapt(constant, phi, T, InnerLoop(LR, 4, prox=0.6, clip=0.1), second_order=order)["w"].dense()
        assert torch.equal(still.expand(T, OUT, D), phi["w"].expand(T, OUT, D))


# -- small tasks of all models --------------------------------------------------------------------------------------


def plain_meta(case: Case, phi: Params, loop: InnerLoop) -> tuple[Tensor, Params]:
    """Meta-losses and exact meta-gradient, one task after the other."""
    begin, losses = leaves(phi), []
    for user in range(T):
        support, query = case.losses([user])
        end = plainly(support, begin, loop)
        losses.append(query(end)[0] + 0.5 * loop.pull * sum(value.square().sum() for value in end.values()))
    found = torch.autograd.grad(
        torch.stack(losses).mean(), list(begin.values()), allow_unused=True, materialize_grads=True
    )
    return torch.stack(losses).detach(), dict(zip(begin, found, strict=True))


OPTIONS = [
    {}, {"clip": 0.3}, {"pull": 0.2}, {"prox": 0.4}, {"pull": 0.2, "prox": 0.4},
    *({"rates": rates} for rates in RATES[1:]), {"prox": 0.3, "clip": 0.5, "rates": "element_step"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@every_model
def test_the_exact_meta_gradient_is_that_of_one_task_at_a_time(case: Case, options: dict[str, Any]) -> None:
    """Also of learned step sizes, which here are unlike each other."""
    loop = InnerLoop(LR, 3, **options)
    phi = uneven(loop.learned(case.phi))
    losses, grads = outer(MAML(loop), case, phi)
    wanted_losses, wanted = plain_meta(case, phi, loop)
    close(losses, wanted_losses)
    assert furthest(grads, wanted) < 1e-11


def uneven(phi: Params) -> Params:
    """Step sizes that differ from each other."""
    return {n: v + 0.3 * normal(*v.shape, seed=len(n)) if n.startswith(RATE) else v for n, v in phi.items()}


@every_model
def test_maml_equals_central_differences_and_fomaml_does_not(case: Case) -> None:
    """Along a random direction, 3 steps, to 1e-6 relative."""
    loop, size = InnerLoop(LR, 3), 1e-5
    direction = {name: normal(*value.shape, seed=len(name)) for name, value in case.phi.items()}

    def at(sign: float) -> float:
        there = {name: value + sign * size * direction[name] for name, value in case.phi.items()}
        return float(MAML(loop).meta_losses(there, *case.losses(), T).mean().detach())

    wanted = (at(1) - at(-1)) / (2 * size)

    def error(algorithm: MAML) -> float:
        _, grads = outer(algorithm, case)
        return abs(sum(float((grads[n] * direction[n]).sum()) for n in direction) - wanted) / abs(wanted)

    assert error(MAML(loop)) < 1e-6
    assert error(fomaml(loop)) > 1e-3


# -- multi-step loss and annealing ----------------------------------------------------------------------------------


@every_model
def test_the_multi_step_loss_of_one_step_is_that_of_maml(case: Case) -> None:
    """K = 1: whatever is annealed, and when."""
    wanted = outer(MAML(InnerLoop(LR, 1)), case)
    for multi_step in MULTI_STEP:
        for step in (0, 3, 10, 11):
            algorithm = MAML(InnerLoop(LR, 1), multi_step=multi_step, multi_step_until=10)
            assert same(outer(algorithm, case, step=step), wanted)


@pytest.mark.parametrize("until", [0, 1, 7])
@pytest.mark.parametrize("k", [0, 1, 2, 5])
@pytest.mark.parametrize("multi_step", MULTI_STEP)
def test_the_weights_of_steps_sum_to_one(multi_step: str, k: int, until: int) -> None:
    """At every outer step, none negative; they begin even and end with the last one alone."""
    algorithm = MAML(InnerLoop(LR, k), multi_step=multi_step, multi_step_until=until)
    for step in range(20):
        found = algorithm.step_weights(step)
        assert len(found) == k + 1
        assert math.fsum(found) == pytest.approx(1.0, abs=1e-14)
        assert min(found) >= 0
        if multi_step == "last" or (multi_step == "annealed" and step >= until):
            assert found == [0.0] * k + [1.0]
        elif k and (multi_step == "uniform" or step == 0):
            assert found == pytest.approx([0.0] + [1 / k] * k)
        elif k > 1:
            assert 0 < found[1] < algorithm.step_weights(step - 1)[1] < 1 / k + 1e-14


def test_the_multi_step_loss_is_the_weighted_sum_of_the_losses_of_shorter_loops() -> None:
    """And so are its gradients."""
    case, steps = CASES["gru4rec"], 3
    algorithm = MAML(InnerLoop(LR, steps, pull=0.1), multi_step="annealed", multi_step_until=9)
    shorter = [outer(MAML(InnerLoop(LR, k, pull=0.1)), case) for k in range(steps + 1)]
    for step in (0, 4, 9):
        losses, grads = outer(algorithm, case, step=step)
        mix = algorithm.step_weights(step)
        close(losses, sum(w * one[0] for w, one in zip(mix, shorter, strict=True)))  # type: ignore[arg-type]
        wanted = {n: sum(w * one[1][n] for w, one in zip(mix, shorter, strict=True)) for n in grads}
        assert furthest(grads, wanted) < 1e-12  # type: ignore[arg-type]


@every_model
def test_annealing_is_fomaml_before_the_switch_and_maml_from_it_on(case: Case) -> None:
    """Bit for bit, and the two differ."""
    loop = InnerLoop(LR, 2)
    annealed = MAML(loop, order="annealed", switch_step=4)
    first, second = outer(fomaml(loop), case), outer(MAML(loop), case)
    assert not same(first, second)
    for step in (0, 3):
        assert same(outer(annealed, case, step=step), first)
    for step in (4, 5):
        assert same(outer(annealed, case, step=step), second)
    everything = maml_pp(loop, msl=False, lslr=False, switch_step=4)
    assert same(outer(everything, case, step=3), first)
    assert same(outer(everything, case, step=4), second)


# -- recomputing ----------------------------------------------------------------------------------------------------


class Kept:
    """A tensor that a graph has saved."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach()  # with its history it would hold the graph that holds it


def saved(case: Case, loop: InnerLoop) -> tuple[int, int]:
    """(tensors, bytes of different storages) that the graph of a meta-loss holds, the start's own left out."""
    phi, alive = leaves(case.phi), weakref.WeakSet[Kept]()

    def pack(value: Tensor) -> Kept:
        kept = Kept(value)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
        losses = MAML(loop).meta_losses(phi, *case.losses(), T)
    start = {value.untyped_storage().data_ptr() for value in phi.values()}
    held = [kept.value.untyped_storage() for kept in alive]
    assert losses.requires_grad  # and so its graph is there
    return len(held), sum({one.data_ptr(): one.nbytes() for one in held if one.data_ptr() not in start}.values())


@pytest.mark.parametrize("options", [{}, {"clip": 0.3, "pull": 0.2}, {"prox": 0.4, "rates": "element_step"}], ids=str)
@every_model
def test_recomputing_changes_no_number(case: Case, options: dict[str, Any]) -> None:
    """Losses and gradients to 1e-12, of step sizes and with the multi-step loss too."""
    loop = InnerLoop(LR, 3, **options)
    phi = uneven(loop.learned(case.phi))
    for multi_step in ("last", "uniform"):
        losses, grads = outer(MAML(replace(loop, recompute=True), multi_step=multi_step), case, phi)
        wanted_losses, wanted = outer(MAML(loop, multi_step=multi_step), case, phi)
        close(losses, wanted_losses)
        assert furthest(grads, wanted) < 1e-12


@pytest.mark.parametrize("name", ["gru4rec", "conv4"])
def test_recomputing_keeps_no_graph_of_a_step(name: str) -> None:
    """From 3 to 9 steps nothing is added but the weights between the steps; without it, the graph of every step is."""
    case, loop = CASES[name], InnerLoop(0.01, 9)
    if name == "gru4rec":  # its steps keep little beside the weights, so each is given more pairs to keep it of
        case = replace(case, batch=lambda users: small_log(7, n_users=T, n_pairs=14).episodes(10, 4, users))
    ends = inner.adapt(case.losses()[0], case.phi, T, loop).values()
    between = [part for end in ends if end.offset is not None for part in tensors(end.offset)]

    def growth(recompute: bool) -> tuple[int, int]:
        few, many = (saved(case, replace(loop, steps=steps, recompute=recompute)) for steps in (3, 9))
        return (many[0] - few[0]) // 6, (many[1] - few[1]) // 6

    (count, size), (plain_count, plain_size) = growth(True), growth(False)
    assert size <= sum(part.nbytes for part in between)
    assert count <= 2 * len(case.phi) + len(between)  # all weights and offsets that went into the step
    assert plain_size > (2.5 if name == "gru4rec" else 50) * size
    assert plain_count > 2 * count
