"""How near what was generated for each task comes to what a teacher has found for it, by what the two do to a weight.

    e[t, m] = |dW_G - dW_T|^2        n[t, m] = |dW_T|^2        of module m: dW = s B A, or a number less its start

    relative error   of a module: mean over tasks of e[t, m] / n[t, m]; of all: mean over t of sum_m e / sum_m n
    cosine           of a module: mean over tasks of <dW_G, dW_T> / (|dW_G| |dW_T|); of all: of all modules as one vector

A task whose teacher has done nothing (n = 0) has no relative error: it is left out of both, and counted. To do nothing has
error 1 and cosine 0, which is what a prediction must beat; the mean of teachers, one for all tasks, is what one that looks
at the task must beat. No matrix a task is written: of products by their factors (`core.gram`), and with a matrix M that all
share <M, s B A> = s sum((B^T M) o A). Sums are in float64, for a distance is a difference of near numbers.

Shapes: T tasks; A [T, r, in], B [T, out, r]; a number is [*S].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metarec.core.gram import Product, inner, squared_norm
from metarec.core.weights import FastWeight, Params

Made = Mapping[str, FastWeight]
Three = tuple[Tensor, Tensor, Tensor]  # <G, G>, <G, T>, <T, T> of every task, [T] each


@dataclass
class Closeness:
    """Fill it with `add`, a batch after another; then `document`."""

    products: Mapping[str, tuple[str, str, float]]  # weight -> names of A and B, s
    begin: Params  # what adapts, as all tasks start, [*S]
    mean: Mapping[str, Tensor] | None = None  # module -> mean of what teachers do to it: [out, in], or [*S]
    _made: dict[str, list[Three]] = field(default_factory=dict)
    _mean: dict[str, list[Three]] = field(default_factory=dict)

    @property
    def modules(self) -> tuple[str, ...]:
        """The weights that are given a product, then the names of all other numbers."""
        factors = {name for a, b, _ in self.products.values() for name in (a, b)}
        return (*self.products, *(name for name in self.begin if name not in factors))

    def add(self, made: Made, teacher: Made, n_tasks: int) -> None:
        """Weights of the same T = `n_tasks` tasks, generated and the teacher's; read are numbers that adapt, [*S] each."""
        for module in self.modules:
            if module in self.products:
                a, b, scale = self.products[module]
                g, t = (Product(_of(own[a], n_tasks), _of(own[b], n_tasks), scale) for own in (made, teacher))
                self._made.setdefault(module, []).append((squared_norm(g), inner(g, t), squared_norm(t)))
                if self.mean is not None:
                    m = self.mean[module].double().to(t.a.device)
                    with_mean = scale * (torch.matmul(t.b.mT, m) * t.a).flatten(1).sum(1)
                    size = m.square().sum().expand(n_tasks)
                    self._mean.setdefault(module, []).append((size, with_mean, squared_norm(t)))
                continue
            begin = self.begin[module].double()
            g_, t_ = (_of(own[module], n_tasks) - begin for own in (made, teacher))
            self._made.setdefault(module, []).append(_three(g_, t_))
            if self.mean is not None:
                shared = self.mean[module].double().to(t_.device).expand_as(t_)
                self._mean.setdefault(module, []).append(_three(shared, t_))

    def document(self) -> dict[str, Any]:
        """{users, without_teacher, all, modules: {module: ...}}; of each {relative_error, cosine} under `generated` and,
        with a mean, `mean_teacher`; null where no task has a teacher that did anything."""
        found = {"generated": _joined(self._made)} | (
            {} if self.mean is None else {"mean_teacher": _joined(self._mean)}
        )
        one = found["generated"]
        size = torch.stack([t for _, _, t in one.values()]).sum(0)
        every = {
            name: tuple(torch.stack([own[m][i] for m in own]).sum(0) for i in range(3)) for name, own in found.items()
        }
        return {
            "users": len(size),
            "without_teacher": int((size <= 0).sum()),
            "all": _said(every),
            "modules": {m: _said({name: own[m] for name, own in found.items()}) for m in one},
        }


def _of(weight: FastWeight, n_tasks: int) -> Tensor:
    return weight.dense().double().expand(n_tasks, *weight.shared.shape)


def _three(g: Tensor, t: Tensor) -> Three:
    return tuple((x * y).flatten(1).sum(1) for x, y in ((g, g), (g, t), (t, t)))  # type: ignore[return-value]


def _joined(found: Mapping[str, list[Three]]) -> dict[str, Three]:
    return {module: tuple(map(torch.cat, zip(*parts, strict=True))) for module, parts in found.items()}  # type: ignore[misc]


def _said(found: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    out: dict[str, dict[str, float | None]] = {}
    for name, (gg, gt, tt) in found.items():
        there = tt > 0
        if not there.any():
            out[name] = {"relative_error": None, "cosine": None}
            continue
        gg, gt, tt = gg[there], gt[there], tt[there]
        norms = (gg.clamp(min=0) * tt).sqrt()
        out[name] = {
            "relative_error": float(((gg - 2 * gt + tt).clamp(min=0) / tt).mean()),
            "cosine": float(torch.where(norms > 0, gt / norms.where(norms > 0, 1.0), 0.0).mean()),
        }
    return out
