"""Whole runs by every optimizer, in both loops: killed and resumed, what the cache of pretraining depends on, refusals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, ended, metrics, tensors, tiny, wait_for

from metarec import build, cli
from metarec.errors import ConfigError
from metarec.runs.history import read_history
from metarec.verbs import warm_start as ws

SUPERVISED = ("algorithm=supervised", "pretrain.optimizer=run", "pretrain.batch_size=64")


def train(work: Work, *words: str) -> Path:
    """As `Work.train`, and of SASRec, which has other sizes."""
    own = [word for word in tiny(*words) if "model=sasrec" not in words or not word.startswith("model.")]
    if "model=sasrec" in words:
        own += ["model.dim=8", "model.max_len=20"]
    if any(word.startswith("optimizer=") for word in words) and "algorithm=supervised" not in words:
        own = [word for word in own if not word.startswith("optimizer.lr")] + ["optimizer.lr=0.01"]
    return work._run("train", *own, *words)


def trained(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_history(run / "history.jsonl") if line["kind"] == "train"]


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (("residual=off",), "fc.weight"),
        (("residual=context", "algorithm=meta_sgd"), "rates/context.state"),
        (("residual=lora", "residual.rank=2", "residual.targets=[gru.weight_ih_l0,fc.weight]"), "fc.weight.lora_b"),
        (("model=sasrec", "residual=on"), "layers.0.ffn1.weight"),
        (("model=narm", "residual=off", "algorithm=maml"), "attention.mass"),
    ],
    ids=["gru4rec", "context", "lora", "sasrec", "narm"],
)
def test_a_slow_level_moves_at_its_chunks_and_is_flushed(words: tuple[str, ...], slow: str, work: Work) -> None:
    """Of six steps with checkpoints behind every second: the second level steps behind the fourth, and at the end."""
    options = ("optimizer=cms", "optimizer.chunks=[1,4,256]", "train.checkpoint_every=1", "train.eval_every=1")
    run = train(work, *words, *options)

    def at(step: int) -> Any:
        return ws.checkpoint.load_checkpoint(run / f"checkpoints/step-{step:06d}")[0]

    held = [at(step) for step in range(7)]
    moved = [not torch.equal(held[t][f"phi/{slow}"], held[t - 1][f"phi/{slow}"]) for t in range(1, 7)]
    assert moved == [False, False, False, True, False, True]
    assert [f"optimizer/{slow}/pending" in held[t] for t in range(1, 7)] == [True, True, True, False, True, False]
    fast = [n for n in held[0] if n.startswith("phi/") and f"optimizer/{n[4:]}/step" in held[1]]
    assert fast
    assert all(not torch.equal(held[t][name], held[t - 1][name]) for name in fast for t in range(1, 7))


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=cms", "optimizer.chunks=[1,5,11]", "residual=off"),
        (*SUPERVISED, "optimizer=cms", "optimizer.chunks=[1,7,30]"),
        (*SUPERVISED, "optimizer=delta_adam", "optimizer.decay=0.01"),
    ],
    ids=["outer loop", "pretraining", "delta"],
)
def test_killed_in_mid_chunk_and_resumed_ends_with_the_same_bits(
    words: tuple[str, ...], work: Work, tmp_path: Path
) -> None:
    longer = ("train.steps=40", "train.eval_every=8", "train.checkpoint_every=12", "train.patience=0")
    pretrains = "algorithm=supervised" in words
    words = (*words, "pretrain.epochs=8", "pretrain.patience=0") if pretrains else (*words, *longer)
    process = work.start_train(*words)
    lines = lambda: [p for p in work.directories("train") if len(_lines(p)) > (130 if pretrains else 19)]  # noqa: E731
    wait_for(lines, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    (run,) = work.directories("train")
    if "optimizer=cms" in words:
        held = tensors(run, "last")
        pending = [name for name in held if name.endswith("/pending")]
        assert pending
        assert all(held[name].abs().sum() > 0 for name in pending if "embedding" not in name)
    assert cli.main(["train", f"resume={run}"]) == 0
    other = Work(tmp_path / "whole", work.cache)
    assert_same_run(run, other.train(*words))


def _lines(run: Path) -> list[bytes]:
    path = run / "history.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


@pytest.mark.parametrize("model", ["gru4rec", "sasrec"])
@pytest.mark.parametrize("name", ["delta_sgd", "delta_adam"])
def test_the_delta_rule_in_both_loops(name: str, model: str, work: Work) -> None:
    """What forgets are the matrices that were read; the largest product stands in each line and never falls."""
    words = (f"model={model}", f"optimizer={name}", "optimizer.decay=0.01", "residual=off", "pretrain.optimizer=run")
    run = train(work, *words, "logger.every=1")
    told = [line["delta_largest"] for line in trained(run)]
    assert told == sorted(told)
    assert told[0] > 0
    before = [line["delta_largest"] for line in read_history(run / "pretrain_history.jsonl") if line["kind"] == "train"]
    assert before == sorted(before)
    held = tensors(run, "last")
    forgets = {n.split("/")[1] for n in held if n.endswith("/largest")}
    assert forgets == {n[4:] for n, value in held.items() if n.startswith("phi/") and value.dim() == 2}
    assert 0 < max(float(held[f"optimizer/{n}/largest"]) for n in forgets) == pytest.approx(told[-1])


@pytest.mark.parametrize(
    "words",
    [
        ("residual=on", "algorithm=reptile"), ("residual=lora", "residual.rank=2"), ("residual=off", "algorithm=imaml"),
        ("residual=off", "algorithm=maml_pp"), ("residual=on", "algorithm=meta_sgd"), ("residual=head", "algorithm=maml"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_delta_rule_with_every_kind_of_outer_loop(words: tuple[str, ...], work: Work) -> None:
    assert trained(train(work, *words, "optimizer=delta_adam", "optimizer.form=proximal"))[-1]["delta_largest"] > 0


@pytest.mark.parametrize("form", ["explicit", "proximal"])
def test_without_decay_a_run_is_that_of_adam(form: str, work: Work) -> None:
    extra = () if form == "explicit" else ("optimizer.betas=[0.9,0.999]",)
    ours = train(work, "residual=off", "optimizer=delta_adam", "optimizer.decay=0", *extra)
    theirs = train(work, "residual=off", "optimizer=adam")
    assert trained(ours) == trained(theirs)
    assert all(torch.equal(value, tensors(ours, "last")[name]) for name, value in tensors(theirs, "last").items())


def test_a_run_of_one_timescale_is_that_of_adam(work: Work) -> None:
    ours = train(work, "residual=off", "optimizer=cms", "optimizer.chunks=[1,1,1]", "pretrain.optimizer=run")
    theirs = train(work, "residual=off", "optimizer=adam")
    lines = trained(ours)
    told = [line.pop("timescales") for line in lines]
    assert lines == trained(theirs)
    assert told[-1] == {"updates": dict.fromkeys("12", 6), "since": dict.fromkeys("12", 0)}
    mine = tensors(ours, "last")
    assert all(torch.equal(value, mine[name]) for name, value in tensors(theirs, "last").items())


def test_what_would_do_nothing_is_refused(work: Work) -> None:
    """Contexts alone are no matrices, but SASRec's prefix tokens, which no layer multiplies by; and they are all fast.
    All but the second is known before anything is pretrained."""
    alone = ("residual=context", "residual.train_weights=false")
    with pytest.raises(ConfigError, match=r"no matrix is among what is trained .* so nothing would forget"):
        train(work, *alone, "optimizer=delta_adam")
    with pytest.raises(ConfigError, match="no trained matrix is read as a linear layer or a table"):
        train(work, *alone, "optimizer=delta_adam", "model=sasrec")
    with pytest.raises(ConfigError, match="nothing that is trained is slow"):
        train(work, *alone, "optimizer=cms")
    with pytest.raises(ConfigError, match=r"optimizer.levels: embedding.weight: stands in no level"):
        train(work, "residual=off", "optimizer=cms", "optimizer.chunks=[1,2]", "optimizer.levels=[[gru.*],[fc.*]]")


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("residual=off", "algorithm=meta_sgd"), "[[gru.*,embedding.*],[fc.*,rates/*]]"),
        (("residual=rows", "algorithm=meta_sgd"), "[[rates/embedding.*],[rates/fc.*]]"),  # no delta: step sizes alone
        (("residual=[memory,context]", "residual.context.train_weights=false"), "[['context.*'],['memory.*']]"),
        (("residual=lora", "residual.rank=2", "residual.targets=[fc.weight]"), "[['*.lora_b'],['*.lora_a']]"),
    ],
    ids=["off", "rows", "memory+context", "lora"],
)
def test_levels_of_whatever_is_learned(words: tuple[str, ...], pattern: str, work: Work) -> None:
    options = ("optimizer=cms", "optimizer.chunks=[1,4]", f"optimizer.levels={pattern}", "train.checkpoint_every=1")
    run = train(work, *words, *options)
    assert any(name.endswith("/pending") for name in ws.checkpoint.load_checkpoint(run / "checkpoints/step-000002")[0])


def test_pretraining_by_the_run_s_optimizer_is_cached_apart(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam of its own pretrains once for all optimizers; with `run`, what the optimizer is said to be counts, but not
    its own step size and clip."""
    keys: list[str] = []
    plain = ws.cache_key
    monkeypatch.setattr(ws, "cache_key", lambda config, bench: keys.append(plain(config, bench)) or keys[-1])
    for words in (
        ("optimizer=adam",), ("optimizer=sgd",), ("optimizer=adam", "pretrain.optimizer=run"),
        ("optimizer=adam", "optimizer.clip_norm=3", "pretrain.optimizer=run"),
        ("optimizer=adam", "optimizer.eps=1e-6", "pretrain.optimizer=run"),
        ("optimizer=cms", "optimizer.chunks=[1,2,2]", "pretrain.optimizer=run"),
    ):  # fmt: skip
        train(work, "residual=off", *words)
    of = [key for number, key in enumerate(keys) if number % (len(keys) // 6) == 0]
    assert of[0] == of[1]
    assert of[2] == of[3]
    assert len({of[0], of[2], of[4], of[5]}) == 4


def test_step_size_and_clip_of_pretraining_are_its_own(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    plain = build.pretrain_optimizer
    monkeypatch.setattr(build, "pretrain_optimizer", lambda *args: seen.append(plain(*args)) or seen[-1])
    for words in (
        ("optimizer=adamw", "seed=91"), ("optimizer=adamw", "pretrain.lr=0.02"), ("optimizer=sgd", "seed=92"),
        ("optimizer=delta_sgd", "pretrain.lr=0.02"), ("optimizer=cms", "optimizer.base=sgd", "optimizer.chunks=[1,2,2]"),
    ):  # fmt: skip
        train(work, *SUPERVISED, *words)
    assert [type(one).__name__ for one in seen] == ["AdamW", "AdamW", "SGD", "Delta", "CMS"]
    assert [one.param_groups[0]["lr"] for one in seen] == [3e-3, 0.02, 0.1, 0.02, 0.1]
    assert metrics(work.directories("train")[0])["config"]["pretrain"]["optimizer"] == "run"
