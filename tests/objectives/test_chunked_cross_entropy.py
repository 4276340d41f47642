"""Chunked against full cross-entropy: values, gradients, gradients of gradients, and what is held at a time."""

from __future__ import annotations

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, furthest, leaves, meta_gradient, weights
from torch import Tensor

from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.core.offsets import Dense, LowRank
from metarec.core.seeding import generator
from metarec.core.weights import FastWeight
from metarec.objectives import chunked_cross_entropy as module
from metarec.objectives.chunked_cross_entropy import ChunkedCrossEntropy
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.objectives.scores import Scores
from metarec.tasks import Objective, Tasks

PAIRS = small_log(5, unknown=0.3).episodes(8, 0).support
CHUNKS = [1, 4, 11, 100]  # of 11 items


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found(objective: Objective, dropping: bool, own: bool) -> list[Tensor]:
    """Losses [T], their gradient by every weight, and the gradient of its squared norm; `own`: weights of each task."""
    params = leaves(weights())
    low, dense = normal(4, 2, 11, seed=1).requires_grad_(), normal(4, 11, seed=2).requires_grad_()
    theta = dict(params) | (
        {
            "fc.weight": FastWeight(params["fc.weight"], LowRank.of(low, normal(4, 2, 4, seed=3))),
            "fc.bias": FastWeight(params["fc.bias"], Dense(dense)),
        }
        if own
        else {}
    )
    by = [*params.values(), *([low, dense] if own else [])]
    loss = Tasks(MODEL, objective, lambda phi: phi).loss(PAIRS, generator(1, "dropout") if dropping else None)(theta)
    grads = torch.autograd.grad(loss.sin().sum(), by, create_graph=True)
    twice = torch.autograd.grad(sum(grad.square().sum() for grad in grads), by)
    return [loss, *grads, *twice]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dropping", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_equals_the_full_one_once_and_twice_differentiated(
    chunk: int, smoothing: float, dropping: bool, own: bool
) -> None:
    wanted = found(CrossEntropy(smoothing), dropping, own)
    for mine, theirs in zip(found(ChunkedCrossEntropy(chunk, smoothing), dropping, own), wanted, strict=True):
        close(mine, theirs)


def test_a_forgotten_item_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "checkpoint", lambda sums, items, **options: sums(items[:3]))
    with pytest.raises(AssertionError):
        test_equals_the_full_one_once_and_twice_differentiated(4, 0.0, False, False)


def test_never_asks_for_all_and_holds_no_chunk_for_the_way_back() -> None:
    logits, asked, kept = normal(1, 3, 40, seed=1).requires_grad_(), [], []
    whole = Scores.of_logits(logits)

    def columns(items: Tensor | None) -> Tensor:
        assert items is not None
        asked.append(items.numel() if items.dim() == 1 else 0)
        return whole.columns(items)

    def pack(held: Tensor) -> Tensor:
        if held.data_ptr() != logits.data_ptr():  # the given scores themselves are there anyway
            kept.append(held.numel())
        return held

    target = torch.tensor([[3, 40, -1]])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held):
        each = ChunkedCrossEntropy(7)(Scores(logits, 40, columns), target)
    assert asked == [7, 7, 7, 7, 7, 5, 0]
    assert max(kept) <= 3 * 7  # sums and the target's own score alone
    each.sum().backward()
    assert asked[7:] and max(asked) == 7  # scored again on the way back


def test_where_taps_are_it_is_the_full_one() -> None:
    """The inner loop: bit for bit, at first and second order."""
    batch = small_log(7).episodes(4, 4)
    for order in ("first", "second"):
        algorithm = MAML(InnerLoop(0.5, 2), order)
        full, chunked = (
            meta_gradient(algorithm, Tasks(MODEL, objective, lambda phi: phi), weights(), batch)
            for objective in (CrossEntropy(), ChunkedCrossEntropy(4))
        )
        assert chunked[0] == pytest.approx(full[0], abs=1e-12)
        assert furthest(chunked[1], full[1]) < 1e-12
