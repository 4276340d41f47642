"""Whole runs with the language model: trained, evaluated again, killed and resumed; from a directory, and with titles."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from reference.small_lms import saved, theirs
from reference.tiny_runs import MODEL, Work, assert_same_run, ended, metrics, state, tensors, tiny, wait_for

from metarec import cli
from metarec.config.overrides import check_words
from metarec.data.store import Prepared
from metarec.errors import ConfigError

LM = ("model=causal_lm", "model.hidden_size=8", "model.n_heads=2", "model.max_len=12")
LORA = ("residual=lora", "residual.rank=2", "residual.targets=[*q_proj*,*v_proj*]")


def words_of(work: Work, *words: str) -> list[str]:
    ours = [word for word in MODEL if word.startswith("model.")]
    return work.words("train", *(word for word in tiny(*words) if word not in ours), *words)


def train(work: Work, *words: str) -> Path:
    assert cli.main(words_of(work, *words)) == 0
    return work.directories("train")[-1]


@pytest.mark.slow
def test_a_run_of_fomaml_over_lora_is_evaluated_and_resumed(work: Work, tmp_path: Path) -> None:
    words = (*LM, *LORA, "algorithm=fomaml", "train.steps=8", "train.checkpoint_every=2")
    run = train(work, *words)
    found = metrics(run)
    assert (found["model"], found["residual"]) == ("causal_lm", "lora")
    assert set(found["metrics"]) >= {"pretrained", "control", "zeroshot", "fewshot"}
    assert found["metrics"]["zeroshot"] != found["metrics"]["fewshot"]
    assert work.eval(run)["metrics"] == found["metrics"]

    other = Work(tmp_path / "other", work.cache)
    other.root.mkdir()
    process = other.start(*words_of(other, *words))
    wait_for(lambda: any(other.root.glob("outputs/train/*/checkpoints/step-000002")), process)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    (killed,) = other.directories("train")
    assert cli.main(["train", f"resume={killed}"]) == 0
    assert_same_run(killed, run)


@pytest.mark.parametrize(
    "words",
    [
        ("algorithm=maml", *LORA, "model.gradient_checkpointing=true"),
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (
                ("algorithm=meta_sgd", *LORA),
                ("algorithm=reptile", "residual=off"),
                ("algorithm=imaml", *LORA),
                ("algorithm=maml_pp", "residual=on"),
                ("algorithm=anil", "residual=off"),
                ("algorithm=cavia", "residual=context"),
                ("algorithm=fomaml", "residual=head", "objective=sampled_softmax", "objective.n_samples=8"),
                ("algorithm=supervised",),
            )
        ),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_algorithms_and_residuals_know_it(words: tuple[str, ...], work: Work) -> None:
    outer = () if "algorithm=supervised" in words else ("train.steps=2", "train.eval_every=1")
    assert metrics(train(work, *LM, *words, *outer))["model"] == "causal_lm"


@pytest.mark.slow
def test_a_directory_and_titles_start_the_model_and_name_what_is_cached(work: Work, tmp_path: Path) -> None:
    """Another file under the same name is other weights: nothing of the first run is taken up."""
    items = "item_id,title\n" + "".join(f"{i},word{i % 5} name{i % 7}\n" for i in range(40))
    (tmp_path / "t.csv").write_text(items)
    log = ["user_id,item_id,timestamp"]
    log += [
        f"u{u},{(u * 3 + i * i) % 30},{1_000_000 * u + 60 * i + 9000 * (i // 3)}" for u in range(90) for i in range(24)
    ]
    (tmp_path / "log.csv").write_text("\n".join(log) + "\n")
    data = (f"dataset.path={tmp_path / 'log.csv'}", "dataset.split.by=user_disjoint", f"data_dir={tmp_path}")
    lm = ("model=causal_lm", "model.n_heads=2", "model.hidden_size=8", "model.max_len=12", "model.titles=t.csv")
    words = ("dataset=events", *data, *lm, *LORA, "algorithm=fomaml", "train.steps=2", "train.eval_every=1")
    first = state(train(work, *words), "best")["warm_start"]
    assert state(train(work, *words), "best")["warm_start"]["key"] == first["key"]
    (tmp_path / "t.csv").write_text(items.replace("word1", "other"))
    assert state(train(work, *words), "best")["warm_start"]["key"] != first["key"]

    directory = saved(theirs("llama"), tmp_path / "model")
    path = ("model=causal_lm", f"model.path={directory}", "model.max_len=12")
    run = train(work, "dataset=events", *data, *path, *LORA, "algorithm=fomaml", "train.steps=2", "train.eval_every=1")
    for file in directory.glob("*.safetensors"):
        file.unlink()
    (directory / "model.safetensors").touch()  # the weights are those of the checkpoint by now
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]


@pytest.mark.slow
def test_a_data_set_of_tokens_is_read_by_the_models_own_table(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the data set says of itself is another: the run is the same command."""
    monkeypatch.setattr(Prepared, "kind", "tokens")
    run = train(work, *LM, *LORA, "algorithm=maml", "train.steps=2", "train.eval_every=1")
    found = tensors(run, "best")
    assert found["base/model.embed_tokens.weight"].shape == (30, 8) and "base/items.weight" not in found
    assert work.eval(run)["metrics"] == metrics(run)["metrics"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("model.hidden_size=12", "model.n_heads=4"), "model.hidden_size: 12: is no even multiple of model.n_heads=4"),
        (("model.n_kv_heads=3",), "model.n_kv_heads: 3: does not divide model.n_heads=4"),
        (("model.title_columns=[a]", "model.titles=t"), "model.title_columns: [a]: wrong length"),
        (("residual=lora", "warm_start=none"), "a residual would sit on frozen random weights"),
        (("hardware.compile=true",), "model=causal_lm has none"),
    ],
)
def test_options_that_make_no_sense(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_words("train", ["model=causal_lm", *words])
    assert line in str(caught.value)


def test_pretrained_weights_may_be_frozen_without_pretraining_here() -> None:
    given = ["model=causal_lm", "model.path=/m", "warm_start=none"]
    for words in (["model.titles=t.csv", "residual=lora"], ["residual=off"]):
        assert check_words("train", [*given, *words]).jobs
