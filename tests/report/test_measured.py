"""A metrics.json of an older version lacks metrics: no column where no method has one, a dash where only some have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reference.small_documents import CONDITIONS, curved, document
from reference.small_reports import everything, write_run

from metarec import cli
from metarec.metrics import LISTS, METRICS, heading
from metarec.report.finished import Run, read_run
from metarec.report.latex import latex
from metarec.report.markdown import markdown
from metarec.report.measured import lists_of, metrics_of, n_tested
from metarec.report.pages import report
from metarec.report.reported import plain
from metarec.report.tables import plain_text, results_table
from metarec.runs import rundir
from metarec.verbs.compare_runs import usual


def without(value: Any, name: str) -> Any:
    """A document less all that it says of one metric."""
    if isinstance(value, dict):
        return {key: without(below, name) for key, below in value.items() if key != name}
    return [without(below, name) for below in value] if isinstance(value, list) else value


def one(path: Path, **options: Any) -> Run:
    return read_run(write_run(path, **options), path.name)


def page(run: Run, metric: str | None) -> str:
    return report([run], defaults=usual, metric=metric).html()


def whole() -> dict[str, Any]:
    data = document(sliced=True, **CONDITIONS)
    return {**data, "k_curve": curved((0, 5)), "reported": plain("mars")}


def texts(data: dict[str, Any]) -> list[str]:
    return [plain_text(results_table(data)), markdown(data), latex(data)]


@pytest.mark.parametrize("name", [*METRICS, *LISTS])
def test_the_tables_of_an_older_run_leave_out_what_it_lacks(name: str) -> None:
    data = without(whole(), name)
    assert name not in (*metrics_of(data), *lists_of(data))
    assert n_tested(data) == len(METRICS) - (name in METRICS)
    for text, full in zip(texts(data), texts(whole()), strict=True):
        words = text.replace("\\", "").replace("|", " ").replace("&", " ").replace("/", " ").replace(":", " ")
        assert heading(name) not in (words if name in LISTS else words.split())
        assert heading(name) in full


@pytest.mark.parametrize("name", [*METRICS, *LISTS])
def test_the_page_of_an_older_run_leaves_out_what_it_lacks(name: str, tmp_path: Path) -> None:
    run = one(tmp_path / "run", extra={"reported": plain("mars")})
    metric = "mrr" if name == "ndcg@10" else "ndcg@10"
    assert f">{heading(name)}</th>" in page(run, metric)
    kept = {"control_grid": run.document["control_grid"]}  # of the metric it was tuned by, which a run always has
    older = Run(run.path, run.name, without(run.document, name) | kept)
    assert f">{heading(name)}</th>" not in page(older, metric)
    if name in METRICS:
        assert f"over {4 * (len(METRICS) - 1)} differences" in page(older, metric)


@pytest.mark.parametrize("name", ["mrr", "ndcg@10", "coverage@10"])
def test_what_only_some_methods_have_is_a_dash(name: str, tmp_path: Path) -> None:
    run = one(tmp_path / "run")
    for part in ("metrics", "intervals", "beyond"):
        run.document[part]["pretrained"].pop(name, None)
    text = report([run], defaults=usual).markdown()
    rows = [line for line in text.splitlines() if line.startswith("| pretrained")]
    assert any(" - |" in row for row in rows[:2])
    shown = plain_text(results_table(run.document))
    first = next(line for line in shown.splitlines() if line.startswith("pretrained"))
    if name in METRICS:
        assert " - " in f"{first} "
    else:
        (line,) = (line for line in shown.splitlines() if line.startswith("coverage@10"))
        assert "pretrained" not in line


def test_an_older_classification_shows_what_it_has() -> None:
    data = document(methods=("pretrained", "control", "zeroshot", "fewshot"),
                    protocol={**CONDITIONS["protocol"], "classification": True})  # fmt: skip
    assert plain_text(results_table(without(data, "mrr"))).splitlines()[0].split() == ["ACCURACY"]


def older(path: Path, name: str, seed: int = 1) -> Path:
    """A sealed run without the metric, its table of users included."""
    run = write_run(path, n_users=12, seed=seed, extra=everything())
    kept = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(without(kept, name)))
    (run / "manifest.json").unlink()
    rundir.seal(run)
    return run


def test_the_commands_read_older_runs_and_refuse_what_they_lack_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    older(tmp_path / "old", "mrr")
    write_run(tmp_path / "new", n_users=12, seed=2)
    for words in (["report", "old"], ["report", "old", "new", "metric=hr@10"], ["compare", "old", "new"]):
        assert cli.main(words) == 0
    capsys.readouterr()
    for verb in ("report", "compare"):
        assert cli.main([verb, "new", "old", "metric=mrr"]) == 2
        said = capsys.readouterr().err
        assert "metric: mrr: old does not have it: it comes from another version" in said
        assert "metarec eval ckpt=old" in said
