"""The bench of text: what pretraining reads, what validates it, and what a run asks of any bench."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.small_prompts import EOS, ROWS, SEP, SPEC, bytes_of, load, write

from metarec import text_bench
from metarec.config.schema import EvaluationConfig, TrainSection
from metarec.core.seeding import generator
from metarec.data.prompt_batches import batcher_of
from metarec.evaluate import pair_metrics
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.pretrain import loss_of_step
from metarec.text_bench import TextBench
from metarec.workbench import Hardware

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> TextBench:
    prepared = load(write(tmp_path_factory.mktemp("prompts") / "x.jsonl"))
    model, hardware = GRU4Rec(259, 6, 5, dropout=0.0), Hardware(CPU, torch.float64, "")
    return TextBench(prepared, batcher_of(prepared, 48, CPU), model, CrossEntropy(), hardware, EvaluationConfig())


def responses(bench: TextBench, split: str) -> list[list[int]]:
    """Tokens from the response on, of every example of a split, from the rows by hand."""
    names = [name for name, own in zip(bench.prepared.domains, bench.prepared.split, strict=True) if own == split]
    return [bytes_of(r["prompt"], r["response"])[1] for name in names for r in ROWS if r["metadata"]["domain"] == name]


def test_an_epoch_reads_every_response_token_of_the_training_domains_once(bench: TextBench) -> None:
    """And no token of a prompt; batches of about as many targets as asked for."""
    pieces = bench.pieces(9, seed=4)
    read: list[int] = []
    for step in range(pieces.steps_per_epoch):
        now = pieces.at(step)
        batch = bench.batcher.pieces(pieces.first[now], pieces.last[now], pieces.start[now])
        read += batch.target.flatten().tolist()
    expected = [token for own in responses(bench, "train") for token in own]
    assert sorted(read) == sorted(expected)
    assert SEP not in read and read.count(EOS) == 6
    assert pieces.steps_per_epoch == len(expected) // 9 > 1


def test_pretraining_on_easy_domains_alone(bench: TextBench) -> None:
    easy = replace(bench, prepared=replace(bench.prepared, spec=replace(SPEC, pretrain="easy")))
    pieces = easy.pieces(1_000, seed=4)
    tokens = [bench.prepared.tokens[a:b].tolist() for a, b in zip(pieces.first, pieces.last, strict=True)]
    copy = [bytes_of(r["prompt"], r["response"])[1] for r in ROWS if r["metadata"]["domain"] == "copy"]
    assert tokens == copy


def test_the_pretraining_loss_is_the_mean_over_response_tokens(bench: TextBench) -> None:
    """Against every example by itself."""
    params = bench.model.init(generator(1, "init"), torch.float64)
    pieces, tasks = bench.pieces(1_000, seed=4), bench.tasks()
    found = float(loss_of_step(tasks, bench.batcher, pieces, params, CPU)(0))
    total, count = 0.0, 0
    for first, last, start in zip(pieces.first, pieces.last, pieces.start, strict=True):
        batch = bench.batcher.pieces(np.array([first]), np.array([last]), np.array([start]))
        scores = tasks.logits(params, batch)[0]
        for row, target in zip(scores, batch.target[0], strict=True):
            total, count = total + float(torch.logsumexp(row, 0) - row[target - 1]), count + 1
    assert found == pytest.approx(total / count, abs=1e-12)


def test_validation_pairs_are_the_response_tokens_of_the_validation_domains(
    bench: TextBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = bench.validation_pairs()
    expected = [token for own in responses(bench, "val") for token in own]
    assert bench.prepared.tokens[bench.prepared.pair_event[pairs]].tolist() == expected
    params = bench.model.init(generator(1, "init"), torch.float64)
    whole = pair_metrics(bench.tasks(), bench.batcher, pairs, params, "conservative", CPU)
    assert whole == pair_metrics(bench.tasks(), bench.batcher, pairs, params, "conservative", CPU, chunk=2)
    monkeypatch.setattr(text_bench, "VALIDATION_PAIRS", 3)
    assert bench.validation_pairs().tolist() == [pairs[0], pairs[(len(pairs) - 1) // 2], pairs[-1]]


def test_training_batches_in_chunks(bench: TextBench) -> None:
    section = TrainSection(steps=9, meta_batch_size=5, task_chunk=2)
    found = list(bench.training_batches(section, 1, 3))
    assert [batch.n_tasks for batch in found] == [2, 2, 1]
    drawn = bench.prepared.training(1, 3, 5, 9)
    assert torch.cat([batch.user for batch in found]).tolist() == drawn.domain.tolist()


def test_the_longest_prefix(bench: TextBench) -> None:
    """Of the test domain: "abcd" -> "dcba", BOS and SEP ahead, before its EOS; where it is drawn."""
    episodes = bench.episodes("test")
    assert set(bench.prepared.episodes("test").example.ravel().tolist()) == {0, 1, 2}
    assert bench.longest_prefix(episodes) == 1 + 4 + 1 + 4
    assert bench.support_share == 2 / 3
    assert bench.user_ids(np.array([3, 0])).tolist() == ["twice", "back"]
