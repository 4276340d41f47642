"""From plain nested values to the typed config of a verb, collecting every error before any is raised."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from metarec.config.fields import alternatives, explain_unknown, group_schema, options, section, type_hints
from metarec.config.rules import contradictions
from metarec.config.schema import GROUPS, SEED_MAX, VERBS, Config
from metarec.config.seen import Seen
from metarec.config.show import choose, show
from metarec.data.formats import FORMATS
from metarec.data.spec import DELIMITERS
from metarec.errors import ConfigError

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of Linux and most file systems

# Allowed values of the group `dataset`, whose dataclasses (metarec.data.spec) know nothing of configuration.
DATASET_RANGES: dict[str, dict[str, Any]] = {
    "dataset.source": {"choices": ("log", "synthetic", "episode_tables", "omniglot", "prompts", "characters")},
    "dataset.path": {"path": True},
    "dataset.format": {"choices": ("auto", *FORMATS)},
    "dataset.time_unit": {"choices": ("auto", "s", "ms", "us", "ns", "iso", "order")},
    "dataset.ties": {"choices": ("item", "row", "order")},
    "dataset.duplicates": {"choices": ("error", "drop", "keep")},
    "dataset.memory_limit": {"pattern": r"\d+(\.\d+)?\s?([KMGT]i?B)", "form": "a size such as 1500MB or 2GB"},
    "dataset.delimiter": {"pattern": "|".join(["(?s).", *map(re.escape, DELIMITERS)]), "form": "one character, or tab"},
    "dataset.vocabulary": {"choices": ("training", "all")},
    "dataset.history": {"choices": ("sessions", "user")},
    "dataset.sessions.by": {"choices": ("auto", "gap", "user", "column")},
    "dataset.sessions.gap_minutes": {"min": 0, "exclusive": {"min"}},
    "dataset.sessions.min_events": {"min": 2},
    "dataset.sessions.order": {"choices": ("real", "shuffled")},
    "dataset.sessions.shuffle_seed": {"min": 0, "max": SEED_MAX},
    "dataset.core.min_user_events": {"min": 0},
    "dataset.core.min_item_events": {"min": 0},
    "dataset.split.by": {"choices": ("auto", "user_time", "user_disjoint", "leave_one_out", "column")},
    "dataset.split.fractions": {"min": 0, "max": 1, "exclusive": {"min", "max"}, "length": 3},
    "dataset.split.time_quantiles": {"min": 0, "max": 1, "exclusive": {"min", "max"}, "length": 2},
    "dataset.split.seed": {"min": 0, "max": SEED_MAX},
    "dataset.episodes.n_support": {"min": 1},
    "dataset.episodes.n_query": {"min": 1},
    "dataset.episodes.stride": {"min": 1},
    "dataset.world.kind": {"choices": ("preference", "transition")},
    "dataset.world.n_users": {"min": 1, "max": 10**7},
    "dataset.world.n_items": {"min": 2, "max": 10**7},
    "dataset.world.n_types": {"min": 1},
    "dataset.world.n_topics": {"min": 1},
    "dataset.world.concentration": {"min": 0, "exclusive": {"min"}},
    "dataset.world.min_sessions": {"min": 1},
    "dataset.world.max_sessions": {"min": 1},
    "dataset.world.min_events": {"min": 2},
    "dataset.world.max_events": {"min": 2},
    "dataset.world.noise": {"min": 0, "max": 1},
    "dataset.images.n_way": {"min": 2},
    "dataset.images.n_shot": {"min": 1},
    "dataset.images.n_query": {"min": 1},
    "dataset.images.n_val": {"min": 2},
    "dataset.images.n_test": {"min": 2},
    "dataset.images.seed": {"min": 0, "max": SEED_MAX},
    "dataset.prompts.n_support": {"min": 1},
    "dataset.prompts.n_query": {"min": 1},
    "dataset.prompts.n_episodes": {"min": 1},
    "dataset.prompts.tokenizer": {"path": True},
    "dataset.prompts.max_tokens": {"min": 4},
    "dataset.prompts.order": {"choices": ("random", "easy_then_hard", "rising")},
    "dataset.prompts.pretrain": {"choices": ("all", "easy")},
    "dataset.prompts.splits": {"min": 0, "max": 1, "exclusive": {"min", "max"}, "length": 3},
    "dataset.prompts.seed": {"min": 0, "max": SEED_MAX},
    "dataset.prompts.n_examples": {"min": 2},
    "dataset.prompts.n_letters": {"min": 2, "max": 26},
    "dataset.prompts.easy_length": {"min": 1, "length": 2},
    "dataset.prompts.hard_length": {"min": 1, "length": 2},
    "dataset.characters.length": {"min": 1},
    "dataset.characters.min_count": {"min": 1},
    "dataset.characters.n_support": {"min": 1},
    "dataset.characters.n_query": {"min": 1},
    "dataset.characters.n_episodes": {"min": 1},
    "dataset.characters.seed": {"min": 0, "max": SEED_MAX},
    "dataset.world.seed": {"min": 0, "max": SEED_MAX},
    **{f"dataset.columns.{f}": {"filled": True} for f in ("user", "item", "time", "session", "order", "split")},
}
EXACT = 2**53  # whole numbers up to here are floats without loss, and products of a few of them are no overflow
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (in quotes where YAML would read something else)",
    types.NoneType: "null",
}


class ConfigErrors(ConfigError):
    """Several configuration errors at once; its text has a line for each."""

    def __init__(self, errors: list[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.where, first.value, first.what, first.fix)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)


def raise_all(errors: list[ConfigError]) -> None:
    """Raise what was collected: the error itself when there is one, `ConfigErrors` when there are several."""
    unique = list({str(error): error for error in errors}.values())
    if len(unique) == 1:
        raise unique[0]
    if unique:
        raise ConfigErrors(unique)


class Wrong(Exception):
    """A value that does not have the type or lies outside of what is allowed: (what, fix)."""


def convert(hint: Any, raw: object) -> object:
    """`raw` as the type `hint`, or `Wrong`. 1e3 is a whole number; "on" and "no" are booleans; 7 can be text."""
    allowed = options(hint)
    if raw is None and types.NoneType in allowed:
        return None
    if isinstance(raw, list):
        for option in allowed:
            if typing.get_origin(option) is list:
                return [convert(typing.get_args(option)[0], element) for element in raw]
    if isinstance(raw, Mapping):
        for option in allowed:
            if typing.get_origin(option) is dict:
                return {str(key): convert(typing.get_args(option)[1], value) for key, value in raw.items()}
    if bool in allowed and str(raw).lower() in WORDS:
        return WORDS[str(raw).lower()]
    if isinstance(raw, str | int | float) and not isinstance(raw, bool):
        number = _number(raw)
        if int in allowed and number is not None and number == int(number):
            return int(raw) if isinstance(raw, int) else int(number)
        if float in allowed and number is not None:
            return number
        if str in allowed:
            return str(raw)
    if isinstance(raw, float) and not math.isfinite(raw):
        raise Wrong("not finite", "give a finite number")
    names = [EXPECTED.get(option) or _several(option) for option in allowed]
    raise Wrong("wrong type", f"give {' or '.join(names)}")


def _several(hint: Any) -> str:
    below = typing.get_args(hint)[-1]
    inside = EXPECTED.get(below) or _several(below)
    return f"a list, each {inside}" if typing.get_origin(hint) is list else f"names with a value each: {inside}"


def _number(raw: str | int | float) -> float | None:
    """The finite number that `raw` is or spells, else None."""
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def check_range(limits: Mapping[str, Any], value: object) -> None:
    """`Wrong` when a converted value is outside of its limits (see `metarec.config.schema.ranged`)."""
    if value is None:
        return
    if isinstance(value, list):
        if not value:
            raise Wrong("empty list", "give at least one value")
        if limits.get("length", len(value)) != len(value):
            raise Wrong("wrong length", f"give {limits['length']} values")
        for element in value:
            check_range(limits, element)
        return
    if (limits.get("path") or limits.get("filled")) and value == "":
        raise Wrong("empty", "name it, or leave the key out")
    if limits.get("path") and isinstance(value, str):
        check_path(value)
    if "choices" in limits and value not in limits["choices"]:
        raise Wrong("not a choice", choose(value, limits["choices"]))
    if "pattern" in limits and not re.fullmatch(limits["pattern"], str(value)):
        raise Wrong("not understood", f"give {limits['form']}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > EXACT:
            raise Wrong("out of range", f"give a value of at most {EXACT} and no less than {-EXACT}")
        low, high, open_ends = limits.get("min"), limits.get("max"), limits.get("exclusive", ())
        too_low = low is not None and (value <= low if "min" in open_ends else value < low)
        too_high = high is not None and (value >= high if "max" in open_ends else value > high)
        if too_low or too_high:
            bounds = [] if low is None else [f"{'>' if 'min' in open_ends else '>='} {low}"]
            bounds += [] if high is None else [f"{'<' if 'max' in open_ends else '<='} {high}"]
            raise Wrong("out of range", f"give a value {' and '.join(bounds)}")


def check_path(value: str) -> None:
    """`Wrong` for what no file system takes as a path, which is asked nowhere else before files are looked for."""
    if "\0" in value:
        raise Wrong("a NUL in a path", "give the path of a file or directory")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:  # a run card in JSON cannot hold it
        raise Wrong("its bytes are no UTF-8", "give the path in UTF-8") from None
    if len(encoded) >= LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(b"/")):
        what = f"too long: a name has at most {LONGEST_NAME} bytes, a path fewer than {LONGEST_PATH}"
        raise Wrong(what, "give a shorter path")


class Walk:
    """One pass over the values of one verb."""

    def __init__(self, verb: str, values: Mapping[str, Any], complete: bool) -> None:
        self.verb, self.complete = verb, complete
        self.errors: list[ConfigError] = []
        self.bad: set[str] = set()
        nodes = {group: values[group] for group in GROUPS if isinstance(values.get(group), Mapping)}
        self.chosen = {group: str(node["name"]) for group, node in nodes.items() if "name" in node}

    def fail(self, where: str, value: object, what: str, fix: str) -> None:
        """Note an error and go on; `where` counts as bad from then on."""
        self.bad.add(where)
        self.errors.append(ConfigError(where, show(value), what, fix))

    def node(self, schema: type, values: object, path: str) -> Any:
        """An instance of `schema`; a field in error keeps its default, so that the rest can still be looked at."""
        prefix = f"{path}." if path else ""
        if not isinstance(values, Mapping):
            fix = f"set one of its keys, such as {prefix}{next(iter(type_hints(schema)))}"
            self.fail(path, values, "is a section, not a value", fix)
            return schema()
        hints = type_hints(schema)
        for key, value in values.items():
            if key not in hints:
                self.fail(f"{prefix}{key}", value, *explain_unknown(self.verb, f"{prefix}{key}", self.chosen))
        filled = {}
        for spec in dataclasses.fields(schema):
            where = f"{prefix}{spec.name}"
            if spec.name in values:
                found = self.field(spec, hints[spec.name], values[spec.name], where)
                if found is not dataclasses.MISSING:
                    filled[spec.name] = found
            elif self.complete:
                self.fail(where, "nothing", "missing", "the file was cut or comes from another version: run anew")
        return schema(**filled)

    def field(self, spec: dataclasses.Field[Any], hint: Any, raw: object, where: str) -> Any:
        """The checked value of a field; MISSING where it is in error, which then stands in `errors`."""
        if where in GROUPS:
            return self.group(where, raw)
        if (below := section(hint)) is not None:
            return self.node(below, raw, where)
        limits = DATASET_RANGES.get(where, spec.metadata)
        try:
            value = convert(hint, raw)
            check_range(limits, value)
        except Wrong as wrong:
            what, fix = wrong.args
            if what == "wrong type" and "choices" in limits:
                fix = choose(raw, limits["choices"])
            self.fail(where, raw, what, fix)
            return dataclasses.MISSING
        return os.path.expanduser(value) if limits.get("path") and isinstance(value, str) else value

    def group(self, group: str, raw: object) -> Any:
        """The alternative of a group that ``name`` chooses, with its options; MISSING where none can be told."""
        if not isinstance(raw, Mapping):
            self.fail(group, raw, "is a group, not a value", f"choose an alternative, {group}=NAME")
            return dataclasses.MISSING
        names = alternatives(group)
        schema = group_schema(group, raw.get("name"))
        if schema is None:
            trap = " in quotes: unquoted, YAML reads a boolean" if isinstance(raw.get("name"), bool) else ""
            self.fail(f"{group}.name", raw.get("name"), "nothing by that name", choose(raw.get("name"), names) + trap)
            return dataclasses.MISSING
        if names and self.complete and "name" not in raw:
            self.fail(f"{group}.name", "nothing", "missing", f"name one of {'|'.join(names)}")
        return self.node(schema, raw, group)


def check(
    verb: str,
    values: Mapping[str, Any],
    given: Collection[str] = (),
    *,
    rules: bool = True,
    complete: bool = False,
) -> tuple[Config, list[ConfigError]]:
    """The typed config of a verb and everything that is wrong with the values.

    `given`: the keys and groups set explicitly on the command line, for the rules that refuse options without effect.
    `rules=False` leaves contradictions out (showing a config); `complete=True` demands every key (a stored config).
    """
    walk = Walk(verb, values, complete)
    config: Config = walk.node(VERBS[verb], values, "")
    errors = walk.errors
    if rules:
        seen = Seen(verb, config, frozenset(given))
        errors = errors + [error for error in contradictions(seen) if not _touches(error.where, walk.bad)]
    return config, errors


def _touches(where: str, bad: set[str]) -> bool:
    """Whether a contradiction speaks of a key that is already in error (and so only seems to have its default)."""
    return any(where == key or where.startswith(f"{key}.") for key in bad)


def checked(verb: str, values: Mapping[str, Any], given: Collection[str] = (), **options: bool) -> Config:
    """`check`, raising all errors at once."""
    config, errors = check(verb, values, given, **options)
    raise_all(errors)
    return config
