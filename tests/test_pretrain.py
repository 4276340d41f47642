"""Pretraining: one pass over sessions costs what all their prefixes cost; the order is a function of (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.gru4rec_reference import reference_of
from reference.small_episodes import SmallLog, small_log

from metarec import pretrain
from metarec.data.batches import Batcher, cut_long
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.pretrain import Pieces, loss_of_step, validation_pairs
from metarec.tasks import Tasks

MODEL = GRU4Rec(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.0)
CPU = torch.device("cpu")


def tasks_of(model: GRU4Rec, smoothing: float = 0.0) -> Tasks:
    return Tasks(model, partial(cross_entropy, label_smoothing=smoothing), lambda phi: phi)


def all_pieces(log: SmallLog, batch_size: int, seed: int = 1) -> Pieces:
    begin, end = np.array(log.sessions).T
    return Pieces(*cut_long(begin, end, log.batcher.max_len), batch_size, seed)


def check_loss_and_gradient(log: SmallLog, batch_size: int) -> None:
    """One pass = the mean over every (prefix -> next) pair of the step, each prefix on its own."""
    params = MODEL.init(torch.Generator().manual_seed(1), torch.float64)
    phi = {name: value.clone().requires_grad_() for name, value in params.items()}
    pieces = all_pieces(log, batch_size)
    loss_at = loss_of_step(tasks_of(MODEL), log.batcher, pieces, phi, CPU)
    for step in range(pieces.steps_per_epoch + 1):
        prefixes, targets = [], []
        for number in pieces.at(step):
            for event in range(pieces.first[number], pieces.last[number]):
                if log.batcher.item[event] > 0:
                    before = log.batcher.item[pieces.start[number] : event]
                    prefixes.append([int(item) for item in before if item > 0])
                    targets.append(int(log.batcher.item[event]) - 1)
        module = reference_of(params)
        wanted = F.cross_entropy(module(prefixes), torch.tensor(targets))
        wanted.backward()
        loss = loss_at(step)
        assert abs(loss.item() - wanted.item()) < 1e-10
        found = torch.autograd.grad(loss, list(phi.values()))
        for grad, (name, value) in zip(found, module.named_parameters(), strict=True):
            torch.testing.assert_close(grad, value.grad, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("max_len", [50, 4])
@pytest.mark.parametrize("batch_size", [12, 1000])
def test_one_pass_equals_expanded_prefixes(batch_size: int, max_len: int) -> None:
    check_loss_and_gradient(small_log(2, longest=12, n_pairs=14, max_len=max_len), batch_size)


def test_a_piece_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true_pieces = Batcher.pieces
    monkeypatch.setattr(Batcher, "pieces", lambda self, *of: true_pieces(self, *(part[1:] for part in of)))
    with pytest.raises(AssertionError):
        check_loss_and_gradient(small_log(2, longest=12, n_pairs=14), 1000)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    log, model = small_log(2), GRU4Rec(11, 3, 4, dropout=0.5)
    phi = model.init(torch.Generator().manual_seed(1), torch.float64)
    loss_at = loss_of_step(tasks_of(model), log.batcher, all_pieces(log, 1000), phi, CPU)
    first = [loss_at(step).item() for step in (0, 1)]
    assert [loss_at(step).item() for step in (1, 0)] == first[::-1]
    assert first[0] != loss_of_step(tasks_of(model), log.batcher, all_pieces(log, 1000, seed=2), phi, CPU)(0).item()


def pieces_of(counts: list[int], batch_size: int, seed: int) -> Pieces:
    """Pieces of so many targets each."""
    first = np.cumsum([1, *counts[:-1]])
    return Pieces(first, first + counts, first - 1, batch_size, seed)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(6, 20), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_reads_every_piece_once(counts: list[int], batch_size: int, epoch: int) -> None:
    pieces = pieces_of(counts, batch_size, seed=3)
    n_steps = pieces.steps_per_epoch
    steps = [pieces.at(epoch * n_steps + step) for step in range(n_steps)]
    assert sorted(np.concatenate(steps)) == list(range(len(counts)))
    sizes = [sum(counts[number] for number in step) for step in steps]
    assert min(sizes) > 0  # no step is empty, since no piece is longer than a batch
    assert max(sizes[:-1], default=0) < batch_size + 6
    assert sizes[-1] < 2 * batch_size


def order_of(pieces: Pieces, epoch: int) -> list[int]:
    steps = pieces.steps_per_epoch
    return np.concatenate([pieces.at(epoch * steps + step) for step in range(steps)]).tolist()


def check_order() -> None:
    def fresh(seed: int) -> Pieces:
        return pieces_of([3, 1, 2] * 20, 7, seed)

    used = fresh(1)
    walked = [order_of(used, epoch) for epoch in range(3)]
    for epoch in (2, 0, 1):
        assert order_of(fresh(1), epoch) == walked[epoch]  # whatever was asked before: a resumed run needs no state
    assert walked[0] != walked[1]
    assert order_of(fresh(2), 0) != walked[0]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    check_order()


def test_an_order_with_a_state_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = np.random.default_rng(0)

    class Drawing:
        def __init__(self, key: np.ndarray) -> None:
            pass

        def random_raw(self, n: int) -> np.ndarray:
            return stream.integers(0, 2**63, n)

    monkeypatch.setattr(pretrain.np.random, "Philox", Drawing)
    with pytest.raises(AssertionError):
        check_order()


@dataclass
class FewUsers:
    """As much of `Prepared` as validation reads: users 0..3 with 3, 0, 2, 4 pairs; event = pair."""

    split_by: str
    user_pairs: np.ndarray
    user_split: np.ndarray
    pair_event: np.ndarray
    item: np.ndarray


def few_users(split_by: str) -> FewUsers:
    item = np.array([1, 2, 3, 4, -1, 5, 6, 7, 8])
    return FewUsers(split_by, np.array([0, 3, 3, 5, 9]), np.array([0, 1, 1, 1]), np.arange(9), item)


def test_validation_pairs_are_the_validation_users_known_targets() -> None:
    assert validation_pairs(few_users("user_time")).tolist() == [3, 5, 6, 7, 8]  # type: ignore[arg-type]


def test_leave_one_out_validates_on_the_last_but_one_of_every_user() -> None:
    assert validation_pairs(few_users("leave_one_out")).tolist() == [1, 3, 7]  # type: ignore[arg-type]


def test_validation_is_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "VALIDATION_PAIRS", 3)
    assert validation_pairs(few_users("user_time")).tolist() == [3, 6, 8]  # type: ignore[arg-type]
