"""Variants of a comparison: each name stands for words of `metarec train`, laid over what all its runs have in common.

    variants: {r1: residual=lora residual.rank=1, stable: experiment=lora_stable}

What a variant's words change is what `metarec train WORDS` has otherwise than `metarec train` alone, and every key that they
name themselves; the choice of another alternative of a group brings all of that alternative. Everything else is the
comparison's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from metarec.config.check import checked
from metarec.config.overrides import check_words, given_keys, normalise
from metarec.config.schema import GROUPS, CompareConfig, TrainConfig
from metarec.errors import ConfigError

Json = dict[str, Any]
OF_THE_COMPARISON = ("seed", "resume", "output_dir", "cache_dir", "data_dir", "reported", "logger", "hardware")


class Variant:
    """The words of one variant, composed; raises ConfigError naming the variant for what they cannot be."""

    def __init__(self, name: str, text: str, config: CompareConfig) -> None:
        try:
            self.words = [normalise(word) for word in shlex.split(text)]
        except ValueError as reason:
            raise ConfigError(f"variants.{name}", text, f"not readable ({reason})", "close the quotes") from reason
        if not self.words:
            raise ConfigError(f"variants.{name}", text, "has no words", "give some, such as residual=lora")
        self._always = [f"data_dir={config.data_dir}"] if config.data_dir else []
        try:
            self.values = self._composed(self.words)
            self.typed = given_keys(self.words)
        except ConfigError as error:
            one = getattr(error, "errors", [error])[0]
            raise ConfigError(f"variants.{name}: {one.where}", one.value, one.what, one.fix) from error
        self.usual = self._composed([])
        for key in sorted(self.typed):
            if key.split(".")[0] in OF_THE_COMPARISON:
                fix = f"give {key} to metarec compare itself"
                raise ConfigError(f"variants.{name}", key, "is the same for all runs of a comparison", fix)

    def _composed(self, words: list[str]) -> Json:
        (job,) = check_words("train", [*words, *self._always], rules=False).jobs
        return asdict(job.config)

    @property
    def algorithm(self) -> str | None:
        """The algorithm, where the words choose one or set one of its options."""
        own = self.values["algorithm"]
        said = any(key.split(".")[0] == "algorithm" for key in self.typed)
        return str(own["name"]) if said or own != self.usual["algorithm"] else None

    def over(self, common: TrainConfig) -> TrainConfig:
        """The run that it makes of what all have in common."""
        base: Json = asdict(common)
        for key, value in self.values.items():
            if key in OF_THE_COMPARISON:
                continue
            usual = self.usual[key]
            chosen = key in GROUPS and (key in self.typed or value["name"] != usual["name"])
            if chosen and value["name"] != base[key]["name"]:
                base[key] = value
            elif chosen:  # the alternative that all have: what they have in common, and what the words change of it
                usual = self._composed([word for word in self.words if word.startswith(f"{key}=")])[key]
                base[key] = self._laid(base[key], value, usual, key)
            elif isinstance(value, Mapping):
                base[key] = self._laid(base[key], value, usual, key)
            elif value != usual or key in self.typed:
                base[key] = value
        made = checked("train", base)
        assert isinstance(made, TrainConfig)
        return made

    def _laid(self, base: Json, value: Mapping[str, Any], usual: Json, key: str) -> Json:
        """`base` with what the words change of a section."""
        out = dict(base)
        for name, new in value.items():
            below = f"{key}.{name}"
            if isinstance(new, Mapping) and isinstance(out.get(name), Mapping):
                out[name] = self._laid(out[name], new, usual.get(name, {}), below)
            elif new != usual.get(name) or below in self.typed:
                out[name] = new
        return out
