"""Rules of an algorithm that generates what a user adapts (`algorithm.generator`)."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

WHOLE = ("off", "on", "head")  # residuals that adapt whole weights
INSTEAD = "use residual=lora, context, ia3 or bias"


def _parts(seen: Seen) -> list[str]:
    return str(seen.get("residual.name", "")).split("+")


def generates_whole_weights(seen: Seen) -> Iterator[Refusal]:
    """Whole weights, of which a head would be as many times larger as it has inputs; rows, which differ by user."""
    if not seen.get("algorithm.generates"):
        return
    for name in _parts(seen):
        if name in WHOLE:
            what = f"residual={name} adapts whole weights, and a head that makes these would be larger than the model"
            yield "residual", what, INSTEAD
    if seen.get("residual.of_support"):
        on = seen.get("residual.name")
        what = f"with residual={on} a user has rows of his own items, and a generator makes the same for all"
        yield "residual", what, INSTEAD


def generates_from_images(seen: Seen) -> Iterator[Refusal]:
    """Images, whose classes have other numbers in every episode: a label says nothing that could be read."""
    if seen.get("algorithm.generates") and seen.get("dataset.source") == "omniglot":
        what = "a class of images has another number in every episode, so no output row says what its label is"
        yield "dataset", what, "use a data set of users and items, or algorithm=maml"


def largest_head_unread(seen: Seen) -> Iterator[Refusal]:
    """The size from which a basis is taken, where one is always or never taken."""
    if seen.get("algorithm.generates") and seen.get("algorithm.head") != "auto":
        for key in seen.asked("algorithm.largest_head"):
            yield key, f"does nothing with algorithm.head={seen.get('algorithm.head')}", "drop it"


def basis_beside_an_adapter(seen: Seen) -> Iterator[Refusal]:
    """An adapter to start from, where a basis of its own takes its place."""
    adapter, head = seen.get("residual.adapter"), seen.get("algorithm.head")
    if seen.get("algorithm.generates") and adapter is not None and head != "factors":
        what = f"with algorithm.head={head} a basis may take the place of the adapter's factors, and lose them"
        yield "algorithm.head", what, "set algorithm.head=factors"


RULES = (generates_whole_weights, generates_from_images, largest_head_unread, basis_beside_an_adapter)
