"""Rules of model=causal_lm: options that another makes idle, and rows of items that nothing would ever move."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

OF_A_NEW_ONE = ("architecture", "hidden_size", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size")


def lm_unused(seen: Seen) -> Iterator[Refusal]:
    """Sizes beside a directory whose config.json has them; columns of titles that are not read; tokens that nobody uses."""
    if seen.get("model.name") != "causal_lm":
        return
    if seen.get("model.path") is not None:
        for name in OF_A_NEW_ONE:
            for key in seen.asked(f"model.{name}"):
                yield key, "does nothing: model.path brings a config.json that says it", "drop it, or drop model.path"
    if seen.get("model.titles") is None:
        for key in seen.asked("model.title_columns"):
            yield key, "does nothing: no titles are read", "drop it, or give model.titles=FILE"
        if _of_items(seen) and seen.get("model.path") is None:
            for key in seen.asked("model.vocab_size"):
                what = "does nothing: items are tokens of their own, and without titles there are no others"
                yield key, what, "drop it, or give model.titles=FILE"


def lm_items_frozen(seen: Seen) -> Iterator[Refusal]:
    """A language model from a directory, not trained on the log: rows of items drawn at random, frozen below a residual."""
    if (
        seen.get("model.pretrained")
        and _of_items(seen)
        and seen.get("model.titles") is None
        and seen.get("warm_start") == "none"
        and seen.get("residual.frozen")
        and not seen.supervised
    ):
        what = "a residual would sit on rows of items that are random and frozen: the model knows tokens, not items"
        yield "warm_start", what, "use warm_start=auto, give model.titles=FILE, or add residual=off"


def _of_items(seen: Seen) -> bool:
    return seen.get("dataset.source") in ("log", "synthetic", "episode_tables")
