"""Each rule refuses what it is for and nothing of the neighbouring, sensible command."""

from __future__ import annotations

import pytest
from reference.character_cases import CASES as OF_CHARACTERS
from reference.generator_rule_cases import CASES as OF_GENERATORS
from reference.inner_rule_cases import CASES as OF_INNER
from reference.optimizer_rule_cases import CASES as OF_OPTIMIZERS
from reference.order_rule_cases import CASES as OF_ORDER
from reference.prompt_cases import CASES as OF_TEXT
from reference.residual_rule_cases import CASES as OF_RESIDUALS
from reference.rule_cases import CASES as MOST
from reference.surprise_cases import CASES as OF_SURPRISE
from reference.teacher_rule_cases import CASES as OF_TEACHERS

from metarec.config import rules, rules_order
from metarec.config.overrides import check_words
from metarec.config.seen import Seen
from metarec.errors import ConfigError

ANCHOR = "objective.kl_anchor.weight=0.1"
# rule, command line that it refuses, key and words of the line, a sensible command line nearby
CASES = [
    *MOST,
    *OF_TEXT,
    *OF_CHARACTERS,
    *OF_SURPRISE,
    *OF_RESIDUALS,
    *OF_TEACHERS,
    *OF_GENERATORS,
    *OF_OPTIMIZERS,
    *OF_INNER,
    *OF_ORDER,
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
    (
        "guard_unused",
        "guard.on_spike=off guard.sigma=3",
        "guard.sigma: 3.0: does nothing: guard.on_spike=off judges no loss",
        "guard.on_spike=warn guard.sigma=3",
    ),
    (
        "guard_unused",
        "guard.on_spike=skip guard.max_rollbacks=2",
        "guard.max_rollbacks: 2: does nothing: nothing is rolled back",
        "guard.on_spike=rollback guard.max_rollbacks=2",
    ),
    (
        "guard_unused",
        "guard.max_skips=2",
        "guard.max_skips: 2: does nothing: no step is skipped",
        "guard.on_nonfinite=skip guard.max_skips=2",
    ),
    (
        "guard_never_judges",
        "guard.warmup_steps=200 train.steps=200",
        "guard.warmup_steps: 200: reaches to the end of train.steps=200",
        "guard.warmup_steps=199 train.steps=200",
    ),
    (
        "min_gain_unused",
        "train.min_gain=0.001 train.patience=0",
        "train.min_gain: 0.001: does nothing: train.patience=0 never stops early",
        "train.min_gain=0.001",
    ),
    (
        "adapts_beside",
        "algorithm=cavia residual=off",
        "residual: off: algorithm=cavia adapts contexts, and residual=off has none -- use residual=context or residual=ia3",
        "algorithm=cavia residual=context",
    ),
    ("adapts_beside", "algorithm=cavia residual=on", "residual: on: algorithm=cavia", "algorithm=cavia residual=ia3"),
    (
        "adapts_beside",
        "algorithm=cavia residual.train_weights=false",
        "residual.train_weights: false: algorithm=cavia would have nothing to learn",
        "algorithm=cavia residual.train_weights=false algorithm.inner.rates=tensor",
    ),
    (
        "variants_of_a_comparison",
        "compare variants={a:'residual=on'} residuals=[off]",
        "residuals: [off]: variants say what is compared",
        "compare variants={a:'residual=on'}",
    ),
    (
        "variants_of_a_comparison",
        "compare variants={+a:'residual=on'}",
        "'+a' is no name of a directory",
        "compare variants={a+b:'residual=on'}",
    ),
    (
        "contrasts_of_a_comparison",
        "compare contrasts=[[a,b]]",
        "contrasts: [[a,b]]: are of variants, and there are none",
        "compare contrasts=[[a,b]] variants={a:'residual=on',b:'residual=off'}",
    ),
    (
        "hold_out_unused",
        "algorithm=supervised residual=off pretrain.hold_out=0.2",
        "pretrain.hold_out: 0.2: algorithm=supervised has no outer loop",
        "algorithm=fomaml residual=off pretrain.hold_out=0.2",
    ),
    (
        "hold_out_unused",
        "dataset=prompts model=sasrec pretrain.hold_out=0.2",
        "pretrain.hold_out: 0.2: a data set of text has domains",
        "dataset=prompts model=sasrec dataset.prompts.pretrain=easy",
    ),
    ("checkpoint_missing", "eval", "ckpt: null: nothing to evaluate", "eval ckpt=x"),
    (
        "split_of_a_run",
        "eval ckpt=x evaluation.split=val",
        "is for metarec train -- write split=val",
        "eval ckpt=x split=val",
    ),
    ("checkpoint_missing", "export to=x", "ckpt: null: nothing to export", "export ckpt=x to=x"),
    (
        "export_unused",
        "export ckpt=x steps=2",
        "steps: 2: does nothing: no user is adapted",
        "export ckpt=x steps=2 users=[a]",
    ),
    ("export_unused", "export ckpt=x split=val", "split: val: does nothing", "export ckpt=x split=val users=[a]"),
    (
        "export_unused",
        "export ckpt=x users=[a] evaluation.bootstrap=9",
        "evaluation.bootstrap: 9: does nothing: nothing is measured",
        "export ckpt=x users=[a] evaluation.task_chunk=9",
    ),
    (
        "export_unused",
        "export ckpt=x users=[a] steps=2 evaluation.test_steps=3",
        "evaluation.test_steps: 3: does nothing: steps=2",
        "export ckpt=x users=[a] evaluation.test_steps=3",
    ),
    ("step_size_unused", "eval ckpt=x steps=0 lr=0.1", "lr: 0.1: does nothing", "eval ckpt=x steps=0"),
    (
        "anchor_unused",
        "objective.kl_anchor.where=both",
        "objective.kl_anchor.where: both: does nothing: objective.kl_anchor.weight=0 anchors nothing",
        f"{ANCHOR} objective.kl_anchor.where=both",
    ),
    (
        "anchor_unused",
        "objective.kl_anchor.weight=0 objective.kl_anchor.temperature=2",
        "drop it, or give objective.kl_anchor.weight",
        "objective.kl_anchor.weight=0",
    ),
    (
        "anchor_of_supervised",
        f"algorithm=supervised residual=off {ANCHOR}",
        "algorithm=supervised adapts nothing, so there is nothing to anchor",
        "algorithm=supervised residual=off objective.kl_anchor.weight=0",
    ),
    (
        "anchor_to_random",
        f"warm_start=none residual=off algorithm=maml {ANCHOR}",
        "with warm_start=none the base is random",
        f"warm_start=none residual=off algorithm=maml {ANCHOR} objective.kl_anchor.reference=initial",
    ),
    (
        "anchor_to_random",
        f"dataset=omniglot data_dir=d warm_start=none model=conv4 algorithm=maml {ANCHOR}",
        "nothing to stay near to -- use objective.kl_anchor.reference=initial",
        f"dataset=omniglot data_dir=d warm_start=run model=conv4 algorithm=maml {ANCHOR}",
    ),
    (
        "anchor_without_steps",
        f"algorithm.inner.steps=0 {ANCHOR} objective.kl_anchor.where=inner",
        "takes no inner step that could be anchored -- give steps, or use objective.kl_anchor.where=outer",
        f"algorithm.inner.steps=0 {ANCHOR}",
    ),
    (
        "anchor_without_steps",
        f"algorithm.inner.steps=0 {ANCHOR} objective.kl_anchor.reference=initial",
        "so all stay at their start -- give steps, or use objective.kl_anchor.reference=pretrained",
        f"algorithm.inner.steps=1 {ANCHOR} objective.kl_anchor.reference=initial",
    ),
    (
        "anchor_without_steps",
        f"{ANCHOR} objective.kl_anchor.reference=initial objective.kl_anchor.where=both",
        "the first inner step starts at reference=initial",
        f"algorithm.inner.steps=2 {ANCHOR} objective.kl_anchor.reference=initial objective.kl_anchor.where=both",
    ),
    (
        "anchor_of_one_loop",
        f"algorithm=reptile residual=off {ANCHOR}",
        "algorithm=reptile has one loop over support and query pairs, and no outer loss",
        f"algorithm=reptile residual=off {ANCHOR} objective.kl_anchor.where=both",
    ),
    (
        "rows_learn_nothing",
        "residual=rows algorithm=fomaml",
        "algorithm=fomaml learns no step size: nothing would be learned -- set residual.learn_start=true",
        "residual=rows algorithm=fomaml algorithm.inner.rates=tensor",
    ),
    (
        "rows_learn_nothing",
        "residual=rows algorithm.inner.steps=0",
        "or use algorithm=meta_sgd or algorithm.inner.rates=tensor",
        "residual=rows algorithm=maml residual.learn_start=true",
    ),
    (
        "rows_of_the_query",
        "residual=rows residual.learn_start=true algorithm=imaml",
        "residual=rows is of the support's items -- use algorithm=meta_sgd",
        "residual=rows algorithm=maml_pp",
    ),
]


