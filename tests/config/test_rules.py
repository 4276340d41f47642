"""Each rule refuses what it is for and nothing of the neighbouring, sensible command."""

from __future__ import annotations

import pytest
from reference.rule_cases import CASES

from metarec.config import rules
from metarec.config.overrides import check_words
from metarec.errors import ConfigError


def lines(command: str) -> list[str]:
    verb, words = ("eval", command.split()[1:]) if command.split()[0] == "eval" else ("train", command.split())
    try:
        check_words(verb, [word.replace("delimiter=;", "delimiter=';'") for word in words])
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(("rule", "bad", "text", "good"), CASES, ids=lambda value: str(value)[:40])
def test_rule(rule: str, bad: str, text: str, good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAREC_DATA", raising=False)
    assert any(text in line and " -- " in line for line in lines(bad)), lines(bad)
    assert lines(good) == []
    without = tuple(r for r in rules.RULES if r.__name__ != rule)
    monkeypatch.setattr(rules, "RULES", without)
    assert not any(text in line for line in lines(bad)), f"another rule than {rule} refuses this"


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == {rule.__name__ for rule in rules.RULES}


def test_a_rule_stays_silent_about_a_key_already_in_error() -> None:
    (line,) = lines("train.eval_every=x train.steps=50")
    assert line.startswith("train.eval_every: x: wrong type")


def test_showing_a_config_needs_no_sense() -> None:
    assert check_words("train", ["dataset=events"], rules=False).jobs
