"""The inner loop against torch.optim.SGD on full copies, one task at a time."""

from __future__ import annotations

import pytest
import torch
from reference.meta_reference import Reference, no_base
from reference.small_episodes import SmallLog, small_log
from reference.small_models import MODEL, furthest, leaves, tasks_over, weights

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop, adapt, path
from metarec.core.offsets import Dense, LowRank, Offset, Rows
from metarec.core.weights import FastWeight, Params, Weights
from metarec.errors import DivergedError
from metarec.residual.on import FullResidual


def own_weights(adapted: dict[str, FastWeight], task: int) -> Params:
    return {name: w.shared if w.offset is None else w.dense()[task] for name, w in adapted.items()}


def check_adapted(log: SmallLog, n_support: int, lr: float, steps: int, pull: float, alpha: float | None) -> None:
    base, start = weights(1), weights(2, 0.3)
    residual = None if alpha is None else FullResidual(base, alpha)
    reference = Reference(no_base(base) if alpha is None else base, lr, steps, alpha or 1.0, pull)
    batch = log.episodes(n_support, 1)
    adapted = adapt(tasks_over(residual).loss(batch.support), start, batch.n_tasks, InnerLoop(lr, steps, pull))
    for task, (support, _) in enumerate(log.plain_episodes(n_support, 1)):
        assert furthest(own_weights(adapted, task), reference.adapt(start, support)) < 1e-10


@pytest.mark.parametrize("alpha", [None, 1.0, 0.3])
@pytest.mark.parametrize("pull", [0.0, 0.2])
@pytest.mark.parametrize("steps", [1, 3])
def test_equals_sgd_on_full_copies(steps: int, pull: float, alpha: float | None) -> None:
    check_adapted(small_log(7, unknown=0.25), 5, 0.7, steps, pull, alpha)


@pytest.mark.parametrize("n_support", [1, 2, 7])
@pytest.mark.parametrize("max_len", [50, 3])
def test_sizes_of_the_support(n_support: int, max_len: int) -> None:
    check_adapted(small_log(8, n_users=3, longest=12, max_len=max_len), n_support, 0.5, 4, 0.1, None)


def test_a_task_without_any_known_target_stays_where_it_is() -> None:
    log = small_log(9, n_users=3)
    log.batcher.item[log.batcher.pair_event[:8]] = -1  # nothing known of the first user but the first events
    check_adapted(log, 4, 0.5, 2, 0.0, None)
    adapted = adapt(tasks_over().loss(log.episodes(4, 1).support), weights(), 3, InnerLoop(0.5, 2))
    assert furthest(own_weights(adapted, 0), weights()) == 0.0


def test_the_path_has_every_number_of_steps() -> None:
    loss, start = tasks_over().loss(small_log(7).episodes(5, 1).support), weights()
    found = list(path(loss, start, 4, InnerLoop(0.3, 3, 0.1)))
    assert len(found) == 4
    for steps, adapted in enumerate(found):
        alone = adapt(loss, start, 4, InnerLoop(0.3, steps, 0.1))
        for task in range(4):
            assert furthest(own_weights(adapted, task), own_weights(alone, task)) == 0.0


def test_the_start_is_untouched_and_the_start_of_the_path() -> None:
    start = leaves(weights())
    first, *_ = path(tasks_over().loss(small_log(7).episodes(5, 1).support), start, 4, InnerLoop(0.3, 2))
    assert all(first[name].shared is start[name] and first[name].offset is None for name in start)
    assert furthest(start, weights()) == 0.0


def test_a_weight_that_the_loss_does_not_use_stays_shared() -> None:
    start = weights() | {"unused": torch.ones(3, dtype=torch.float64)}
    adapted = adapt(tasks_over().loss(small_log(7).episodes(5, 1).support), start, 4, InnerLoop(0.3, 2))
    assert adapted["unused"].offset is None


def test_works_where_gradients_are_off() -> None:
    """Evaluation runs without gradients; the inner loop needs its own."""
    loss, start = tasks_over().loss(small_log(7).episodes(5, 1).support), weights()
    with torch.no_grad():
        adapted = adapt(loss, start, 4, InnerLoop(0.3, 2))
    assert adapted["fc.weight"].offset is not None


def test_divergence_names_step_and_task() -> None:
    log = small_log(7)
    true_loss = tasks_over().loss(log.episodes(5, 1).support)
    calls = []

    def loss(phi: Weights) -> torch.Tensor:
        calls.append(1)
        bad = torch.zeros(4, dtype=torch.float64)
        bad[2] = torch.inf if len(calls) == 2 else 0.0
        return true_loss(phi) + bad

    with pytest.raises(DivergedError, match="inner step 1, task 2 of the batch: inf: the support loss is not finite"):
        adapt(loss, weights(), 4, InnerLoop(0.3, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_adapted_weights_that_are_not_finite_name_task_and_weight(bad: float) -> None:
    """In any form, and one whose sum alone overflows is let through."""
    dense, ids, rows = torch.zeros(4, 3), torch.tensor([[0, 1]] * 4), torch.zeros(4, 2, 2)
    factors = torch.zeros(4, 1, 3), torch.zeros(4, 1, 2)
    good: dict[str, Offset] = {"b": Dense(dense), "w": LowRank.of(*factors), "e": Rows(ids, rows, 5)}
    inner.check_offsets(good, "after 2 inner steps")
    inner.check_offsets({"b": Dense(torch.full((4, 3), 3e38))}, "after 2 inner steps")
    inner.check_offsets({}, "after 2 inner steps")
    for name, part, at in (("b", dense, (3, 1)), ("w", factors[1], (1, 0, 1)), ("e", rows, (2, 1, 0))):
        part[at] = bad
        with pytest.raises(
            DivergedError, match=rf"after 2 inner steps, task {at[0]} of the batch: .*\({name}\)"
        ) as told:
            inner.check_offsets(good, "after 2 inner steps")
        assert told.value.task == at[0]
        part[at] = 0.0


def test_huge_steps_diverge_with_a_name() -> None:
    loss = tasks_over().loss(small_log(7).episodes(5, 1).support)
    with pytest.raises(DivergedError, match="inner step"):
        adapt(loss, weights(), 4, InnerLoop(1e200, 5))


@pytest.mark.parametrize("fault", ["a shared step size forgotten", "the pull forgotten", "tasks averaged"])
def test_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "a shared step size forgotten":
        monkeypatch.setattr(InnerLoop, "rate", lambda self, phi, name, step: 1.0)
    elif fault == "the pull forgotten":
        for form in (Dense, LowRank, Rows):
            monkeypatch.setattr(form, "shrunk", lambda self, by, first_order: self)
    else:
        true_path = inner.path

        def averaged(support_loss: object, *args: object, **options: object) -> object:
            return true_path(lambda phi: support_loss(phi) / 4, *args, **options)  # type: ignore[operator, arg-type]

        monkeypatch.setattr(inner, "path", averaged)
    with pytest.raises(AssertionError):
        check_adapted(small_log(7), 5, 0.7, 3, 0.2, None)


def test_the_model_has_dropout_and_the_inner_loop_has_none() -> None:
    assert MODEL.dropout > 0
    loss = tasks_over().loss(small_log(7).episodes(5, 1).support)
    once, again = (adapt(loss, weights(), 4, InnerLoop(0.3, 3)) for _ in range(2))
    assert all(torch.equal(once[name].dense(), again[name].dense()) for name in once)
