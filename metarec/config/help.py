"""`metarec --help` and `metarec VERB --help`, from the schema and the first comment line of each YAML.

Imports neither Hydra nor torch, so that help takes a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarec import parts
from metarec.config.fields import groups, section, type_hints
from metarec.config.paths import conf_dir
from metarec.config.reading import EXAMPLES, MEANING, READING
from metarec.config.schema import GROUPS, VERBS
from metarec.config.show import show

FLAGS = """\
  -m, --multirun          run every combination of values: seed=1,2 residual=off,on,[memory,context]
                          given again it goes on with the jobs that are missing; --again begins a new one
                          with hydra/sweeper=optuna search them, with hydra/launcher=joblib run side by side: docs/search.md
  --cfg job [--resolve]   print the composed configuration and stop
  --info [defaults|...]   print where it comes from and stop
  --config-dir DIR        a directory of your own GROUP/NAME.yaml files
  -h, --help              this text
  --version               the version"""

OVERVIEW = """\
metarec: meta-learning for sequential recommendation

Usage    metarec VERB [key=value ...] [options]

Verbs
{verbs}

Examples
{examples}

`metarec VERB --help` lists the groups and keys of a verb. Tab completion: eval "$(metarec -sc install=bash)"

Exit codes  0 ok  2 usage or configuration  3 data  4 checkpoint  5 disk, lock, permission  6 diverged  1 a bug"""

VERB = """\
{about}

Usage    metarec {verb} [key=value ...] [options]

Examples
{examples}

Groups, chosen with GROUP=NAME (* = default)
{groups}

Keys, set with KEY=VALUE, and their defaults
{keys}

Options
{flags}"""

REPORT = """\
metarec report: one HTML page of finished runs, with tables, curves and the conditions they were measured under.

Usage    metarec report RUN... [key=value ...]

Examples
{examples}

RUN is a run directory, a sweep, a comparison, a directory of them, or a pattern; only finished, unaltered runs are read.
The page needs no network and no script. Of several runs it opens with their comparison.

Keys, set with KEY=VALUE, and their defaults
{keys}"""

COMPARE_RUNS = """\


Of finished runs: metarec compare RUN... [key=value ...] trains nothing

{examples}

RUN is a run directory, a sweep, a comparison, a directory of them, or a pattern. One table: a row for each configuration and
method over its seeds, differences paired over users. Runs of different protocols are refused, saying which key differs.

{keys}"""


def header(path: Path) -> list[str]:
    """The comment lines that open a YAML file, without their marks and without a package directive."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            found.append(line[1:].strip())
    return found


def examples(path: Path) -> list[str]:
    """The commands of a header: the one after ``Try`` and those on the lines below it."""
    lines = header(path)
    first = next((number for number, line in enumerate(lines) if line.startswith("Try ")), len(lines))
    commands = (line.removeprefix("Try").strip() for line in lines[first:])
    return [line for line in commands if line.startswith("metarec ")]


def defaults(verb: str) -> dict[str, str]:
    """Group -> the choice that ``conf/VERB.yaml`` names."""
    text = (conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
    return {group: choice.strip('"') for group, choice in re.findall(r'^  - (\w+): ("?\w+"?)', text, re.MULTILINE)}


def overview() -> str:
    """The text of `metarec --help`."""
    about = {verb: header(conf_dir() / f"{verb}.yaml")[0] for verb in VERBS}
    about["report"] = REPORT.splitlines()[0]
    verbs = [f"  {verb:<10}{text.partition(': ')[2]}" for verb, text in about.items()]
    lines = [f"  {line}" for verb in VERBS for line in examples(conf_dir() / f"{verb}.yaml")]
    lines += [f"  {line}" for verb in READING for line in EXAMPLES[verb]]
    return OVERVIEW.format(verbs="\n".join(verbs), examples="\n".join(lines))


def verb_help(verb: str) -> str:
    """The text of `metarec VERB --help`."""
    if verb == "report":
        return REPORT.format(**_reading("report"))
    path = conf_dir() / f"{verb}.yaml"
    text = VERB.format(
        verb=verb,
        about=header(path)[0],
        examples="\n".join(f"  {line}" for line in examples(path)),
        groups="\n".join(_group_lines(verb)),
        keys="\n".join(_key_lines(verb)),
        flags=FLAGS,
    )
    return text + (COMPARE_RUNS.format(**_reading("compare")) if verb == "compare" else "")


def _reading(verb: str) -> dict[str, str]:
    """Examples and keys of a verb that reads finished runs."""
    specs = dataclasses.fields(READING[verb])
    defaults = {s.name: _default(s) for s in specs}
    lines = [f"  {key:<12} {show(value):<12} {MEANING[key].format(verb=verb)}" for key, value in defaults.items()]
    return {"examples": "\n".join(f"  {line}" for line in EXAMPLES[verb]), "keys": "\n".join(lines)}


def _group_lines(verb: str) -> Iterator[str]:
    chosen = defaults(verb)
    for group in groups(verb):
        yield f"  {group}"
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            mark = "*" if chosen.get(group) == path.stem else " "
            yield f"   {mark}{path.stem:<16} {header(path)[0]}"
        if group == parts.LISTED:
            yield f"    {'[memory,context]':<16} A list: several at once, each with its own section, residual.memory.start"


def _key_lines(verb: str) -> Iterator[str]:
    """The plain keys; those of a group depend on the choice and stand, explained, in its YAML."""
    for spec in dataclasses.fields(VERBS[verb]):
        below = section(type_hints(VERBS[verb])[spec.name])
        if spec.name in GROUPS:
            continue
        if below is None:
            yield f"  {spec.name:<28} {show(_default(spec))}"
            continue
        for inner in dataclasses.fields(below):
            yield f"  {f'{spec.name}.{inner.name}':<28} {show(_default(inner))}"
    yield f"  of a group: `metarec {verb} --cfg job`, or the comments in {conf_dir()}"


def _default(spec: dataclasses.Field[Any]) -> Any:
    return spec.default_factory() if callable(spec.default_factory) else spec.default
