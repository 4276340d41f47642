"""Rules of pretraining on a part of the training users."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen


def hold_out_unused(seen: Seen) -> Iterator[Refusal]:
    """Users kept from pretraining where nothing else would train on them, or where domains stand in place of users."""
    if not seen.get("pretrain.hold_out"):
        return
    if seen.supervised:
        yield "pretrain.hold_out", "algorithm=supervised has no outer loop to train on those users", "drop it"
    elif seen.get("dataset.source") == "prompts":
        what = "a data set of text has domains in place of users"
        yield "pretrain.hold_out", what, "drop it, or set dataset.prompts.pretrain=easy"
    elif seen.get("dataset.source") == "characters":
        yield "pretrain.hold_out", "running text has documents in place of users", "drop it"


RULES = (hold_out_unused,)
