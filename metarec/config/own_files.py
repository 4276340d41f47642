"""YAML files of the user's own, read here before Hydra or OmegaConf sees them: what no such file may hold.

Hydra acts on a configuration while it composes and before `main` runs: it imports what a search path names, calls what
``_target_`` names in its own node, looks interpolations up, and follows `defaults` wherever they lead. OmegaConf builds
what a file's aliases multiply to. So a file is first taken apart into YAML's own nodes, which builds and calls nothing, and
only plain options of known groups pass:

    tags             those of plain values, no !!python/...
    keys             no `hydra`, no `_target_` and its kin
    interpolations   other keys, and the environment's METAREC_* alone
    defaults         names below the known groups, no way out of the directory
    size             LARGEST bytes, DEEPEST levels, MOST nodes with aliases written out

Whoever types a command is trusted, a file is not (`metarec.config.overrides` has the words).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

import yaml

from metarec.errors import ConfigError

LARGEST, DEEPEST, MOST, MOST_FILES = 2**17, 24, 20_000, 2_000
FIX = "remove it from the file"
TYPE = "write the value itself, or type it on the command line"
PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge", "timestamp")
}
CALLS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_KEY = r"\.*[A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*"
# another key, and METAREC_* of the environment with a plain default
ALLOWED = re.compile(rf"\$\{{\s*(?:{_KEY}|oc\.env\s*:\s*METAREC_[A-Z_]+\s*(?:,[^${{}}]*)?)\s*\}}")
NAME = re.compile(r"[A-Za-z0-9_][\w+.-]*(?:/[A-Za-z0-9_][\w+.-]*)*")
PACKAGE = re.compile(r"\s*#\s*@package\s+(\S+)")


def check_directory(root: Path, groups: Collection[str]) -> list[ConfigError]:
    """What is wrong with the files GROUP/**/*.yaml under a directory, in the order of their names."""
    found: list[ConfigError] = []
    for number, path in enumerate(_files(root, groups)):
        if number == MOST_FILES:
            what = f"more than {MOST_FILES} YAML files in the directories of groups"
            return [*found, ConfigError(root, path, what, "give a directory of GROUP/NAME.yaml files")]
        found += _file(path, root, groups)
    return found


def check_text(where: object, text: str) -> list[ConfigError]:
    """What is wrong with a YAML text as such: tags, size, depth, and keys that would name something to call."""
    return [ConfigError(where, *wrong) for wrong in _nodes(text, interpolations=False)]


def _files(root: Path, groups: Collection[str]) -> Iterator[Path]:
    for group in sorted(groups):
        for folder, below, names in os.walk(root / group, followlinks=True):
            if not _inside(Path(folder), root):
                below.clear()
                yield Path(folder)
                continue
            below.sort()
            yield from (Path(folder) / name for name in sorted(names) if name.endswith((".yaml", ".yml")))


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _file(path: Path, root: Path, groups: Collection[str]) -> Iterator[ConfigError]:
    if not _inside(path, root):
        yield ConfigError(
            path, path.resolve(), f"a link that leads out of {root}", "copy it there, or give its own directory"
        )
        return
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            yield ConfigError(path, stat.filemode(state.st_mode), "no regular file", FIX)
            return
        if state.st_size > LARGEST:
            yield ConfigError(path, f"{state.st_size:,} bytes", f"a configuration has at most {LARGEST:,}", "divide it")
            return
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        yield ConfigError(path, type(reason).__name__, f"not readable as UTF-8 text ({reason})", "write it again")
        return
    for line in text.splitlines():
        header = PACKAGE.match(line)
        if header and "hydra" in re.split(r"[.\s]", header[1]):
            yield ConfigError(path, header[1], "a file may not set up Hydra itself", "remove the header")
    yield from (ConfigError(path, *wrong) for wrong in _nodes(text, groups=groups))


def _nodes(text: str, *, groups: Collection[str] = (), interpolations: bool = True) -> Iterator[tuple[str, str, str]]:
    """(value, what is wrong, the way out) of a text; after one that makes the rest unreadable, none."""
    if len(text) > LARGEST:
        yield f"{len(text):,} characters", f"a configuration has at most {LARGEST:,}", "divide it"
        return
    if _open_brackets(text) > 4 * DEEPEST:  # the scanner's time is the square of them
        yield "brackets", "nested too deeply for a YAML file", FIX
        return
    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes alone: nothing is built, no tag is looked up
    except RecursionError:
        yield "levels", "nested too deeply for a YAML file", FIX
        return
    except (yaml.YAMLError, ValueError) as reason:
        said = " ".join(str(reason).split())[:200]
        yield "text", f"not readable as YAML: {said}", "mend the file"
        return
    if top is None:
        return
    try:
        size = _size(top, 0, {}, set())
    except _TooMuch as reason:
        yield str(reason.args[0]), str(reason.args[1]), FIX
        return
    if size > MOST:
        yield f"{size:,} values", f"with its aliases written out the file has more than {MOST:,} values", FIX
        return
    seen: set[int] = set()
    ahead: list[yaml.Node] = [top]
    while ahead:
        node = ahead.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.tag not in PLAIN:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            yield tag, "a YAML tag that stands for an object", "write a plain value"
        if isinstance(node, yaml.ScalarNode):
            if interpolations and "${" in ALLOWED.sub("", node.value):
                what = "may not be looked up from a file: other keys may, and METAREC_* of the environment"
                yield node.value, what, TYPE
            continue
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping as a key"
                if not isinstance(key, yaml.ScalarNode):
                    yield name, "is no name of an option", FIX
                elif name in CALLS:
                    yield name, "names something to call, which no configuration does", FIX
                elif node is top and groups and re.fullmatch(r"hydra(\W.*)?", name):
                    what = "may not be set by a configuration file"
                    yield name, what, "remove it from the file; some of it can be typed on the command line"
                    continue
                elif node is top and groups and name == "defaults":
                    yield from _defaults(value, groups)
                    continue
                ahead += [key, value]
        else:
            ahead += node.value


def _defaults(node: yaml.Node, groups: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a defaults list: each entry is a name of the same group, or GROUP: NAME of a known group."""
    fix = "write GROUP: NAME, of a group that metarec has"
    if not isinstance(node, yaml.SequenceNode):
        yield "defaults", "is a list", fix
        return
    for entry in node.value:
        for key, value in entry.value if isinstance(entry, yaml.MappingNode) else [(None, entry)]:
            group = None if key is None else str(key.value)
            bare = None if group is None else re.sub(r"^((optional|override)\s+)*/?", "", group)
            if bare is not None and bare.partition("/")[0] == "hydra":
                what = "may not be set by a configuration file"
                yield f"defaults: {group}", what, "remove it from the file; it can be typed on the command line"
            elif bare is not None and bare not in groups:
                yield f"defaults: {group}", "no group of metarec", fix
            elif bare is None or not value.tag.endswith(":null"):
                for name in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    yield from _default(name, bare)


