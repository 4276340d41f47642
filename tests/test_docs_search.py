"""The commands of docs/search.md compose, and its table of options is that of the schema."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from metarec.config.overrides import check_words
from metarec.config.search import SearchOptions, is_search, read_search

PAGE = (Path(__file__).parent.parent / "docs" / "search.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line
]


def test_there_are_grids_searches_and_a_resume() -> None:
    metarec = [line for line in COMMANDS if line.startswith("metarec ")]
    assert sum("hydra/sweeper=optuna" in line for line in metarec) >= 4
    assert any("resume=" in line for line in metarec)
    assert len(metarec) == len(COMMANDS) - 1  # and the one that installs


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("metarec train -m")])
def test_a_command_composes(line: str) -> None:
    words = shlex.split(line)[3:]
    if is_search(words):
        assert read_search(words, None).n_trials > 1
        return
    if "hydra/launcher=joblib" in words:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="parallel sweeps need metarec[sweep]")
    assert len(check_words("train", words, multirun=True).jobs) >= 4


def test_the_table_has_every_option_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    assert list(rows) and set(rows) == {spec.name for spec in dataclasses.fields(SearchOptions)}
    for spec in dataclasses.fields(SearchOptions):
        if spec.default is not None:
            assert rows[spec.name] == str(spec.default), spec.name
