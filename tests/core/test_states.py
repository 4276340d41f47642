"""Linear layers of packed states, dropout and scores of items, against one task and one state at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarec.core import attention
from metarec.core.batch import Sequences
from metarec.core.offsets import Dense, LowRank
from metarec.core.states import dropout, linear_states, score_items
from metarec.core.weights import FastWeight, Tap, Weight

T, V, H = 3, 5, 4
# overlapping sequences, rows of length 0 in between, a task without any state
SEQUENCES = Sequences(torch.ones(T, 9).long(), torch.tensor([[0, 2, 0], [1, 0, 4], [0, 0, 0]]),
                      torch.tensor([[4, 5, 0], [3, 0, 2], [0, 0, 0]]))  # fmt: skip


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_where_each_state_stands() -> None:
    assert SEQUENCES.row.tolist() == [0] * 4 + [1] * 5 + [3] * 3 + [5] * 2
    assert SEQUENCES.task.tolist() == [0] * 9 + [1] * 5
    assert SEQUENCES.step.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert SEQUENCES.event.tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14]


def test_what_is_derived_from_a_batch_is_made_once() -> None:
    calls = []

    def longest(sequences: Sequences) -> int:
        calls.append(1)
        return int(sequences.lengths.max())

    other = Sequences(SEQUENCES.items, SEQUENCES.starts, SEQUENCES.lengths)
    assert [other.once(longest), other.once(longest), len(calls)] == [5, 5, 1]
    assert SEQUENCES.once(longest) == 5
    assert len(calls) == 2


@pytest.mark.parametrize("chunk", [None, 1, 2], ids=str)
def test_a_linear_layer_of_states_and_the_gradient_of_each_task(
    chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared weights, and weights of each task's own; tasks whole, and cut into chunks."""
    if chunk is not None:
        monkeypatch.setattr(attention, "chunk_width", lambda counts: chunk)
    sequences = Sequences(SEQUENCES.items, SEQUENCES.starts, SEQUENCES.lengths)
    h, w, b = normal(14, 2), normal(H, 2, seed=2), normal(H, seed=3)
    close(linear_states(h, sequences, w), h @ w.T)
    close(linear_states(h, sequences, w, b), h @ w.T + b)
    low, shift, tap, of_bias = LowRank.of(normal(T, 1, H, seed=4), normal(T, 1, 2, seed=5)), normal(T, H), Tap(), Tap()
    own = (w + low.dense())[sequences.task], (b + shift)[sequences.task]
    y = linear_states(h, sequences, FastWeight(w, low, tap), FastWeight(b, Dense(shift), of_bias))
    close(y, torch.einsum("soi,si->so", own[0], h) + own[1])
    cotangent = normal(14, H, seed=6)
    of_task = [sequences.task == t for t in range(T)]
    for found, wanted in (
        (tap, torch.stack([cotangent[mine].T @ h[mine] for mine in of_task])),
        (of_bias, torch.stack([cotangent[mine].sum(0) for mine in of_task])),
    ):
        ((at, finish),) = found.notes
        (grad,) = torch.autograd.grad(y, at, cotangent, retain_graph=True)
        close(finish(grad).dense(), wanted)


def test_dropout_keeps_the_mean_and_is_a_generator_s_doing() -> None:
    x, draw = torch.ones(40_000, dtype=torch.float64), torch.Generator().manual_seed(1)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, draw) is x
    y = dropout(x, 0.25, draw)
    assert set(y.unique().tolist()) == {0.0, 4 / 3}
    assert abs(y.mean().item() - 1) < 5 * (1 / 3 / 40_000) ** 0.5  # of one number: 3/4 * 16/9 - 1 = 1/3


@pytest.mark.parametrize("dress", ["plain", "shared", "own"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_scores_by_an_output_layer_or_an_embedding_asked_in_three_ways(
    padded: bool, with_bias: bool, dress: str
) -> None:
    h, w, b = normal(T, 2, H), normal(V + padded, H, seed=2), normal(V, seed=3) if with_bias else None
    each = w.expand(T, -1, -1)
    weight: Weight = w if dress == "plain" else FastWeight(w)
    bias: Weight | None = b
    shift = normal(T, V, seed=4)
    if dress == "own":
        offset = Dense(normal(T, *w.shape, seed=5))
        each, weight = w + offset.value, FastWeight(w, offset)
        bias = None if b is None else FastWeight(b, Dense(shift))
    wanted = torch.einsum("tnh,tvh->tnv", h, each[:, int(padded) :])
    if b is not None:
        wanted = wanted + b + (shift[:, None, :] if dress == "own" else 0)
    close(score_items(h, weight, bias, None, padded=padded), wanted)
    some, pairs = torch.tensor([1, 3, 4]), torch.tensor([[1, 5], [2, 2], [4, 3]])
    close(score_items(h, weight, bias, some, padded=padded), wanted[..., some - 1])
    close(score_items(h, weight, bias, pairs, padded=padded), wanted.gather(2, pairs[..., None] - 1)[..., 0])
