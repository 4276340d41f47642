"""The delta rule of an inner step, one task at a time: full matrices, plain loops, dense solves, autograd.

explicit  W - a W M - d;    proximal  (W - d) (I + a M)^-1;    M = mean over what the weight reads of x x^T
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from reference.gru4rec_reference import reference_of
from reference.meta_reference import Loop, Params, leaves, slopes
from reference.small_episodes import Pair
from torch import Tensor

# phi of a task -> (loss, what each weight that forgets reads, [n, in])
Told = Callable[[Params], tuple[Tensor, Params]]
Compose = Callable[[Params], Params]  # phi -> weights of GRU4Rec


@dataclass(frozen=True)
class Rule:
    a: float
    form: str = "explicit"
    clip: bool = False

    def step(self, weight: Tensor, d: Tensor, x: Tensor) -> Tensor:
        """W after the step; x [n, in]."""
        width = weight.shape[1]
        moment = torch.zeros(width, width, dtype=weight.dtype)
        for row in x:
            moment = moment + torch.outer(row, row) / len(x)
        a: float | Tensor = self.a
        if self.form == "proximal":
            return (weight - d) @ torch.linalg.inv(torch.eye(width, dtype=weight.dtype) + a * moment)
        if self.clip and len(x):
            top = torch.linalg.eigvalsh(moment)[-1]
            a = 1 / top if float(a * top.detach()) >= 2 else a
        return weight - a * weight @ moment - d


def path(loop: Loop, rule: Rule, phi: Params, support: Told, second_order: bool) -> list[Params]:
    """A task's weights after 0, 1, ... steps; at first order every step subtracts a number."""
    own = {name: value for name, value in phi.items() if not name.startswith("rates/")}
    begin, found = dict(own), [own]
    for j in range(loop.steps):
        here = own if second_order else {name: value.detach().requires_grad_() for name, value in own.items()}
        loss, reads = support(here)
        moving = [name for name in own if loop.moves(name)]
        grads = dict(zip(moving, slopes(loss, [here[name] for name in moving], second_order), strict=True))
        if loop.clip:
            norm = torch.cat([grad.flatten() for grad in grads.values()]).norm()
            grads = {name: (loop.clip / norm).clamp(max=1) * grad for name, grad in grads.items()}
        after = dict(own)
        for name in moving:
            rate: float | Tensor = loop.lr
            if loop.rates != "fixed":
                rate = phi[f"rates/{name}"].exp()
                rate = rate[j] if loop.rates.endswith("_step") else rate
            away = loop.pull * here[name] + loop.prox * (here[name] - begin[name])
            if not second_order:
                away = away.detach()
            d = rate * (grads[name] + away)
            there = here[name] if second_order else here[name].detach()
            if name not in reads:
                after[name] = own[name] - d
                continue
            x = reads[name] if second_order else reads[name].detach()
            if second_order:
                after[name] = rule.step(there, d, x)
            else:  # learned step sizes keep their gradient through d, and nothing else has any
                forgotten = there - d.detach() - rule.step(there, d.detach(), x)
                after[name] = own[name] - d - forgotten
        own = after
        found.append(own)
    return found


def meta(
    loop: Loop, rule: Rule, phi: Params, tasks: Sequence[tuple[Told, Told]], second_order: bool
) -> tuple[list[float], Params]:
    """(query loss of each task, gradient of their mean by all that is trained)."""
    losses, total = [], {name: torch.zeros_like(value) for name, value in phi.items()}
    for support, query in tasks:
        start = leaves(phi)
        end = path(loop, rule, start, support, second_order)[-1]
        loss = query(end)[0] + 0.5 * loop.pull * sum(value.square().sum() for value in end.values())
        losses.append(float(loss.detach()))
        for name, grad in zip(start, slopes(loss, list(start.values())), strict=True):
            total[name] += grad / len(tasks)
    return losses, total


def gru4rec(
    pairs: Sequence[Pair], events: Sequence[int], base: Params, compose: Compose, factors: bool = False
) -> Told:
    """A task of the plain GRU4Rec. `events`: the items that its packed sequences read, once each; with `factors` what the
    factors of the input projection and of the output layer read."""
    module, seen = reference_of(base), list[Tensor]()
    module.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    known = [i for i, (_, target) in enumerate(pairs) if target > 0]
    targets = torch.tensor([pairs[i][1] - 1 for i in known])

    def told(phi: Params) -> tuple[Tensor, Params]:
        theta, ids = compose(phi), torch.tensor(list(events), dtype=torch.int64)
        seen.clear()
        logits = torch.func.functional_call(module, theta, ([prefix for prefix, _ in pairs],))
        h, e = seen[0][known], theta["embedding.weight"][ids]
        loss = F.cross_entropy(logits[known], targets) if known else logits.sum() * 0
        reads = {"fc.weight": h, "gru.weight_ih_l0": e}
        if factors:
            reads = {f"{n}.lora_a": x for n, x in reads.items()} | {
                f"{n}.lora_b": x @ phi[f"{n}.lora_a"].T for n, x in reads.items()
            }
        return loss, reads

    return told
