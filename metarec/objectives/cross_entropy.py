"""Cross-entropy over the whole catalogue, averaged over the pairs of a task.

    L_t = mean over pairs with a known target of  -log softmax(logits)[target]

Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, sec. 7. Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """logits [T, N, V], target int64 [T, N] -> loss [T].

    Targets are 1..V; -1 (unknown) and 0 (no pair) do not count. A task in which nothing counts has loss 0.
    """
    n_tasks, n_pairs, n_items = logits.shape
    column = (target - 1).clamp(min=-1)  # -1 is ignored: no pair (0) and an unknown item (-1)
    each = F.cross_entropy(
        logits.reshape(-1, n_items),
        column.reshape(-1),
        ignore_index=-1,
        reduction="none",
        label_smoothing=label_smoothing,
    ).view(n_tasks, n_pairs)
    return each.sum(1) / (target > 0).sum(1).clamp(min=1)
