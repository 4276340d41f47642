"""Rules of pretraining: on a part of the training users, and for how long."""

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


def two_lengths(seen: Seen) -> Iterator[Refusal]:
    """A number of steps beside a number of epochs, of training and between validations; validation rarer than training is
    long."""
    for own, others in (("steps", ("epochs", "min_steps")), ("eval_every", ("eval_every_epochs",))):
        if seen.get(f"pretrain.{own}") is not None:
            for key in (key for other in others for key in seen.asked(f"pretrain.{other}")):
                yield key, f"does nothing: pretrain.{own} is in its place", "give one of the two"
    steps, every = seen.get("pretrain.steps"), seen.get("pretrain.eval_every")
    if steps is not None and every is not None and every > steps:
        what = f"is more than pretrain.steps={steps}, so nothing would be validated"
        yield "pretrain.eval_every", what, f"give at most {steps}"


RULES = (hold_out_unused, two_lengths)
