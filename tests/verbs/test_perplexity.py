"""Whole runs on running text: pretraining is monitored by perplexity, and the perplexity told is that of the text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from reference.small_text import corpus
from reference.tiny_runs import Work, assert_same_run, metrics

from metarec import build
from metarec.config.compose import config_from_dict
from metarec.config.overrides import check_words
from metarec.config.schema import TrainConfig
from metarec.errors import Pruned
from metarec.evaluate import LIKELIHOOD, pair_metrics
from metarec.runs.checkpoint import load_checkpoint
from metarec.runs.rundir import fresh_run_dir
from metarec.text_bench import TextBench
from metarec.verbs import run_verb
from metarec.verbs.train import run_train

WORDS = (
    "dataset=wikitext2", "dataset.in_data_dir=false", "dataset.characters.length=7", "dataset.characters.n_support=3",
    "dataset.characters.n_query=2", "dataset.characters.n_episodes=2", "hardware=cpu", "hardware.threads=1",
    "hardware.precision=float64", "model.embedding_dim=6", "model.hidden_dim=8", "pretrain.epochs=2", "pretrain.min_steps=0",
    "pretrain.batch_size=50", "evaluation.bootstrap=50", "evaluation.control.lrs=[0.1]", "evaluation.control.steps=[1]",
    "evaluation.control.users=4", "evaluation.panel=none", "logger.console=quiet", "logger.plots=false",
)  # fmt: skip
OUTER = ("train.steps=2", "train.eval_every=1", "train.patience=0", "train.meta_batch_size=4")


@pytest.fixture
def text(tmp_path: Path) -> str:
    return f"dataset.path={corpus(tmp_path / 'text')}"


def bench_of(run: Path) -> tuple[TextBench, TrainConfig]:
    config = config_from_dict(metrics(run)["config"], "train")
    assert isinstance(config, TrainConfig)
    prepared = build.data(config, config.dataset, lambda line: None)
    bench = build.bench(config, config.evaluation, prepared, build.hardware(config.hardware))
    assert isinstance(bench, TextBench)
    return bench, config


def plain_costs(bench: TextBench, params: dict[str, torch.Tensor], split: str) -> list[float]:
    """-log p of every character by nn.GRU and log_softmax, one block at a time."""
    gru = torch.nn.GRU(6, 8, dtype=torch.float64, batch_first=True)
    gru.load_state_dict({name[4:]: value for name, value in params.items() if name.startswith("gru.")})
    prepared, found = bench.prepared, list[float]()
    for block in prepared.examples_of(prepared.of(split)):
        tokens = torch.from_numpy(
            prepared.tokens[prepared.example_tokens[block] : prepared.example_tokens[block + 1]]
        ).long()
        with torch.no_grad():
            states, _ = gru(params["embedding.weight"][tokens[:-1]][None])
            scores = states[0] @ params["fc.weight"].T + params["fc.bias"]
        found += [-float(s.log_softmax(0)[t - 1]) for s, t in zip(scores, tokens[1:], strict=True)]
    return found


def test_supervised_by_perplexity(work: Work, text: str) -> None:
    run = work._run("train", *WORDS, text, "algorithm=supervised", "pretrain.monitor=perplexity")
    document, (bench, _) = metrics(run), bench_of(run)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    seen = {row["step"]: row["zeroshot"] for row in rows if row["kind"] == "val"}
    best = min(seen, key=lambda step: seen[step]["perplexity"])
    training = document["training"]
    assert training["best_step"] == best > 0
    assert training["val_perplexity"] == seen[best]["perplexity"] < seen[0]["perplexity"]
    assert training["val_ndcg@10"] == seen[best]["ndcg@10"]
    tensors, _ = load_checkpoint(run / document["checkpoint"])
    params = {name[4:]: value for name, value in tensors.items() if name.startswith("phi/")}
    told = document["perplexity"]["rows"]
    assert list(told) == ["zeroshot"] and document["perplexity"]["split"] == "test"
    costs = plain_costs(bench, params, "test")
    assert told["zeroshot"]["n"] == len(costs) == bench.prepared.counts["response_tokens"]["test"]
    assert told["zeroshot"]["perplexity"] == pytest.approx(math.exp(math.fsum(costs) / len(costs)), rel=1e-12)
    assert set(told["zeroshot"]["intervals"]) == {"blocks", "documents"}
    # and validation, of all blocks here, is the same figure of the other split
    costs = plain_costs(bench, params, "val")
    assert seen[best]["perplexity"] == pytest.approx(math.exp(math.fsum(costs) / len(costs)), rel=1e-12)
    again = metrics(work._run("eval", f"ckpt={run}"))
    assert again["perplexity"] == document["perplexity"]


def test_meta_training_on_articles(work: Work, text: str) -> None:
    run = work._run("train", *WORDS, *OUTER, text, "algorithm=fomaml", "residual=context", "evaluation.divergence=true")
    document = metrics(run)
    assert set(document["perplexity"]["rows"]) == {"pretrained", "zeroshot"}
    assert set(document["divergence"]) == {"pretrained", "control", "zeroshot", "fewshot"}
    assert "val_perplexity" not in document["training"]


def test_the_monitor_moves_no_weight_of_one_epoch(work: Work, text: str) -> None:
    """It chooses among validations, and says more at each; steps are what they were."""
    words = (*WORDS, text, "algorithm=supervised", "pretrain.patience=0")
    one, other = work._run("train", *words), work._run("train", *words, "pretrain.monitor=perplexity")
    rows = [[json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()] for run in (one, other)]
    for row in rows[1]:
        row.get("zeroshot", {}).pop("perplexity", None)
        row.get("zeroshot", {}).pop(LIKELIHOOD, None)
    assert rows[0] == rows[1]


def test_resumed_ends_with_the_same_bits(work: Work, text: str) -> None:
    """Supervised, monitored by perplexity, with surprise in every other step."""
    words = (*WORDS, text, "algorithm=supervised", "pretrain.monitor=perplexity", "pretrain.patience=0",
             "objective.surprise.fast=0.05", "objective.surprise.every=2", "pretrain.epochs=8")  # fmt: skip
    whole = work._run("train", *(w for w in words if w != "pretrain.epochs=2"))
    given = work.words("train", *(w for w in words if w != "pretrain.epochs=2"))[1:]
    (job,) = check_words("train", given).jobs
    rows = [json.loads(line) for line in (whole / "history.jsonl").read_text().splitlines()]
    first = next(row["step"] for row in rows if row["kind"] == "val" and row["step"] > 0)
    assert first < rows[-1]["step"]
    run_dir = fresh_run_dir(work.root / "outputs", "train")
    with pytest.raises(Pruned):
        run_train(job.config, run_dir, False, given, should_stop=lambda step, value: step == first)
    run_verb("train", job.config, run_dir, True, given)
    assert_same_run(run_dir, whole)


def test_likelihood_is_asked_for(work: Work, text: str) -> None:
    run = work._run("train", *WORDS, text, "algorithm=supervised")
    bench, config = bench_of(run)
    params = bench.model.init(torch.Generator().manual_seed(1), torch.float64)
    pairs, ties = bench.validation_pairs(), config.evaluation.ties
    values = [
        pair_metrics(
            bench.tasks(), bench.batcher, pairs, params, ties, torch.device("cpu"), chunk, likelihood=chunk != 7
        )
        for chunk in (7, 64, 4096)
    ]
    assert "perplexity" not in values[0] and values[0].items() <= values[2].items()
    assert values[1] == pytest.approx(values[2], rel=1e-12)
    assert values[1]["perplexity"] == pytest.approx(math.exp(-values[1][LIKELIHOOD]))
