"""`metarec compare contrasts=...`: whole comparisons of variants against controls, of a log and of running text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.small_text import corpus
from reference.tiny_runs import TINY, Work

from metarec.config.overrides import check_words
from metarec.errors import ConfigError
from metarec.verbs.cells import cells

pytestmark = pytest.mark.usefixtures("warm_jobs")

TEXT = (
    "dataset=wikitext2", "dataset.in_data_dir=false", "dataset.characters.length=7", "dataset.characters.n_support=3",
    "dataset.characters.n_query=2", "dataset.characters.n_episodes=2", "hardware=cpu", "hardware.threads=1",
    "model.embedding_dim=6", "model.hidden_dim=8", "pretrain.steps=7", "pretrain.eval_every=3", "pretrain.batch_size=50",
    "pretrain.patience=0", "pretrain.monitor=perplexity", "evaluation.bootstrap=50", "evaluation.control.lrs=[0.1]",
    "evaluation.control.steps=[1]", "evaluation.control.users=4", "evaluation.panel=none", "logger.console=quiet",
    "logger.plots=false",
)  # fmt: skip
PAIR = "contrasts=[[cms,adam]]"
CMS = "algorithm=supervised pretrain.optimizer=run optimizer=cms optimizer.chunks=[1,2]"


def survey(work: Work) -> tuple[Path, dict[str, Any]]:
    done = work.directories("compare")[-1]
    return done, json.loads((done / "survey.json").read_text())


def test_running_text_by_perplexity(work: Work, tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    variants = f"variants={{adam: 'algorithm=supervised', cms: '{CMS}'}}"
    words = (*TEXT, f"dataset.path={text}", variants, PAIR, "metric=perplexity", "seeds=[1,2]", "parallel=2")
    assert work.main("compare", *words) == 0
    done, document = survey(work)
    (block,) = document["blocks"]
    for row in block["rows"]:
        jobs = [done / "jobs" / f"wikitext2_gru4rec_{row['variant']}_supervised_seed{seed}" for seed in (1, 2)]
        found = [json.loads((job / "metrics.json").read_text()) for job in jobs]
        told = [one["perplexity"]["rows"]["zeroshot"]["perplexity"] for one in found]
        assert row["of_seeds"] == pytest.approx(told)  # from documents, and from all characters at once
        assert row["steps"] == [7, 7]
        assert row["seconds_per_step"] > 0
        steps = [
            json.loads(line)["step"] for line in (jobs[0] / "history.jsonl").read_text().splitlines() if "val" in line
        ]
        assert steps == [0, 3, 6, 7]
        own = found[0]["perplexity"]["by_document"]
        assert np.average(own["cross_entropy"]["zeroshot"], weights=own["n"]) == pytest.approx(np.log(told[0]))
    adam, cms = (row["of_seeds"] for row in block["rows"])
    assert block["contrasts"][0]["mean"] == pytest.approx(np.mean(np.log(adam)) - np.mean(np.log(cms)))
    assert all((done / f"survey.{form}").stat().st_size for form in ("html", "md", "tex"))


def test_variants_that_adapt_beside_some_that_do_not(work: Work) -> None:
    words = [word for word in TINY if not word.startswith("model.")]
    variants = (
        "variants={adam: 'residual=on', cms: 'residual=on optimizer=cms optimizer.chunks=[1,2] "
        "optimizer.levels=[[gru.*],[embedding.*,fc.*]]', pre: 'algorithm=supervised residual=off'}"
    )
    small = ("model.embedding_dim=8", "model.hidden_dim=16", "evaluation.panel=none")
    assert work.main("compare", *words, *small, variants, PAIR, "algorithms=[fomaml,anil]") == 0
    done, document = survey(work)
    (block,) = document["blocks"]
    assert {(row["variant"], row["algorithm"]): row["method"] for row in block["rows"]} == {
        ("adam", "fomaml"): "fewshot", ("adam", "anil"): "fewshot", ("cms", "fomaml"): "fewshot",
        ("cms", "anil"): "fewshot", ("pre", "supervised"): "zeroshot",
    }  # fmt: skip
    assert [one["of"][1] for one in block["contrasts"]] == ["fomaml", "anil"]
    for one in block["contrasts"]:
        jobs = [done / "jobs" / f"synthetic_gru4rec_{name}_{one['of'][1]}_seed1" for name in ("cms", "adam")]
        means = [json.loads((job / "metrics.json").read_text())["metrics"]["fewshot"]["ndcg@10"] for job in jobs]
        assert one["mean"] == pytest.approx(means[0] - means[1], abs=1e-12)


BOTH = f"variants={{adam: 'algorithm=supervised', cms: '{CMS}'}}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([PAIR], "contrasts: .*: are of variants, and there are none"),
        ([BOTH, "contrasts=[[cms]]"], "is no pair of two variants"),
        ([BOTH, "contrasts=[[cms,cms]]"], "is no pair of two variants"),
        ([BOTH, "contrasts=[[cmss,adam]]"], "cmss is no variant -- did you mean cms"),
        ([BOTH, PAIR, "tune.outer_lrs=[0.1]"], "tune.outer_lrs: .*contrasts are of the options that variants give"),
        ([BOTH, PAIR, "metric=perplexity"], "dataset=synthetic is no running text"),
        ([BOTH, "metric=perplexity"], "metric: .*: is of a table of contrasts"),
        (["reported=mars"], "reported: .*: is shown beside a table of contrasts"),
    ],
)
def test_what_cannot_be_contrasted_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_words("compare", words)


def test_supervised_has_no_survey_and_pairs_that_never_meet_no_contrast() -> None:
    (job,) = check_words("compare", [BOTH]).jobs
    with pytest.raises(ConfigError, match=r"algorithm: supervised: .*adapts nothing.* -- say which variants"):
        cells(job.config)  # type: ignore[arg-type]
    apart = "variants={cms: 'algorithm=supervised', adam: 'algorithm=anil'}"
    (job,) = check_words("compare", [apart, PAIR]).jobs
    with pytest.raises(ConfigError, match="never run on the same data with the same model and algorithm"):
        cells(job.config)  # type: ignore[arg-type]
