"""Whole runs with a memory, alone and in a list: what moves and is said, the figures again, the bits of a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference.tiny_runs import Work, assert_same_run, metrics, tensors, tiny

from metarec import cli
from metarec.config.compose import config_from_yaml, slug
from metarec.runs.checkpoint import load_checkpoint

SHORT = ("train.steps=4", "train.eval_every=2", "train.checkpoint_every=2", "evaluation.panel=[frequent_support]")
LISTS = {
    "memory": ("residual=memory", "algorithm=meta_sgd"),
    "memory+context": ("residual=[memory,context]", "algorithm=meta_sgd"),
    "memory+lora": ("residual=[memory,lora]", "algorithm=fomaml", "residual.lora.rank=2", "residual.memory.gate=state"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Path]:
    """A finished run of each."""
    work = Work(tmp_path_factory.mktemp("memory"), cache)
    return {name: work.train(*words, *SHORT) for name, words in LISTS.items()}


def at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / f"step-{step:06d}")[0]


@pytest.mark.parametrize("name", LISTS)
def test_a_run_learns_the_memory_and_its_figures_come_again(name: str, runs: dict[str, Path], work: Work) -> None:
    run, found = runs[name], metrics(runs[name])
    assert found["residual"] == name
    first, last = at(run, 0), at(run, 4)
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    numbers = {f"phi/memory.{number}" for number in ("gate", "similarity", "recency", "own", "sharpness")}
    assert numbers <= moved
    step = float((at(run, 2)["phi/memory.own"] - first["phi/memory.own"]).abs())
    assert 0.03 < step < 2 * 0.0301  # two steps of Adam of residual.lr each, whatever optimizer.lr is
    base = {key for key in first if key.startswith("base/")}
    assert base
    assert not moved & base
    weights = {key.replace("base/", "phi/") for key in base}
    assert (weights <= first.keys()) == (name == "memory+context")
    assert (weights & moved != set()) == (name == "memory+context")
    again = work.eval(run)
    assert again["metrics"] == found["metrics"]
    assert again["residual"] == name
    text = (run / "config.yaml").read_text()
    assert config_from_yaml(text, "train").residual.name == name  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LISTS)
def test_a_resumed_run_has_the_same_bits(name: str, runs: dict[str, Path], work: Work) -> None:
    words = work.words("train", *tiny(*LISTS[name]), *LISTS[name], *SHORT)
    run = cut_short(work, words)
    assert cli.main(["train", f"resume={run}"]) == 0
    assert_same_run(run, runs[name])


def cut_short(work: Work, words: list[str]) -> Path:
    """A run that was interrupted behind its second step."""
    from metarec import train

    steps, patch = 0, pytest.MonkeyPatch()
    differentiate = train._differentiate

    def counted(found: object, leaves: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
        nonlocal steps
        if leaves and len(work.directories("train")) and (work.directories("train")[-1] / "checkpoints").exists():
            steps += 1
            if steps > 3:
                raise KeyboardInterrupt
        return differentiate(found, leaves)  # type: ignore[arg-type]

    with patch.context() as of:
        of.setattr(train, "_differentiate", counted)
        assert cli.main(words) == 130
    return work.directories("train")[-1]


def test_a_run_says_what_a_user_is(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("residual=[memory,context]", "logger.console=plain", "train.steps=2", "train.eval_every=2")
    own = [word for word in tiny(*words) if word != "logger.console=quiet"]
    assert work.main("train", *own, *words, "evaluation.panel=none") == 0
    said = capsys.readouterr().out
    assert "adapted: 32 numbers a user" in said
    assert "memory: up to " in said
    assert "bytes of items; keys of 16 numbers each)" in said


def test_nothing_adapts_so_no_steps_are_taken_at_test(runs: dict[str, Path], work: Work) -> None:
    for word in ("steps=2", "lr=0.1"):
        assert work.main("eval", f"ckpt={runs['memory']}", word) == 2
    assert work.main("eval", f"ckpt={runs['memory']}", "n_support=0") == 0


def test_without_support_few_shot_is_zero_shot(runs: dict[str, Path], work: Work) -> None:
    found = work.eval(runs["memory"], "n_support=0")["metrics"]
    whole = metrics(runs["memory"])["metrics"]
    assert found["fewshot"] == found["zeroshot"] == whole["zeroshot"]  # which knows no support, however much there is
    assert whole["fewshot"] != whole["zeroshot"]


def test_a_warm_start_from_such_a_run_takes_its_weights(runs: dict[str, Path], work: Work) -> None:
    run = work.train(f"warm_start={runs['memory+context']}", "residual=off", "train.steps=1", "train.eval_every=1")
    then, now = tensors(runs["memory+context"], "best"), at(run, 0)
    names = [key for key in now if key.startswith("base/")]
    assert names
    assert all(torch.equal(now[key], then[key.replace("base/", "phi/")]) for key in names)


def test_a_misspelt_list_starts_nothing(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert work.main("train", "residual=[memory,contxt]") == 2
    assert "no residual is called contxt -- did you mean context?" in capsys.readouterr().err
    assert work.directories("train") == []


@pytest.mark.parametrize("words", [("objective=bce",), ("objective=chunked_cross_entropy", "objective.chunk=7"),
                                   ("model=narm",), ("hardware.precision=bfloat16",)])  # fmt: skip
def test_other_objectives_models_and_precisions(words: tuple[str, ...], work: Work) -> None:
    run = work.train("residual=memory", *words, "train.steps=2", "train.eval_every=1", "evaluation.panel=none")
    assert metrics(run)["metrics"]["fewshot"]["hr@10"] > 0


def test_a_sweep_runs_lists_and_names_them(work: Work) -> None:
    words = [word for word in tiny("residual=memory") if word != "algorithm=fomaml"]
    asked = ["residual=[memory,context],context", "train.steps=2", "train.eval_every=2", "evaluation.panel=none"]
    assert work.main("train", "-m", *words, "algorithm=fomaml", *asked) == 0
    (sweep,) = work.directories("train")
    found = [metrics(path)["residual"] for path in sorted(sweep.iterdir()) if path.is_dir()]
    assert found == ["memory+context", "context"]
    assert slug("residual=memory+context,seed=1") == "residual-memory-context_seed-1"
