"""The one inner loop: a few gradient steps for all tasks of a batch at once.

    phi_t[0] = phi;   phi_t[j+1] = phi_t[j] - lr * (grad L_t(phi_t[j]) + pull * phi_t[j])

`phi` is shared and stays as it is; what a task has learned is its offset phi_t - phi (`core.weights`). The first step
runs on the shared weights alone. Offsets are under stop-gradient, so whatever loss is taken at the result and
differentiated with respect to `phi` gives the first-order meta-gradient (Finn et al. 2017, arXiv:1703.03400, sec. 5.2;
systems: d phi_t / d phi is taken as the identity).

The pull is the gradient of pull / 2 * |phi_t|^2 (for a residual: towards the pretrained weights). It shrinks the shared
part by the same factor for all tasks, so it costs no per-task matrix.

Tasks are independent: the gradient of the *sum* of their losses with respect to the offsets is each task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metarec.core.weights import FastWeight, Offset, Params, Tap, Weights, moved, scaled
from metarec.errors import DivergedError

TaskLoss = Callable[[Weights], Tensor]  # weights of T tasks -> their losses [T]


def adapt(
    support_loss: TaskLoss, phi: Params, n_tasks: int, *, lr: float, steps: int, pull: float = 0.0
) -> dict[str, FastWeight]:
    """`phi` with the offsets of every task after `steps` steps of size `lr`; differentiable with respect to `phi`.

    A tensor that the loss does not use stays without offset. Raises DivergedError, naming step and task, when a support
    loss is not finite.
    """
    *_, last = path(support_loss, phi, n_tasks, lr=lr, steps=steps, pull=pull)
    return last


def path(
    support_loss: TaskLoss, phi: Params, n_tasks: int, *, lr: float, steps: int, pull: float = 0.0
) -> Iterator[dict[str, FastWeight]]:
    """The weights after 0, 1, ..., `steps` steps, one after the other."""
    start = {name: value.detach() for name, value in phi.items()}
    offsets: dict[str, Offset | None] = dict.fromkeys(phi)
    yield {name: FastWeight(value) for name, value in phi.items()}
    for step in range(steps):
        taps = {name: Tap() for name in phi}
        with torch.enable_grad():
            losses = support_loss({name: FastWeight(start[name], offsets[name], taps[name]) for name in phi})
            _check_finite(losses, step)
            # one tensor may serve two weights (a layer's matrix and its bias)
            nodes = list({id(at): at for tap in taps.values() for at, _ in tap.notes}.values())
            found = torch.autograd.grad(losses.sum(), nodes, allow_unused=True)
        grads = {id(at): grad for at, grad in zip(nodes, found, strict=True)}
        if pull:
            keep = 1.0 - lr * pull
            start = {name: value * keep for name, value in start.items()}
            offsets = {name: None if o is None else scaled(o, keep) for name, o in offsets.items()}
        for name, tap in taps.items():
            for at, finish in tap.notes:
                grad = grads[id(at)]
                if grad is not None:
                    offsets[name] = moved(offsets[name], finish(grad), -lr, steps - step)
        # the shrinking by the pull is under stop-gradient like every other part of an inner step
        shared = {n: v + (start[n] - v.detach()) for n, v in phi.items()} if pull else phi
        yield {name: FastWeight(shared[name], offsets[name]) for name in phi}


def _check_finite(losses: Tensor, step: int) -> None:
    finite = torch.isfinite(losses.detach())
    if not finite.all():
        task = int((~finite).nonzero()[0])
        raise DivergedError(
            f"inner step {step}, task {task} of the batch",
            float(losses[task].detach()),
            "the support loss is not finite",
            "lower algorithm.inner.lr or algorithm.inner.steps",
        )
