"""What help shows of the keys: defaults as they would be written on the command line."""

from __future__ import annotations

import pytest

from metarec import cli


@pytest.mark.parametrize("verb", ["train", "eval", "export", "prepare", "compare", "teachers", "report"])
def test_defaults_are_shown_as_they_are_written(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "<" not in shown.replace("<timestamp>", "").replace("<random>", "")
    assert (verb != "compare") or "[maml,fomaml,maml_pp,anil,reptile,meta_sgd]" in shown
