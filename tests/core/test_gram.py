"""Distances of products: against the matrices themselves, and what they may not depend on."""

from __future__ import annotations

import pytest
import torch
from reference.small_tensors import normal
from torch import Tensor

from metarec.core.gram import Product, cosine, inner, squared_distance, squared_norm

T, OUT, IN, R, Q = 3, 7, 5, 2, 4


def product(seed: int, rank: int = R, scale: float = 1.0, tasks: bool = True) -> Product:
    lead = (T,) if tasks else ()
    return Product(normal(*lead, rank, IN, seed=seed), normal(*lead, OUT, rank, seed=seed + 50), scale)


def turned(one: Product, seed: int = 9) -> Product:
    """(R A, B R^-1): the same product written in another way."""
    r = normal(one.a.shape[-2], one.a.shape[-2], seed=seed) + 3 * torch.eye(one.a.shape[-2], dtype=torch.float64)
    return Product(r @ one.a, one.b @ torch.linalg.inv(r), one.scale)


def dense(one: Product) -> Tensor:
    return one.scale * torch.einsum("...or,...ri->...oi", one.b, one.a)


@pytest.mark.parametrize("tasks", [True, False])
@pytest.mark.parametrize(("rank", "scale"), [(R, 1.0), (Q, 0.25)])
def test_gram_is_dense(rank: int, scale: float, tasks: bool) -> None:
    one, other = product(1, scale=2.0), product(2, rank, scale, tasks)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(inner(one, other), (dense(one) * dense(other)).sum((-2, -1)), **close)
    torch.testing.assert_close(squared_norm(one), dense(one).square().sum((-2, -1)), **close)
    apart = (dense(one) - dense(other)).square().sum((-2, -1))
    torch.testing.assert_close(squared_distance(one, other), apart, **close)
    flat = torch.nn.functional.cosine_similarity(dense(one).flatten(1), dense(other).expand(T, -1, -1).flatten(1))
    torch.testing.assert_close(cosine(one, other), flat, **close)
    torch.testing.assert_close(other.dense(), dense(other), **close)


def test_it_is_what_the_product_does_and_not_how_it_is_written() -> None:
    one, other = product(1), product(2, scale=0.5)
    for measure in (inner, squared_distance, cosine):
        apart = (measure(one, turned(other)) - measure(one, other)).abs().max()
        assert float(apart) < 1e-10
    written = (turned(other).a - other.a).square().sum() + (turned(other).b - other.b).square().sum()
    assert float(written) > 1  # which the distance of the factors is not


def test_zero_for_equal_products_and_for_no_others() -> None:
    one = product(1)
    assert float(squared_distance(one, turned(one)).abs().max()) < 1e-10
    halved = Product(one.a / 2, one.b, 2 * one.scale)  # each side with its own scale
    assert float(squared_distance(one, halved).abs().max()) < 1e-12
    assert float(squared_distance(one, product(3)).min()) > 1
    assert cosine(one, Product(one.a, torch.zeros_like(one.b))).tolist() == [0.0] * T


def test_the_gradient_is_that_of_the_dense_distance() -> None:
    a, b = (value.requires_grad_() for value in (normal(T, R, IN, seed=5), normal(T, OUT, R, seed=6)))
    other = product(2, Q, 0.3)
    found = torch.autograd.grad(squared_distance(Product(a, b, 1.7), other).sum(), (a, b))
    wanted = torch.autograd.grad((dense(Product(a, b, 1.7)) - dense(other)).square().sum(), (a, b))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
