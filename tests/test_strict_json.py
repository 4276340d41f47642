"""JSON from files that anybody may have written: everything that the standard allows is read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.small_logs import quick

from metarec.data.table_files import read_numbers
from metarec.errors import CheckpointError, DataError
from metarec.runs.manifest import read_sealed
from metarec.strict_json import DEPTH, lenient, loads

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=40)


@quick
@given(VALUES, st.booleans())
def test_what_is_written_is_read(value: object, as_bytes: bool) -> None:
    text = json.dumps(value, ensure_ascii=not as_bytes)
    assert loads(text.encode() if as_bytes else text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("[1e999]", "1e999 is beyond what a number can be"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"\\uDFFF": 1}', "half of a surrogate pair"),
        (b'["\xff"]', "can't decode byte 0xff"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "nested deeper"),
        ('{"a":' * 700 + "1" + "}" * 700, "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ("9" * 5_000, "digits"),
    ],
)
def test_what_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        loads(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "9" * 5_000])
def test_whatever_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        lenient(text)


def test_what_looks_alike_is_read() -> None:
    assert loads("[" * DEPTH + "]" * DEPTH) != []
    assert loads('["\\ud83d\\ude00", "[[[", 1e-999, -0.0]') == ["\U0001f600", "[[[", 0.0, 0.0]
    assert len(loads(json.dumps([{"a": [n]} for n in range(500)]))) == 500


@pytest.mark.parametrize("held", ["[" * 600 + "]" * 600, "1e999", "NaN", '{"a": 1, "a": 2}'])
def test_a_sealed_file_of_such_is_damaged(held: str, tmp_path: Path) -> None:
    """Not a bug, and not a run that has diverged: sealing it again walks what it holds."""
    path = tmp_path / "manifest.json"
    path.write_text(f'{{"kind": "metarec-checkpoint", "format": 1, "sha256": "{"0" * 64}", "x": {held}}}')
    with pytest.raises(CheckpointError, match="damaged"):
        read_sealed(path, kind="metarec-checkpoint", version=1)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ('{"a": 0, "b": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"\\ud800": 0}', "half of a surrogate pair"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", "nested deeper"),
    ],
)
def test_a_vocabulary_of_such_is_refused(numbers: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "course2id.json").write_text(numbers)
    with pytest.raises(DataError, match=why):
        read_numbers(tmp_path)
