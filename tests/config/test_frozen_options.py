"""Every verb, flag, group, alternative and key is written down in frozen_options.txt: a change to one is a decision.

A key that goes or changes its name, type, default or range breaks somebody's command, or moves somebody's numbers. Meant so?

    python tests/config/test_frozen_options.py     # writes the list anew; its difference belongs into CHANGELOG.md
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarec.config.arguments import parser_of
from metarec.config.check import DATASET_RANGES
from metarec.config.fields import alternatives, group_schema, groups, section, type_hints
from metarec.config.paths import conf_dir
from metarec.config.reading import READING
from metarec.config.schema import GROUPS, VERBS

FROZEN = Path(__file__).with_name("frozen_options.txt")


def lines_of(schema: type, prefix: str, limits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for each key of a dataclass and of its sections: name, type, default, what is allowed."""
    made, hints = schema(), type_hints(schema)
    for field in dataclasses.fields(schema):
        key, below = f"{prefix}{field.name}", section(hints[field.name])
        if key in GROUPS:
            continue
        if below is not None:
            yield from lines_of(below, f"{key}.", limits)
            continue
        allowed = limits.get(key, field.metadata)
        words = [
            f"{name} {sorted(v) if isinstance(v, frozenset | set) else v}" for name, v in sorted(allowed.items()) if v
        ]
        yield f"  {key}: {field.type} = {getattr(made, field.name)!r}" + (f"   {', '.join(words)}" if words else "")


def listing() -> str:
    found = ["flags: " + " ".join(flag for action in parser_of("metarec")._actions for flag in action.option_strings)]
    for verb, schema in VERBS.items():
        found += ["", f"metarec {verb}", f"  groups: {' '.join(groups(verb))}"]
        found += lines_of(schema, "", DATASET_RANGES)
    for verb, schema in READING.items():
        found += ["", f"metarec {verb} RUN...", *lines_of(schema, "", {})]
    for group in (*GROUPS, "experiment"):
        found += ["", f"{group}= {' '.join(sorted(path.stem for path in (conf_dir() / group).glob('*.yaml')))}"]
        shared = group_schema(group, None) if group != "experiment" else None
        if shared is not None:
            found += lines_of(shared, f"{group}.", DATASET_RANGES)
        for name in sorted(alternatives(group)):
            found += [f" {group}={name}", *lines_of(alternatives(group)[name], "  ", {})]
    return "\n".join(found) + "\n"


def test_options_are_frozen() -> None:
    was, now = FROZEN.read_text(encoding="utf-8"), listing()
    changed = [line for line in difflib.ndiff(was.splitlines(), now.splitlines()) if line[0] in "+-"]
    assert was == now, f"{__doc__}\n" + "\n".join(changed)


def test_a_changed_default_and_a_lost_key_are_seen() -> None:
    now = listing()
    assert "  train.steps: int = 1000   min 1\n" in now
    assert " algorithm=maml_pp\n" in now
    assert isinstance(parser_of("metarec"), argparse.ArgumentParser)


if __name__ == "__main__":
    FROZEN.write_text(listing(), encoding="utf-8")
