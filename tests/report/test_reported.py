"""The published figures: every set the schema knows, shares in (0, 1), a source each; shown and compared with nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import metarec
from metarec.config.schema import REPORTED as NAMES
from metarec.metrics import METRICS
from metarec.report.reported import REPORTED, plain


def test_sets_and_figures() -> None:
    assert tuple(REPORTED) == NAMES
    for name, found in REPORTED.items():
        assert found.source
        assert found.rows
        for row in found.rows.values():
            assert set(row) <= {*METRICS, "perplexity"}
            assert all(value > 1 if key == "perplexity" else 0 < value < 1 for key, value in row.items())
        assert plain(name)["name"] == name


def test_nothing_computes_with_them() -> None:
    """Only the verb that writes them and the tables that show them know of the module."""
    root = Path(metarec.__file__).parent
    users = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "metarec.report.reported":
                users.add(path.relative_to(root).as_posix())
    assert users == {"report/contrasts_text.py", "verbs/train.py"}
