"""Laws of the algorithms: closed forms on a quadratic, identities between algorithms, what an option may not change.

The quadratic is 1/2 (w - c_t) H_t (w - c_t)^T with a matrix and a centre of its own for every task; there the inner loop
and all meta-gradients have closed forms. On GRU4Rec, SASRec and Conv4 a law compares two ways to the same number; the
second way is a plain loop over full copies, one task at a time.

Shapes: T tasks, N pairs a task; the weight of the quadratic is [O, D], H_t [D, D].
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, furthest, leaves
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metarec import build
from metarec.algorithms import Algorithm, inner, maml
from metarec.algorithms.anil import anil
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.imaml import IMAML
from metarec.algorithms.inner import RATE, RATES, InnerLoop, TaskLoss
from metarec.algorithms.maml import MAML, MULTI_STEP
from metarec.algorithms.maml_pp import maml_pp
from metarec.algorithms.meta_sgd import meta_sgd
from metarec.algorithms.reptile import Reptile
from metarec.config.overrides import check_words
from metarec.core.batch import EpisodeBatch, ImageBatch
from metarec.core.offsets import Dense, LowRank, tensors
from metarec.core.ops import embed, linear
from metarec.core.weights import FastWeight, Params, Weights, own
from metarec.errors import ConfigError
from metarec.models.conv4 import Conv4
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.options import LearnedInner
from metarec.residual import off
from metarec.tasks import Model, Tasks

T, OUT, D = 3, 5, 4
LR = 0.2


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def differ(a: Tensor, b: Tensor, by: float = 1e-3) -> bool:
    return float((a - b).detach().abs().max()) > by


# -- the quadratic --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quadratic:
    """1/2 |root (w - c)^T|^2, so that H = root^T root; `through` says which operator reads w."""

    root: Tensor  # [T, N, D]; N = 1 makes H of rank 1, and offsets of `linear` stay factored
    c: Tensor  # [T, OUT, D]
    through: str

    @property
    def h(self) -> Tensor:
        return self.root.transpose(1, 2) @ self.root

    def __call__(self, weights: Weights) -> Tensor:
        centre = torch.einsum("tnd,tod->tno", self.root, self.c)
        if self.through == "linear":
            left = linear(self.root, weights["w"]) - centre
        else:
            left = torch.einsum("tnd,tod->tno", self.root, own(weights["w"], T)) - centre
        return 0.5 * left.flatten(1).square().sum(1)

    def slope(self, w: Tensor) -> Tensor:
        """The gradient of every task, [T, OUT, D]."""
        return (w - self.c) @ self.h


FORMS = {"own": ("own", D), "linear": ("linear", D), "factored": ("linear", 1)}


def quadratics(form: str = "own") -> tuple[Quadratic, Quadratic, Params]:
    """(support, query, phi)"""
    through, n = FORMS[form]
    support = Quadratic(0.5 * normal(T, n, D, seed=1), normal(T, OUT, D, seed=2), through)
    query = Quadratic(0.5 * normal(T, D, D, seed=3), normal(T, OUT, D, seed=4), through)
    return support, query, {"w": normal(OUT, D, seed=5).requires_grad_()}


def power(a: Tensor, b: float, k: int) -> Tensor:
    """(I - b a)^k of every task."""
    return torch.linalg.matrix_power(torch.eye(D, dtype=torch.float64) - b * a, k)


def gradient_of(algorithm: Algorithm, support: TaskLoss, query: TaskLoss, phi: Params, step: int = 0) -> Tensor:
    return torch.autograd.grad(algorithm.meta_losses(phi, support, query, T, step).mean(), phi["w"])[0]


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


@dataclass(frozen=True)
class Case:
    model: Model
    phi: Params
    batch: Callable[[list[int]], EpisodeBatch]  # of some of the tasks 0..T-1

    @property
    def tasks(self) -> Tasks:
        return Tasks(self.model, cross_entropy, lambda phi: phi)

    def all(self) -> EpisodeBatch:
        return self.batch(list(range(T)))

    def losses(self, users: list[int] | None = None) -> tuple[TaskLoss, TaskLoss]:
        batch = self.batch(users or list(range(T)))
        return self.tasks.loss(batch.support), self.tasks.loss(batch.query)


LOG = small_log(7, n_users=T, n_pairs=7)


def episodes(users: list[int]) -> EpisodeBatch:
    return LOG.episodes(3, 4, users)


def images(users: list[int]) -> EpisodeBatch:
    """3-way: one support and two query images a class, of 16 x 16 pixels."""
    pixels, target = normal(T, 9, 1, 16, 16, seed=6)[users], torch.tensor([1, 2, 3]).repeat(len(users), 1)
    query = ImageBatch(pixels[:, 3:], target.repeat_interleave(2, 1))
    return EpisodeBatch(ImageBatch(pixels[:, :3], target), query, torch.tensor(users))


def start_of(model: Model, scale: float = 1.0) -> Params:
    params = model.init(torch.Generator().manual_seed(1), torch.float64)
    return {name: value + scale * normal(*value.shape, seed=n) for n, (name, value) in enumerate(params.items())}


SASREC, CONV4 = SASRec(11, 6, n_layers=1, n_heads=2, max_len=12, ffn_dim=5), Conv4(3, filters=2, image_size=16)
CASES = {
    "gru4rec": Case(MODEL, start_of(MODEL, 0.3), episodes),
    "sasrec": Case(SASREC, start_of(SASREC, 0.5), episodes),
    "conv4": Case(CONV4, start_of(CONV4, 0.2), images),
}
every_model = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def outer(algorithm: Algorithm, case: Case, phi: Params | None = None, step: int = 0) -> tuple[Tensor, Params]:
    """(meta-losses, gradient of their mean with respect to all that is learned)."""
    begin = leaves(algorithm.learned(case.phi) if phi is None else phi)
    losses = algorithm.meta_losses(begin, *case.losses(), T, step)
    found = torch.autograd.grad(losses.mean(), list(begin.values()), allow_unused=True, materialize_grads=True)
    return losses.detach(), dict(zip(begin, found, strict=True))


def same(a: tuple[Tensor, Params], b: tuple[Tensor, Params]) -> bool:
    """Bit for bit."""
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][name], b[1][name]) for name in b[1])


def dense(weights: dict[str, FastWeight], n_tasks: int = T) -> Params:
    return {name: w.dense().expand(n_tasks, *w.shared.shape) for name, w in weights.items()}


def plainly(loss: TaskLoss, phi: Params, loop: InnerLoop) -> Params:
    """The inner loop of one task on full copies of its weights, by autograd alone; the graph is kept."""
    now = {name: value for name, value in phi.items() if not name.startswith(RATE)}
    begin = dict(now)
    for step in range(loop.steps):
        moving = [name for name in now if loop.adapted is None or name in loop.adapted]
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
            losses = loss(now)
        found = torch.autograd.grad(
            losses.sum(), [now[n] for n in moving], create_graph=True, allow_unused=True, materialize_grads=True
        )
        factor: float | Tensor = 1.0
        if loop.clip:
            factor = (loop.clip / torch.stack([g.square().sum() for g in found]).sum().sqrt()).clamp(max=1.0)
        for name, grad in zip(moving, found, strict=True):
            rate: float | Tensor = loop.lr
            if loop.rates != "fixed":
                rate = phi[RATE + name].exp()
                rate = rate[step] if loop.rates.endswith("_step") else rate
            away = loop.pull * now[name] + loop.prox * (now[name] - begin[name])
            now = now | {name: now[name] - rate * (factor * grad + away)}
    return now


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


# -- ANIL -----------------------------------------------------------------------------------------------------------


@every_model
def test_anil_leaves_the_body_where_it_is(case: Case) -> None:
    """No offset, not a bit moved in the inner loop; yet the outer loop has a gradient for it."""
    algorithm = anil(InnerLoop(LR, 3, pull=0.1), case.model.head)
    weights = algorithm.adapt(case.phi, case.losses()[0], T)
    for name, weight in weights.items():
        if name in case.model.head:
            assert weight.offset is not None
        else:
            assert weight.offset is None
            assert torch.equal(weight.shared, case.phi[name])
    _, grads = outer(algorithm, case)
    assert all(bool(grad.any()) for name, grad in grads.items() if not name.endswith(("bias_hh_l0", "in.bias")))


@every_model
def test_anil_with_everything_as_its_head_is_maml(case: Case) -> None:
    """Bit for bit, in both orders."""
    loop = InnerLoop(LR, 2)
    assert same(outer(anil(loop, case.phi), case), outer(MAML(loop), case))
    assert same(outer(anil(loop, case.phi, "first"), case), outer(fomaml(loop), case))


def test_anil_refuses_a_head_that_does_not_adapt() -> None:
    with pytest.raises(ValueError, match="has nothing that adapts"):
        anil(InnerLoop(LR, 1, adapted=frozenset({"w"})), ["b"])


# -- Reptile --------------------------------------------------------------------------------------------------------

SHARE = 3 / 7  # the small episodes have 3 support and 4 query pairs


@every_model
def test_reptile_with_one_step_is_joint_training(case: Case) -> None:
    """Its gradient is inner.lr times that of the joint loss, support and query mixed by their share."""
    _, grads = outer(Reptile(InnerLoop(LR, 1), SHARE), case)
    begin, (support, query) = leaves(case.phi), case.losses()
    joint = (SHARE * support(begin) + (1 - SHARE) * query(begin)).mean()
    found = torch.autograd.grad(joint, list(begin.values()), allow_unused=True, materialize_grads=True)
    assert furthest(grads, {n: LR * g for n, g in zip(begin, found, strict=True)}) < 1e-12


def test_the_joint_loss_is_the_mean_over_all_pairs() -> None:
    """Where all targets are known, the mix by share is what one set of all pairs would give."""
    log = small_log(7, n_users=T, n_pairs=7, unknown=0.0)
    tasks, split, whole = CASES["gru4rec"].tasks, log.episodes(3, 4), log.episodes(7, 0)
    phi = CASES["gru4rec"].phi
    mixed = SHARE * tasks.loss(split.support)(phi) + (1 - SHARE) * tasks.loss(split.query)(phi)
    close(mixed, tasks.loss(whole.support)(phi))


@pytest.mark.parametrize("options", [{}, {"pull": 0.2}, {"clip": 0.2}], ids=["plain", "pull", "clip"])
@pytest.mark.parametrize("steps", [0, 1, 4])
@every_model
def test_reptiles_gradient_is_the_way_back_from_the_mean_end(case: Case, steps: int, options: dict[str, Any]) -> None:
    """phi - mean over tasks of phi_t, with phi_t computed apart."""
    loop = InnerLoop(LR, steps, **options)
    _, grads = outer(Reptile(loop, SHARE), case)
    ends = []
    for user in range(T):
        support, query = case.losses([user])

        def joint(weights: Weights, support: TaskLoss = support, query: TaskLoss = query) -> Tensor:
            return SHARE * support(weights) + (1 - SHARE) * query(weights)

        ends.append(plainly(joint, leaves(case.phi), loop))
    wanted = {name: value - torch.stack([end[name] for end in ends]).mean(0) for name, value in case.phi.items()}
    assert furthest(grads, wanted) < 1e-12


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


# -- iMAML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [1.0, 3.0])
@pytest.mark.parametrize("form", FORMS)
def test_the_implicit_gradient_has_its_closed_form(form: str, lam: float) -> None:
    """phi* = argmin, and mean over tasks of grad L_q(phi*) (I + H / lambda)^-1, once converged."""
    support, query, phi = quadratics(form)
    eye = torch.eye(D, dtype=torch.float64)
    end = (support.c @ support.h + lam * phi["w"]) @ torch.linalg.inv(support.h + lam * eye)
    algorithm = IMAML(InnerLoop(0.15, 200), lam, cg_steps=2 * D)
    close(algorithm.adapt(phi, support, T)["w"].dense(), end, 1e-9)
    wanted = (query.slope(end) @ torch.linalg.inv(eye + support.h / lam)).mean(0)
    close(gradient_of(algorithm, support, query, phi), wanted, 1e-9)
    assert differ(wanted, query.slope(end).mean(0))  # which is what no linear system would give
    close(
        algorithm.meta_losses(phi, support, query, T), query({"w": FastWeight(phi["w"], Dense(end - phi["w"]))}), 1e-9
    )


def test_the_implicit_gradient_reaches_what_does_not_adapt() -> None:
    """Through the solution as well: the total derivative of L_q(w*(u), u) in u."""
    support, query, phi = quadratics()
    lam, eye = 1.5, torch.eye(D, dtype=torch.float64)
    both = phi | {"u": normal(OUT, D, seed=8).requires_grad_()}

    def shifted(loss: Quadratic) -> TaskLoss:
        """The centre is moved by u."""
        return lambda weights: replace(loss, c=loss.c + own(weights["u"], T))(weights)

    algorithm = IMAML(InnerLoop(0.15, 200, adapted=frozenset({"w"})), lam, cg_steps=2 * D)
    losses = algorithm.meta_losses(both, shifted(support), shifted(query), T)
    got = torch.autograd.grad(losses.mean(), list(both.values()))
    end = ((support.c + both["u"]) @ support.h + lam * both["w"]) @ torch.linalg.inv(support.h + lam * eye)
    e = end - query.c - both["u"]
    wanted = torch.autograd.grad(0.5 * (e @ query.h * e).flatten(1).sum(1).mean(), list(both.values()))
    for mine, theirs in zip(got, wanted, strict=True):
        close(mine, theirs, 1e-9)


def test_the_implicit_gradient_under_a_pull() -> None:
    """The pull belongs to the inner problem and to what is judged, as in MAML."""
    support, query, phi = quadratics()
    lam, pull, eye = 2.0, 0.5, torch.eye(D, dtype=torch.float64)
    bent = support.h + (lam + pull) * eye
    end = (support.c @ support.h + lam * phi["w"]) @ torch.linalg.inv(bent)
    algorithm = IMAML(InnerLoop(0.1, 300, pull), lam, cg_steps=2 * D)
    wanted = ((query.slope(end) + pull * end) @ torch.linalg.inv(bent) * lam).mean(0)
    at = FastWeight(phi["w"], Dense(end - phi["w"]))
    judged = query({"w": at}) + 0.5 * pull * end.flatten(1).square().sum(1)
    close(algorithm.adapt(phi, support, T)["w"].dense(), end, 1e-9)
    close(algorithm.meta_losses(phi, support, query, T), judged, 1e-9)
    close(gradient_of(algorithm, support, query, phi), wanted, 1e-9)


@pytest.mark.parametrize("adapted", ["everything", "the head"])
@every_model
def test_the_implicit_gradient_solves_its_system(case: Case, adapted: str) -> None:
    """m + H m / lambda = grad L_q for what adapts, task by task, wherever the inner loop ended; the rest has its
    gradient through the solution, grad_w L_q - grad_w <grad L_s, m> / lambda. Hessian by autograd on full copies."""
    lam = 30.0
    moving = list(case.phi) if adapted == "everything" else [n for n in case.phi if n in case.model.head]
    algorithm = IMAML(InnerLoop(0.02, 3, adapted=frozenset(moving)), lam, cg_steps=60)
    for user in range(T):
        (support, query), phi = case.losses([user]), leaves(case.phi)
        losses = algorithm.meta_losses(phi, support, query, 1)
        got = dict(zip(phi, torch.autograd.grad(losses.mean(), list(phi.values()), allow_unused=True), strict=True))
        ended = leaves({n: v[0] for n, v in dense(algorithm.adapt(phi, support, 1), 1).items()})
        every, some = list(ended.values()), [ended[name] for name in moving]
        options = {"allow_unused": True, "materialize_grads": True}
        slope = torch.autograd.grad(query(ended).sum(), every, **options)
        with sdpa_kernel(SDPBackend.MATH):
            support_slope = torch.autograd.grad(support(ended).sum(), some, create_graph=True, **options)
        along = sum(
            (g * got[n].detach()).sum() for n, g in zip(moving, support_slope, strict=True) if got[n] is not None
        )
        assert isinstance(along, Tensor)
        bent = torch.autograd.grad(along, every, **options)
        for name, g, h in zip(ended, slope, bent, strict=True):
            mine = torch.zeros_like(g) if got[name] is None else got[name]
            close(mine + h / lam if name in moving else mine, g if name in moving else g - h / lam, 1e-9)


def test_the_implicit_gradient_of_a_table_looked_up_by_the_support_and_multiplied_by_in_the_query() -> None:
    """The support moves rows alone: w* = (c + lambda phi) / (1 + lambda) there, phi elsewhere."""
    ids, x, c, lam = torch.tensor([[1, 4]]), normal(1, 4, 3, seed=1), normal(1, 2, 3, seed=2), 2.0
    phi = {"w": normal(6, 3, seed=3).requires_grad_()}

    def support(weights: Weights) -> Tensor:
        return 0.5 * (embed(ids, weights["w"]) - c).square().flatten(1).sum(1)

    def query(weights: Weights) -> Tensor:
        return 0.5 * (linear(x, weights["w"]) - 1).square().flatten(1).sum(1)

    end = phi["w"].index_copy(0, ids[0], (c[0] + lam * phi["w"][ids[0]]) / (1 + lam))
    (wanted,) = torch.autograd.grad(query({"w": end}).mean(), phi["w"])
    losses = IMAML(InnerLoop(0.2, 100), lam, cg_steps=20).meta_losses(phi, support, query, 1)
    close(losses, query({"w": end}), 1e-9)
    close(torch.autograd.grad(losses.mean(), phi["w"])[0], wanted, 1e-9)


def test_imaml_needs_a_proximal_term() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.lam"):
        check_words("train", ["algorithm=imaml", "residual=off", "algorithm.lam=0"])


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


# -- support weights, repetition, tasks on their own ------------------------------------------------------------------


@every_model
def test_weights_of_ones_are_none(case: Case) -> None:
    """Bit for bit, and other weights are not."""
    batch, loop = case.all(), InnerLoop(LR, 2)
    n = batch.support.target.shape[1]

    def adapted(weights: Tensor | None) -> Params:
        return dense(inner.adapt(case.tasks.loss(batch.support, None, weights), case.phi, T, loop))

    ones = torch.ones(n, dtype=torch.float64)
    assert furthest(adapted(ones), adapted(None)) == 0
    assert furthest(adapted(3 * ones), adapted(None)) < 1e-12  # only their proportion counts
    assert furthest(adapted(torch.arange(n, dtype=torch.float64)), adapted(None)) > 1e-3


def algorithms(model: Model) -> dict[str, Algorithm]:
    loop = InnerLoop(LR, 2)
    return {
        "maml": MAML(loop), "fomaml": fomaml(loop), "maml_pp": maml_pp(loop, norms=getattr(model, "norms", ())),
        "anil": anil(loop, model.head), "meta_sgd": meta_sgd(loop), "reptile": Reptile(loop), "imaml": IMAML(loop),
    }  # fmt: skip


@pytest.mark.parametrize("name", algorithms(MODEL))
@every_model
def test_evaluating_twice_and_changing_nothing(case: Case, name: str) -> None:
    """The scores have the same bits again, though training went on in between; nobody writes to what was learned."""
    algorithm, batch = algorithms(case.model)[name], case.all()
    phi = algorithm.learned(case.phi)
    versions = {key: value._version for key, value in phi.items()}

    def scores() -> Tensor:
        with torch.no_grad():
            return case.tasks.logits(algorithm.adapt(phi, case.tasks.loss(batch.support), T), batch.query)

    once = scores()
    outer(algorithm, case, phi)
    assert torch.equal(scores(), once)
    assert {key: value._version for key, value in phi.items()} == versions


@pytest.mark.parametrize("name", algorithms(MODEL))
@every_model
def test_a_task_adapts_as_if_it_were_alone(case: Case, name: str) -> None:
    """Adapted weights and meta-loss of each task; and tasks in another order give the results in that order."""
    algorithm = algorithms(case.model)[name]
    phi = algorithm.learned(case.phi)

    def of(users: list[int]) -> tuple[Params, Tensor]:
        support, query = case.losses(users)
        weights = algorithm.adapt(phi, support, len(users))
        return dense(weights, len(users)), algorithm.meta_losses(phi_with_gradients, support, query, len(users))

    phi_with_gradients = leaves(phi)
    together, losses = of([0, 1, 2])
    for user in range(T):
        alone, loss = of([user])
        assert furthest({n: v[user : user + 1] for n, v in together.items()}, alone) < 1e-12
        close(loss[0], losses[user])
    order = [2, 0, 1]
    mixed, mixed_losses = of(order)
    assert furthest(mixed, {n: v[order] for n, v in together.items()}) < 1e-12
    close(mixed_losses, losses[order])


# -- what adapts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", [["nothing.*"], ["fc.*", "nothing"], [""]])
def test_a_pattern_that_matches_nothing_is_refused(patterns: list[str]) -> None:
    config = maml.Config(inner=LearnedInner(adapt=patterns))
    with pytest.raises(ConfigError, match=r"algorithm.inner.adapt: .*: matches no weight"):
        build.adapted(config, off.Config(), MODEL)
    assert build.adapted(maml.Config(), off.Config(), MODEL) == frozenset(MODEL.shapes())
    some = maml.Config(inner=LearnedInner(adapt=["fc.*"]))
    assert build.adapted(some, off.Config(), MODEL) == {"fc.weight", "fc.bias"}
