"""Laws of ANIL, Reptile and iMAML: what a head leaves alone, joint training and the way back, the implicit gradient on a
quadratic and on all models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.quadratic import FORMS, OUT, D, Quadratic, gradient_of, quadratics
from reference.small_cases import CASES, Case, dense, every_model, outer, plainly, same
from reference.small_episodes import small_log
from reference.small_models import furthest, leaves
from reference.small_tensors import LR, T, close, differ, normal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metarec.algorithms.anil import anil
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.imaml import IMAML
from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.algorithms.maml import MAML
from metarec.algorithms.reptile import Reptile
from metarec.config.overrides import check_words
from metarec.core.offsets import Dense
from metarec.core.ops import embed, linear
from metarec.core.weights import FastWeight, Weights, own
from metarec.errors import ConfigError

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
