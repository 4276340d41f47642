"""Parts: what a run is put together from, each of them one file of a folder, found by its exact name.

    group        folder       the file brings, beside what its paper says
    model        models       Config, build(config, n_items)              or build_of(config, catalogue): `models.Catalogue`
    algorithm    algorithms   Config, build(config, given)              `algorithms.Given`
    residual     residual     Config, build(config, base, model), learnable(config, model)
    objective    objectives   Config, build(config, items)              `objectives.Items`

`Config` is a dataclass of the part's options with their defaults and ranges (`metarec.options`); its `name` is that of the
file. **It is read without running the rest of the file**: help, completion and refusals name options and their ranges in a
tenth of a second, while what a part computes with takes a second or more to import. So what `Config` is made of may be
only dataclasses of the same file, literal constants of it, and what it imports from the standard library's `dataclasses`,
`typing`, `collections.abc` and from `metarec.options`. Where a part does more, that is told in one line when it is chosen.

Nothing outside these folders can be named, and no value ever names a class or a module.
"""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOMS = {
    "model": "models",
    "algorithm": "algorithms",
    "residual": "residual",
    "objective": "objectives",
}
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
    assert name in names(group)
    return importlib.import_module(f"metarec.{ROOMS[group]}.{name}")


def default(group: str, name: str) -> Any:
    """A part's options as they are unless told otherwise."""
    found = options(group, name)
    assert found is not None
    return found()


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
