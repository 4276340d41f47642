"""Whose number it was: a DivergedError of a batch or of a table says the user's own name, as the data has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from metarec.benches import AnyBench
from metarec.errors import DivergedError


@contextmanager
def named(bench: AnyBench, users: Any = None, before: str = "") -> Iterator[None]:
    """What diverges inside is told with its user, and with `before`, what was being done.

    users: their rows in the data, int64 [T], of a batch or of episodes, where whoever raises knows the number of the task
    alone.
    """
    try:
        yield
    except DivergedError as error:
        row = error.user
        if row is None and error.task is not None and users is not None:
            row = int(users[error.task])
        own = "" if row is None else f"user {bench.user_ids(np.array([row]))[0]}"
        raise error.within(before, own) from error
