"""Whole runs of a generator: on every kind of residual, with teachers, killed and resumed, measured again and exported."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, ended, metrics, tensors, wait_for
from safetensors.torch import load_file

from metarec import cli

SMALL = ("schedule.warmup_steps=2", "algorithm.width=8", "algorithm.hidden=8", "evaluation.panel=none")
LORA = ("algorithm=generator", "residual=lora", "residual.rank=2", *SMALL)
TAUGHT = (
    "algorithm.teacher.users=40", "algorithm.teacher.steps=2", "algorithm.teacher.lr=0.5", "algorithm.teacher.pairs=8",
)  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("residual=context",),
        ("residual=ia3",),
        ("residual=bias",),
        ("residual=[lora,context]", "residual.lora.rank=2", "residual.context.train_weights=false"),
        ("residual=[memory,lora]", "residual.lora.rank=2"),
        ("residual=lora", "residual.rank=2", "algorithm.head=basis", "algorithm.refine_steps=2"),
        ("residual=lora", "residual.rank=2", "residual.dropout=0.2"),
        ("residual=context", "dataset.history=user"),
        ("residual=context", "hardware.precision=bfloat16"),
        ("residual=context", "algorithm.inner.support_weights=recency", "algorithm.refine_steps=1"),
    ],
    ids=lambda words: " ".join(words)[:50],
)
def test_it_runs_over_whatever_a_user_has_few_numbers_of(words: tuple[str, ...], work: Work) -> None:
    run = work.train("algorithm=generator", *SMALL, *words)
    found = metrics(run)
    assert found["algorithm"] == "generator"
    assert 0 < found["metrics"]["fewshot"]["hr@10"] <= 1
    learned = {name for name in tensors(run, "last") if name.startswith("phi/generator/")}
    assert any("encoder" in name for name in learned)


@pytest.mark.parametrize("loss", ["delta_w", "ab", "functional"])
@pytest.mark.parametrize("residual", ["lora", "context"])
def test_each_loss_is_learned_from_teachers_that_are_made_for_it(loss: str, residual: str, work: Work) -> None:
    on = LORA if residual == "lora" else ("algorithm=generator", "residual=context", *SMALL)
    run = work.train(*on, *TAUGHT, f"algorithm.loss.{loss}=1", "algorithm.loss.task=0", "algorithm.fine_tune=0.3")
    after = tensors(run, "last")
    moved = [n for n in after if n.startswith("phi/generator/head") and bool(after[n].any())]
    assert moved  # zero at the start
    assert metrics(run)["training"]["steps"] == 6


def test_only_users_with_a_teacher_are_drawn(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    from metarec.benches import SequenceBench

    drawn: list[set[int]] = []
    usual = SequenceBench.training_batches

    def watched(self: SequenceBench, *args: object) -> object:
        for batch in usual(self, *args):  # type: ignore[arg-type]
            drawn.append(set(batch.user.tolist()))
            yield batch

    monkeypatch.setattr(SequenceBench, "training_batches", watched)
    work.train(*LORA, *TAUGHT, "algorithm.loss.delta_w=1", "train.meta_batch_size=64")
    assert len(set().union(*drawn)) == 40


def test_what_starts_the_same_for_all_is_not_trained(work: Work) -> None:
    """A0 and B0 are those of every other run of the seed, so that teachers start where the generator does."""
    run = work.train(*LORA)
    last = tensors(run, "last")
    assert not bool(last["phi/gru.weight_ih_l0.lora_b"].any())
    first = work.train("algorithm=fomaml", "residual=lora", "residual.rank=2", "train.steps=1", "train.eval_every=1",
                       "train.checkpoint_every=1", "optimizer.lr=1e-30")  # fmt: skip
    a = "phi/gru.weight_ih_l0.lora_a"
    assert torch.equal(last[a], tensors(first, "last")[a])
    found = metrics(run)["metrics"]
    assert found["zeroshot"] == found["pretrained"]


def test_killed_and_resumed_ends_with_the_same_bits(work: Work, tmp_path: Path, cache: Path) -> None:
    words = (*LORA, *TAUGHT, "algorithm.loss.delta_w=1", "train.steps=40", "train.eval_every=8", "train.patience=0",
             "train.checkpoint_every=12")  # fmt: skip
    whole = Work(tmp_path / "whole", cache).train(*words)
    process = work.start_train(*words)

    def begun() -> bool:
        return any(path.name == "step-000016" for path in work.root.glob("outputs/train/*/checkpoints/*"))

    wait_for(begun, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    (run,) = work.directories("train")
    assert cli.main(["train", f"resume={run}"]) == 0
    assert_same_run(run, whole)


def test_evaluated_again_it_has_the_same_figures_and_more_steps_others(work: Work) -> None:
    run = work.train(*LORA, "optimizer.lr=0.05", "train.steps=12")
    again = work.eval(run)
    assert again["metrics"]["fewshot"] == metrics(run)["metrics"]["fewshot"]
    stepped = work.eval(run, "steps=3", "lr=1.0")
    assert stepped["metrics"]["fewshot"] != again["metrics"]["fewshot"]


def test_a_users_adapter_can_be_exported(work: Work) -> None:
    run = work.train(*LORA, "optimizer.lr=0.05", "train.steps=12")
    user = pq.read_table(run / "per_user.parquet")["user_id"].to_pylist()[0]
    assert work.main("export", f"ckpt={run}", f"users=['{user}']", f"to={work.root / 'out'}") == 0
    start = load_file(work.root / "out" / "adapter_model.safetensors")
    own = load_file(next((work.root / "out" / "users").iterdir()) / "adapter_model.safetensors")
    assert start.keys() == own.keys()
    assert not any(bool(value.any()) for name, value in start.items() if "lora_B" in name)
    assert all(bool(value.any()) for name, value in own.items() if "lora_B" in name)


@pytest.mark.parametrize("model", ["sasrec", "narm"])
def test_every_model_with_states_can_be_read(model: str, work: Work) -> None:
    own = {"sasrec": ("model.hidden_dim=8", "model.n_layers=1", "model.n_heads=1"), "narm": ("model.hidden_dim=8",)}
    run = work.train("algorithm=generator", "residual=context", *SMALL, f"model={model}", *own[model])
    assert metrics(run)["model"] == model
