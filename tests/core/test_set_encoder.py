"""The encoder of a set: no order, no trace of what is not there, and the count."""

from __future__ import annotations

import pytest
import torch
from reference.small_tensors import normal
from torch import Tensor

from metarec.core.set_encoder import SetEncoder
from metarec.core.weights import Params

T, N, F = 3, 5, 6
ALL = torch.ones(T, N, dtype=torch.bool)


def made(layers: int = 2, seed: int = 1) -> tuple[SetEncoder, Params]:
    encoder = SetEncoder(F, 8, layers, 3, 7)
    drawn = encoder.init(torch.Generator().manual_seed(seed), torch.zeros((), dtype=torch.float64))
    return encoder, {name: value + 0.1 * normal(*value.shape, seed=n) for n, (name, value) in enumerate(drawn.items())}


def vectors() -> Tensor:
    return normal(T, N, F, seed=4)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_order_of_the_vectors_does_not_matter(layers: int) -> None:
    encoder, weights = made(layers)
    order = torch.tensor([3, 0, 4, 1, 2])
    there = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    torch.testing.assert_close(
        encoder(weights, vectors()[:, order], there[:, order]), encoder(weights, vectors(), there), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("layers", [0, 2])
def test_what_is_not_there_is_as_if_it_were_removed(layers: int) -> None:
    encoder, weights = made(layers)
    there = ALL.clone()
    there[:, 3:] = False
    filled = vectors()
    filled[:, 3:] = 1e3  # whatever stands there
    torch.testing.assert_close(
        encoder(weights, filled, there), encoder(weights, vectors()[:, :3], ALL[:, :3]), rtol=0, atol=1e-12
    )


def test_each_task_by_itself() -> None:
    encoder, weights = made()
    alone = torch.cat([encoder(weights, vectors()[i : i + 1], ALL[:1]) for i in range(T)])
    torch.testing.assert_close(encoder(weights, vectors(), ALL), alone, rtol=0, atol=1e-12)


def test_a_set_of_copies_is_told_from_one_of_them() -> None:
    """A weighted mean alone would not."""
    encoder, weights = made()
    one = vectors()[:, :1]
    apart = encoder(weights, one.expand(-1, 4, -1), ALL[:, :4]) - encoder(weights, one, ALL[:, :1])
    assert float(apart.abs().max()) > 1e-3


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_there_is_a_set_as_well(count: int) -> None:
    encoder, weights = made()
    found = encoder(weights, vectors()[:, :count], torch.zeros(T, count, dtype=torch.bool))
    assert found.shape == (T, 7)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, encoder(weights, vectors()[:, :0], ALL[:, :0]))


def test_weights_are_drawn_by_name_and_shape() -> None:
    encoder, _ = made()
    weights = encoder.init(torch.Generator().manual_seed(1), torch.zeros((), dtype=torch.float64))
    assert {name: tuple(value.shape) for name, value in weights.items()} == encoder.shapes()
    again = encoder.init(torch.Generator().manual_seed(1), torch.zeros((), dtype=torch.float64))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
