"""One measured promise, as the drivers give it and docs/results has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar


def figure(what: str, asked: object, measured: object, kept: bool) -> dict[str, Any]:
    """`asked` and `measured` as text or numbers that JSON can hold; `kept`: whether the promise was."""
    return {"what": what, "asked": asked, "measured": measured, "kept": bool(kept)}


Case = TypeVar("Case")


def remembered(path: Path, cases: Iterable[Case], measure: Callable[[Case], Any]) -> list[Any]:
    """What `measure` makes of each case, in order; what an earlier sitting made stands in `path`, a line a case."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with path.open("a") as file:
        for number, case in enumerate(cases):
            if number >= len(done):
                done.append(measure(case))
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
    return done


def none_of(what: str, findings: list[str], tried: int, unit: str) -> dict[str, Any]:
    """A figure of which not one may be: `findings` are the cases in words, the first ones of which are told."""
    told = f"{len(findings)} of {tried} {unit}"
    return {**figure(what, f"0 of {tried} {unit}", told, not findings and tried > 0), "first": findings[:10]}