def lines(command: str) -> list[str]:
    first, *rest = command.split()
    verb, words = (
        (first, rest) if first in ("eval", "export", "compare", "teachers", "prepare") else ("train", [first, *rest])
    )
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


@pytest.mark.parametrize("dataset", ["omniglot", "prompts", "wikitext2"])
def test_what_is_no_log_has_no_order_to_shuffle(dataset: str) -> None:
    """Typed it is refused as every option of a log is, once; in a file by the rule of the order."""
    words = [f"dataset={dataset}", "data_dir=/data", "dataset.sessions.order=shuffled"]
    found = [line for line in lines(" ".join(words)) if line.startswith("dataset.sessions.order: shuffled")]
    assert len(found) == 1
    assert " does nothing: " in found[0]
    config = check_words("train", words, rules=False).jobs[0].config
    ((key, what, fix),) = rules_order.order_is_given(Seen("train", config, frozenset()))
    assert (key, fix) == ("dataset.sessions.order", "drop it")
    assert "order" in what
    assert list(rules_order.order_is_given(Seen("train", config, frozenset({key})))) == []


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == {rule.__name__ for rule in rules.RULES}


def test_a_rule_stays_silent_about_a_key_already_in_error() -> None:
    (line,) = lines("train.eval_every=x train.steps=50")
    assert line.startswith("train.eval_every: x: wrong type")


def test_showing_a_config_needs_no_sense() -> None:
    assert check_words("train", ["dataset=events"], rules=False).jobs
