"""Every verb, flag, group, alternative and key is written down in frozen_options.txt: a change to one is a decision.

A key that goes or changes its name, type, default or range breaks somebody's command, or moves somebody's numbers. Meant so?

    python tests/config/test_frozen_options.py     # writes the list anew; its difference belongs into CHANGELOG.md
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarec import parts
from metarec.baselines import NAMES
from metarec.config.arguments import parser_of
from metarec.config.check import DATASET_RANGES
from metarec.config.fields import alternatives, group_schema, groups, section, type_hints
from metarec.config.paths import conf_dir
from metarec.config.reading import READING
from metarec.config.schema import GROUPS, OF_A_MODEL, VERBS
from metarec.data.formats import FORMATS
from metarec.metrics import METRICS

# lists that grow by a file and a line, and may: what stands in them stays
OPEN = {
    **{f"{group}s": parts.names(group) for group in parts.ROOMS},
    "metrics": tuple(METRICS),
    "formats": tuple(FORMATS),
}
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
        allowed = dict(limits.get(key, field.metadata))
        if (chosen := allowed.get("choices")) is not None:
            allowed["choices"] = next(
                (f"any of {name}" for name, names in OPEN.items() if set(names) <= set(chosen)), chosen
            )
        words = [
            f"{name} {sorted(v) if isinstance(v, frozenset | set) else v}"
            for name, v in sorted(allowed.items())
            if v not in (None, frozenset())
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
    found += ["", *(f"{name}= {' '.join(names)}" for name, names in {**OPEN, "rows": (*NAMES, *OF_A_MODEL)}.items())]
    return "\n".join(found) + "\n"


def changes(was: str, now: str) -> list[str]:
    """Lines that are gone, changed or new. A new alternative of a group is none of these: its YAML is counted elsewhere."""
    known = {line for line in was.splitlines() if line.startswith(" ") and not line.startswith("  ")}
    kept, skipping = list[str](), False
    for line in now.splitlines():
        if not line.startswith("  "):
            skipping = line.startswith(" ") and line not in known
        if not skipping:
            kept.append(line)
    lists = {line.split("= ")[0]: set(line.split()[1:]) for line in kept if re.match(r"\w+= ", line)}
    open_before = {line.split("= ")[0]: set(line.split()[1:]) for line in was.splitlines() if re.match(r"\w+= ", line)}
    lost = [
        f"- {name}= {gone}" for name, names in open_before.items() for gone in sorted(names - lists.get(name, set()))
    ]

    def rest(lines: list[str]) -> list[str]:
        return [line for line in lines if not re.match(r"\w+= ", line)]

    return lost + [line for line in difflib.ndiff(rest(was.splitlines()), rest(kept)) if line[0] in "+-"]


def test_options_are_frozen() -> None:
    found = changes(FROZEN.read_text(encoding="utf-8"), listing())
    assert found == [], f"{__doc__}\n" + "\n".join(found)


def test_what_is_lost_or_changed_is_seen_and_a_new_part_is_none() -> None:
    was = listing()
    line = "  train.steps: int = 1000   min 1\n"
    assert line in was
    assert changes(was, was.replace(line, line.replace("1000", "999"))) != []
    assert changes(was, was.replace(line, "")) != []
    assert changes(was, was.replace("algorithm= anil ", "algorithm= ")) == ["- algorithm= anil"]
    assert (
        changes(was, was.replace(" algorithm=maml\n", " algorithm=own\n    name: str = 'own'\n algorithm=maml\n")) == []
    )
    assert changes(was, was.replace("algorithm= anil ", "algorithm= anil own ")) == []


if __name__ == "__main__":
    FROZEN.write_text(listing(), encoding="utf-8")
