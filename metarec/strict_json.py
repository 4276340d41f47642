"""JSON as the standard has it, from files that anybody may have written: what Python's reader lets pass is refused.

`json.loads` takes NaN, turns 1e999 into infinity, keeps the last of two values of one key, and reads lists within lists
until whatever walks them afterwards runs out of stack.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

DEPTH = 64  # of lists and objects within each other; what metarec writes has at most eight
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # where a character beyond the first 65,536 may be written half


def loads(text: str | bytes) -> Any:
    """The value of a JSON text, bytes as UTF-8.

    Raises ValueError, and nothing else, for what is no JSON, a number that is not finite, a key that stands twice in an
    object, half of a surrogate pair, and nesting beyond DEPTH.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH}") from None
    if text.count("[") + text.count("{") > DEPTH:
        check_depth(value)
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair, which is no character") from None
    return value


def lenient(text: str, **options: Any) -> Any:
    """What Python's reader makes of a text, for files of others that are not strict (a model's configuration may hold
    Infinity); ValueError, and nothing else, where it can make nothing of it."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond what a number can be")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:40]!r} stands twice")
            seen.add(key)
    return found


def check_depth(value: Any) -> None:
    """ValueError where lists and objects lie deeper in each other than DEPTH."""
    level = [value]
    for _ in range(DEPTH):
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEPTH}")
