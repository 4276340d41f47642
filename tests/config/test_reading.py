"""The words of `metarec compare RUN...` and `metarec report RUN...`: what names runs, what is an option, what is refused."""

from __future__ import annotations

import pytest

from metarec.config.reading import EXAMPLES, READING, CompareRuns, Report, is_run, parse_reading, reads_runs
from metarec.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "names"),
    [("outputs/train/RUN", True), ("RUN", True), ("'a*'", True), ("metric=mrr", False), ("algorithm=maml", False),
     ("data/x=1/train/RUN", True), ("hydra/launcher=joblib", False), ("-m", False), ("~seed", False), ("+seed=1", False)],
)  # fmt: skip
def test_a_word_without_equals_names_runs(word: str, names: bool) -> None:
    assert is_run(word) is names


def test_compare_trains_unless_a_run_is_named() -> None:
    assert not reads_runs("compare", [])
    assert not reads_runs("compare", ["algorithms=[maml]", "-m"])
    assert reads_runs("compare", ["algorithms=[maml]", "RUN"])
    assert reads_runs("report", [])
    assert not reads_runs("train", ["RUN"])


def test_options_are_typed_and_the_rest_has_its_defaults() -> None:
    words = ["a", "metric=hr@10", "methods=[fewshot, control]", "b/c", "against='algorithm=maml'", "output_dir=~/x"]
    runs, options = parse_reading("compare", words)
    assert runs == ["a", "b/c"]
    assert isinstance(options, CompareRuns)
    assert (options.metric, options.methods, options.against) == ("hr@10", ["fewshot", "control"], "algorithm=maml")
    assert "~" not in options.output_dir
    assert parse_reading("report", ["a"]) == (["a"], Report())
    assert parse_reading("report", ["a", "metric=null"])[1] == Report()


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("report", [], "no run to report -- metarec report OUTPUT_DIR/train/RUN"),
        ("report", ["a", "metrik=mrr"], "metrik: mrr: unknown key -- did you mean metric?"),
        ("report", ["a", "seed=1"], "unknown key -- the keys are metric, methods, against, output, formats, output_dir"),
        ("compare", ["a", "algorithms=[maml]"], "does not go with runs that are there -- leave the runs out, or the key"),
        ("compare", ["a", "train.steps=5"], "does not go with runs that are there"),
        ("compare", ["a", "resume=x"], "does not go with runs that are there"),
        ("compare", ["a", "-m"], "-m: not understood"),
        ("compare", ["a", "metric=ndgc@10"], "metric: ndgc@10: not a choice -- did you mean ndcg@10?"),
        ("compare", ["a", "metric=mrr", "metric=mrr"], "given twice"),
        ("compare", ["a", "methods=[]"], "methods: []: empty list"),
        ("compare", ["a", "methods=fewshot"], "wrong type"),
        ("compare", ["a", "output_dir="], "output_dir: '': empty"),
        ("report", ["a", "formats=[html,pdf]"], "not a choice -- choose html|md|tex"),
        ("report", ["a", "output=x.pdf"], "names the page, a file that ends in .html"),
        ("report", ["a", "output=x.html", "formats=[md]"], "which formats=[md] leaves out"),
    ],
)  # fmt: skip
def test_refusals(verb: str, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reading(verb, words)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reading("report", ["metrik=mrr", "formats=[pdf]"])
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize("verb", READING)
def test_examples_of_the_help_are_understood(verb: str) -> None:
    for line in EXAMPLES[verb]:
        _, said, *words = line.replace("'", "").split()
        assert said == verb
        assert parse_reading(verb, words)[0]
