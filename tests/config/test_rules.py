"""Each rule refuses what it is for and nothing of the neighbouring, sensible command."""

from __future__ import annotations

import pytest

from metarec.config import rules
from metarec.config.overrides import check_words
from metarec.errors import ConfigError

EVENTS = "dataset=events dataset.path=x.csv"
# rule, command line that it refuses, key and words of the line, a sensible command line nearby
CASES = [
    ("panel_names", "evaluation.panel=quik", "did you mean quick?", "evaluation.panel=full"),
    ("panel_names", "evaluation.panel=[markof]", "did you mean markov?", "evaluation.panel=[markov,v_sknn]"),
    ("panel_names", "evaluation.panel=markov", "one row is a list of one -- give [markov]", "evaluation.panel=none"),
    ("panel_names", "evaluation.panel=[control]", "control is in every table", "evaluation.panel=[random]"),
    (
        "candidates_of_images",
        "dataset=omniglot evaluation.candidates=unseen",
        "evaluation.candidates: unseen: the classes of an image",
        "evaluation.candidates=unseen",
    ),
    (
        "images_have_no_curve",
        "dataset=omniglot evaluation=k_curve",
        "an episode of images has its shots fixed",
        "evaluation=k_curve",
    ),
    ("ks_twice", "evaluation.ks=[1,1]", "a support size stands twice", "evaluation.ks=[1,2]"),
    (
        "vocabulary_of_a_log",
        "dataset.vocabulary=all",
        "dataset.vocabulary: all: the optimum",
        f"{EVENTS} dataset.vocabulary=all",
    ),
    ("history_of_images", "dataset=omniglot dataset.history=user", "images have no history", "dataset.history=user"),
    (
        "supervised_residual",
        "algorithm=supervised residual=on",
        "residual: on: algorithm=supervised",
        "algorithm=supervised",
    ),
    (
        "random_residual",
        "warm_start=none residual=on",
        "warm_start: none: a residual would sit",
        "warm_start=none residual=off",
    ),
    (
        "supervised_from_nothing",
        "algorithm=supervised warm_start=none",
        "warm_start: none",
        "algorithm=supervised warm_start=x",
    ),
    (
        "supervised_outer",
        "algorithm=supervised train.steps=200",
        "train.steps: 200: does nothing",
        "algorithm=supervised seed=2",
    ),
    ("supervised_outer", "algorithm=supervised optimizer=sgd", "optimizer: sgd: does nothing", "optimizer=sgd"),
    ("supervised_outer", "algorithm=supervised schedule=cosine", "schedule: cosine: does nothing", "schedule=cosine"),
    (
        "supervised_test_steps",
        "algorithm=supervised evaluation.test_steps=2",
        "evaluation.test_steps: 2: does nothing",
        "algorithm=supervised",
    ),
    (
        "batch_below_piece",
        "pretrain.batch_size=20",
        "pretrain.batch_size: 20: targets a step",
        "pretrain.batch_size=20 model.max_len=20",
    ),
    (
        "world_kept_exact",
        "dataset.core.min_item_events=2",
        "dataset.core.min_item_events: 2: the optimum",
        "dataset.sessions.by=column",
    ),
    ("world_kept_exact", "dataset.sessions.by=user", "dataset.sessions.by: user: the embedded world", "seed=2"),
    (
        "pretrain_unused",
        "warm_start=x pretrain.epochs=2",
        "pretrain.epochs: 2: does nothing",
        "warm_start=auto pretrain.epochs=2",
    ),
    ("parts_among_themselves", "residual=on residual.alpha=0", "residual.alpha: 0", "residual=on residual.alpha=-1"),
    ("warmup_too_long", "schedule.warmup_steps=1001", "schedule.warmup_steps: 1001", "schedule.warmup_steps=1000"),
    ("minutes_and_steps", "train.minutes=1 train.steps=200", "train.steps: 200: does nothing", "train.minutes=1"),
    ("never_validated", "train.steps=50", "add train.eval_every=50", "train.steps=50 train.eval_every=50"),
    (
        "pretrain_never_validated",
        "pretrain.epochs=1 pretrain.eval_every_epochs=2",
        "pretrain.eval_every_epochs",
        "pretrain.epochs=1",
    ),
    ("resume_with_others", "resume=x seed=2", "resume: x", "resume=x"),
    ("dataset_path_missing", "dataset=events", "dataset.path: null", EVENTS),
    ("dataset_path_unused", "dataset.path=x.csv", "dataset.path: x.csv: the embedded world", EVENTS),
    ("data_dir_missing", "dataset=ml1m", "add data_dir=DIR, or set METAREC_DATA", "dataset=ml1m data_dir=d"),
    ("data_dir_missing", "dataset=ml1m", "data_dir: null", "dataset=ml1m dataset.path=/abs"),
    (
        "world_unused",
        f"{EVENTS} dataset.world.noise=0.1",
        "dataset.world.noise: 0.1: does nothing",
        "dataset.world.noise=0.1",
    ),
    (
        "world_ranges",
        "dataset.world.min_sessions=13",
        "dataset.world.min_sessions: 13",
        "dataset.world.min_sessions=12",
    ),
    (
        "world_ranges",
        "dataset.world.kind=transition dataset.world.n_topics=3",
        "has no topics",
        "dataset.world.n_topics=3",
    ),
    (
        "clock_needed",
        "dataset.split.by=user_time",
        "dataset.split.by: user_time: needs clock",
        f"{EVENTS} dataset.split.by=user_time",
    ),
    (
        "clock_needed",
        f"{EVENTS} dataset.time_unit=order dataset.split.by=user_time",
        "is an order",
        f"{EVENTS} dataset.time_unit=s",
    ),
    ("clock_needed", "dataset.sessions.by=gap", "a gap needs clock times", f"{EVENTS} dataset.sessions.by=gap"),
    (
        "column_missing",
        f"{EVENTS} dataset.ties=order",
        "dataset.columns.order=NAME",
        f"{EVENTS} dataset.ties=order dataset.columns.order=o",
    ),
    (
        "column_missing",
        f"{EVENTS} dataset.sessions.by=column",
        "dataset.columns.session=NAME",
        f"{EVENTS} dataset.sessions.by=user",
    ),
    (
        "column_missing",
        f"{EVENTS} dataset.split.by=column",
        "dataset.columns.split=NAME",
        f"{EVENTS} dataset.split.by=column dataset.columns.split=fold",
    ),
    (
        "column_missing",
        "dataset.split.by=column dataset.columns.split=fold",
        "needs a log with a column",
        f"{EVENTS} dataset.columns.split=fold",
    ),
    ("split_shape", "dataset.split.fractions=[0.5,0.4,0.2]", "add up to 1.1", "dataset.split.fractions=[0.5,0.3,0.2]"),
    (
        "split_shape",
        "dataset.split.time_quantiles=[0.8,0.7]",
        "would be empty",
        "dataset.split.time_quantiles=[0.7,0.9]",
    ),
    (
        "split_unused",
        "dataset.split.by=leave_one_out dataset.split.seed=3",
        "divides no users",
        "dataset.split.by=leave_one_out",
    ),
    (
        "split_unused",
        "dataset.split.by=user_disjoint dataset.split.time_quantiles=[0.5,0.6]",
        "no time cut",
        "dataset.split.seed=3",
    ),
    (
        "split_unused",
        f"{EVENTS} dataset.columns.split=fold dataset.split.time_quantiles=[0.5,0.6]",
        "dataset.split.by=column has no time cut",
        f"{EVENTS} dataset.columns.split=fold dataset.split.fractions=[0.7,0.2,0.1]",
    ),
    (
        "split_unused",
        f"{EVENTS} dataset.columns.split=fold dataset.split.by=user_time",
        "dataset.columns.split: fold: does nothing",
        f"{EVENTS} dataset.columns.split=fold dataset.split.by=column",
    ),
    (
        "split_unused",
        "dataset.columns.split=fold",
        "does nothing: dataset=synthetic has no columns",
        f"{EVENTS} dataset.columns.split=fold",
    ),
    (
        "gap_unused",
        f"{EVENTS} dataset.sessions.by=user dataset.sessions.gap_minutes=5",
        "does nothing",
        f"{EVENTS} dataset.sessions.gap_minutes=5",
    ),
    (
        "delimiter_unused",
        f"{EVENTS} dataset.format=parquet dataset.delimiter=;",
        "no delimiter",
        f"{EVENTS} dataset.format=csv",
    ),
    (
        "delimiter_unused",
        f"{EVENTS} dataset.format=jsonl dataset.delimiter=;",
        "JSON lines have no delimiter",
        f"{EVENTS} dataset.format=csv",
    ),
    (
        "mps_precision",
        "hardware=mps hardware.precision=float64",
        "does not exist on mps",
        "hardware=cpu hardware.precision=float64",
    ),
    (
        "mps_precision",
        "hardware=mps hardware.precision=bfloat16",
        "hardware.precision: bfloat16: mixed precision has not been seen to work on mps",
        "hardware=cpu hardware.precision=bfloat16",
    ),
    (
        "compile_unused",
        "model=sasrec hardware.compile=true",
        "hardware.compile: true: does nothing: what is compiled is the recurrence",
        "model=gru4rec hardware.compile=true",
    ),
    ("supervised_residual", "algorithm=supervised residual=context", "residual: context: ", "algorithm=supervised"),
    (
        "random_residual",
        "warm_start=none residual=context residual.train_weights=false",
        "frozen random weights",
        "warm_start=none residual=context",
    ),
    (
        "learned_from_zero",
        "algorithm=meta_sgd algorithm.inner.lr=0",
        "algorithm.inner.lr: 0.0: learned step sizes",
        "algorithm=maml algorithm.inner.lr=0",
    ),
    (
        "inner_unused",
        "algorithm=maml algorithm.inner.rates_lr=0.1",
        "no step size is learned",
        "algorithm=maml algorithm.inner.rates=tensor algorithm.inner.rates_lr=0.1",
    ),
    (
        "inner_unused",
        "algorithm=maml_pp algorithm.lslr=false algorithm.inner.rates_lr=0.1",
        "no step size is learned",
        "algorithm=maml_pp algorithm.inner.rates_lr=0.1",
    ),
    (
        "inner_unused",
        "algorithm=maml algorithm.inner.recency=1",
        "all pairs count alike",
        "algorithm=maml algorithm.inner.recency=1 algorithm.inner.support_weights=recency",
    ),
    (
        "inner_unused",
        "algorithm=maml algorithm.inner.recency=1 algorithm.inner.support_weights=reliability",
        "algorithm.inner.recency: 1.0: does nothing: pairs count by their reliability",
        "algorithm=maml algorithm.inner.support_weights=reliability",
    ),
    (
        "inner_unused",
        "algorithm=fomaml algorithm.inner.recompute=true",
        "first order keeps no graph",
        "algorithm=maml algorithm.inner.recompute=true",
    ),
    (
        "inner_unused",
        "algorithm=maml algorithm.inner.steps=0 algorithm.inner.clip=1",
        "adapts nothing",
        "algorithm=maml algorithm.inner.steps=1 algorithm.inner.clip=1",
    ),
    (
        "outer_unused",
        "algorithm=maml algorithm.switch=0.1",
        "algorithm.switch: 0.1: does nothing: algorithm.order is second",
        "algorithm=maml algorithm.order=annealed algorithm.switch=0.1",
    ),
    (
        "outer_unused",
        "algorithm=maml_pp algorithm.da=false algorithm.switch=0.1",
        "algorithm.da is false",
        "algorithm=maml_pp algorithm.switch=0.1",
    ),
    (
        "outer_unused",
        "algorithm=maml_pp schedule=cosine",
        "schedule: cosine: does nothing: MAML++",
        "algorithm=maml_pp schedule=cosine algorithm.ca=false",
    ),
    (
        "norms_missing",
        "algorithm=maml_pp algorithm.bnrs=true",
        "model=gru4rec has no batch norm",
        "algorithm=maml_pp algorithm.bnrs=false",
    ),
    (
        "parts_among_themselves",
        "model=sasrec model.dim=63",
        "model.dim: 63: is no multiple",
        "model=sasrec model.dim=62",
    ),
    (
        "parts_among_themselves",
        "model.tie=true",
        "model.hidden_dim: 128: with model.tie=true",
        "model.tie=true model.hidden_dim=64",
    ),
    ("images_and_models", "model=conv4", "model: conv4: reads images", "model=gru4rec"),
    (
        "images_and_models",
        "dataset=omniglot data_dir=d model=sasrec",
        "model: sasrec: reads sequences",
        "dataset=omniglot data_dir=d",
    ),
    (
        "images_start",
        "dataset=omniglot data_dir=d warm_start=auto",
        "nothing to pretrain on images",
        "dataset=omniglot data_dir=d warm_start=x",
    ),
    (
        "images_start",
        "dataset=omniglot data_dir=d algorithm=supervised",
        "omniglot has episodes only",
        "dataset=omniglot data_dir=d algorithm=anil",
    ),
    (
        "dropout_missing",
        "dataset=omniglot data_dir=d train.dropout=0.1",
        "model=conv4 has no dropout",
        "dataset=omniglot data_dir=d train.dropout=0",
    ),
    (
        "images_unused",
        "dataset=omniglot data_dir=d dataset.sessions.by=user",
        "dataset.sessions.by: user: does nothing: omniglot is images",
        "dataset=omniglot data_dir=d dataset.images.n_way=3",
    ),
    (
        "images_unused",
        "dataset=omniglot data_dir=d pretrain.epochs=2",
        "nothing is pretrained on images",
        "dataset=omniglot data_dir=d",
    ),
    ("images_unused", "dataset.images.n_way=3", "dataset=synthetic is a log", "seed=2"),
    (
        "images_objective",
        "dataset=omniglot data_dir=d objective=bce",
        "objective: bce: the few classes of an episode",
        "dataset=omniglot data_dir=d objective=cross_entropy objective.label_smoothing=0.1",
    ),
    (
        "images_reliability",
        "dataset=omniglot data_dir=d algorithm.inner.support_weights=reliability",
        "algorithm.inner.support_weights: reliability: is that of a session, and images have no sessions",
        "dataset=omniglot data_dir=d algorithm.inner.support_weights=recency",
    ),
    (
        "draws_all",
        "objective=bce objective.n_negatives=200",
        "objective.n_negatives: 200: the world has dataset.world.n_items=200",
        "objective=bce objective.n_negatives=199",
    ),
    (
        "draws_all",
        "objective=sampled_softmax objective.n_samples=300",
        "give 199 or fewer, or use objective=cross_entropy",
        "objective=sampled_softmax objective.n_samples=300 dataset.world.n_items=301",
    ),
    (
        "draws_all",
        "objective=gbce objective.n_negatives=1000",
        "nothing would be left to draw",
        "objective=bpr_max objective.n_samples=1000",
    ),
    (
        "store_is_a_file",
        "logger=mlflow logger.store='postgresql://u:p@h/d'",
        "logger.store: postgresql://u:p@h/d: an address, and the store is one SQLite file",
        "logger=mlflow logger.store=x.db",
    ),
    ("checkpoint_missing", "eval", "ckpt: null: nothing to evaluate", "eval ckpt=x"),
    (
        "split_of_a_run",
        "eval ckpt=x evaluation.split=val",
        "is for metarec train -- write split=val",
        "eval ckpt=x split=val",
    ),
    ("step_size_unused", "eval ckpt=x steps=0 lr=0.1", "lr: 0.1: does nothing", "eval ckpt=x steps=0"),
]


def lines(command: str) -> list[str]:
    verb, words = ("eval", command.split()[1:]) if command.split()[0] == "eval" else ("train", command.split())
    try:
        check_words(verb, [word.replace("delimiter=;", "delimiter=';'") for word in words])
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(("rule", "bad", "text", "good"), CASES, ids=lambda value: str(value)[:40])
def test_rule(rule: str, bad: str, text: str, good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAREC_DATA", raising=False)
    assert any(text in line and " -- " in line for line in lines(bad)), lines(bad)
    assert lines(good) == []
    without = tuple(r for r in rules.RULES if r.__name__ != rule)
    monkeypatch.setattr(rules, "RULES", without)
    assert not any(text in line for line in lines(bad)), f"another rule than {rule} refuses this"


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == {rule.__name__ for rule in rules.RULES}


def test_a_rule_stays_silent_about_a_key_already_in_error() -> None:
    (line,) = lines("train.eval_every=x train.steps=50")
    assert line.startswith("train.eval_every: x: wrong type")


def test_showing_a_config_needs_no_sense() -> None:
    assert check_words("train", ["dataset=events"], rules=False).jobs
