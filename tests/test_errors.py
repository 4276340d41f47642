"""A failure is one line that a terminal can show, whatever the value is that a file held."""

from __future__ import annotations

import pickle

import pytest

from metarec.errors import LONGEST, ConfigError, DataError, MetarecError


def test_parts_and_code() -> None:
    error = DataError("log.csv: row 3", "x", "not a time", "write one")
    assert str(error) == "log.csv: row 3: x: not a time -- write one"
    assert (error.exit_code, ConfigError("a", 1, "b", "c").exit_code) == (3, 2)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (DataError, str(error))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\r\nc\td", "a b c d"),
        ("\x1b[2J\x07\x00", "?[2J??"),
        ("\ud800", "?"),
        ("\u202eabc", "?abc"),
        ("\u00fc\u4f60\U0001f600", "\u00fc\u4f60\U0001f600"),
    ],
)
def test_a_line_can_be_shown(value: str, shown: str) -> None:
    line = str(MetarecError("w", value, "what", "fix"))
    assert line == f"w: {shown}: what -- fix"
    line.encode("utf-8")


def test_a_long_value_is_cut_in_the_middle() -> None:
    line = str(MetarecError("place " * 200, "a" * 5_000 + "z", "b" * LONGEST, "fix"))
    assert ("place " * 200).strip() in line
    assert " ... aaaa" in line
    assert "az: bbb" in line
    assert "b" * LONGEST in line
    assert len(line) < 1_200 + 2 * LONGEST + 20
