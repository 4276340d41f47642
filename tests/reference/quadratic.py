"""A quadratic of every task, 1/2 (w - c_t) H_t (w - c_t)^T with a matrix and a centre of its own.

The inner loop and all meta-gradients have closed forms there. T tasks, N rows of the root a task; the weight is [O, D],
H_t [D, D].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from reference.small_tensors import T, normal
from torch import Tensor

from metarec.algorithms import Algorithm
from metarec.algorithms.inner import TaskLoss
from metarec.core.ops import linear
from metarec.core.weights import Params, Weights, own

OUT, D = 5, 4


@dataclass(frozen=True)
class Quadratic:
    """1/2 |root (w - c)^T|^2, so that H = root^T root; `through` says which operator reads w."""

    root: Tensor  # [T, N, D]; N = 1 makes H of rank 1, and offsets of `linear` stay factored
    c: Tensor  # [T, OUT, D]
    through: str

    @property
    def h(self) -> Tensor:
        return self.root.transpose(1, 2) @ self.root

    def __call__(self, weights: Weights) -> Tensor:
        centre = torch.einsum("tnd,tod->tno", self.root, self.c)
        if self.through == "linear":
            left = linear(self.root, weights["w"]) - centre
        else:
            left = torch.einsum("tnd,tod->tno", self.root, own(weights["w"], T)) - centre
        return 0.5 * left.flatten(1).square().sum(1)

    def slope(self, w: Tensor) -> Tensor:
        """The gradient of every task, [T, OUT, D]."""
        return (w - self.c) @ self.h


FORMS = {"own": ("own", D), "linear": ("linear", D), "factored": ("linear", 1)}


def quadratics(form: str = "own") -> tuple[Quadratic, Quadratic, Params]:
    """(support, query, phi)"""
    through, n = FORMS[form]
    support = Quadratic(0.5 * normal(T, n, D, seed=1), normal(T, OUT, D, seed=2), through)
    query = Quadratic(0.5 * normal(T, D, D, seed=3), normal(T, OUT, D, seed=4), through)
    return support, query, {"w": normal(OUT, D, seed=5).requires_grad_()}


def power(a: Tensor, b: float, k: int) -> Tensor:
    """(I - b a)^k of every task."""
    return torch.linalg.matrix_power(torch.eye(D, dtype=torch.float64) - b * a, k)


def gradient_of(algorithm: Algorithm, support: TaskLoss, query: TaskLoss, phi: Params, step: int = 0) -> Tensor:
    return torch.autograd.grad(algorithm.meta_losses(phi, support, query, T, step).mean(), phi["w"])[0]
