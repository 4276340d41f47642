"""Every public function says what its name does not, and the shapes of the arrays that go in or out."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import metarec

ROOT = Path(metarec.__file__).parent
ARRAYS = re.compile(r"\b(Tensor|NDArray|ndarray|Array|Floats|Ints)\b")  # as annotations write them
SHAPE = re.compile(
    r"\[[^][]*[A-Za-z*][^][]*\]|\bscalars?\b|\bany\b[\w, ]*\bshape\b"
)  # [T, N], [*S]; a list [1, 2] is none
LEGEND = re.compile(r"\bShapes: ")  # of the module, for all its functions


def public(node: ast.Module | ast.ClassDef, of: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions with a public name, of the module and of its public classes; those inside functions are left out."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public(child, f"{of}{child.name}.")
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            yield of + child.name, child


def silent(source: str) -> list[str]:
    """Functions without a docstring, or with one that is nothing but the name."""
    found = []
    for name, node in public(ast.parse(source)):
        said = re.sub(r"\W|_", "", ast.get_docstring(node) or "").lower()
        if said in ("", node.name.replace("_", "").lower()):
            found.append(name)
    return found


def shapeless(source: str) -> list[str]:
    """Functions that take or give arrays and have their shapes neither in the docstring nor in the module's legend."""
    module = ast.parse(source)
    if LEGEND.search(ast.get_docstring(module) or ""):
        return []
    found = []
    for name, node in public(module):
        types = f"{ast.unparse(node.args)} -> {ast.unparse(node.returns) if node.returns else ''}"
        if ARRAYS.search(types) and not SHAPE.search(ast.get_docstring(node) or ""):
            found.append(name)
    return found


@pytest.mark.parametrize("rule", [silent, shapeless])
def test_the_package_keeps_the_rule(rule: Callable[[str], list[str]]) -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 150
    assert [
        f"{file.relative_to(ROOT)}: {name}" for file in files for name in rule(file.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        ("def two(): return 2", ["two"]),
        ("class A:\n    def f(self):\n        '''Said.'''\n    def g(self): ...", ["A.g"]),
        ("@property\ndef n_items(self):\n    '''N items.'''", ["n_items"]),
        ("def f():\n    '''Said.'''\n    def inner(): ...", []),
        ("def _own(): ...\nclass _A:\n    def f(self): ...\nclass B:\n    def __len__(self): ...", []),
    ],
)
def test_a_missing_docstring_is_seen(source: str, faults: list[str]) -> None:
    assert silent(source) == faults


@pytest.mark.parametrize(
    ("head", "said", "seen"),
    [
        ("def f(x: Tensor) -> int", "Rows that count.", True),
        ("def f(n: int) -> dict[str, Ints]", "Of users, see [1] and [].", True),
        ("def f(n: int) -> Callable[[int], NDArray[Any]]", "Of pairs [begin, end) of users.", True),
        ("def f(x: Tensor) -> int", "x [T, N]: rows that count.", False),
        ("def f(x: Tensor) -> Tensor", "The loss, a scalar.", False),
        ("def f(x: dict[str, Tensor]) -> None", "Tensors of any device and shape.", False),
        ("def f(x: TensorBoard, n: int) -> float", "Without arrays.", False),
    ],
)
def test_a_missing_shape_is_seen(head: str, said: str, seen: bool) -> None:
    source = f"{head}:\n    '''{said}'''\n"
    assert shapeless(source) == (["f"] if seen else [])
    assert shapeless(f"'''About it.\n\nShapes: T tasks.'''\n{source}") == []
