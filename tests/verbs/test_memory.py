"""The memory estimate of a run: exact parts against the checkpoint's tensors, a refusal ahead of everything, measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_runs import Work, metrics, tensors, tiny

from metarec import parts
from metarec.benches import SequenceBench
from metarec.config.schema import EvalConfig
from metarec.errors import EnvironmentFault
from metarec.evaluate import Control
from metarec.residual import lora
from metarec.verbs import measure, memory
from metarec.verbs.eval import opened


@pytest.mark.parametrize(
    "words",
    [
        ("residual=lora", "residual.rank=3"),
        ("algorithm=meta_sgd", "residual=context", "guard.on_nonfinite=rollback"),
        ("algorithm=maml", "residual=head", "optimizer=sgd", "optimizer.momentum=0.9"),
        ("algorithm=maml_pp", "residual=off", "optimizer=sgd", "algorithm.inner.steps=3"),
        ("residual=ia3", "algorithm=cavia", "algorithm.inner.rates=tensor", "guard.on_spike=rollback"),
        ("residual=bias", "hardware.precision=float64", "model=narm"),
    ],
    ids=" ".join,
)
def test_what_lasts_is_what_the_checkpoint_holds(words: tuple[str, ...], work: Work) -> None:
    """Bytes of the tensors that were written at the last step; Adam's counters are no slot."""
    run = work.train(*words)
    held = {n: v for n, v in tensors(run, "last").items() if not n.endswith("/step")}

    def size(prefix: str) -> int:
        return sum(v.numel() * v.element_size() for n, v in held.items() if n.startswith(prefix))

    found = metrics(run)["cost"]["estimated_bytes"]
    assert (found["weights"], found["learned"], found["optimizer"]) == (
        size("base/"), size("phi/"), size("optimizer/"),
    )  # fmt: skip
    if "optimizer=sgd" not in words:  # two slots for every number with a gradient
        assert found["gradients"] == size("optimizer/") // 2
    if "rollback" in " ".join(words):
        assert found["guard"] == size("phi/") + size("optimizer/")
        assert size("kept/") == found["guard"]
    else:
        assert found["guard"] == size("kept/") == 0
    assert metrics(run)["cost"]["peak_bytes"] > 0


def test_more_than_there_is_is_refused_before_anything(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No weight is drawn or pretrained; the estimate is told, and nothing is left behind."""
    cold = Work(work.root, work.root / "cold")
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    words = [word for word in tiny() if not word.startswith("logger.console")]
    assert cold.main("train", *words) == 5
    told = capsys.readouterr()
    assert "memory: about " in told.out
    (line,) = told.err.splitlines()
    assert "MiB needed: 1.0 MiB are available" in line
    assert "train.task_chunk" in line
    assert not (work.root / "cold" / "pretrained").exists()
    assert work.directories("train") == []


def test_a_run_says_what_it_expects_and_what_it_took(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    work.train("logger.console=plain")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory:")]
    assert len(lines) == 2
    assert lines[0].startswith("memory: about ")
    assert "(peak so far" in lines[0]
    assert "were expected, peak" in lines[1]


@dataclass(frozen=True)
class Huge:
    """The shapes of an 8B Llama and nothing else; `activation_numbers` of a forward pass."""

    n_items: int = 128_256
    head: tuple[str, ...] = ("lm_head.weight",)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found = {"model.embed_tokens.weight": (128_256, 4096)}
        for layer in range(32):
            for name, shape in {
                "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
                "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14_336, 4096), "mlp.up_proj": (14_336, 4096),
                "mlp.down_proj": (4096, 14_336),
            }.items():  # fmt: skip
                found[f"model.layers.{layer}.{name}.weight"] = shape
        return {**found, "lm_head.weight": (128_256, 4096)}

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def activation_numbers(self, n_tokens: int, longest: int) -> int:
        return n_tokens * 32 * 16 * 4096


def test_eight_billion_weights_are_reckoned_without_one(work: Work, finished: Path) -> None:
    """As a preset of that size has it: told in no time, refused where it is not there."""
    run = opened(EvalConfig(ckpt=str(finished), cache_dir=str(work.cache)), ())
    bench: Any = replace(run.bench, model=Huge())  # type: ignore[type-var]
    assert isinstance(bench, SequenceBench)
    on = lora.Config(rank=128, alpha=256.0, targets=["*.q_proj.*", "*.v_proj.*"])
    config = replace(run.trained_as, residual=on, algorithm=parts.default("algorithm", "maml"))
    began = time.perf_counter()
    made = measure.algorithm_of(bench, config, config.algorithm, Control(1e-3, 2, 0.0, []))  # type: ignore[arg-type]
    need = memory.need_of(config, bench, made)
    assert time.perf_counter() - began < 2
    numbers = sum(out * width for out, width in Huge().shapes().values())
    assert 8.0e9 < numbers < 8.1e9
    assert need.weights == 4 * numbers
    of_a_layer = 128 * (4096 + 4096) + 128 * (1024 + 4096)
    assert (need.learned, need.optimizer) == (4 * 32 * of_a_layer, 2 * 4 * 32 * of_a_layer)
    told = list[str]()
    with pytest.raises(EnvironmentFault, match="MiB needed"):
        memory.refuse(need, 16 * 2**30, "memory")
    assert need.activations > 2**30
    assert told == []


@pytest.mark.slow
@pytest.mark.parametrize("residual", ["off", "lora"])
@pytest.mark.parametrize("order", ["first", "second"])
def test_the_estimate_is_within_a_factor_of_two(order: str, residual: str, tmp_path: Path) -> None:
    """On the embedded world, in a process of its own."""
    words = [
        "train.steps=4", "train.eval_every=4", "evaluation.panel=none", "evaluation.bootstrap=9",
        "evaluation.control.lrs=[0.01]", "evaluation.control.steps=[1]", "evaluation.control.users=8", "hardware=cpu",
        "hardware.threads=1", "pretrain.epochs=1", "pretrain.min_steps=0", "logger.plots=false", "algorithm=maml",
        f"algorithm.order={order}", f"residual={residual}", "algorithm.inner.steps=3", "algorithm.inner.lr=0.01",
        f"output_dir={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "metarec", "train", *words], check=True, capture_output=True)
    (path,) = (tmp_path / "out" / "train").glob("*/metrics.json")
    cost = json.loads(path.read_text())["cost"]
    expected = cost["estimated_bytes"]["total"] - cost["estimated_bytes"]["weights"]
    assert cost["growth_bytes"] is not None
    assert 0.5 < expected / cost["growth_bytes"] < 2


def test_teachers_stay_in_memory_and_are_reckoned(work: Work) -> None:
    """U users, r (out + in) numbers each of the one default matrix [48, 8] at rank 2."""
    words = (
        "algorithm=generator",
        "residual=lora",
        "residual.rank=2",
        "schedule.warmup_steps=2",
        "evaluation.panel=none",
    )
    found = []
    for more in ((), ("algorithm.loss.delta_w=1", "algorithm.teacher.users=30", "algorithm.teacher.steps=1",
                      "algorithm.teacher.lr=0.1")):  # fmt: skip
        cost = json.loads((work.train(*words, *more) / "metrics.json").read_text())["cost"]
        found.append(cost["estimated_bytes"]["teachers"])
    assert found == [0, 30 * 2 * (48 + 8) * 4]