def _default(node: yaml.Node, group: str | None) -> Iterator[tuple[str, str, str]]:
    name = node.value
    if not isinstance(name, str) or NAME.fullmatch(name) is None or ".." in name.split("/"):
        shown = name if isinstance(name, str) else group
        yield f"defaults: {shown}", "no name of a file in a group", "write GROUP: NAME, of a group that metarec has"
    elif group is None and "/" in name:
        yield f"defaults: {name}", "names a file outside of its group", "write GROUP: NAME"


def _open_brackets(text: str) -> int:
    """The most brackets that are open at a time, those in quotes and comments counted as well."""
    found = now = 0
    for character in re.findall(r"[\[\]{}]", text):
        now = now + 1 if character in "[{" else max(0, now - 1)
        found = max(found, now)
    return found


class _TooMuch(Exception):
    """(value, what is wrong)"""


def _size(node: yaml.Node, depth: int, done: dict[int, int], above: set[int]) -> int:
    """Values under a node with all aliases written out, each counted once; raises _TooMuch."""
    if id(node) in done:
        return done[id(node)]
    if id(node) in above:
        raise _TooMuch("an alias", "stands inside of what it stands for")
    if depth > DEEPEST:
        raise _TooMuch(f"{depth} levels", f"nested deeper than {DEEPEST}")
    total = 1
    if not isinstance(node, yaml.ScalarNode):
        above.add(id(node))
        for below in node.value:
            for one in below if isinstance(below, tuple) else (below,):
                total += _size(one, depth + 1, done, above)
        above.discard(id(node))
    done[id(node)] = total
    return total
