"""Variants of a comparison: what their words change, what they leave to the comparison, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reference.tiny_runs import TINY

from metarec import cli
from metarec.config.overrides import check_words
from metarec.config.schema import CompareConfig
from metarec.errors import ConfigError
from metarec.verbs.cells import Cell, cells, is_survey, settings

pytestmark = pytest.mark.usefixtures("warm_jobs")


def found(*words: str) -> dict[str, Cell]:
    (job,) = check_words("compare", words).jobs
    assert isinstance(job.config, CompareConfig)
    return {" ".join(cell.names[2:]): cell for cell in cells(job.config)}


def test_words_change_what_they_name_and_leave_the_rest_to_the_comparison() -> None:
    own = found(
        "variants={low: 'residual=lora residual.rank=2', plain: 'residual=off'}", "algorithms=[fomaml,maml]",
        "train.steps=150", "inner.lr=0.5",
    )  # fmt: skip
    assert list(own) == ["low fomaml", "low maml", "plain fomaml", "plain maml"]
    low = own["low maml"].config
    assert (low.residual.name, low.residual.rank, low.train.steps) == ("lora", 2, 150)  # type: ignore[attr-defined]
    assert low.algorithm.inner.lr == 0.5  # type: ignore[union-attr]
    assert own["plain maml"].config.residual.name == "off"


def test_a_variant_of_the_common_alternative_keeps_what_is_common_and_what_it_says_even_where_that_is_the_default() -> (
    None
):
    own = found(
        "variants={a: 'residual=lora residual.rank=8', b: 'residual=lora residual.alpha=1'}",
        "residual=lora", "residual.rank=4", "algorithms=[fomaml]",
    )  # fmt: skip
    a, b = own["a fomaml"].config.residual, own["b fomaml"].config.residual
    assert (a.rank, a.alpha) == (8, 16.0)  # type: ignore[attr-defined]
    assert (b.rank, b.alpha) == (4, 1.0)  # type: ignore[attr-defined]


def test_an_experiment_as_a_variant_brings_its_differences_its_algorithm_and_its_data() -> None:
    (cell,) = found("variants={published: 'experiment=residual_ablation'}", "algorithms=[maml,anil]").values()
    assert cell.names == ("mooccubex", "gru4rec", "published", "fomaml")
    assert (cell.config.train.patience, cell.config.train.sampler, cell.config.train.steps) == (0, "window", 300)
    assert cell.block == ("mooccubex", "gru4rec")


def test_variants_with_other_episodes_stand_in_blocks_of_their_own() -> None:
    own = found(
        "variants={a: 'residual=on', b: 'residual=on dataset.episodes.n_support=3', c: 'residual=off', "
        "d: 'residual=off dataset.episodes.n_support=3'}", "algorithms=[fomaml]",
    )  # fmt: skip
    assert [cell.block[0] for cell in own.values()] == ["synthetic", "synthetic-b", "synthetic", "synthetic-b"]


def test_words_that_set_an_option_of_the_algorithm_choose_it() -> None:
    own = found("variants={first: 'algorithm=maml algorithm.order=first', any: 'residual=on'}", "algorithms=[anil]")
    assert list(own) == ["first maml", "any anil"]
    assert own["first maml"].config.algorithm.order == "first"  # type: ignore[union-attr]


def test_a_cell_tries_only_what_does_something() -> None:
    tuned = ("tune.inner_lrs=[0.1,1]", "tune.outer_lrs=[0.01,0.02]", "algorithms=[fomaml]")
    own = found("variants={m: 'residual=memory', c: 'residual=context', both: 'residual=[memory,context]'}", *tuned)
    (job,) = check_words("compare", tuned).jobs
    assert isinstance(job.config, CompareConfig)
    tried = {name: settings(job.config, cell.config.residual) for name, cell in own.items()}
    assert tried["m fomaml"] == [{}]
    assert len(tried["c fomaml"]) == len(tried["both fomaml"]) == 4
    assert own["both fomaml"].config.residual.name == "memory+context"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["variants={a: 'residual=lora residual.rnak=2'}"], "variants.a: residual.rnak: 2: unknown key"),
        (["variants={a: 'seed=2'}"], "variants.a: seed: is the same for all runs of a comparison"),
        (["variants={a: ''}"], "variants.a: : has no words"),
        (["variants={a: 'residual=lora', b/c: 'residual=on'}"], "'b/c' is no name of a directory"),
        (["variants={a: 'residual=on'}", "residuals=[off]"], "residuals: [off]: variants say what is compared"),
        (
            ["variants={a: 'evaluation.monitor=mrr'}"],
            "evaluation.monitor: mrr: synthetic, gru4rec, a, fomaml: is the same",
        ),
        (["variants=[residual]"], "names with a value each"),
        (["variants={a: 'dataset=synthetic'}", "datasets=[mars,ml1m]"], "the variant has dataset=synthetic of its own"),
        (["variants={a: 'residual=lora residual.rank=0'}"], "variants.a: residual.rank: 0: out of range"),
    ],
)
def test_what_cannot_be_a_variant_is_told_before_anything_runs(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        found(*words, "algorithms=[fomaml]", "data_dir=/data")
    assert text in str(caught.value)


def test_a_comparison_with_variants_is_a_survey_and_names_them_in_its_tables(
    tmp_path: Path,
) -> None:
    words = ["compare", *TINY, "variants={low: 'residual=lora residual.rank=1', head: 'residual=head'}",
             "algorithms=[fomaml]", "seeds=[1]", "evaluation.panel=none", f"output_dir={tmp_path}"]  # fmt: skip
    assert cli.main(words) == 0
    (run,) = (tmp_path / "compare").iterdir()
    survey = json.loads((run / "survey.json").read_text())
    assert [row["residual"] for row in survey["blocks"][0]["adapted"]] == ["low", "head"]
    assert {path.name for path in (run / "jobs").iterdir()} == {
        "synthetic_gru4rec_low_fomaml_seed1", "synthetic_gru4rec_head_fomaml_seed1"
    }  # fmt: skip
    assert "fomaml, low" in (run / "survey.md").read_text()
    (job,) = check_words("compare", words[1:-1]).jobs
    assert isinstance(job.config, CompareConfig)
    assert is_survey(job.config)
