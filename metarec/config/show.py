"""Values and choices in messages, as they would be typed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from metarec.errors import nearest


def show(value: object) -> str:
    """null, true, [1,2], {a:1}; text as it is, and '' where it is empty."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(show(element) for element in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{show(element)}' for key, element in value.items())}}}"
    return str(value) if str(value) else "''"


def choose(value: object, choices: Collection[str]) -> str:
    """The way out of a wrong choice: the nearest spelling, if any is near, and all there are."""
    near = nearest(str(value), choices)
    listed = f"choose {'|'.join(choices)}"
    if near is None:
        return listed
    return f"did you mean {near}? {listed}" if len(choices) > 1 else f"did you mean {near}?"
