"""The registry of formats: light until a log is opened, and each reader keeps the contract of `formats.reader`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from metarec import cli
from metarec.config.check import DATASET_RANGES
from metarec.data import formats
from metarec.data.faults import translate
from metarec.data.formats import recognise
from metarec.errors import DataError, EnvironmentFault

FOLDER = Path(formats.__file__).parent
SHARED = {"__init__", "reader", "recognise", "text"}


def test_the_registry_and_the_choices_need_nothing_heavy() -> None:
    code = (
        "import sys, metarec.data.formats, metarec.config.check;"
        "print([m for m in ('duckdb', 'numpy', 'pandas', 'pyarrow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_is_registered_and_every_name_can_be_chosen() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - SHARED == set(formats.FORMATS.values())
    assert DATASET_RANGES["dataset.format"]["choices"] == ("auto", *formats.FORMATS)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_reader_can_be_told_from_the_others(name: str) -> None:
    reader = formats.reader_of(name)
    others = {suffix for other, found in formats.readers().items() if other != name for suffix in found.suffixes}
    assert reader.suffixes
    assert not others & set(reader.suffixes)
    assert all(suffix == suffix.lower() and suffix[0] == "." and suffix != ".gz" for suffix in reader.suffixes)
    assert reader.text or not reader.delimiter
    assert reader.kind(b"\x00" * recognise.HEAD) is None
    assert reader.fault("IO Error: something else", "x") is None


def test_only_readers_know_a_format_by_name() -> None:
    """Outside of their folder a format is not named, so that a new one changes nothing there."""
    names = [f'"{name}"' for name in formats.FORMATS]
    package = FOLDER.parents[1]
    for file in ("data/source", "data/row_check", "data/pipeline", "data/faults", "config/check", "config/rules"):
        text = (package / f"{file}.py").read_text(encoding="utf-8")
        assert not [name for name in names if name in text], file


def test_a_broken_row_that_speaks_of_the_disk_is_a_broken_row() -> None:
    row = "Invalid Input Error: CSV Error on Line: 4\nOriginal Line: u,No space left\nExpected Number of Columns: 3 Found: 2"
    fault = formats.reader_of("csv").fault
    found = translate(duckdb.InvalidInputException(row), "x.csv", fault)
    assert isinstance(found, DataError)
    assert str(found).startswith("x.csv: line 4: u,No space left: the header names 3 columns, this row has 2 fields")
    full = duckdb.IOException("IO Error: Could not write file: No space left on device")
    assert isinstance(translate(full, "x.csv", fault), EnvironmentFault)


@pytest.mark.parametrize("delimiter", ["tab", r"\t", r"'\t'", "'\t'"])
def test_a_tab_can_be_said_on_the_command_line(
    delimiter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the message of a file that needs it says."""
    monkeypatch.chdir(tmp_path)
    rows = [f"u{n % 40}\ti{n * 7 % 11}\t{1_600_000_000 + 9 * n}\n" for n in range(800)]
    Path("log.tsv").write_text("user_id\titem_id\ttimestamp\n" + "".join(rows), encoding="utf-8")
    words = ["prepare", "dataset=events", "dataset.path=log.tsv", "dataset.split.by=user_disjoint", "cache_dir=cache"]
    words += ["dataset.episodes.n_support=2", "dataset.episodes.n_query=2"]
    assert cli.main(words) == 3
    assert "say dataset.delimiter=tab" in "".join(capsys.readouterr())
    assert cli.main([*words, f"dataset.delimiter={delimiter}"]) == 0


@pytest.mark.parametrize("delimiter", ["tabs", "';;'", "''"])
def test_other_words_are_no_delimiter(delimiter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "dataset=events", "dataset.path=x.tsv", f"dataset.delimiter={delimiter}"]) == 2
    assert "dataset.delimiter" in (said := "".join(capsys.readouterr()))
    assert "give one character, or tab" in said
