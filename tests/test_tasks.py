"""From the loss of every pair to that of a task: weights, empty tasks, a loss that is a function of the weights alone."""

from __future__ import annotations

import pytest
import torch
from reference.small_episodes import small_log
from reference.small_models import MODEL, tasks_over, weights
from torch import Tensor

from metarec import tasks as module
from metarec.core.batch import PairBatch
from metarec.core.seeding import generator
from metarec.objectives.bce import BCE
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.objectives.scores import Scores
from metarec.tasks import Tasks

PAIRS = small_log(5, unknown=0.0).episodes(3, 0).support
KNOWN = PairBatch(PAIRS.sequences, PAIRS.at, torch.tensor([[1, 2, 3], [4, -1, 5], [-1, 0, -1], [6, 7, 0]]))


def tasks_of(each: list[list[float]]) -> Tasks:
    """An objective that knows the loss of every pair."""

    def objective(scores: Scores, target: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.tensor(each, dtype=torch.float64) * (target > 0)

    return Tasks(MODEL, objective, lambda phi: phi)


EACH = [[1.0, 2.0, 6.0], [1.0, 50.0, 3.0], [5.0, 5.0, 5.0], [2.0, 4.0, 9.0]]


def test_the_mean_over_pairs_that_count() -> None:
    assert tasks_of(EACH).loss(KNOWN)(weights()).tolist() == [9 / 3, 4 / 2, 0.0, 6 / 2]


def test_weights_of_pairs() -> None:
    """The same for all tasks, or of each; a pair that does not count does not weigh either."""
    loss = tasks_of(EACH).loss(KNOWN, weights=torch.tensor([1.0, 2.0, 3.0]).double())(weights())
    assert loss.tolist() == pytest.approx([(1 + 4 + 18) / 6, (1 + 9) / 4, 0.0, (2 + 8) / 3], abs=1e-12)
    own = torch.tensor([[0.0, 0.0, 2.0], [0.5, 9.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).double()
    loss = tasks_of(EACH).loss(KNOWN, weights=own)(weights())
    assert loss.tolist() == pytest.approx([6.0, 2.0, 0.0, 0.0], abs=1e-12)
    even = tasks_of(EACH).loss(KNOWN, weights=torch.full((3,), 0.1).double())(weights())
    torch.testing.assert_close(even, tasks_of(EACH).loss(KNOWN)(weights()), rtol=0, atol=1e-12)


def test_the_loss_is_a_function_of_the_weights_alone_and_leaves_the_generator() -> None:
    """Units dropped and items drawn are the same in every call."""
    for objective in (CrossEntropy(), BCE(3)):
        tasks, draw = Tasks(MODEL, objective, lambda phi: phi), generator(1, "x")
        before = draw.get_state()
        loss = tasks.loss(KNOWN, draw)
        once, again = loss(weights()), loss(weights())
        assert torch.equal(once, again)
        assert torch.equal(draw.get_state(), before)
        assert not torch.equal(once, tasks.loss(KNOWN, generator(2, "x"))(weights()))
        draw.manual_seed(7)  # what becomes of the generator later is not the loss's business
        assert torch.equal(loss(weights()), once)


def test_items_have_a_generator_of_their_own() -> None:
    """Without it, a stream beside the dropped units; with it, that alone; and pieces of a batch draw the same items."""
    plain, dropped = Tasks(MODEL, BCE(3), lambda phi: phi), generator(1, "x")
    drawn = plain.loss(KNOWN, items=generator(2, "items"))(weights())
    assert torch.equal(drawn, plain.loss(KNOWN, items=generator(2, "items"))(weights()))
    assert not torch.equal(drawn, plain.loss(KNOWN, items=generator(3, "items"))(weights()))
    both = plain.loss(KNOWN, dropped, items=generator(2, "items"))(weights())
    assert not torch.equal(both, drawn)
    assert not torch.equal(both, plain.loss(KNOWN, dropped)(weights()))
    full = Tasks(MODEL, CrossEntropy(), lambda phi: phi)
    assert torch.equal(
        full.loss(KNOWN, dropped, items=generator(2, "items"))(weights()), full.loss(KNOWN, dropped)(weights())
    )
    log = small_log(5, unknown=0.0)
    whole, part = (log.episodes(3, 0, users).support for users in (None, [2, 3]))
    parts = [plain.loss(pairs, items=generator(2, "items"))(weights()) for pairs in (whole, part)]
    torch.testing.assert_close(parts[0][2:], parts[1], rtol=0, atol=1e-12)


def test_what_is_dropped_says_nothing_about_what_is_drawn() -> None:
    draw = generator(1, "x")
    first = torch.rand(5, generator=module._apart(draw))
    assert torch.equal(first, torch.rand(5, generator=module._apart(draw)))
    assert not torch.isin(first, torch.rand(10_000, generator=draw)).any()


def test_logits_and_loss_drop_the_same_units() -> None:
    logits = tasks_over().logits(weights(), KNOWN, generator(1, "x"))
    each = CrossEntropy()(Scores.of_logits(logits), KNOWN.target)
    wanted = each.sum(1) / torch.tensor([3, 2, 1, 2])
    assert torch.equal(tasks_over().loss(KNOWN, generator(1, "x"))(weights()), wanted)


def test_a_sum_in_place_of_a_mean_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "clamp", lambda self, **bounds: torch.ones_like(self))
    with pytest.raises(AssertionError):
        test_the_mean_over_pairs_that_count()
