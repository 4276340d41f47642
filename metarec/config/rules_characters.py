"""Rules about running text by characters, source=characters (`metarec.config.rules` collects them), and perplexity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from metarec.config.seen import Refusal, Seen
from metarec.data.spec import CharacterSpec, DatasetSpec

OF_EVERY_KIND = ("name", "source", "path", "in_data_dir", "characters")
ELSEWHERE = ("world", "images", "prompts", "vocabulary", "history")  # refused by rules of their own


def _running(seen: Seen) -> bool:
    return bool(seen.get("dataset.source") == "characters")


def characters_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of running text on other data, and options of a log on running text: they would do nothing."""
    spec: DatasetSpec | None = seen.get("dataset")
    if spec is None:
        return
    if not _running(seen):
        asked = seen.asked("dataset.characters")
        for key in asked or (["dataset.characters"] if spec.characters != CharacterSpec() else []):
            yield key, f"does nothing: dataset={spec.name} is no running text", "drop it, or use dataset=wikitext2"
        return
    for name in (field.name for field in fields(DatasetSpec)):
        if name not in (*OF_EVERY_KIND, *ELSEWHERE):
            for key in seen.asked(f"dataset.{name}"):
                yield key, "does nothing: running text is no log", "drop it, or set dataset.characters.*"


def block_longer_than_the_model(seen: Seen) -> Iterator[Refusal]:
    """Blocks of more characters than the model reads: their beginnings would be cut, and the perplexity be another's."""
    length, longest = seen.get("dataset.characters.length"), seen.get("model.max_len")
    if _running(seen) and None not in (length, longest) and length > longest:
        yield "dataset.characters.length", f"is more than model.max_len={longest}", f"add model.max_len={length}"


def perplexity_unused(seen: Seen) -> Iterator[Refusal]:
    """A monitor of pretraining for losses that are no cross-entropy over all that is scored."""
    if seen.get("pretrain.monitor") != "perplexity":
        return
    name = seen.get("objective.name")
    if name not in (None, "cross_entropy", "chunked_cross_entropy"):
        what = f"objective={name} trains no probabilities of the whole vocabulary, so its perplexity says nothing"
        yield "pretrain.monitor", what, "use objective=cross_entropy"


RULES = (characters_unused, block_longer_than_the_model, perplexity_unused)
