"""YAML of the user's own: what passes, and that looking at it builds nothing (what does not pass: reliability/)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from metarec.config.own_files import check_directory, check_text

GROUPS = ("optimizer", "dataset", "experiment", "residual")


def lines(tmp_path: Path, text: str, name: str = "experiment/e.yaml") -> list[str]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [str(error) for error in check_directory(tmp_path, GROUPS)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "# @package _global_\ndefaults:\n  - override /optimizer: sgd\n  - _self_\ntrain: {steps: 5}\n",
        "defaults: [e2]\nx: [1, 2.5, true, null, 2020-01-01, text]\n",
        "# @package _global_\ndefaults: [{override /residual: [memory, context]}, {optional dataset: events}]\n",
        "data_dir: ${oc.env:METAREC_DATA,null}\ncache_dir: ${oc.env:METAREC_CACHE,'~/.cache/metarec'}\n",
        "a: ${b.c}\nb:\n  c: ${.d}\n  d: x_${a}\n",
        "a: &x {b: 1}\nc: {<<: *x, d: 2}\n",
        "price: $5, and {braces}\n",
    ],
)
def test_plain_files_pass(tmp_path: Path, text: str) -> None:
    assert lines(tmp_path, text) == []


def test_files_beside_the_groups_are_not_looked_at(tmp_path: Path) -> None:
    assert lines(tmp_path, "x: !!python/name:os.system", "compose.yaml") == []
    assert lines(tmp_path, "x: !!python/name:os.system", "other/x.yaml") == []
    assert lines(tmp_path, "x: !!python/name:os.system", "dataset/deep/x.yml") != []


def test_every_fault_is_told_with_its_file(tmp_path: Path) -> None:
    found = lines(tmp_path, "hydra: {mode: RUN}\na: {_target_: os.system}\nb: ${oc.env:HOME}\nc: !x 1\n")
    assert len(found) == 4
    assert all(line.startswith(str(tmp_path / "experiment/e.yaml")) and " -- " in line for line in found)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "a: " + "{" * 100_000,
        "- " * 50_000 + "x",
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 2000)),
        "x: " + "y" * 1_000_000,
    ],
)
def test_a_bomb_is_refused_at_once(text: str) -> None:
    begun = time.process_time()
    assert check_text("config.yaml", text) != []
    assert time.process_time() - begun < 3


def test_shipped_files_would_pass() -> None:
    from metarec.config.paths import conf_dir

    assert check_directory(conf_dir(), [path.name for path in conf_dir().iterdir() if path.is_dir()]) == []
