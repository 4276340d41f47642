"""Inner products and distances of low-rank products, without the products.

    <B1 A1, B2 A2> = sum((B1^T B2) o (A1 A2^T))
    |s1 B1 A1 - s2 B2 A2|^2 = s1^2 <1, 1> - 2 s1 s2 <1, 2> + s2^2 <2, 2>

What a low-rank update does is B A; its factors are known only up to (R A, B R^-1), under which everything here stays.
Of two r x r matrices an entry is a sum over a side of the matrix, so the cost is r^2 (out + in) and nothing of size out x in
is written. Shapes: T tasks, r and q ranks; A [T, r, in], B [T, out, r], or without [T] where one is for all tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """s B A, unformed."""

    a: Tensor  # [T, r, in] or [r, in]
    b: Tensor  # [T, out, r] or [out, r]
    scale: float = 1.0

    def dense(self) -> Tensor:
        """The matrix, [T, out, in] or [out, in]; for checks and small ones."""
        return self.scale * torch.matmul(self.b, self.a)


def inner(one: Product, other: Product) -> Tensor:
    """<s1 B1 A1, s2 B2 A2> of every task, [T] (a scalar where neither has tasks)."""
    of_b = torch.matmul(one.b.mT, other.b)  # [T, r, q]
    of_a = torch.matmul(one.a, other.a.mT)
    return one.scale * other.scale * (of_b * of_a).flatten(-2).sum(-1)


def squared_norm(one: Product) -> Tensor:
    """|s B A|^2 of every task, [T]."""
    return inner(one, one)


def squared_distance(one: Product, other: Product) -> Tensor:
    """|s1 B1 A1 - s2 B2 A2|^2 of every task, [T].

    A difference of products loses digits where the two are nearly equal: in float32 what is below 1e-6 of the norms is
    noise, and may come out below zero.
    """
    return squared_norm(one) - 2 * inner(one, other) + squared_norm(other)


def cosine(one: Product, other: Product) -> Tensor:
    """Of the angle between the two matrices of every task, [T]; 0 where one of them is zero."""
    size = (squared_norm(one) * squared_norm(other)).clamp(min=0).sqrt()
    return torch.where(size > 0, inner(one, other) / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)
