"""Rules of `objective.kl_anchor`: anchors to what they could not leave, and options that would do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

KEY = "objective.kl_anchor"


def _anchored(seen: Seen) -> bool:
    return bool(seen.get(f"{KEY}.weight"))


def _inside(seen: Seen) -> bool:
    return seen.get(f"{KEY}.where") in ("inner", "both")


def anchor_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of an anchor that weighs nothing."""
    if seen.get(f"{KEY}.weight") == 0:
        for key in seen.asked(KEY):
            if key not in (KEY, f"{KEY}.weight"):
                yield key, f"does nothing: {KEY}.weight=0 anchors nothing", f"drop it, or give {KEY}.weight"


def anchor_of_supervised(seen: Seen) -> Iterator[Refusal]:
    """An anchor where nothing adapts."""
    if seen.supervised and _anchored(seen):
        what = "algorithm=supervised adapts nothing, so there is nothing to anchor"
        yield f"{KEY}.weight", what, "drop it, or use algorithm=fomaml"


def anchor_to_random(seen: Seen) -> Iterator[Refusal]:
    """The pretrained model as reference where nothing was pretrained."""
    if _anchored(seen) and seen.get("warm_start") == "none" and seen.get(f"{KEY}.reference") == "pretrained":
        fix = f"use {KEY}.reference=initial, or a warm start"
        yield f"{KEY}.reference", "with warm_start=none the base is random: nothing to stay near to", fix


def anchor_without_steps(seen: Seen) -> Iterator[Refusal]:
    """Anchors of an inner loop without steps, or of steps that start where the anchor is."""
    if not _anchored(seen) or seen.supervised or seen.get("algorithm") is None:
        return
    steps, initial = seen.get("algorithm.inner.steps"), seen.get(f"{KEY}.reference") == "initial"
    if seen.get("residual.adapts", True) is False:  # a memory alone
        steps = 0
    if steps == 0 and initial:
        what = "does nothing: algorithm.inner.steps=0 adapts nothing, so all stay at their start"
        yield f"{KEY}.reference", what, f"give steps, or use {KEY}.reference=pretrained"
    elif steps == 0 and _inside(seen):
        what = "algorithm.inner.steps=0 takes no inner step that could be anchored"
        yield f"{KEY}.where", what, f"give steps, or use {KEY}.where=outer"
    elif initial and _inside(seen) and (steps is None or steps < 2):
        what = "the first inner step starts at reference=initial, where this anchor has no gradient"
        fix = f"give algorithm.inner.steps=2 or more, or use {KEY}.reference=pretrained"
        yield f"{KEY}.where", what, fix


def anchor_of_one_loop(seen: Seen) -> Iterator[Refusal]:
    """Support and query told apart for an algorithm that trains on both in one loop."""
    where = seen.get(f"{KEY}.where")
    if _anchored(seen) and seen.get("algorithm.joint") and where != "both":
        what = f"algorithm={seen.get('algorithm.name')} has one loop over support and query pairs, and no outer loss"
        yield f"{KEY}.where", what, f"use {KEY}.where=both"


RULES = (anchor_unused, anchor_of_supervised, anchor_to_random, anchor_without_steps, anchor_of_one_loop)
