"""Plain JSON values: no NaN, no infinity, no numpy type.

``json.dumps`` writes bare ``NaN`` by default, which no JSON reader must accept and which hides a diverged run. Every
JSON file of a run goes through ``plain_json``; a figure that does not exist (the interval of one user) is None.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from metarec.errors import DivergedError


def plain_json(value: object, where: str) -> Any:
    """``value`` as dicts with text keys, lists, str, int, finite float, bool and None; ``where`` names its place.

    Raises DivergedError naming the key ("metrics.json: fewshot.hr@1") for NaN or infinity, TypeError for a value
    that JSON cannot hold.
    """
    return _plain(value, where, ())


def no_figure(where: str, value: float, task: int | None = None) -> DivergedError:
    """The refusal of a metric's value that is not finite; `task`: its number in a batch, or its row among episodes."""
    what = "a metric that is not finite has no mean"
    return DivergedError(
        where, float(value), what, "see the metric's function: of a rank it has to be finite", task=task
    )


def or_none(value: Any) -> float | None:
    """A figure of `metrics.intervals`, where NaN says that there is none; never a diverged one."""
    return None if math.isnan(value) else float(value)


def ends(low: Any, high: Any) -> list[float] | None:
    """[low, high], or None without an interval."""
    return None if math.isnan(low) else [float(low), float(high)]


def interval(mean: Any, low: Any, high: Any) -> dict[str, float | None]:
    """{mean, low, high}, the ends None without an interval."""
    return {"mean": float(mean), "low": or_none(low), "high": or_none(high)}


def _plain(value: object, where: str, keys: tuple[str, ...]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    np = sys.modules.get("numpy")  # whoever has not imported it has no value of it, and need not wait for it
    if np is not None and isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), where, keys)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DivergedError(
                f"{where}: {'.'.join(keys)}" if keys else where,
                value,
                "a figure that is not finite is never written",
                "the run has diverged; lower the step sizes or resume from an earlier checkpoint",
            )
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: {'.'.join(keys)}: the key {key!r} is not text")
        return {key: _plain(item, where, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, (*keys, str(index))) for index, item in enumerate(value)]
    raise TypeError(f"{where}: {'.'.join(keys)}: {type(value).__name__} has no place in JSON")
