"""A survey over data sets, residuals and algorithms: what runs, what is chosen by what, and that the page is arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from reference.tiny_runs import TINY, Work

from metarec import cli
from metarec.config.overrides import check_words
from metarec.config.schema import CompareConfig
from metarec.errors import ConfigError
from metarec.verbs.cells import cells, is_survey, settings, with_setting

pytestmark = pytest.mark.usefixtures("warm_jobs")

SMALL = (
    *TINY, "algorithms=[fomaml,anil]", "seeds=[1,2]",
    "residuals=[off]", "evaluation.panel=[markov]", "parallel=2", "tune.outer_lrs=[0.001,0.02]",
)  # fmt: skip


def composed(*words: str) -> CompareConfig:
    (job,) = check_words("compare", words).jobs
    assert isinstance(job.config, CompareConfig)
    return job.config


def test_every_cell_is_there_once_and_data_sets_take_turns() -> None:
    config = composed(
        "datasets=[mars,synthetic]", "residuals=[off,context]", "algorithms=[fomaml,maml]", "data_dir=/data"
    )
    found = cells(config)
    assert len({cell.name for cell in found}) == len(found) == 8
    assert [cell.names[0] for cell in found] == ["mars", "synthetic"] * 4
    assert found[0].config.dataset.path == "mars/explicit_en.parquet"
    assert {cell.block for cell in found} == {("mars", "gru4rec"), ("synthetic", "gru4rec")}


def test_what_a_cell_tries_changes_two_step_sizes_and_nothing_else() -> None:
    config = composed("tune.outer_lrs=[0.1,0.2]", "tune.inner_lrs=[0.5]", "algorithms=[maml]")
    assert settings(config) == [{"outer_lr": 0.1, "inner_lr": 0.5}, {"outer_lr": 0.2, "inner_lr": 0.5}]
    (cell,) = cells(config)
    changed = with_setting(cell.config, settings(config)[1])
    assert (changed.optimizer.lr, changed.algorithm.inner.lr) == (0.2, 0.5)
    trial = cell.trial(1, {})
    assert (trial.evaluation.split, trial.evaluation.panel, trial.evaluation.ks) == ("val", "none", None)
    assert cell.run(3, {}, whole_panel=True).evaluation.panel == "quick"
    assert cell.run(3, {}, whole_panel=False).evaluation.panel == "none"
    assert cell.run(3, {}, whole_panel=True).seed == 3


def test_a_plain_comparison_is_no_survey() -> None:
    assert not is_survey(composed())
    assert all(is_survey(composed(word)) for word in ("parallel=2", "models=[sasrec]", "tune.inner_lrs=[0.1,1]"))


def test_a_cell_that_cannot_run_is_named_before_any_runs() -> None:
    config = composed("algorithms=[fomaml,meta_sgd]", "residuals=[context]", "inner.lr=0")
    with pytest.raises(ConfigError, match="synthetic, gru4rec, context, meta_sgd: learned step sizes"):
        cells(config)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    work = Work(tmp_path_factory.mktemp("survey"), cache)
    assert work.main("compare", *SMALL) == 0
    return work.directories("compare")[-1]


def test_trials_never_see_the_test_split_and_the_best_setting_is_run(done: Path) -> None:
    document = json.loads((done / "survey.json").read_text())
    jobs = {path.name: json.loads((path / "metrics.json").read_text()) for path in (done / "jobs").iterdir()}
    trials = {name: job for name, job in jobs.items() if "_trial" in name}
    assert len(trials) == 4
    assert len(jobs) == 8
    assert {job["protocol"]["split"] for job in trials.values()} == {"val"}
    for name, record in document["tuned"].items():
        values = [jobs[f"{name}_trial{k}"]["training"]["val_ndcg@10"] for k in (0, 1)]
        assert [row["value"] for row in record["tried"]] == values
        wanted = (0.001, 0.02)[int(np.argmax(values))]
        assert record["chosen"] == {"outer_lr": wanted}
        for seed in (1, 2):
            run = jobs[f"{name}_seed{seed}"]
            assert run["config"]["optimizer"]["lr"] == wanted
            assert (run["config"]["seed"], run["protocol"]["split"]) == (seed, "test")


def test_figures_are_the_mean_of_the_runs_and_ours_is_chosen_on_validation(done: Path) -> None:
    (block,) = json.loads((done / "survey.json").read_text())["blocks"]
    means, values = {}, {}
    for row in block["adapted"]:
        runs = [done / "jobs" / f"synthetic_gru4rec_{row['residual']}_{row['algorithm']}_seed{seed}" for seed in (1, 2)]
        found = [json.loads((run / "metrics.json").read_text()) for run in runs]
        means[row["residual"], row["algorithm"]] = np.mean([one["metrics"]["fewshot"]["ndcg@10"] for one in found])
        values[row["residual"], row["algorithm"]] = np.mean([one["training"]["val_ndcg@10"] for one in found])
        assert row["mean"] == pytest.approx(means[row["residual"], row["algorithm"]], abs=1e-12)
    ours = block["ours"]["residual"], block["ours"]["algorithm"]
    assert values[ours] == max(values.values())
    assert {row["method"] for row in block["rows"]} == {"pretrained", "control", "markov"}
    gain = next(entry for entry in block["differences"] if entry["against"] == "markov")
    markov = next(row for row in block["rows"] if row["method"] == "markov")
    assert gain["mean"] == pytest.approx(means[ours] - markov["mean"], abs=1e-12)
    for row in block["adapted"]:
        control = next(own for own in block["rows"] if own["method"] == "control")
        assert row["gains"]["control"]["mean"] == pytest.approx(row["mean"] - control["mean"], abs=1e-12)
        assert "in_context" not in row["gains"]  # the panel has no such row
    assert block["comparisons"] == len(block["differences"]) + 2


def test_the_page_says_what_the_document_says(done: Path) -> None:
    document = json.loads((done / "survey.json").read_text())
    (block,) = document["blocks"]
    words = {entry["against"]: entry["verdict"] for entry in block["differences"]}
    best = max(block["rows"], key=lambda row: row["mean"])["method"]
    for reference, method in (("control", "control"), ("pretrained", "pretrained"), ("strongest", best)):
        counts = document["shown"][reference]
        assert sum(counts.values()) == 1
        assert counts[words[method] if words[method] in counts else "none"] == 1
    assert sum(document["shown"]["in_context"].values()) == 0
    html, page, tex = ((done / f"survey.{form}").read_text() for form in ("html", "md", "tex"))
    for text in (html, page, tex):
        assert "Markov, first order" in text
        assert f"{block['ours']['algorithm']}, {block['ours']['residual']}" in text
    assert html.count("<svg") >= 6  # what ours gains, over users, learning curves, tuning
    assert "Content-Security-Policy" in html
    assert "<script" not in html
    assert f"Over the fine-tune control: better in {document['shown']['control']['better']} of 1" in page


@pytest.mark.parametrize("verb", ["report", "compare"])
def test_a_survey_is_no_run(done: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, str(done)]) == 2
    assert f"open {done / 'survey.html'}" in capsys.readouterr().err


def test_what_is_there_is_not_run_again(done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.glob("jobs/*/metrics.json")}
    document = json.loads((done / "survey.json").read_text())
    (done / "manifest.json").unlink()
    (done / "survey.json").unlink()
    gone = next(path for path in done.glob("jobs/*_seed2"))
    (gone / "manifest.json").unlink()
    assert cli.main(["compare", f"resume={done}"]) == 0
    after = {path: path.stat().st_mtime_ns for path in done.glob("jobs/*/metrics.json")}
    assert {path for path in before if before[path] != after[path]} == {gone / "metrics.json"}
    again = json.loads((done / "survey.json").read_text())
    for block in (*again["blocks"], *document["blocks"]):  # times are those of the day
        for run in (run for row in block["training"] for run in row["runs"]):
            run.pop("seconds_per_step")
    assert again["blocks"] == document["blocks"]
    assert pq.read_table(gone / "per_user.parquet").num_rows == document["blocks"][0]["users"]
