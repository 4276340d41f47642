"""Walks over the dataclasses of `metarec.config.schema`: which keys exist, under which choice of which group."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from metarec import parts
from metarec.config.schema import GROUPS, SCHEMAS, VERBS
from metarec.errors import nearest


@functools.cache
def type_hints(schema: type) -> dict[str, Any]:
    """Field name -> type, with the annotations (strings, in this code base) evaluated."""
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}  # without class attributes


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def section(hint: Any) -> type | None:
    """The dataclass behind a field that is a plain section; None for a value and for a union of alternatives."""
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def groups(verb: str) -> tuple[str, ...]:
    """The groups whose choice is written ``group=choice`` for this verb (`experiment` is of those that train)."""
    found = tuple(name for name in type_hints(VERBS[verb]) if name in GROUPS)
    return (*found, "experiment") if verb in ("train", "compare", "teachers") else found


def alternatives(group: str) -> dict[str, type]:
    """Name -> dataclass of the alternatives of a group that have schemas of their own; empty where all share one."""
    listed = {name: schema for (of, name), schema in SCHEMAS.items() if of == group and name is not None}
    brought = {name: parts.options(group, name) for name in parts.names(group)} if group in parts.ROOMS else {}
    return {name: schema for name, schema in (brought | listed).items() if schema is not None}


def group_schema(group: str, name: object) -> type | None:
    """The dataclass of this alternative, or None when nothing is registered under that exact name."""
    found = SCHEMAS.get((group, None)) or SCHEMAS.get((group, str(name)))
    return found or parts.options(group, str(name))


def walk(schema: type, prefix: str) -> Iterator[tuple[str, bool]]:
    """Every dotted key below `prefix`, with whether it is a section."""
    for name, hint in type_hints(schema).items():
        below = section(hint)
        yield f"{prefix}{name}", below is not None
        if below is not None:
            yield from walk(below, f"{prefix}{name}.")


def keys(verb: str, chosen: Mapping[str, str]) -> dict[str, bool]:
    """Every dotted key of the verb under the chosen alternatives (group -> name) -> whether it is a section."""
    found: dict[str, bool] = {}
    for name, hint in type_hints(VERBS[verb]).items():
        schema = group_schema(name, chosen.get(name)) if name in GROUPS else section(hint)
        found[name] = name in GROUPS or schema is not None
        if schema is not None:
            found.update(walk(schema, f"{name}."))
    return found


def explain_unknown(verb: str, key: str, chosen: Mapping[str, str]) -> tuple[str, str]:
    """What is wrong with a key that does not exist, and the nearest way out.

    Looks, in this order, at the other alternatives of its group, its siblings, keys that end the same way, all keys.
    """
    group, _, rest = key.partition(".")
    owners = [name for name, schema in alternatives(group).items() if rest in dict(walk(schema, ""))]
    listed = chosen.get(group, "").split(parts.JOINED) if parts.is_list(group, chosen.get(group, "")) else []
    if here := [f"{group}.{name}.{rest}" for name in listed if name in owners]:
        return "unknown key", f"did you mean {' or '.join(here)}?"
    if rest and group in groups(verb) and owners:
        return f"{group}={chosen.get(group)} has no such key", f"it belongs to {group}={'|'.join(owners)}"
    known = keys(verb, chosen)
    parent, _, last = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    same_end = [k for k in known if k.endswith(f".{key}") or (parent and k.endswith(f".{last}"))]
    siblings = {k[len(prefix) :]: k for k in known if k.startswith(prefix) and "." not in k[len(prefix) :]}
    by_end = {k.rpartition(".")[2]: k for k in known}
    if parent and (near := nearest(last, siblings)):
        return "unknown key", f"did you mean {siblings[near]}?"
    if same_end:
        return "unknown key", f"did you mean {' or '.join(same_end[:4])}?"
    pool = {**by_end, **siblings, **{k: k for k in known}}
    if near := nearest(key, pool):
        return "unknown key", f"did you mean {pool[near]}?"
    return "unknown key", f"`metarec {verb} --help` lists the keys"
