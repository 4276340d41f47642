"""residual=[memory,context]: how a list is written, what it becomes, and what is refused of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from metarec import parts
from metarec.config.check import check
from metarec.config.completion import list_words
from metarec.config.compose import config_from_dict, config_from_yaml, config_to_yaml
from metarec.config.help import verb_help
from metarec.config.overrides import check_words, normalise
from metarec.config.search import read_search
from metarec.errors import ConfigError
from metarec.verbs.cells import cells


def refused(*words: str, verb: str = "train", **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_words(verb, list(words), **options)
    return str(caught.value)


def config(*words: str, verb: str = "train", **options: Any) -> Any:
    (job,) = check_words(verb, list(words), **options).jobs
    return job.config


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("residual=[memory,context]", "residual=memory+context"),
        ("residual=[memory, context]", "residual=memory+context"),
        ("residual=context,[memory,context],off", "residual=context,memory+context,off"),
        ("residual=[memory,false]", "residual=memory+off"),
        ("residual=memory+true", "residual=memory+on"),
        ("residual=[memory]", "residual=memory"),
        ("residual=choice([memory,lora],off)", "residual=choice(memory+lora,off)"),
        ("residual=glob([lm]*)", "residual=glob([lm]*)"),
        ("residual=yes,False", "residual=on,off"),
        ("residual.targets=[a,b]", "residual.targets=[a,b]"),
    ],
)
def test_a_list_becomes_one_name(word: str, wanted: str) -> None:
    assert normalise(word) == wanted


def test_every_part_has_its_section() -> None:
    found = config(
        "residual=[memory,context]", "residual.memory.start=.1", "residual.context.train_weights=false"
    ).residual
    assert dataclasses.asdict(found) == {
        "name": "memory+context",
        "memory": {**dataclasses.asdict(parts.default("residual", "memory")), "start": 0.1},
        "context": {"name": "context", "train_weights": False},
    }
    assert (found.beside, found.adapts, found.frozen, found.reads_memory) == (True, True, True, True)
    assert found.outer_lrs == {"memory.": 0.03}


@pytest.mark.parametrize(
    ("name", "beside", "adapts", "frozen", "remembers"),
    [
        ("memory+context", True, True, False, True),
        ("memory+lora", False, True, True, True),
        ("lora+memory", False, True, True, True),
        ("memory+off", False, True, False, True),
        ("context+ia3", True, True, False, False),
        ("lora+context", False, True, False, False),
        ("head+lora", False, True, True, False),
    ],
)
def test_what_adapts_decides(name: str, beside: bool, adapts: bool, frozen: bool, remembers: bool) -> None:
    found = parts.default("residual", name)
    assert (found.beside, found.adapts, found.frozen, found.reads_memory) == (beside, adapts, frozen, remembers)


def test_a_sweep_has_lists_among_its_values() -> None:
    jobs = check_words("train", ["residual=context,[memory,context]"], multirun=True).jobs
    assert [job.config.residual.name for job in jobs] == ["context", "memory+context"]  # type: ignore[union-attr]
    assert jobs[1].overrides == ("residual=memory+context",)


def test_a_glob_finds_single_residuals_only() -> None:
    config("residual=[memory,context]")  # known to Hydra from here on
    jobs = check_words("train", ["residual=glob(m*)"], multirun=True).jobs
    assert [job.config.residual.name for job in jobs] == ["memory"]  # type: ignore[union-attr]


def test_a_search_has_lists_among_its_values() -> None:
    words = ["hydra/sweeper=optuna", "residual=context,[memory,context]", "hydra.sweeper.n_trials=2"]
    (space,) = read_search(words, None).space
    assert list(space.values or ()) == ["context", "memory+context"]


def test_a_comparison_takes_joined_names() -> None:
    words = ["residuals=[off,memory+context]", "algorithms=[fomaml]"]
    found = cells(config(*words, verb="compare"))
    assert [cell.names[2] for cell in found] == ["off", "memory+context"]
    assert found[1].config.residual.name == "memory+context"
    text = refused("residuals=[off,memroy+context]", verb="compare")
    assert "residuals: [off,memroy+context]: not a choice" in text


def test_a_comparison_keeps_the_options_of_its_own_list() -> None:
    words = ["residual=[memory,context]", "residual.memory.start=.5", "algorithms=[fomaml]"]
    (cell,) = cells(config(*words, verb="compare"))
    assert cell.config.residual.memory.start == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["residual=[memroy,context]"], "residual: memroy+context: no residual is called memroy -- did you mean memory?"),
        (["residual=[memory,contxt]"], "did you mean context?"),
        (["residual=[memory,memory]"], "residual: memory+memory: memory stands twice -- give each once"),
        (["residual=memory+"], "no residual is called nothing"),
        (["residual=several"], "is how a list is put together, and names none -- write residual=[memory,context]"),
        (["residual=[memory,lora]", "residual.rank=4"], "unknown key -- did you mean residual.lora.rank?"),
        (["residual=[memory,lora]", "residual.lora.rnak=4"], "did you mean residual.lora.rank?"),
        (["residual=[memory,lora]", "residual.lora.rank=0"], "residual.lora.rank: 0: out of range"),
        (["residual=[memory,lora]", "residual.memory=3"], "residual.memory: 3: is a section, not a value"),
        (["residual=[memory,context]", "residual.start=.1"], "did you mean residual.memory.start?"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(words: list[str], line: str) -> None:
    assert line in refused(*words)


def test_a_config_is_read_back_as_it_was_written() -> None:
    found = config("residual=[memory,lora]", "residual.lora.rank=4", "residual.memory.gate=state")
    for again in (
        config_from_yaml(config_to_yaml(found), "train"),
        config_from_dict(dataclasses.asdict(found), "train"),
    ):
        assert again == found
    values = dataclasses.asdict(found)
    del values["residual"]["lora"]["rank"]
    _, errors = check("train", values, complete=True)
    assert ["residual.lora.rank: nothing: missing" in str(error) for error in errors] == [True]
    values["residual"]["name"] = "memory+loar"
    _, errors = check("train", values, complete=True)
    assert "residual.name: memory+loar: nothing by that name" in str(errors[0])


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    (tmp_path / "experiment").mkdir()

    def write(name: str, chosen: str, body: str = "") -> None:
        text = f"# @package _global_\n# A test.\ndefaults:\n  - override /residual: {chosen}\n{body}"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)

    write("joined", "memory+lora", "residual:\n  lora:\n    rank: 3\n")
    write("listed", "[memory, lora]")
    write("misspelt", "memory+loar")
    return tmp_path


def test_an_experiment_names_a_list_in_one_word(experiments: Path) -> None:
    found = config("experiment=joined", config_dir=experiments).residual
    assert (found.name, found.lora.rank, found.memory.start) == ("memory+lora", 3, 0.2)
    text = refused("experiment=listed", config_dir=experiments)
    assert "residual: [memory,lora]: a file names a list in one word -- write memory+lora" in text
    assert "no residual is called loar -- did you mean lora?" in refused("experiment=misspelt", config_dir=experiments)


def test_help_tells_of_lists() -> None:
    assert "[memory,context]" in verb_help("train")


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("residual=memory+o", ["residual=memory+off", "residual=memory+on"]),
        ("residual=[memory,l", ["residual=[memory,lora"]),
        ("residual=[m", ["residual=[memory"]),
        ("residual=memory+mem", []),  # it stands there already
        ("residual=m", None),
        ("optimizer=a", None),
    ],
)
def test_completion_of_a_list(typed: str, found: list[str] | None) -> None:
    assert list_words(f"metarec train {typed}") == found
