"""Rules of residuals under which nothing adapts, and of those that remember (`metarec.config.rules` collects them)."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

# of an algorithm: how steps are taken and looked through, which does nothing where none is taken
OF_STEPS = (
    "inner", "order", "switch", "multi_step", "multi_step_until", "msl", "msl_until", "lslr", "da",
)  # fmt: skip
ADAPT = "residual=[memory,context]"


def _still(seen: Seen) -> str | None:
    """The residual's name where nothing adapts, so that there are no inner steps."""
    return None if seen.supervised or seen.get("residual.adapts", True) else str(seen.get("residual.name"))


def needs_what_adapts(seen: Seen) -> Iterator[Refusal]:
    """An algorithm that makes its step from what has adapted, or adapts a part, where nothing does."""
    if (name := _still(seen)) and seen.get("algorithm.needs_adapted"):
        what = f"learns from what adapts, and with residual={name} nothing does"
        yield "algorithm", what, f"use algorithm=fomaml, or {ADAPT}"


def steps_of_nothing(seen: Seen) -> Iterator[Refusal]:
    """Options of inner steps, and of how a meta-loss looks at them, where nothing adapts."""
    if not (name := _still(seen)):
        return
    keys = [key for own in OF_STEPS for key in seen.asked(f"algorithm.{own}")]
    if seen.get("algorithm.inner.steps"):
        keys.append("algorithm.inner.steps")
    if seen.get("algorithm.inner.lr") is not None:
        keys.append("algorithm.inner.lr")
    if seen.get("evaluation.test_steps"):
        keys.append("evaluation.test_steps")
    for key in dict.fromkeys(keys):
        if key != "algorithm.inner.steps" or seen.get(key):  # 0 steps are what there are
            yield key, f"does nothing: with residual={name} nothing adapts", f"drop it, or use {ADAPT}"


def outer_of_nothing(seen: Seen) -> Iterator[Refusal]:
    """The outer step size where all that is learned has one of its own."""
    if (name := _still(seen)) and seen.get("residual.frozen") and seen.get("residual.outer_lrs"):
        for key in (*seen.asked("optimizer.lr"), *seen.asked("optimizer.weight_decay")):
            what = f"does nothing: all that residual={name} learns has residual.lr, and does not decay"
            yield key, what, "drop it, or set residual.train_weights=true"


def memory_of_images(seen: Seen) -> Iterator[Refusal]:
    """A memory of images: the classes of an episode come once in the support each, and nothing comes back."""
    if seen.get("residual.reads_memory") and seen.get("dataset.source") == "omniglot":
        what = "images have no history: every class stands in the support alike"
        yield "residual", what, "use residual=context"


def memory_of_histories(seen: Seen) -> Iterator[Refusal]:
    """A memory beside prefixes that hold the support: own prefix and support could not be told apart."""
    if seen.get("residual.reads_memory") and seen.get("dataset.history") == "user":
        what = f"prefixes hold the support already, where residual={seen.get('residual.name')} tells the two apart"
        yield "dataset.history", what, "drop it, or use residual=context"


RULES = (needs_what_adapts, steps_of_nothing, outer_of_nothing, memory_of_images, memory_of_histories)
