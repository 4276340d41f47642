"""Teachers: what the inner loop finds for a user who is given more of his history, for many users at once.

    phi_u = phi - lr * (sum over steps of grad L_u)       L_u: mean loss of user u's pairs before his last Q, at most so many
    judged on his last Q pairs, under phi and under phi_u

It is the inner loop of every algorithm (`algorithms.inner`), of first order, for nothing is differentiated through it; users
stand on the task axis, filled up to the longest (`data.past`).

Shapes: T users of a batch, R users; a number that adapts is [*S].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.core.weights import Params
from metarec.data.past import Past
from metarec.errors import DivergedError
from metarec.tasks import Tasks

MORE_LRS = (3.0, 10.0)  # beside those of the control: factors from B = 0 on take larger steps than whole weights
STEPS = (5, 10, 20)

# scores that a batch holds at once, pairs times items: beyond it arrays leave a CPU's cache and are mapped anew each step
SCORES, SCORES_GPU = 2**21, 2**28


def most_pairs(n_items: int, device: torch.device) -> int:
    """Pairs, filled up, of a batch of users (`Past.most`)."""
    return max((SCORES if device.type == "cpu" else SCORES_GPU) // n_items, 1)


def found(tasks: Tasks, phi: Params, past: Past, loop: InnerLoop) -> Iterator[Params]:
    """What adapts of each user, name -> [T, *S], a batch at a time in the order of `past`.

    With it int64 [T] user and pairs (how many his teacher has seen), and loss_before, loss_after [T]: of his query pairs,
    under phi and under what was found. Raises DivergedError, naming a user, where a loss is not finite.
    """
    names = [name for name in inner.start(phi, loop) if loop.moves(name)]
    for batch in past.batches():
        with torch.no_grad():
            try:
                own = inner.adapt(tasks.loss(batch.support), phi, batch.n_tasks, loop)
            except DivergedError as error:
                fix = "lower algorithm.teacher.lr or algorithm.teacher.steps"
                what = f"{error.what}, one of the users in rows {int(batch.user.min())} to {int(batch.user.max())}"
                raise DivergedError(error.where, error.value, what, fix) from error
            judge = tasks.loss(batch.query)
            shapes = {name: (batch.n_tasks, *own[name].shared.shape) for name in names}
            numbers = {name: own[name].dense().expand(shapes[name]) for name in names}
            counted = (batch.support.target != 0).sum(1)
            before, after = judge(inner.start(phi, loop)), judge(own)
        yield numbers | {"user": batch.user, "pairs": counted, "loss_before": before, "loss_after": after}
