"""Rules about text tasks, dataset=prompts (`metarec.config.rules` collects them)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields

from metarec.config.seen import Refusal, Seen
from metarec.config.show import show
from metarec.data.spec import DatasetSpec, PromptSpec

OF_EVERY_KIND = ("name", "source", "path", "in_data_dir", "prompts")
ELSEWHERE = ("world", "images", "vocabulary")  # refused by rules of their own
OF_THE_EMBEDDED = ("n_examples", "n_letters", "easy_length", "hard_length")
LEAST_TOKENS = 259  # of bpe:N: 256 bytes and three special ones
OBJECTIVES = ("cross_entropy", "chunked_cross_entropy")


def _text(seen: Seen) -> bool:
    return bool(seen.get("dataset.source") == "prompts")


def _tokens(seen: Seen) -> bool:
    """Text in either form: tasks of examples, or running text."""
    return seen.get("dataset.source") in ("prompts", "characters")


def prompts_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of text tasks on a log or images, and options of a log on text tasks: they would do nothing."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None:
        return
    if not _text(seen):
        keys = seen.asked("dataset.prompts") or (["dataset.prompts"] if spec.prompts != PromptSpec() else [])
        for key in keys:
            what = "has no prompts" if spec.source == "characters" else "is no text"
            yield key, f"does nothing: dataset={spec.name} {what}", "drop it, or use dataset=prompts"
        return
    for name in (field.name for field in fields(DatasetSpec)):
        if name not in (*OF_EVERY_KIND, *ELSEWHERE, "history"):
            for key in seen.asked(f"dataset.{name}"):
                yield key, "does nothing: text tasks are no log", "drop it, or set dataset.prompts.*"


def embedded_unused(seen: Seen) -> Iterator[Refusal]:
    """Sizes of the embedded tasks beside a file: nothing is made."""
    if _text(seen) and seen.get("dataset.path") is not None:
        for name in OF_THE_EMBEDDED:
            for key in seen.asked(f"dataset.prompts.{name}"):
                yield key, "does nothing: the examples are read from dataset.path", "drop it, or dataset.path"


def embedded_sizes(seen: Seen) -> Iterator[Refusal]:
    """Lengths that end before they begin, domains too small for an episode, and too few prompts to be distinct."""
    spec: PromptSpec | None = seen.get("dataset.prompts")
    if spec is None or not _text(seen) or seen.get("dataset.path") is not None:
        return
    each = spec.n_support + spec.n_query
    if spec.n_examples < each:
        fix = f"give {each} or more, or lower n_support and n_query"
        yield "dataset.prompts.n_examples", f"an episode takes {each} examples of a domain", fix
    if spec.n_letters < 4:
        what = "of a shift there are fewer than three k, and each split needs one"
        yield "dataset.prompts.n_letters", what, "give 4 or more"
    for key in ("easy_length", "hard_length"):
        low, high = getattr(spec, key)
        there = sum(min(spec.n_letters, 10) ** length for length in range(low, min(high, low + 6) + 1))
        if low > high:
            yield f"dataset.prompts.{key}", "the fewest characters are more than the most", "give the smaller first"
        elif there < 2 * spec.n_examples:
            what = f"there are {there} such prompts, too few to draw n_examples={spec.n_examples} different ones"
            yield f"dataset.prompts.{key}", what, "give longer ones, or lower dataset.prompts.n_examples"


def splits_add_up(seen: Seen) -> Iterator[Refusal]:
    """Shares of domains that do not add up to 1."""
    shares = seen.get("dataset.prompts.splits")
    if _text(seen) and shares and abs(math.fsum(shares) - 1) > 1e-9:
        fix = "give train, validation and test shares that add up to 1"
        yield "dataset.prompts.splits", f"add up to {math.fsum(shares):g}", fix


def tokenizer_form(seen: Seen) -> Iterator[Refusal]:
    """bpe:N without a sensible N."""
    name = seen.get("dataset.prompts.tokenizer") or ""
    if _text(seen) and name.startswith("bpe:"):
        size = re.fullmatch(r"bpe:(\d{1,7})", name)
        if size is None or int(size[1]) < LEAST_TOKENS:
            fix = f"give bpe:{LEAST_TOKENS} or more, or use bytes"
            yield (
                "dataset.prompts.tokenizer",
                "N is the number of tokens, 256 bytes and three special ones among them",
                fix,
            )


def longer_than_the_model(seen: Seen) -> Iterator[Refusal]:
    """Examples of more tokens than the model reads: the prompt would be cut twice, by two rules."""
    most, longest = seen.get("dataset.prompts.max_tokens"), seen.get("model.max_len")
    if _text(seen) and None not in (most, longest) and most > longest:
        yield "dataset.prompts.max_tokens", f"is more than model.max_len={longest}", f"add model.max_len={most}"


def text_objective(seen: Seen) -> Iterator[Refusal]:
    """A loss that draws items or counts their events: tokens are scored all at once."""
    name = seen.get("objective.name")
    if _tokens(seen) and name not in (None, *OBJECTIVES):
        yield (
            "objective",
            "tokens are scored all at once: there is nothing to draw",
            f"use objective={'|'.join(OBJECTIVES)}",
        )


def text_support(seen: Seen) -> Iterator[Refusal]:
    """Support pairs that count by recency or reliability: the examples of a domain have no order and no sessions."""
    key = "algorithm.inner.support_weights"
    if _tokens(seen) and seen.get(key, "uniform") != "uniform":
        yield key, "the examples of a domain have no order and no sessions", "drop it"


def text_reads_no_log(seen: Seen) -> Iterator[Refusal]:
    """History, unseen candidates and windows, which only a log has."""
    if not _tokens(seen):
        return
    if seen.get("dataset.history") == "user":
        yield "dataset.history", "text tasks have no history", "drop it"
    if seen.get("evaluation.candidates") == "unseen":
        yield "evaluation.candidates", "a response may well repeat a token", "drop it"
    if seen.get("train.sampler") == "window":
        yield "train.sampler", "text tasks have no windows: domains are drawn evenly", "drop it"


def order_unused(seen: Seen) -> Iterator[Refusal]:
    """An order of outer steps where there are none, or nobody knows how many."""
    order = seen.get("dataset.prompts.order")
    if not _text(seen) or order == "random":
        return
    if seen.supervised:
        yield "dataset.prompts.order", "does nothing: algorithm=supervised has no outer loop", "drop it"
    elif seen.get("train.minutes") is not None:
        what = f"{show(order)} goes by the number of steps, which train.minutes leaves open"
        yield "dataset.prompts.order", what, "give train.steps in place of train.minutes"


def prompts_pretrain_unused(seen: Seen) -> Iterator[Refusal]:
    """A choice of what is pretrained on where nothing is."""
    start = seen.get("warm_start")
    if _text(seen) and start not in (None, "auto") and not seen.supervised:
        for key in seen.asked("dataset.prompts.pretrain"):
            what = f"does nothing: with warm_start={start} nothing is pretrained"
            yield key, what, "drop it, or use warm_start=auto"


RULES: tuple[Callable[[Seen], Iterator[Refusal]], ...] = (
    prompts_unused,
    embedded_unused,
    embedded_sizes,
    splits_add_up,
    tokenizer_form,
    longer_than_the_model,
    text_objective,
    text_support,
    text_reads_no_log,
    order_unused,
    prompts_pretrain_unused,
)
