"""A set of vectors to one vector: the same for every order of them, and for copies that are not there.

    x_n   = W2 silu(W1 v_n + b1) + b2                          each vector by itself
    x     = x + attention(norm(x));  x = x + mlp(norm(x))      `layers` times: vectors see each other (pre-norm)
    z_q   = sum_n softmax_n(k_q . norm(x_n)) norm(x_n)         `queries` learned questions, each a weighted mean
    z     = silu(norm(W4 silu(W3 [z_1 .. z_Q, log(1 + n)])))   [hidden]

Attention over a set, without places, is the same in every order (Lee et al. 2019, Set Transformer, arXiv:1810.00825,
sec. 3); how many vectors there are is told apart, since a weighted mean forgets it. What is not there has no weight.

Weights are a plain dict, named as below. Shapes: T tasks, N vectors a task, F numbers of a vector, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core.weights import Params

HEADS = 4  # of the attention between vectors; the width is a multiple of it


@dataclass(frozen=True)
class SetEncoder:
    n_inputs: int  # F
    width: int  # W
    layers: int
    queries: int
    hidden: int  # of what comes out

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name."""
        w, h = self.width, self.hidden
        found: dict[str, tuple[int, ...]] = {
            "in1.weight": (2 * w, self.n_inputs), "in1.bias": (2 * w,), "in2.weight": (w, 2 * w), "in2.bias": (w,),
        }  # fmt: skip
        for i in range(self.layers):
            found |= {
                f"l{i}.norm1": (w,), f"l{i}.qkv.weight": (3 * w, w), f"l{i}.out.weight": (w, w),
                f"l{i}.norm2": (w,), f"l{i}.up.weight": (2 * w, w), f"l{i}.up.bias": (2 * w,),
                f"l{i}.down.weight": (w, 2 * w), f"l{i}.down.bias": (w,),
            }  # fmt: skip
        return found | {
            "norm": (w,), "questions": (self.queries, w),
            "trunk1.weight": (h, self.queries * w + 1), "trunk1.bias": (h,),
            "trunk2.weight": (h, h), "trunk2.bias": (h,), "trunk2.norm": (h,),
        }  # fmt: skip

    def init(self, generator: torch.Generator, like: Tensor) -> Params:
        """Matrices N(0, 1 / in), norms one, biases zero; [*S] each, of the precision and device of `like`."""
        found: Params = {}
        for name, shape in self.shapes().items():
            if "norm" in name:
                found[name] = like.new_ones(shape)
            elif len(shape) == 1:
                found[name] = like.new_zeros(shape)
            else:
                drawn = torch.randn(shape, generator=generator, dtype=like.dtype) * shape[-1] ** -0.5
                found[name] = drawn.to(like.device)
        return found

    def __call__(self, weights: Mapping[str, Tensor], vectors: Tensor, there: Tensor) -> Tensor:
        """vectors [T, N, F], there bool [T, N] -> [T, hidden]; a task without any vector has a result of its own."""

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], weights[name])

        shown = None if bool(there.all()) else there  # where nothing is missing there is nothing to mask
        x = linear(F.silu(linear(vectors, "in1")), "in2")
        for i in range(self.layers):
            x = x + linear(_attend(linear(norm(x, f"l{i}.norm1"), f"l{i}.qkv"), shown), f"l{i}.out")
            x = x + linear(F.silu(linear(norm(x, f"l{i}.norm2"), f"l{i}.up")), f"l{i}.down")
        x = norm(x, "norm")
        share = _softmax(
            torch.matmul(weights["questions"], x.mT), None if shown is None else shown[:, None, :]
        )  # [T, Q, N]
        count = there.sum(1, keepdim=True).to(x.dtype).log1p()
        z = torch.cat([torch.bmm(share, x).flatten(1), count], 1)
        return F.silu(norm(linear(F.silu(linear(z, "trunk1")), "trunk2"), "trunk2.norm"))


def _attend(qkv: Tensor, there: Tensor | None) -> Tensor:
    """qkv [T, N, 3 W] -> [T, N, W], `HEADS` heads; nobody looks at what is not there (None: all is)."""
    n_tasks, count, width = qkv.shape
    q, k, v = qkv.view(n_tasks, count, 3, HEADS, width // (3 * HEADS)).permute(2, 0, 3, 1, 4)
    scores = torch.matmul(q, k.mT) * q.shape[-1] ** -0.5
    share = _softmax(scores, None if there is None else there[:, None, None, :])
    return torch.matmul(share, v).transpose(1, 2).flatten(2)


def _softmax(scores: Tensor, there: Tensor | None) -> Tensor:
    """Over the last axis, of what is there (None: all); all zero where nothing is."""
    if there is None:
        return scores.softmax(-1)
    low = torch.finfo(scores.dtype).min
    return scores.masked_fill(~there, low).softmax(-1) * there
