"""The panel of a run, its curves, grid and latency, and models that read whole histories: through whole tiny runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from reference.tiny_runs import Work, metrics

from metarec.baselines import BASELINES
from metarec.config.schema import OF_A_MODEL, PANELS
from metarec.errors import ConfigError
from metarec.metrics import METRICS
from metarec.verbs.panel import rows_of

FULL = ("evaluation.panel=full", "evaluation.ks=[0,1,5,8]", "evaluation.grid=true", "evaluation.latency=true",
        "evaluation.control.lrs=[0.01,0.1]")  # fmt: skip


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return Work(tmp_path_factory.mktemp("full"), cache).train(*FULL)


def test_every_row_is_there_or_left_out_with_its_reason(full: Path) -> None:
    found = metrics(full)
    assert set(rows_of("full")) <= set(found["metrics"]) | set(found["left_out"])
    assert found["left_out"] == {"recent_popularity": "the log has an order and no clock, so nothing is recent"}
    columns = set(pq.read_table(full / "per_user.parquet").column_names)
    assert {f"{row}.ndcg@10" for row in found["metrics"]} <= columns


def test_a_panel_has_its_rows_in_the_order_of_tables() -> None:
    every = (*BASELINES, *OF_A_MODEL)
    assert len(set(every)) == len(every)
    assert [name for name in every if name not in rows_of("full")] == [
        name for name, row in BASELINES.items() if not row.in_full
    ]
    for name in PANELS:
        assert list(rows_of(name)) == [row for row in every if row in rows_of(name)]
    assert rows_of(["markov", "pair_knn", "markov"]) == ("markov", "pair_knn")
    assert not BASELINES["pair_knn"].in_full
    assert not BASELINES["leaky_popularity"].in_full


def test_all_rows_are_tuned_with_one_budget_on_the_same_users(full: Path) -> None:
    """2 step sizes x 2 numbers of steps: four settings for everybody, or all where a row has fewer."""
    found = metrics(full)
    tunable = {name for name in BASELINES if BASELINES[name].space} | {"in_context", "head_only", "scratch", "control"}
    assert set(found["tuning"]) == tunable & set(rows_of("full")) - set(found["left_out"]) | {"control"}
    for name, record in found["tuning"].items():
        n_settings = 4
        if name in BASELINES:
            n_settings = min(4, int(np.prod([len(values) for values in BASELINES[name].space.values()])))
        assert len(record["tried"]) == n_settings, name
        assert (record["metric"], record["users"]) == ("ndcg@10", 20)
        assert record["value"] == max(row["ndcg@10"] for row in record["tried"])
        assert {**record["chosen"], "ndcg@10": record["value"]} in record["tried"]


def test_what_was_tuned_is_not_tuned_again_and_a_damaged_record_is(tmp_path: Path) -> None:
    work = Work(tmp_path, tmp_path / "cache")
    words = ("evaluation.panel=[markov,v_sknn,head_only]", "evaluation.control.lrs=[0.01,0.1]")

    def kept() -> dict[Path, tuple[str, int]]:
        return {path: (path.read_text(), path.stat().st_ino) for path in (work.cache / "panel").glob("*.json")}

    first = metrics(work.train(*words))
    before = kept()
    assert len(before) == 3
    assert metrics(work.train(*words))["tuning"] == first["tuning"]
    assert kept() == before  # the same files, not written again
    for path in before:
        path.write_text("{")
    assert metrics(work.train(*words))["metrics"] == first["metrics"]
    assert {path: text for path, (text, _) in kept().items()} == {path: text for path, (text, _) in before.items()}


def test_a_row_whose_code_changed_is_tuned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, words = Work(tmp_path, tmp_path / "cache"), ("evaluation.panel=[markov]",)
    first = metrics(work.train(*words))
    assert metrics(work.train(*words))["tuning"] == first["tuning"]
    assert len(list((work.cache / "panel").glob("*.json"))) == 1
    monkeypatch.setattr("metarec.verbs.panel.source_hash", lambda name: f"{name}, changed")
    assert metrics(work.train(*words))["metrics"] == first["metrics"]
    assert len(list((work.cache / "panel").glob("*.json"))) == 2


def test_an_option_may_be_left_out_of_the_grid(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays at its default."""
    row = replace(BASELINES["markov"], space={"window": (1, 2)})
    monkeypatch.setattr("metarec.verbs.panel.BASELINES", {**BASELINES, "markov": row})
    found = metrics(work.train("evaluation.panel=[markov]"))
    assert [set(tried) for tried in found["tuning"]["markov"]["tried"]] == [{"window", "ndcg@10"}] * 2
    assert set(found["tuning"]["markov"]["chosen"]) == {"window"}


def test_rows_of_chance_are_at_chance(full: Path) -> None:
    """30 items: a random order hits one in three at 10; so do weights that saw five pairs only, if not much more."""
    found = metrics(full)["metrics"]
    n = metrics(full)["counts"]["targets"]
    assert abs(found["random"]["hr@10"] - 1 / 3) < 4 * (2 / 9 / n) ** 0.5
    assert found["repeat_last"]["hr@1"] == 0.0  # repeats in a row are one event


