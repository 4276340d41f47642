"""Rules of `objective.surprise`: levels that are not there, gradients that would not be whole, options that do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

KEY = "objective.surprise"
LEVELS = ("fast", "medium", "slow")
OF_A_GRADIENT = ("scale", "clip", "second_order")


def _acts(seen: Seen) -> bool:
    return any(seen.get(f"{KEY}.{level}") for level in LEVELS)


def _in(seen: Seen, loop: str) -> bool:
    return _acts(seen) and seen.get(f"{KEY}.where") in (loop, "both")


def surprise_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of a term that weighs nothing, or of a target that is always zero."""
    if seen.get(KEY) is None:
        return
    if not _acts(seen):
        for key in seen.asked(KEY):
            if key not in (KEY, *(f"{KEY}.{level}" for level in LEVELS)):
                yield key, "does nothing: no level has a weight", f"drop it, or give {KEY}.fast=0.05"
    elif seen.get(f"{KEY}.target") == "zero":
        for name in OF_A_GRADIENT:
            for key in seen.asked(f"{KEY}.{name}"):
                yield key, f"does nothing: with {KEY}.target=zero no gradient is taken", "drop it"
    elif seen.get(f"{KEY}.scale") == "normalised" and (seen.get(f"{KEY}.clip") or 0) >= 1:
        for key in seen.asked(f"{KEY}.clip"):
            yield key, f"does nothing: with {KEY}.scale=normalised no target is longer than one", "drop it"


def surprise_of_levels(seen: Seen) -> Iterator[Refusal]:
    """A level that the model does not have."""
    there = seen.get("model.levels", ("fast",))
    for level in LEVELS:
        if seen.get(f"{KEY}.{level}") and seen.get("model") is not None and level not in there:
            what = f"model={seen.get('model.name')} has no such level, only {', '.join(there)}"
            yield f"{KEY}.{level}", what, "drop it, or use model=nested"


def surprise_of_no_loop(seen: Seen) -> Iterator[Refusal]:
    """A loop that is not run, or that trains nothing the states are made of."""
    if not _acts(seen) or seen.get("algorithm") is None:
        return
    where, start = seen.get(f"{KEY}.where"), seen.get("warm_start")
    if where == "outer" and seen.supervised:
        yield f"{KEY}.where", "algorithm=supervised has no outer loop", f"use {KEY}.where=pretrain"
    if where == "pretrain" and not seen.supervised and start != "auto":
        yield f"{KEY}.where", f"with warm_start={start} nothing is pretrained", f"use {KEY}.where=outer"
    name = seen.get("residual.name")
    if where == "outer" and name == "head" and not seen.get(f"{KEY}.second_order"):
        what = f"residual={name} trains the head alone, and no state depends on it"
        yield f"{KEY}.where", what, f"use {KEY}.where=pretrain, or another residual"


def surprise_of_own_gradients(seen: Seen) -> Iterator[Refusal]:
    """The second order where each task's own gradient of the loss is taken: it is read off layer by layer, and what a
    gradient inside the loss owes to a weight is not seen there."""
    if seen.get(f"{KEY}.second_order") and _in(seen, "outer") and seen.get("algorithm.taps_query"):
        what = f"algorithm={seen.get('algorithm.name')} takes each task's own gradient of the loss, which would not be whole"
        yield f"{KEY}.second_order", what, "drop it, or use algorithm=maml"


RULES = (surprise_unused, surprise_of_levels, surprise_of_no_loop, surprise_of_own_gradients)
