"""Parts: what a run is put together from, each of them one file of a folder, found by its exact name.

    group        folder       the file brings, beside what its paper says
    model        models       Config, build(config, n_items)              or build_of(config, catalogue): `models.Catalogue`
    algorithm    algorithms   Config, build(config, given)              `algorithms.Given`
    residual     residual     Config, build(config, base, model), learnable(config, model)
    objective    objectives   Config, build(config, items)              `objectives.Items`
    optimizer    optimizers   Config, build(config, given)              `optimizers.Given`

`Config` is a dataclass of the part's options with their defaults and ranges (`metarec.options`); its `name` is that of the
file. **It is read without running the rest of the file**: help, completion and refusals name options and their ranges in a
tenth of a second, while what a part computes with takes a second or more to import. So what `Config` is made of may be
only dataclasses of the same file, literal constants of it, and what it imports from the standard library's `dataclasses`,
`typing`, `collections.abc` and from `metarec.options`. Where a part does more, that is told in one line when it is chosen.

Residuals may be several at once: the name "memory+context" stands for both, with a section of options each, and the file
`residual/several.py` puts them together.

Nothing outside these folders can be named, and no value ever names a class or a module.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from metarec.errors import nearest
from metarec.options import Several

ROOMS = {
    "model": "models",
    "algorithm": "algorithms",
    "residual": "residual",
    "objective": "objectives",
    "optimizer": "optimizers",
}
LISTED, JOINED = "residual", "+"  # the group of which several may be chosen, and what joins their names
MAY_IMPORT = ("__future__", "dataclasses", "typing", "collections.abc", "metarec.options")


def names(group: str) -> tuple[str, ...]:
    """The parts of a group: the files of its folder that hold a class `Config`."""
    return tuple(_files(group))


def _files(group: str) -> dict[str, Path]:
    package = sys.modules.get(f"metarec.{ROOMS[group]}")  # not imported for its names
    return _parts_in(tuple(package.__path__) if package else (str(Path(__file__).parent / ROOMS[group]),))


@functools.cache
def _parts_in(folders: tuple[str, ...]) -> dict[str, Path]:
    files = sorted(file for folder in folders for file in Path(folder).glob("*.py"))
    return {file.stem: file for file in files if "\nclass Config" in file.read_text(encoding="utf-8")}


def options(group: str, name: str) -> type | None:
    """The dataclass `Config` of a part, read without running its file; None where there is no such part."""
    if is_list(group, name):
        return None if list_trouble(name) else _several(name, tuple(options(group, own) for own in name.split(JOINED)))
    file = _files(group).get(name) if group in ROOMS else None
    return None if file is None else _options(group, file)


@functools.cache
def _options(group: str, file: Path) -> type:
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in MAY_IMPORT]
    imports = [node for node in imports if not node.level and all(alias.name != "*" for alias in node.names)]
    literals = [node for node in tree.body if isinstance(node, ast.Assign) and _literal(node.value)]
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    wanted = _needed("Config", classes)
    body: list[ast.stmt] = [*imports, *literals, *(node for node in classes.values() if node.name in wanted)]
    module = ModuleType(f"{__name__}.{ROOMS[group]}.{file.stem}", f"The options of {file.name}.")
    sys.modules[module.__name__] = module  # dataclasses and typing look annotations up there
    try:
        exec(compile(ast.Module(body, type_ignores=[]), str(file), "exec"), module.__dict__)
    except NameError as missing:
        raise ImportError(
            f"{file.name}: Config uses {missing.name}, which is neither a literal constant nor a dataclass of the file, "
            f"nor imported from {', '.join(MAY_IMPORT[1:])}"
        ) from missing
    found: type = module.Config
    return found


def load(group: str, name: str) -> ModuleType:
    """The file of a part, run; of a name that `options` knows."""
    if is_list(group, name):
        return importlib.import_module(f"metarec.{ROOMS[group]}.several")
    assert name in names(group)
    return importlib.import_module(f"metarec.{ROOMS[group]}.{name}")


def default(group: str, name: str) -> Any:
    """A part's options as they are unless told otherwise."""
    found = options(group, name)
    assert found is not None
    return found()


def filled(group: str, values: Mapping[str, Any]) -> Any:
    """A part's options from plain values that were checked, as `dataclasses.asdict` gives them; None for no such part."""
    schema = options(group, str(values["name"]))
    if schema is None:
        return None
    if not is_list(group, str(values["name"])):
        return schema(**values)
    return schema(**{key: value if key == "name" else filled(group, value) for key, value in values.items()})


def is_list(group: str, name: str) -> bool:
    """Whether a name is meant for several parts at once."""
    return group == LISTED and JOINED in name


def list_trouble(name: str) -> tuple[str, str] | None:
    """What is wrong with the name of a list and the way out; None where all is right."""
    known, own = names(LISTED), name.split(JOINED)
    for one in own:
        if one not in known:
            near = nearest(one, known)
            hint = f"did you mean {near}? " if near else ""
            return f"no {LISTED} is called {one or 'nothing'}", f"{hint}choose {'|'.join(known)}"
    if twice := [one for one in own if own.count(one) > 1]:
        return f"{twice[0]} stands twice", "give each once"
    return None


class Listable(Mapping[str, None]):
    """Names as choices, of which lists may be made as well: it has "memory+context", and is walked name by name."""

    def __init__(self, group: str) -> None:
        self.group = group

    def __getitem__(self, name: str) -> None:
        if options(self.group, str(name)) is None:
            raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.group))

    def __len__(self) -> int:
        return len(names(self.group))


@functools.cache
def _several(name: str, schemas: tuple[type, ...]) -> type:
    own = [(one, schema, dataclasses.field(default_factory=schema))
           for one, schema in zip(name.split(JOINED), schemas, strict=True)]  # fmt: skip
    named = [("name", str, dataclasses.field(default=name))]
    return dataclasses.make_dataclass("Config", [*named, *own], bases=(Several,))


def _needed(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The classes that a class names anywhere in itself, and those that they name."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        one = ahead.pop()
        if one in classes and one not in found:
            found.add(one)
            ahead += [node.id for node in ast.walk(classes[one]) if isinstance(node, ast.Name)]
    return found


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True
