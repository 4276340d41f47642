"""What a training checkpoint says beside its tensors, checked before anything is made of it.

A checkpoint's SHA-256 tells damage and not who has made it, so its state may hold anything. Every key that is read later is
here, with what it must be; the configuration is checked like any other (`config.compose.config_from_dict`), the tensors
against the model (`check_tensors`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metarec.contained import understood
from metarec.errors import CheckpointError
from metarec.runs import checkpoint
from metarec.runs.manifest import damaged

_OF_STEP = re.compile(r"step-\d{6,18}")  # as a run names them; a copy may have a name of its own
_FIX = "use another checkpoint, or train anew with this version"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return type(value) is int and -1 <= value < 2**53


def _none_or(check: Any) -> Any:
    return lambda value: value is None or check(value)


PROGRESS: dict[str, Any] = {
    "step": _whole, "best_step": _whole, "best_value": _none_or(_number), "waited": _whole,
    "stopped": lambda value: isinstance(value, bool), "gained_value": _none_or(_number),
}  # fmt: skip
CONTROL: dict[str, Any] = {
    "lr": _number, "steps": _whole, "value": _number,
    "tried": lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
}  # fmt: skip
STATE: dict[str, Any] = {
    "config": lambda value: isinstance(value, dict) and isinstance(value.get("residual"), dict),
    "vocabulary_sha256": lambda value: isinstance(value, str),
    "n_items": _whole,
    "control": lambda value: value is None or isinstance(value, dict),
    "warm_start": lambda value: isinstance(value, dict),
    "progress": lambda value: isinstance(value, dict),
}


def check_state(path: Path, state: Mapping[str, Any]) -> None:
    """CheckpointError naming the first key of the checkpoint `path` that is missing or of another kind than is written."""
    where = path / "state.json"
    _keys(where, "", state, STATE)
    progress = {"gained_value": None, **state["progress"]}  # a version without min_gain wrote none
    _keys(where, "progress.", progress, PROGRESS, no_others=True)
    if _OF_STEP.fullmatch(path.name) and checkpoint.step_of(path.name) != progress["step"]:
        # whole, and in the wrong place
        raise damaged(path, f"it is the checkpoint of another step, {progress['step']}")
    if state["control"] is not None:
        _keys(where, "control.", state["control"], CONTROL, no_others=True)
    with understood(where, "guard"):
        guard = state.get("guard")
        if guard is not None:
            _guard(guard)


def _guard(guard: Any) -> None:
    for state in (guard["detector"], *([guard["kept"]["detector"]] if guard["kept"] is not None else [])):
        if not all(_number(loss) for loss in state["losses"]) or not _whole(state["seen"]):
            raise ValueError("detector")
    if not all(_whole(guard[key]) and 0 <= guard[key] < 1000 for key in ("rollbacks", "skips_in_a_row")):
        raise ValueError("rollbacks or skips_in_a_row")
    if guard["kept"] is not None and not _whole(guard["kept"]["step"]):
        raise ValueError("kept.step")


def _keys(
    where: Path, prefix: str, found: Mapping[str, Any], wanted: Mapping[str, Any], *, no_others: bool = False
) -> None:
    for key, check in wanted.items():
        if key not in found:
            raise CheckpointError(where, f"{prefix}{key}", "missing: this is no checkpoint of a training run", _FIX)
        if not check(found[key]):
            value = str(found[key])
            raise CheckpointError(
                where, f"{prefix}{key} {value[:60]}", "is not of the kind that metarec writes there", _FIX
            )
    if no_others and (more := sorted(found.keys() - wanted.keys())):
        raise CheckpointError(where, f"{prefix}{more[0]}", "is not written by this version of metarec", _FIX)


def check_tensors(path: Path, found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """CheckpointError for the first tensor [*S] of the checkpoint `path` that is missing, too many, not of floating point
    or not of the shape that the model has for it; `what` they are, in words."""
    where = path / "tensors.safetensors"
    for name in sorted(shapes.keys() - found.keys()):
        raise CheckpointError(where, name, f"missing: one of {what}", _FIX)
    for name in sorted(found.keys() - shapes.keys()):
        raise CheckpointError(where, name, f"has no place among {what}", _FIX)
    for name, shape in shapes.items():
        value = found[name]
        if tuple(value.shape) != tuple(shape) or not value.is_floating_point():
            raise CheckpointError(where, f"{name} {list(value.shape)}", f"{list(shape)} is needed, of {what}", _FIX)
