"""Imports point one way: core <- data, models, algorithms, ... <- runs, train, ... <- config, build, verbs <- cli."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import metarec

ROOT = Path(metarec.__file__).parent

PAGE = (Path(__file__).parent.parent / "docs/architecture.md").read_text(encoding="utf-8")


def rows_of_the_page() -> tuple[list[set[str]], int]:
    """The rooms of each line of the map, the lowest first, and the number of the starred line."""
    (block,) = re.findall(r"<!-- map -->\n```\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.split("  ")[0] for line in block.splitlines()][::-1]
    (starred,) = [number for number, line in enumerate(lines) if line.startswith("* ")]
    return [set(line.removeprefix("* ").split()) for line in lines], starred


# a room may import what stands in a lower row; rooms of the middle row do not import each other
ROWS, MIDDLE = rows_of_the_page()
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}
# types only: the description of a dataset is also the schema of its configuration group
KNOW_HYDRA = {"config", "build", "verbs", "cli"}
HYDRA = {"hydra", "omegaconf"}


def part_of(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, full name) of everything that a file imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def wrong_arrows(root: Path) -> list[str]:
    """Every import that points the wrong way, as file:line: what."""
    wrong = []
    for path in sorted(root.rglob("*.py")):
        own = part_of(path, root)
        where = path.relative_to(root)
        if own not in ROW_OF:
            wrong.append(f"{where}: {own} has no row")
            continue
        for line, name in imported(path):
            top, *rest = name.split(".")
            if top in HYDRA and own not in KNOW_HYDRA:
                wrong.append(f"{where}:{line}: {own} knows {top}")
            if top != "metarec" or not rest or rest[0] == own or rest[0] not in ROW_OF:
                continue
            other = rest[0]
            if ROW_OF[other] > ROW_OF[own] or (ROW_OF[other] == ROW_OF[own] == MIDDLE):
                wrong.append(f"{where}:{line}: {own} imports {other}")
    return wrong


def test_every_import_points_down() -> None:
    assert wrong_arrows(ROOT) == []


def test_every_part_is_there() -> None:
    """A row must not keep the name of a part that is gone."""
    there = {part_of(path, ROOT) for path in ROOT.rglob("*.py")}
    assert there <= set(ROW_OF)
    assert set(ROW_OF) - there == set()


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("core/ops.py", "from metarec.models.gru4rec import GRU4Rec", "core imports models"),
        ("algorithms/maml.py", "from metarec import models", "algorithms imports models"),
        ("models/gru4rec.py", "import metarec.algorithms.inner", "models imports algorithms"),
        ("metrics/ranks.py", "from metarec.runs import atomic", "metrics imports runs"),
        ("baselines/markov.py", "from metarec.data import store", "baselines imports data"),
        ("runs/lock.py", "def hold():\n    from metarec.cli import main", "runs imports cli"),
        ("data/store.py", "import omegaconf", "data knows omegaconf"),
        ("train.py", "from hydra import compose", "train knows hydra"),
        ("extra/new.py", "import os", "extra has no row"),
    ],
)
def test_a_wrong_arrow_is_seen(tmp_path: Path, file: str, line: str, said: str) -> None:
    target = tmp_path / file
    target.parent.mkdir(exist_ok=True)
    target.write_text(line + "\n", encoding="utf-8")
    (found,) = wrong_arrows(tmp_path)
    assert found.endswith(said)
    target.write_text("from metarec.errors import MetarecError\n", encoding="utf-8")
    assert len(wrong_arrows(tmp_path)) == (1 if file.startswith("extra") else 0)
