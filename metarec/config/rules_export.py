"""Rules of `metarec export`: options that were asked for and would do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen


def export_unused(seen: Seen) -> Iterator[Refusal]:
    """How users are chosen and adapted where none is written, and options of measuring, for nothing is measured."""
    if seen.verb != "export":
        return
    if seen.get("users") is None:
        for name in ("split", "n_support", "steps", "lr", "evaluation"):
            for key in seen.asked(name):
                yield key, "does nothing: no user is adapted", "drop it, or add users=[ID]"
        return
    for key in seen.asked("evaluation"):
        if key not in ("evaluation.task_chunk", "evaluation.test_steps"):
            yield key, "does nothing: nothing is measured", "drop it"
    if seen.get("steps") is not None:
        for key in seen.asked("evaluation.test_steps"):
            yield key, f"does nothing: steps={seen.get('steps')}", "give one of the two"
