"""Whole runs on text tasks: every verb, models and residuals, resumed bit for bit, refused where it makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from reference.small_prompts import ROWS, line, write
from reference.tiny_runs import Work, assert_same_run, metrics, state, without_paths

from metarec import build
from metarec.config.compose import config_from_dict
from metarec.config.overrides import check_words
from metarec.config.schema import TrainConfig
from metarec.errors import ConfigError, Pruned
from metarec.evaluate import ranks, scored
from metarec.report.tables import plain_text, results_table
from metarec.runs.checkpoint import load_checkpoint
from metarec.runs.rundir import fresh_run_dir, verify
from metarec.text_bench import TextBench
from metarec.verbs import measure as m
from metarec.verbs import run_verb
from metarec.verbs.train import run_train

WORDS = (
    "dataset=prompts", "dataset.prompts.n_examples=12", "dataset.prompts.n_letters=4", "dataset.prompts.n_episodes=2",
    "dataset.prompts.n_support=3", "dataset.prompts.n_query=2", "hardware=cpu", "hardware.threads=1", "pretrain.epochs=1",
    "pretrain.min_steps=0", "pretrain.batch_size=128", "train.steps=6", "train.eval_every=2", "train.checkpoint_every=4",
    "train.patience=0", "train.meta_batch_size=4", "optimizer.lr=0.02", "evaluation.bootstrap=50",
    "evaluation.control.lrs=[0.1]", "evaluation.control.steps=[1,2]", "evaluation.control.users=6",
    "evaluation.monitor=hr@1", "logger.console=quiet",
    "logger.plots=false", "logger.every=1",
)  # fmt: skip
MODELS = {
    "gru4rec": ("model.embedding_dim=8", "model.hidden_dim=12"),
    "sasrec": ("model=sasrec", "model.dim=8"),
}
GRU = MODELS["gru4rec"]


def of_a_file(*words: str) -> tuple[str, ...]:
    """WORDS without the sizes of the embedded tasks, which a file refuses."""
    return (*(w for w in WORDS if "n_examples" not in w and "n_letters" not in w), *words)


@pytest.fixture
def train(work: Work) -> Callable[..., Path]:
    def run(*words: str) -> Path:
        algorithm = () if any(word.startswith("algorithm=") for word in words) else ("algorithm=fomaml",)
        return work._run("train", *WORDS, *algorithm, *words)

    return run


Train = Callable[..., Path]


def bench_of(run: Path) -> tuple[TextBench, TrainConfig]:
    config = config_from_dict(metrics(run)["config"], "train")
    assert isinstance(config, TrainConfig)
    prepared = build.data(config, config.dataset, lambda line: None)
    bench = build.bench(config, config.evaluation, prepared, build.hardware(config.hardware))
    assert isinstance(bench, TextBench)
    return bench, config


SAME = (
    "metrics",
    "intervals",
    "macro",
    "differences",
    "counts",
    "bootstrap",
    "protocol",
    "control",
    "config",
    "k_curve",
)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("residual", ["lora", "context"])
def test_a_run_and_its_evaluation(model: str, residual: str, train: Train, work: Work) -> None:
    """Figures of every row over the same tokens; eval gives them again, exactly."""
    run = train(*MODELS[model], f"residual={residual}")
    assert verify(run) == []
    document = metrics(run)
    assert set(document["metrics"]) == {"pretrained", "control", "zeroshot", "fewshot"}
    assert document["left_out"] == dict.fromkeys(
        ("popularity", "frequent_support", "in_context"), "text tasks have no log"
    )
    found = work.eval(run)
    assert {key: found.get(key) for key in SAME} == {key: document.get(key) for key in SAME}
    (made,) = work.directories("eval")
    assert pq.read_table(made / "per_user.parquet").equals(pq.read_table(run / "per_user.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("algorithm=meta_sgd", "residual=off"), ("algorithm=maml", "residual=on", "objective=chunked_cross_entropy"),
        ("algorithm=reptile", "residual=off", "warm_start=none"), ("algorithm=supervised", "residual=off"),
        ("algorithm=cavia", "residual=context", "train.dropout=0.2", "train.task_chunk=3"),
    ],
    ids=lambda words: "-".join(words[:2]),
)  # fmt: skip
def test_other_algorithms(words: tuple[str, ...], work: Work) -> None:
    rest: tuple[str, ...] = ("train.", "optimizer.") if "algorithm=supervised" in words else ()
    rest += ("pretrain.",) if "warm_start=none" in words else ()
    own = [word for word in WORDS if not (rest and word.startswith(rest))]
    run = work._run("train", *own, *GRU, *words)
    assert np.isfinite(metrics(run)["metrics"]["zeroshot"]["hr@1"])


def test_the_figures_are_token_accuracies(train: Train, work: Work) -> None:
    """hr@1 of the few-shot row is the share of response tokens that are the best scored, counted here token by token;
    a domain is a row of per_user.parquet, with all tokens of its episodes."""
    run = train(*GRU, "residual=lora", "residual.targets=['gru.weight_ih*']", "evaluation.task_chunk=3")
    bench, config = bench_of(run)
    document = metrics(run)
    best = run / document["checkpoint"]
    tensors, stored = load_checkpoint(best)
    trained = m.trained_from(bench, config, tensors, m.Control(**stored["control"]))
    scorer = scored(bench.tasks(trained.residual), m.adapted(bench, trained))
    right: dict[int, list[bool]] = {}
    with torch.no_grad():
        for number in range(len(bench.prepared.episodes("test"))):
            (batch,) = bench.episodes("test", rows=np.array([number])).batches()
            scores, target = scorer(batch)[0], batch.query.target[0]
            own = right.setdefault(int(batch.user[0]), [])
            for row, wanted in zip(scores.tolist(), target.tolist(), strict=True):
                assert wanted > 0  # alone, nothing is filled up
                own.append(sum(value >= row[wanted - 1] for value in row) == 1)
    every = [hit for own in right.values() for hit in own]
    assert document["metrics"]["fewshot"]["hr@1"] == pytest.approx(sum(every) / len(every), abs=1e-12)
    assert document["counts"]["targets"] == len(every)
    assert document["counts"]["users"] == len(right) == len(bench.prepared.of("test"))
    table = pq.read_table(run / "per_user.parquet").to_pydict()
    assert table["user_id"] == [bench.prepared.domains[d] for d in sorted(right)]
    assert table["n_targets"] == [len(right[d]) for d in sorted(right)]
    assert table["fewshot.hr@1"] == pytest.approx([np.mean(right[d]) for d in sorted(right)])


def test_places_without_a_target_have_no_rank(train: Train) -> None:
    """Filled up batch by batch: the ranks of every token do not depend on how many episodes are scored at once."""
    bench, _ = bench_of(train(*GRU, "residual=off"))
    params = bench.model.init(torch.Generator().manual_seed(1), torch.float32)
    found = []
    for chunk in (1, 3, 50):
        own = replace(bench, evaluation=replace(bench.evaluation, task_chunk=chunk))
        rank, top = ranks(own.episodes("test"), scored(own.tasks(), lambda batch: params), "conservative")
        found.append(rank)
        assert rank.shape == top.shape[:2] == (len(bench.episodes("test")), bench.episodes("test").width)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    counts = np.diff(bench.prepared.example_pairs)[bench.prepared.episodes("test").example[:, :2]].sum(1)
    assert (found[0] > 0).sum(1).tolist() == counts.tolist()
    assert len(set(counts.tolist())) > 1


def test_tables_speak_of_tokens_and_domains(train: Train) -> None:
    document = metrics(train(*GRU, "residual=context"))
    text = plain_text(results_table(document, title="prompts"))
    assert "TOKEN ACCURACY" in text and "HR@1" not in text.split("tuned")[0]
    assert f"{document['counts']['users']} domains, " in text and " response tokens" in text
    assert "bootstrap draws of domains" in text and "repeat targets" not in text and "users" not in text


@pytest.mark.parametrize("words", [(*GRU, "residual=lora", "residual.targets=['gru.weight_ih*']"),
                                   (*MODELS["sasrec"], "residual=context", "dataset.prompts.order=easy_then_hard")],
                         ids=["gru4rec", "sasrec"])  # fmt: skip
def test_resumed_ends_with_the_same_bits(words: tuple[str, ...], train: Train, work: Work) -> None:
    whole = train(*words)
    given = work.words("train", *WORDS, "algorithm=fomaml", *words)[1:]
    (job,) = check_words("train", given).jobs
    run_dir = fresh_run_dir(work.root / "outputs", "train")
    with pytest.raises(Pruned):
        run_train(job.config, run_dir, False, given, should_stop=lambda step, value: step == 4)
    assert state(run_dir, "last")["progress"]["step"] == 4
    run_verb("train", job.config, run_dir, True, given)
    assert verify(run_dir) == []
    assert_same_run(run_dir, whole)


@pytest.mark.slow
def test_a_run_twice_and_in_chunks_of_tasks(train: Train) -> None:
    """The same words, the same figures; a chunk of tasks changes no loss beyond rounding."""
    first, second = (metrics(train(*GRU, "residual=off")) for _ in range(2))
    assert without_paths(first) == without_paths(second)
    run = train(*GRU, "residual=off", "train.task_chunk=1", "hardware.precision=float64")
    whole = train(*GRU, "residual=off", "hardware.precision=float64")
    lines = [
        [json.loads(text)["loss"] for text in (one / "history.jsonl").read_text().splitlines() if '"loss"' in text]
        for one in (run, whole)
    ]
    assert len(lines[0]) == 6
    assert lines[0] == pytest.approx(lines[1], rel=1e-12)


def test_a_file_from_prepare_to_eval(work: Work) -> None:
    """With a tokenizer trained on it; another file of the same domains at evaluation, and one domain alone."""
    path = write(work.root / "tasks.jsonl")
    sizes = ("dataset.prompts.n_support=2", "dataset.prompts.n_query=1", "dataset.prompts.n_episodes=1")
    words = (f"dataset.path={path}", *sizes, "dataset.prompts.tokenizer=bpe:270")
    prepared = work._run("prepare", "dataset=prompts", *words)
    funnel = json.loads((prepared / "funnel.json").read_text())
    assert [step["examples"] for step in funnel["steps"]] == [12] * 5
    assert funnel["counts"]["domains"] == {"train": 2, "val": 1, "test": 1}
    run = work._run("train", *of_a_file(*words, *GRU, "algorithm=fomaml", "residual=off"))
    assert metrics(run)["protocol"]["n_items"] < 271
    more = write(work.root / "more.jsonl", [*ROWS, line("pq", "qp", "back", split="test")])
    found = work.eval(run, f"dataset_path={more}", "users=[back]", "n_support=1", "steps=3")
    assert found["protocol"]["n_support"] == 1
    assert found["counts"]["users"] == 1
    with pytest.raises(ConfigError, match="the stored episodes have 2 support pairs"):
        work.eval(run, "n_support=3")


def test_all_episodes_of_a_domain_are_evaluated(train: Train, work: Work) -> None:
    run = train(*GRU, "residual=off")
    whole = pq.read_table(run / "per_user.parquet").to_pydict()
    found = work.evaluated(run, f"users=[{whole['user_id'][1]}]")
    one = pq.read_table(found / "per_user.parquet").to_pydict()
    assert one["n_targets"] == whole["n_targets"][1:2]
    assert one["fewshot.hr@1"] == pytest.approx(whole["fewshot.hr@1"][1:2], abs=1e-12)


def test_a_curve_over_support_examples(train: Train) -> None:
    """The same queries for every K; zero-shot is flat. A K that no domain has is refused before anything is trained."""
    run = train(*GRU, "residual=off", "evaluation.ks=[0,1,5]", "evaluation.grid=true", "evaluation.latency=true")
    curve = metrics(run)["k_curve"]
    assert curve["ks"] == [0, 1, 5]
    assert len({row[0] if isinstance(row, list) else row["mean"] for row in curve["methods"]["zeroshot"]["hr@1"]}) == 1
    with pytest.raises(ConfigError) as caught:
        train(*GRU, "residual=off", "evaluation.ks=[11]")
    assert str(caught.value) == (
        "evaluation.ks: 11: no test domain has 11 support and 2 query examples; the largest has 12 in all -- give K up to 10"
    )


def test_rows_of_a_panel(train: Train) -> None:
    found = metrics(train(*GRU, "residual=off", "evaluation.panel=[head_only,scratch]"))
    assert {"head_only", "scratch"} <= set(found["metrics"])
    with pytest.raises(ConfigError, match=r"evaluation.panel: markov: text tasks have no log -- leave it out"):
        train(*GRU, "residual=off", "evaluation.panel=[markov]")


def test_no_export_of_text(work: Work) -> None:
    with pytest.raises(ConfigError, match="text tasks have no tables to export"):
        work._run("prepare", "dataset=prompts", f"export={work.root / 'x'}")


def test_the_command_line_prints_the_funnel(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert work.main("prepare", "dataset=prompts", "dataset.prompts.n_examples=12") == 0
    said = capsys.readouterr().out
    assert "domains" in said and "tokens" in said and "response tokens" in said
    assert "embedded tasks, made anew from their seed" in said
