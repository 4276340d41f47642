"""JSON lines of text tasks: what is read, and the line, the fault and the way out of every bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reference.small_prompts import ROWS, SPLIT, line, load, write

from metarec.data.prompt_file import Example, distinct, read_examples
from metarec.errors import DataError


def test_what_is_read(tmp_path: Path) -> None:
    rows = [
        line("a", "b", "d", "easy"), line("", "é\n", "d", "Hard", other=1), "  ", line("a", "b", "e", 2.5),
        line("a", "b", "e", None),
    ]  # fmt: skip
    assert read_examples(write(tmp_path / "x.jsonl", rows)) == [
        Example("a", "b", "d", 0.0), Example("", "é\n", "d", 2.0), Example("a", "b", "e", 2.5), Example("a", "b", "e"),
    ]  # fmt: skip


def test_splits_by_their_usual_names(tmp_path: Path) -> None:
    rows = [line("a", "b", name, split=name) for name in ("train", "valid", "validation", "VAL", "test")]
    found = read_examples(write(tmp_path / "x.jsonl", rows))
    assert [example.split for example in found] == ["train", "val", "val", "val", "test"]


def test_an_example_that_stands_twice_counts_once(tmp_path: Path) -> None:
    """Of one domain: it could stand in support and query. In two domains it is two examples."""
    rows = [line("a", "b", "d"), line("a", "b", "e"), line("a", "b", "d", "hard"), line("a", "c", "d")]
    found = list(distinct(read_examples(write(tmp_path / "x.jsonl", rows))))
    assert [(e.domain, e.response) for e in found] == [("d", "b"), ("e", "b"), ("d", "c")]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "{: the line is not JSON: Expecting property name"),
        (b'{"prompt": "\xff"}', "byte 0xff at 12: the line is not UTF-8 -- save the file as UTF-8"),
        ("[1]", "[1]: the line is no JSON object"),
        ({"prompt": "a", "response": "b"}, "metadata: missing: metadata is no object"),
        ({"prompt": "a", "response": "b", "metadata": "d"}, 'metadata: "d": metadata is no object'),
        ({"response": "b", "metadata": {"domain": "d"}}, "prompt: missing: prompt is no text"),
        ({"prompt": "a", "metadata": {"domain": "d"}}, "response: missing: response is no text"),
        ({"prompt": "a", "response": "b", "metadata": {}}, "domain: missing: domain is no text"),
        (line(3, "b", "d"), "prompt: 3: prompt is no text"),
        (line("a", "", "d"), "response: empty: the response is empty"),
        (line("a", "b", ""), "domain: empty: the domain is empty"),
        (line("a", "b", "d", "so so"), 'difficulty: "so so": difficulty is neither'),
        (line("a", "b", "d", True), "difficulty: true: difficulty is neither"),
        ('{"prompt": "a", "response": "b", "metadata": {"domain": "d", "difficulty": NaN}}', "NaN is no JSON"),
        (line("a", "b", "d", split="dev"), 'split: "dev": no such split'),
        ('{"prompt": "\\ud800", "response": "b", "metadata": {"domain": "d"}}', "half of a surrogate pair"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_lines(bad: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [*ROWS[:3], bad, *ROWS[3:]], None)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 4: ") and said in text and " -- " in text
    assert "\n" not in text


def test_a_split_in_every_line_or_in_none(tmp_path: Path) -> None:
    other = [*ROWS, line("z", "z", "new")]
    with pytest.raises(DataError, match=r"line 13: split: missing: line 1 has a split, and domain new has none"):
        read_examples(write(tmp_path / "x.jsonl", other))
    twice = [*ROWS, line("z", "z", "copy", split="test")]
    with pytest.raises(DataError, match=r"line 13: split: test: line 4 says train of the same domain copy"):
        read_examples(write(tmp_path / "x.jsonl", twice))


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    write(tmp_path / "tasks.jsonl")
    with pytest.raises(DataError, match=r"not found: there is no such file -- did you mean .*tasks\.jsonl"):
        read_examples(tmp_path / "task.jsonl")
    with pytest.raises(DataError, match="there is no example in the file"):
        read_examples(write(tmp_path / "empty.jsonl", [""]))


# -- files that no run can be made of -------------------------------------------------------------------------------


def test_all_domains_for_training(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", split=dict.fromkeys(SPLIT, "train"))
    with pytest.raises(DataError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: no val domain: all domains are for training: no domain is left to validate by")
    assert "of 12 examples in 4 domains none fell -- write metadata.split of other domains" in text


def test_too_few_domains(tmp_path: Path) -> None:
    """Two are left of three: the third has too few examples for an episode, which is said."""
    with pytest.raises(DataError) as caught:
        load(write(tmp_path / "x.jsonl", ROWS[:8], None))
    text = str(caught.value)
    assert "2 domains: training, validation and test need a domain each" in text
    assert "small domains dropped 2 examples (fewer than 3 examples)" in text
