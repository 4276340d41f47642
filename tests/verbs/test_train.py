"""`metarec train`, whole: its files, its figures, the same again, and that every option has its effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, metrics, same_bits, state, tensors, without_paths

from metarec.core import fused
from metarec.metrics import METRICS
from metarec.runs.checkpoint import list_checkpoints, read_pointer, verify_checkpoint
from metarec.runs.history import read_history
from metarec.runs.rundir import verify
from metarec.verbs.panel import QUICK

FILES = """config.yaml overrides.json environment.json funnel.json history.jsonl pretrain_history.jsonl metrics.json
per_user.parquet manifest.json loss.png validation.png training.png checkpoints/best.json checkpoints/last.json""".split()


def test_a_run_leaves_every_file_and_a_manifest_that_verifies(finished: Path) -> None:
    assert [name for name in FILES if not (finished / name).is_file()] == []
    assert verify(finished) == []
    directory = finished / "checkpoints"
    last = read_pointer(directory, "last")
    assert last is not None
    assert last["checkpoint"] == "step-000006"
    names = [path.name for path in list_checkpoints(directory)]
    best = read_pointer(directory, "best")
    assert best is not None
    assert set(names) == {"step-000000", "step-000004", "step-000006", best["checkpoint"]}  # periodic, best, last
    for path in list_checkpoints(directory):
        verify_checkpoint(path)


def test_the_overrides_are_stored_as_typed(finished: Path) -> None:
    words = json.loads((finished / "overrides.json").read_text())
    assert words[:3] == ["algorithm=fomaml", "residual=on", "dataset.world.n_users=300"]
    assert not any(word.startswith("hydra.") for word in words)


def test_metrics_have_the_published_keys(finished: Path) -> None:
    found = metrics(finished)
    assert (found["model"], found["dataset"]) == ("gru4rec", "synthetic")
    assert found["config"]["train"]["steps"] == 6
    methods = {"pretrained", "control", "zeroshot", "fewshot", "bayes_zeroshot", "bayes_fewshot"}
    assert set(found["metrics"]) == methods | set(QUICK)
    for row in (*found["metrics"].values(), found["comparison"], *found["improvement"].values()):
        assert set(row) == set(METRICS)
    for metric in METRICS:
        few, zero = found["metrics"]["fewshot"][metric], found["metrics"]["zeroshot"][metric]
        assert found["improvement"]["absolute"][metric] == pytest.approx(few - zero, abs=1e-12)
        assert found["comparison"][metric] == pytest.approx(few - found["metrics"]["control"][metric], abs=1e-12)


def test_the_table_is_the_mean_of_the_users(finished: Path) -> None:
    found, users = metrics(finished), pq.read_table(finished / "per_user.parquet").to_pydict()
    targets = np.array(users["n_targets"])
    assert len(set(users["user_id"])) == found["counts"]["users"] == len(targets)
    assert targets.sum() == found["counts"]["targets"]
    for method, row in found["metrics"].items():
        for metric, value in row.items():
            assert np.average(users[f"{method}.{metric}"], weights=targets) == pytest.approx(value, abs=1e-12)


def test_history_holds_every_step_and_the_best_is_its_best(finished: Path) -> None:
    records = read_history(finished / "history.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    validated = {r["step"]: r["fewshot"]["ndcg@10"] for r in records if r["kind"] == "val"}
    assert list(validated) == [0, 2, 4, 6]
    training = metrics(finished)["training"]
    assert training["val_ndcg@10"] == max(validated.values()) == validated[training["best_step"]]
    assert read_history(finished / "pretrain_history.jsonl")[-1]["kind"] == "val"


def test_the_funnel_is_that_of_the_data(finished: Path) -> None:
    funnel = json.loads((finished / "funnel.json").read_text())
    assert funnel["steps"][0]["users"] == 300
    assert funnel["counts"]["episodes"]["test"] == metrics(finished)["counts"]["episodes"]


@pytest.mark.parametrize(
    "words", [(), ("residual.init_scale=0.05", "residual.l2=0.1", "optimizer.clip_norm=0.01"), ("residual=off",)],
    ids=" ".join,
)  # fmt: skip
def test_the_same_command_gives_the_same_bits_with_a_cold_cache(
    words: tuple[str, ...], work: Work, finished: Path
) -> None:
    """Weights from the cache come in another order, and clipping, drawing and pulling go over all of them."""
    cold = Work(work.root / "elsewhere", work.root / "cold")
    assert_same_run(cold.train(*words), work.train(*words))


def test_another_seed_gives_another_run_on_the_same_users(work: Work, finished: Path) -> None:
    run = work.train("seed=2")
    assert not same_bits(tensors(run, "last"), tensors(finished, "last"))
    ids = [pq.read_table(path / "per_user.parquet")["user_id"] for path in (run, finished)]
    assert ids[0].equals(ids[1])


def test_the_residual_keeps_its_base_frozen(work: Work, finished: Path) -> None:
    """The base in the last checkpoint is the one in the first, bit for bit, and something was learned over it."""
    last = tensors(finished, "last")
    warm = tensors(work.train("residual=off"), "last")
    base = [name for name in last if name.startswith("base/")]
    assert base
    assert all(torch.equal(last[name], warm[name]) for name in base)
    assert any(last[name].abs().max() > 0 for name in last if name.startswith("phi/"))


def test_a_full_residual_is_naive_warm_start(work: Work) -> None:
    """With SGD, alpha 1 and delta 0 the two take the same steps (to rounding): the published identity."""
    words = ("optimizer=sgd", "optimizer.lr=0.1", "hardware.precision=float64")
    on, off = work.train(*words), work.train(*words, "residual=off")
    base, delta, naive = tensors(on, "last"), tensors(on, "last"), tensors(off, "last")
    for name in naive:
        if name.startswith("phi/"):
            stem = name.removeprefix("phi/")
            torch.testing.assert_close(base[f"base/{stem}"] + delta[name], naive[name], rtol=0, atol=1e-10)
    assert metrics(on)["metrics"]["fewshot"] == metrics(off)["metrics"]["fewshot"]


@pytest.mark.parametrize(
    "words",
    [
        ("residual.alpha=0.5",),
        ("residual.l2=1.0",),
        ("residual.init_scale=0.05",),
        ("train.sampler=window",),
        ("train.meta_batch_size=4",),
        ("algorithm.inner.lr=0.5",),
        ("algorithm.inner.steps=1",),
        ("objective.label_smoothing=0.3",),
        ("optimizer=adamw", "optimizer.lr=0.02", "optimizer.weight_decay=0.5"),
        ("optimizer.clip_norm=0.001", "optimizer.eps=0.1"),
        ("schedule=cosine",),
        ("schedule=linear", "schedule.final_factor=0.5"),
        ("schedule.warmup_steps=4",),
        ("model.max_len=2",),
    ],
    ids=" ".join,
)
def test_an_option_has_its_effect(words: tuple[str, ...], work: Work, finished: Path) -> None:
    run = work.train(*words)
    assert not same_bits(tensors(run, "last"), tensors(finished, "last"))
    assert all(np.isfinite(list(row.values())).all() for row in metrics(run)["metrics"].values())


def test_float64_is_float64_all_the_way(work: Work) -> None:
    run = work.train("hardware.precision=float64")
    kept = {n: t for n, t in tensors(run, "last").items() if not n.endswith("/step")}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float64}
    assert state(run, "last")["config"]["hardware"]["precision"] == "float64"


def test_in_bfloat16_all_that_is_kept_is_float32(work: Work, finished: Path) -> None:
    run = work.train("hardware.precision=bfloat16")
    kept = tensors(run, "last")
    assert {tensor.dtype for name, tensor in kept.items() if not name.endswith("/step")} == {torch.float32}
    assert not same_bits(kept, tensors(finished, "last"))
    assert state(run, "last")["config"]["hardware"]["precision"] == "bfloat16"
    assert metrics(run)["training"]["warm_start"]["key"] != metrics(finished)["training"]["warm_start"]["key"]
    again = work.train("hardware.precision=bfloat16")
    assert same_bits(kept, tensors(again, "last"))


@pytest.mark.slow
def test_compiled_is_the_same_run_but_for_rounding_and_the_same_again(
    work: Work, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "slopes", fused.Kernel(fused._slopes))
    run, again = (work.train("hardware.compile=true", "hardware.precision=float64") for _ in range(2))
    assert "hardware.compile" not in capfd.readouterr().err
    assert fused.slopes.compiled is not None
    plain = work.train("hardware.precision=float64")
    compiled, usual = tensors(run, "last"), tensors(plain, "last")
    assert same_bits(compiled, tensors(again, "last"))
    assert metrics(run)["training"]["warm_start"]["key"] != metrics(plain)["training"]["warm_start"]["key"]
    for name, value in usual.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-8, atol=1e-8)
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]


def test_where_nothing_compiles_the_run_is_the_plain_one_and_says_so(
    work: Work, finished: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", None)
    run = work.train("hardware.compile=true")
    told = [line for line in capfd.readouterr().err.splitlines() if "compile" in line]
    assert told == [
        "hardware.compile: the run goes on without it: TypeError: 'NoneType' object is not callable",
    ]
    assert same_bits(tensors(run, "last"), tensors(finished, "last"))
    assert metrics(run)["metrics"] == metrics(finished)["metrics"]


@pytest.mark.parametrize("word", ["algorithm.inner.lr=0", "algorithm.inner.steps=0", "evaluation.test_steps=0"])
def test_without_an_inner_step_few_shot_is_zero_shot(word: str, work: Work) -> None:
    found = metrics(work.train(word))
    assert found["metrics"]["fewshot"] == found["metrics"]["zeroshot"]
    assert found["improvement"]["absolute"] == dict.fromkeys(METRICS, 0.0)


def test_patience_stops_early(work: Work) -> None:
    """Steps far too large only make it worse: the start stays the best, and two validations later it ends."""
    run = work.train("optimizer=sgd", "optimizer.lr=1e-12", "train.patience=2")
    training = metrics(run)["training"]
    assert (training["best_step"], training["steps"], training["stopped_early"]) == (0, 4, True)
    assert metrics(run)["metrics"]["zeroshot"] == metrics(run)["metrics"]["pretrained"]


def test_supervised_training_is_a_run_of_its_own(work: Work) -> None:
    run = work.train("algorithm=supervised")
    found = metrics(run)
    assert set(found["metrics"]) == {"zeroshot", "control", "bayes_zeroshot", "bayes_fewshot", *QUICK}
    assert (found["algorithm"], found["residual"]) == ("supervised", "off")
    assert verify(run) == []
    assert without_paths(found) == without_paths(metrics(work.train("algorithm=supervised")))


def test_supervised_training_is_the_pretraining_of_a_meta_run(work: Work, finished: Path) -> None:
    """One code path: the pretrained row of a meta-trained run is the result of algorithm=supervised."""
    run = work.train("algorithm=supervised")
    best, base = tensors(run, "best"), tensors(finished, "best")
    stems = [name.removeprefix("base/") for name in base if name.startswith("base/")]
    assert all(torch.equal(best[f"phi/{stem}"], base[f"base/{stem}"]) for stem in stems)
    assert metrics(run)["metrics"]["zeroshot"] == metrics(finished)["metrics"]["pretrained"]


def test_leave_one_out_tests_every_user(work: Work) -> None:
    found = metrics(work.train("dataset.split.by=leave_one_out", "algorithm=supervised"))
    assert (found["protocol"]["n_query"], found["protocol"]["split_by"]) == (1, "leave_one_out")
    assert found["counts"]["users"] == 300


def test_training_without_a_warm_start_begins_at_random(work: Work, finished: Path) -> None:
    found = metrics(work.train("warm_start=none", "residual=off"))
    assert found["training"]["warm_start"] == {"kind": "none"}
