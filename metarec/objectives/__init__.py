"""What a pair costs.

An objective is a callable (scores, target, generator) -> [T, N]: the loss of every pair, 0 where the pair does not count
(target <= 0). How pairs become the loss of a task is not its business (`metarec.tasks`). Its file brings `Config` and
`build(config, items)` (`metarec.parts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from metarec.errors import ConfigError


@dataclass(frozen=True)
class Items:
    """What an objective may know of the items: their number, and how often each was seen in training."""

    n: int
    popularity: Callable[[], npt.NDArray[np.int64]]  # [V], training events of each item, most often not needed
    seed: int  # of the items that are drawn where nothing is trained (`objectives.standing`)
    device: torch.device


def drawn(key: str, asked: int | None, most: int, n_items: int, *, with_repeats: bool = False) -> int:
    """How many items are drawn: as `asked`, or where that is None a quarter of all and at most `most`.

    Raises ConfigError, naming the option `key`, for more than there are, where none is drawn twice.
    """
    if asked is None:
        return min(most, max(n_items // 4, 1))
    if asked >= n_items and not with_repeats:
        raise ConfigError(
            f"objective.{key}", asked, f"the training vocabulary has {n_items} items, so nothing would be left to draw",
            "give fewer, or use objective=cross_entropy",
        )  # fmt: skip
    return asked