def test_the_curve_ends_where_the_run_was_measured_and_starts_at_zero_shot(full: Path, work: Work) -> None:
    found, curve = metrics(full), metrics(full)["k_curve"]
    assert curve["ks"] == [0, 1, 5, 8]
    assert curve["users"] <= found["counts"]["users"]  # who have 8 support pairs
    for metric in METRICS:
        of = {name: [point["mean"] for point in curve["methods"][name][metric]] for name in curve["methods"]}
        assert of["fewshot"][0] == of["zeroshot"][0]
        assert of["control"][0] == of["in_context"][0] == of["pretrained"][0]
        assert len(set(of["pretrained"])) == len(set(of["zeroshot"])) == 1
    assert "popularity" not in curve["methods"]  # it reads no support
    stored = work.eval(full, "evaluation.ks=[3,5]")
    for name in ("fewshot", "control", "frequent_support", "in_context"):
        for metric in METRICS:
            point = stored["k_curve"]["methods"][name][metric][1]
            assert point["mean"] == pytest.approx(found["metrics"][name][metric], abs=1e-12)
            assert [point["low"], point["high"]] == pytest.approx(found["intervals"][name][metric], abs=1e-12)


def test_the_grid_holds_the_tuning_of_the_control(full: Path) -> None:
    found, grid = metrics(full), metrics(full)["grid"]
    assert (grid["lrs"], grid["steps"], grid["metric"], grid["split"]) == ([0.01, 0.1], [1, 2], "ndcg@10", "val")
    for row in found["tuning"]["control"]["tried"]:
        place = grid["lrs"].index(row["lr"]), grid["steps"].index(row["steps"])
        assert grid["methods"]["control"][place[0]][place[1]] == row["ndcg@10"]
    few = np.array(grid["methods"]["fewshot"])
    assert few.shape == (2, 2)
    assert np.isfinite(few).all()


def test_latency_is_told_for_one_user_and_for_many(full: Path) -> None:
    found = metrics(full)["latency"]
    assert found["users"] == min(64, metrics(full)["counts"]["users"])
    assert 0 < found["batched_seconds_per_user"] < found["single_seconds_per_user"]
    assert found["single_median"] <= found["single_p95"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("evaluation.panel=[recent_popularity]",), "recent_popularity: the log has an order and no clock"),
        (
            ("evaluation.panel=[in_context]", "dataset.history=user"),
            "in_context: dataset.history=user: every row reads",
        ),
        (("evaluation.ks=[0,500]",), "evaluation.ks: 500: no test user has 500 support and 10 query pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(
    words: tuple[str, ...], line: str, work: Work
) -> None:
    with pytest.raises(ConfigError, match=line.replace("[", r"\[")):
        work.train(*words)
    assert work.directories("train") == [] or not any(work.directories("train")[-1].iterdir())


def test_a_catalogue_too_large_for_a_row_is_refused_or_the_row_left_out(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {**BASELINES, "ease": replace(BASELINES["ease"], max_items=29)}
    monkeypatch.setattr("metarec.verbs.panel.BASELINES", small)
    with pytest.raises(
        ConfigError, match="ease: a dense item x item matrix is made for 29 items at most, and there are 30"
    ):
        work.train("evaluation.panel=[ease]")
    monkeypatch.setattr("metarec.verbs.panel.QUICK", ("popularity", "ease"))
    found = metrics(work.train("evaluation.panel=quick"))
    assert "ease" not in found["metrics"]
    assert found["left_out"] == {"ease": "a dense item x item matrix is made for 29 items at most, and there are 30"}


def test_in_context_is_left_out_where_every_user_is_one_sequence(tmp_path: Path, work: Work) -> None:
    rows = [f"u{user},i{(user * n + n) % 17},{n}" for user in range(60) for n in range(20)]
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    words = ("dataset=events", f"dataset.path={log}", "dataset.time_unit=order")
    found = metrics(work.train(*words))["left_out"]
    assert found == {"in_context": "every user is one sequence, so a prefix holds the support already"}
    with pytest.raises(ConfigError, match="in_context_user: every user is one sequence"):
        work.train(*words, "evaluation.panel=[in_context_user]")


def test_a_model_of_whole_histories_trains_adapts_and_is_evaluated_again(work: Work) -> None:
    run = work.train("dataset.history=user", "evaluation.ks=[0,5]", "evaluation.panel=quick")
    found = metrics(run)
    assert found["protocol"]["history"] == "user"
    assert "in_context" in found["left_out"]
    curve = found["k_curve"]["methods"]["pretrained"]["mrr"]
    assert curve[0]["mean"] != curve[1]["mean"]  # the support is in its prefix
    assert curve[1]["mean"] == pytest.approx(found["metrics"]["pretrained"]["mrr"])
    assert work.eval(run)["metrics"] == found["metrics"]


def test_what_was_tuned_on_sessions_is_not_taken_for_histories(tmp_path: Path) -> None:
    """A network from random weights has no pretrained key that would tell the two apart."""
    words = ("evaluation.panel=[scratch]", "evaluation.control.lrs=[0.1,1.0]")
    shared, fresh = (Work(tmp_path, tmp_path / name) for name in ("shared", "fresh"))
    sessions = metrics(shared.train(*words))["tuning"]["scratch"]
    after = metrics(shared.train(*words, "dataset.history=user"))["tuning"]["scratch"]
    alone = metrics(fresh.train(*words, "dataset.history=user"))["tuning"]["scratch"]
    assert after == alone != sessions


def test_the_row_in_context_user_is_the_pretrained_row_of_a_run_on_histories(work: Work, full: Path) -> None:
    """One code path: a model pretrained on histories, its support in front."""
    own = metrics(work.train("dataset.history=user"))
    assert own["metrics"]["pretrained"] == metrics(full)["metrics"]["in_context_user"]


def test_a_supervised_run_has_a_panel_too(work: Work) -> None:
    found = metrics(work.train("algorithm=supervised", "evaluation=full", "evaluation.control.lrs=[0.1]"))
    assert {"markov", "v_sknn", "head_only", "scratch", "in_context"} <= set(found["metrics"])
    assert set(found["grid"]["methods"]) == {"control"}
