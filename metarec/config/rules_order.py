"""Rules about `dataset.sessions.order` (`metarec.config.rules` collects them)."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

KEY, SEED = "dataset.sessions.order", "dataset.sessions.shuffle_seed"
# source -> why its order cannot be shuffled, and the way out
GIVEN = {
    "episode_tables": (
        "the tables hold finished prefixes and episodes, not the events that they were made of",
        "drop it, or shuffle the log itself: dataset=events dataset.path=LOG",
    ),
    "omniglot": ("images have no sessions and no order", "drop it"),
    "prompts": ("an example is a text, and without its order nothing is left of it", "drop it"),
    "characters": ("running text without its order is nothing", "drop it"),
}


def order_is_given(seen: Seen) -> Iterator[Refusal]:
    """Shuffled sessions where there are no events to shuffle."""
    source = seen.get("dataset.source")
    if source not in GIVEN or seen.get(KEY) != "shuffled":
        return
    if source == "episode_tables" or not seen.asked(
        KEY
    ):  # of the others the rules of images and text refuse every typed
        what, fix = GIVEN[source]  # option of a log; here it stands in a file
        yield KEY, what, fix


def shuffle_seed_unused(seen: Seen) -> Iterator[Refusal]:
    """A seed of permutations where nothing is permuted."""
    if seen.get(KEY) == "real" and seen.get("dataset.source") in ("log", "synthetic", "episode_tables"):
        for key in seen.asked(SEED):
            yield key, f"does nothing: {KEY}=real permutes nothing", f"drop it, or add {KEY}=shuffled"


def tables_without_a_label(seen: Seen) -> Iterator[Refusal]:
    """Published tables of shuffled sessions: whoever reads them again would take the order for the log's."""
    if seen.verb == "prepare" and seen.get("export") is not None and seen.get(KEY) == "shuffled":
        what = f"{KEY}=shuffled, and tables that are read again do not say so"
        yield "export", what, f"drop it, or export with {KEY}=real"


RULES = (order_is_given, shuffle_seed_unused, tables_without_a_label)
