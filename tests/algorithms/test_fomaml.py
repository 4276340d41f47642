"""FOMAML against one task at a time; what it must equal at step size 0; what a central difference says of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from reference.meta_reference import Params, Reference, no_base
from reference.small_episodes import SmallLog, small_log
from reference.small_models import furthest, leaves, meta_gradient, tasks_over, weights

from metarec.algorithms import inner, maml
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import FastWeight
from metarec.residual.on import FullResidual


def check_against_one_task_at_a_time(
    log: SmallLog, n_support: int, n_query: int, *, lr: float = 0.5, steps: int = 3, pull: float = 0.0,
    alpha: float | None = None,
) -> None:  # fmt: skip
    base, start = weights(1), weights(2, 0.3)
    residual = None if alpha is None else FullResidual(base, alpha)
    reference = Reference(no_base(base) if alpha is None else base, lr, steps, alpha or 1.0, pull)
    losses, wanted = reference.fomaml(start, log.plain_episodes(n_support, n_query))
    batch = log.episodes(n_support, n_query)
    got_losses, got = meta_gradient(fomaml(InnerLoop(lr, steps, pull)), tasks_over(residual), start, batch)
    assert got_losses == pytest.approx(losses, abs=1e-10)
    assert furthest(got, wanted) < 1e-10


@pytest.mark.parametrize("alpha", [None, 1.0, 0.5, -2.0])
@pytest.mark.parametrize("pull", [0.0, 0.3])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_equals_one_task_at_a_time(steps: int, pull: float, alpha: float | None) -> None:
    check_against_one_task_at_a_time(small_log(7, unknown=0.25), 4, 4, steps=steps, pull=pull, alpha=alpha)


@pytest.mark.parametrize(("n_support", "n_query", "lr", "max_len"), [(1, 1, 2.0, 50), (5, 10, 0.1, 50), (6, 3, 0.5, 4)])
def test_equals_one_task_at_a_time_in_other_sizes(n_support: int, n_query: int, lr: float, max_len: int) -> None:
    log = small_log(3, n_users=6, n_pairs=15, longest=14, max_len=max_len, unknown=0.2)
    assert any(not prefix for support, query in log.plain_episodes(n_support, n_query) for prefix, _ in support + query)
    check_against_one_task_at_a_time(log, n_support, n_query, lr=lr, pull=0.1, alpha=0.7)


def test_nested_prefixes_of_one_session() -> None:
    log = small_log(11, n_users=3, n_pairs=8, longest=9, unknown=0.0)
    expanded = sum(len(prefix) for support, _ in log.plain_episodes(4, 4) for prefix, _ in support)
    assert int(log.episodes(4, 4).support.sequences.lengths.sum()) < expanded / 2  # what is shared stands once
    check_against_one_task_at_a_time(log, 4, 4)


def test_the_order_of_tasks_does_not_matter() -> None:
    log, algorithm, phi = small_log(7, n_users=5), fomaml(InnerLoop(0.5, 3, 0.1)), weights()
    losses, grads = meta_gradient(algorithm, tasks_over(), phi, log.episodes(4, 4))
    order = [3, 1, 4, 0, 2]
    mixed_losses, mixed = meta_gradient(algorithm, tasks_over(), phi, log.episodes(4, 4, order))
    assert mixed_losses == pytest.approx([losses[user] for user in order], abs=1e-12)
    assert furthest(mixed, grads) < 1e-12


def test_a_task_learns_nothing_from_the_others() -> None:
    log, algorithm = small_log(7, n_users=5), fomaml(InnerLoop(0.5, 3))
    together, _ = meta_gradient(algorithm, tasks_over(), weights(), log.episodes(4, 4))
    for user in range(5):
        alone, _ = meta_gradient(algorithm, tasks_over(), weights(), log.episodes(4, 4, [user]))
        assert alone == pytest.approx([together[user]], abs=1e-12)


def test_step_size_zero() -> None:
    """Few-shot = zero-shot, and FOMAML = MAML = the gradient of the query loss."""
    log, phi, tasks = small_log(7), weights(), tasks_over()
    batch = log.episodes(4, 4)
    adapted = fomaml(InnerLoop(0.0, 3)).adapt(phi, tasks.loss(batch.support), 4)
    torch.testing.assert_close(tasks.logits(adapted, batch.query), tasks.logits(phi, batch.query), rtol=0, atol=1e-14)
    _, first_order = meta_gradient(fomaml(InnerLoop(0.0, 3)), tasks, phi, batch)
    _, second_order = Reference(no_base(phi), 0.0, 3).maml(phi, log.plain_episodes(4, 4))
    start = leaves(phi)
    plain = torch.autograd.grad(tasks.loss(batch.query)(start).mean(), list(start.values()))
    assert furthest(first_order, second_order) < 1e-12
    assert furthest(first_order, dict(zip(start, plain, strict=True))) < 1e-12


def test_zero_steps_are_zero_shot_bit_for_bit() -> None:
    batch, phi, tasks = small_log(7).episodes(4, 4), weights(), tasks_over()
    adapted = fomaml(InnerLoop(0.5, 0)).adapt(phi, tasks.loss(batch.support), 4)
    assert torch.equal(tasks.logits(adapted, batch.query), tasks.logits(phi, batch.query))
    again = fomaml(InnerLoop(0.5, 3)).adapt(phi, tasks.loss(batch.support), 4, steps=0)
    assert torch.equal(tasks.logits(again, batch.query), tasks.logits(phi, batch.query))


def relative_error(algorithm: MAML, batch: EpisodeBatch, phi: Params, grads: Params) -> float:
    """Of the gradient along a random direction against a central difference of the meta-objective itself."""
    generator = torch.Generator().manual_seed(5)
    direction = {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in phi.items()}
    size, tasks = 1e-5, tasks_over()

    def objective(sign: float) -> float:
        there = {name: value + sign * size * direction[name] for name, value in phi.items()}
        losses = algorithm.meta_losses(there, tasks.loss(batch.support), tasks.loss(batch.query), batch.n_tasks)
        return float(losses.mean())

    wanted = (objective(1.0) - objective(-1.0)) / (2 * size)
    got = sum(float((grads[name] * direction[name]).sum()) for name in phi)
    return abs(got - wanted) / abs(wanted)


@pytest.mark.parametrize("pull", [0.0, 0.2])
def test_first_order_fails_the_central_difference_and_second_order_passes(pull: float) -> None:
    log, phi = small_log(7), weights()
    batch = log.episodes(4, 4)
    adapting = fomaml(InnerLoop(0.5, 3, pull))
    _, first_order = meta_gradient(adapting, tasks_over(), phi, batch)
    _, second_order = Reference(no_base(phi), 0.5, 3, 1.0, pull).maml(phi, log.plain_episodes(4, 4))
    assert relative_error(adapting, batch, phi, second_order) < 1e-6
    assert relative_error(adapting, batch, phi, first_order) > 1e-2
    still = fomaml(InnerLoop(0.0, 3, pull))
    _, first_order = meta_gradient(still, tasks_over(), phi, batch)
    assert relative_error(still, batch, phi, first_order) < 1e-6


@pytest.mark.parametrize("fault", ["offsets lost", "pull lost"])
def test_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "offsets lost":
        true_path = inner.path

        def without(*args: object, **options: object) -> Iterator[dict[str, FastWeight]]:
            for adapted in true_path(*args, **options):  # type: ignore[arg-type]
                yield adapted | {"gru.weight_hh_l0": FastWeight(adapted["gru.weight_hh_l0"].shared)}

        monkeypatch.setattr(inner, "path", without)
    else:
        monkeypatch.setattr(maml, "squared_norm", lambda weight: weight.shared.square().sum())
    with pytest.raises(AssertionError):
        check_against_one_task_at_a_time(small_log(7), 4, 4, pull=0.3)
