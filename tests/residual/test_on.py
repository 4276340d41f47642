"""The residual: pretrained at zero, naive warm start with alpha 1 and no pull, and a base that never moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, furthest, leaves, tasks_over, weights

from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop
from metarec.core.weights import Params, Weights
from metarec.residual.off import NoResidual
from metarec.residual.on import FullResidual

LOG = small_log(13, n_users=4, unknown=0.2)
SEED = torch.Generator()


def outer_steps(residual: NoResidual | FullResidual, n_steps: int, pull: float = 0.0) -> tuple[Params, Params]:
    """(theta, phi) after Adam on the meta-gradient."""
    phi = leaves(residual.init(SEED.manual_seed(1)))
    optimizer = torch.optim.Adam(phi.values(), lr=1e-2)
    tasks, algorithm = tasks_over(residual), fomaml(InnerLoop(0.3, 3, pull))
    for step in range(n_steps):
        batch = LOG.episodes(4, 4, [step % 4, (step + 1) % 4])
        optimizer.zero_grad()
        algorithm.meta_losses(phi, tasks.loss(batch.support), tasks.loss(batch.query), 2).mean().backward()
        optimizer.step()
    theta = {name: torch.as_tensor(value).detach() for name, value in residual.compose(phi).items()}
    return theta, phi


@pytest.mark.parametrize("alpha", [1.0, 0.3, -2.0])
def test_zero_delta_is_the_pretrained_model_bit_for_bit(alpha: float) -> None:
    base = weights()
    residual = FullResidual(base, alpha)
    batch = LOG.episodes(4, 4).query
    delta = residual.init(SEED)
    assert not any(value.any() for value in delta.values())
    assert torch.equal(tasks_over(residual).logits(delta, batch), tasks_over().logits(base, batch))
    zero_shot = fomaml(InnerLoop(0.3, 3)).adapt(
        delta, tasks_over(residual).loss(LOG.episodes(4, 4).support), 4, steps=0
    )
    assert torch.equal(tasks_over(residual).logits(zero_shot, batch), tasks_over().logits(base, batch))


def check_naive_warm_start(residual: FullResidual) -> None:
    full, _ = outer_steps(residual, 20)
    naive, _ = outer_steps(NoResidual(residual.base), 20)
    assert furthest(full, naive) < 1e-12
    assert furthest(full, residual.base) > 1e-2  # and both have moved


def test_alpha_one_without_pull_is_naive_warm_start_over_20_adam_steps() -> None:
    check_naive_warm_start(FullResidual(weights()))


def test_it_is_not_with_any_other_alpha_or_start() -> None:
    for other in (FullResidual(weights(), alpha=0.9), FullResidual(weights(), init_scale=1e-3)):
        with pytest.raises(AssertionError):
            check_naive_warm_start(other)


def test_the_pull_keeps_delta_small() -> None:
    _, free = outer_steps(FullResidual(weights()), 20)
    _, pulled = outer_steps(FullResidual(weights()), 20, pull=0.5)
    norm = [sum(float(value.detach().square().sum()) for value in delta.values()) for delta in (free, pulled)]
    assert norm[1] < norm[0]


def check_base_unmoved(residual: NoResidual | FullResidual) -> None:
    before = {name: value.clone() for name, value in residual.base.items()}
    versions = {name: value._version for name, value in residual.base.items()}
    outer_steps(residual, 5, pull=0.1)
    for name, value in residual.base.items():
        assert torch.equal(value, before[name])
        assert value._version == versions[name]  # nobody wrote to it, not even the same numbers
        assert value.grad is None


def test_the_base_is_bitwise_unchanged_after_outer_steps() -> None:
    check_base_unmoved(FullResidual(weights(), alpha=0.5, init_scale=0.01))
    check_base_unmoved(NoResidual(weights()))


def test_a_base_that_is_trained_is_seen() -> None:
    class Shared(NoResidual):
        def init(self, generator: torch.Generator) -> Params:
            return dict(self.base)  # no copy

    base = weights()
    shared = Shared(base)
    before = {name: value.clone() for name, value in base.items()}
    with torch.no_grad():
        for value in shared.init(SEED).values():
            value.add_(1.0)
    assert furthest(base, before) > 0
    copied = NoResidual(weights()).init(SEED)
    assert all(copied[name].data_ptr() != value.data_ptr() for name, value in weights().items())

    class Moving(FullResidual):
        def compose(self, phi: Weights) -> Weights:
            for value in self.base.values():
                value.mul_(1.0)
            return super().compose(phi)

    with pytest.raises(AssertionError):
        check_base_unmoved(Moving(weights()))


def test_an_inner_step_moves_theta_by_alpha_squared() -> None:
    base, batch = weights(), LOG.episodes(4, 4)

    def moved_by(alpha: float) -> Params:
        residual = FullResidual(base, alpha)
        delta = residual.init(SEED)
        adapted = fomaml(InnerLoop(0.1, 1)).adapt(delta, tasks_over(residual).loss(batch.support), 4)
        theta = residual.compose(adapted)
        return {name: theta[name].dense() - base[name] for name in base}  # type: ignore[union-attr]

    one, half = moved_by(1.0), moved_by(0.5)
    assert furthest({n: 4 * v for n, v in half.items()}, {n: v.expand_as(half[n]) for n, v in one.items()}) < 1e-12


def test_the_init_scale_is_noise_of_that_size() -> None:
    base = {name: value.expand(100, *value.shape).clone() for name, value in weights().items()}
    delta = FullResidual(base, init_scale=0.01).init(SEED.manual_seed(1))
    noise = torch.cat([value.flatten() for value in delta.values()])
    assert noise.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(noise.mean().item()) < 0.0005


def test_one_forward_for_every_path() -> None:
    """Zero-shot, adapted without steps, single pairs and whole sessions: the same pairs, the same logits; dropout only
    where a generator is given."""
    base = weights()
    tasks = tasks_over(FullResidual(base))
    delta = {name: torch.zeros_like(value) for name, value in base.items()}
    n = LOG.n_users * LOG.n_pairs
    flat = tasks.logits(delta, LOG.batcher.pairs(torch.arange(n).numpy()[None]))[0]
    by_task = tasks.logits(delta, LOG.batcher.pairs(torch.arange(n).view(4, 8).numpy()))
    begin, end = torch.tensor(LOG.sessions).T.numpy()
    whole = tasks.logits(delta, LOG.batcher.sessions(begin, end))[0]
    episodes = LOG.episodes(4, 4)
    parts = torch.cat([tasks.logits(delta, episodes.support), tasks.logits(delta, episodes.query)], 1)
    for other in (by_task.flatten(0, 1), whole, parts.flatten(0, 1)):
        torch.testing.assert_close(other, flat, rtol=0, atol=1e-14)
    assert torch.equal(tasks_over(None, replace(MODEL, dropout=0.0)).logits(base, episodes.query),
                       tasks.logits(delta, episodes.query))  # fmt: skip
    dropped = tasks.logits(delta, episodes.query, SEED.manual_seed(1))
    assert not torch.equal(dropped, tasks.logits(delta, episodes.query))
