"""Combinations that make no sense: a table of rules, each with its reason and its way out.

A rule reads the typed config and the keys given explicitly, and returns (key, what, fix) for what it refuses.
Two kinds: values that contradict each other, and options that were asked for and would do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from metarec import parts
from metarec.config import rules_anchor as of_anchor
from metarec.config import rules_characters as of_characters
from metarec.config import rules_compare as of_compare
from metarec.config import rules_dataset as of_data
from metarec.config import rules_evaluation as ev
from metarec.config import rules_export as of_export
from metarec.config import rules_generator as of_generators
from metarec.config import rules_guard as of_guard
from metarec.config import rules_inner as of_inner
from metarec.config import rules_lm as of_lm
from metarec.config import rules_optimizer as of_optimizer
from metarec.config import rules_order as of_order
from metarec.config import rules_pretrain as of_pretraining
from metarec.config import rules_prompts as of_text
from metarec.config import rules_residual as of_residual
from metarec.config import rules_rows as of_rows
from metarec.config import rules_run as of_run
from metarec.config import rules_surprise as of_surprise
from metarec.config import rules_teachers as of_teachers
from metarec.config.seen import Refusal, Seen
from metarec.config.show import show
from metarec.data.spec import WorldSpec
from metarec.errors import ConfigError

# Training


def supervised_residual(seen: Seen) -> Iterator[Refusal]:
    """A residual where nothing adapts: supervised training moves the weights themselves."""
    if seen.supervised and seen.get("residual.name") != "off":
        fix = f"drop residual={seen.get('residual.name')}, or use algorithm=fomaml"
        yield "residual", "algorithm=supervised adapts nothing, so there is no residual", fix


def random_residual(seen: Seen) -> Iterator[Refusal]:
    """A frozen base without a warm start: what is learned would correct random weights."""
    frozen = bool(seen.get("residual.frozen"))
    if not seen.supervised and seen.get("warm_start") == "none" and frozen and not seen.get("model.pretrained"):
        yield "warm_start", "a residual would sit on frozen random weights", "add residual=off, or use warm_start=auto"


def supervised_from_nothing(seen: Seen) -> Iterator[Refusal]:
    """warm_start=none, which is what supervised does anyway: asked for, it looks as if it changed something."""
    if seen.supervised and seen.get("warm_start") == "none":
        yield "warm_start", "algorithm=supervised starts from random weights already", "drop it, or give a PATH"


def supervised_outer(seen: Seen) -> Iterator[Refusal]:
    """Options of the outer loop, which a supervised run never enters (its pretraining may step by `optimizer`)."""
    if seen.supervised:
        sections = (
            ("train", "schedule") if seen.get("pretrain.optimizer") == "run" else ("train", "optimizer", "schedule")
        )
        for key in [k for section in sections for k in seen.asked(section)]:
            run = ", or add pretrain.optimizer=run" if key.startswith("optimizer") else ""
            yield key, "does nothing: algorithm=supervised has no outer loop", f"drop it, or set pretrain.*{run}"


def supervised_test_steps(seen: Seen) -> Iterator[Refusal]:
    """Steps of adaptation at test under an algorithm that does not adapt: none would be taken."""
    if seen.supervised and seen.get("evaluation.test_steps") is not None:
        yield "evaluation.test_steps", "does nothing: algorithm=supervised does not adapt", "drop it"


def batch_below_piece(seen: Seen) -> Iterator[Refusal]:
    """Fewer targets a step than one sequence may have: a piece is not divided among batches."""
    size, longest = seen.get("pretrain.batch_size"), seen.get("model.max_len")
    if None not in (size, longest) and size < longest:
        fix = f"give {longest} or more, or lower model.max_len"
        yield (
            "pretrain.batch_size",
            f"targets a step are fewer than one sequence may have (model.max_len={longest})",
            fix,
        )


def world_kept_exact(seen: Seen) -> Iterator[Refusal]:
    """The Bayes optimum of the embedded world knows the law of the log, not of what a filter leaves of it."""
    if seen.get("dataset.source") == "synthetic":
        for key in ("dataset.core.min_user_events", "dataset.core.min_item_events"):
            if seen.get(key):
                yield key, "the optimum of the embedded world is exact for the whole log only", "drop it"
        if seen.get("dataset.sessions.by") not in (None, "auto", "column"):
            yield "dataset.sessions.by", "the embedded world brings its own sessions", "drop it"


def pretrain_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of pretraining where the weights come from elsewhere, so that they would do nothing."""
    start = seen.get("warm_start")
    if start not in (None, "auto") and not seen.supervised:
        for key in seen.asked("pretrain"):
            yield key, f"does nothing: with warm_start={start} nothing is pretrained", "drop it, or use warm_start=auto"


def parts_among_themselves(seen: Seen) -> Iterator[Refusal]:
    """Whatever the chosen parts refuse of their own options (`Config.refused`), with the group put ahead of the key."""
    for group in parts.ROOMS:
        own = seen.get(group)
        for key, what, fix in getattr(own, "refused", tuple)():
            yield f"{group}.{key}", what, fix


def adapts_beside(seen: Seen) -> Iterator[Refusal]:
    """An algorithm of contexts has nothing to move where the weights themselves adapt."""
    if seen.get("algorithm.adapts") != "beside" or not seen.get("residual.adapts", True):
        return
    name, on = seen.get("algorithm.name"), seen.get("residual.name")
    if not seen.get("residual.beside"):
        fix = " or ".join(f"residual={own}" for own in _residuals_beside())
        yield "residual", f"algorithm={name} adapts contexts, and residual={on} has none", f"use {fix}"
    elif (
        seen.get("algorithm.learns_start") is False
        and seen.get("residual.frozen")
        and not seen.get("residual.outer_lrs")
        and (not seen.learns_rates or seen.get("algorithm.inner.steps") == 0)
    ):
        what = f"algorithm={name} would have nothing to learn: contexts start at zero, and no step size is learned"
        yield "residual.train_weights", what, "drop it, or set algorithm.inner.rates=tensor"


def _residuals_beside() -> list[str]:
    return [name for name in parts.names("residual") if getattr(parts.options("residual", name), "beside", False)]


def learned_from_zero(seen: Seen) -> Iterator[Refusal]:
    """A first step size of 0 where step sizes are learned: they are multiples of it and could never leave 0."""
    if seen.learns_rates and seen.get("algorithm.inner.lr") == 0:
        yield "algorithm.inner.lr", "learned step sizes are multiples of it and could never leave 0", "give more than 0"


def inner_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of the inner loop that were asked for and would do nothing."""
    if not seen.learns_rates:
        for key in seen.asked("algorithm.inner.rates_lr"):
            yield key, "does nothing: no step size is learned", "drop it, or set algorithm.inner.rates=tensor_step"
    weights = seen.get("algorithm.inner.support_weights", "recency")
    if weights != "recency":
        what = "all pairs count alike" if weights == "uniform" else f"pairs count by their {weights}"
        for key in seen.asked("algorithm.inner.recency"):
            yield key, f"does nothing: {what}", "drop it, or set algorithm.inner.support_weights=recency"
    first = seen.get("algorithm.name") == "fomaml" or seen.get("algorithm.order") == "first"
    if first and seen.get("algorithm.inner.recompute"):
        yield "algorithm.inner.recompute", "does nothing: first order keeps no graph of inner steps", "drop it"
    if seen.get("algorithm.inner.steps") == 0 and not seen.supervised:
        for name in ("clip", "prox", "rates", "recompute", "support_weights"):
            for key in seen.asked(f"algorithm.inner.{name}"):
                yield key, "does nothing: algorithm.inner.steps=0 adapts nothing", "drop it, or give steps"


def outer_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of an algorithm's meta-loss that were asked for and would do nothing."""
    needs = {
        "algorithm.switch": ("algorithm.order", "annealed") if seen.get("algorithm.da") is None else ("algorithm.da", True),
        "algorithm.multi_step_until": ("algorithm.multi_step", "annealed"),
        "algorithm.msl_until": ("algorithm.msl", True),
    }  # fmt: skip
    for key, (other, value) in needs.items():
        if seen.get(other) is not None and seen.get(other) != value:
            for asked in seen.asked(key):
                yield (
                    asked,
                    f"does nothing: {other} is {show(seen.get(other))}",
                    f"drop it, or set {other}={show(value)}",
                )
    if seen.get("algorithm.ca"):
        for key in seen.asked("schedule"):
            yield key, "does nothing: MAML++ anneals the outer step size itself", "drop it, or set algorithm.ca=false"


def norms_missing(seen: Seen) -> Iterator[Refusal]:
    """MAML++'s options of norms for a model without any: each step would have nothing of its own."""
    for key, needed in (("bnrs", "batch norm"), ("bnwb", "norm")):
        # a model that does not say what it has is asked once it is built
        if seen.get(f"algorithm.{key}") and needed not in seen.get("model.has", (needed,)):
            fix = f"drop it, or use model={'|'.join(_models_with(needed))}"
            yield f"algorithm.{key}", f"model={seen.get('model.name')} has no {needed}", fix


def _models_with(what: str) -> list[str]:
    return [name for name in parts.names("model") if what in getattr(parts.options("model", name), "has", ())]


def images_and_models(seen: Seen) -> Iterator[Refusal]:
    """A model of sequences on images, or one of images on a log: it could not read its input."""
    name, reads = seen.get("model.name"), seen.get("model.reads", "items")
    if name is not None and (seen.get("dataset.source") == "omniglot") != (reads == "images"):
        if reads == "images":
            yield "model", "reads images, and the dataset is a log", f"drop model={name}"
        else:
            yield "model", "reads sequences of items, and the dataset is images", "use model=conv4"


def images_start(seen: Seen) -> Iterator[Refusal]:
    """Nothing is pretrained on images, so what sits on pretrained weights has nothing to sit on."""
    if seen.get("dataset.source") != "omniglot" or seen.get("model") is None:
        return
    if seen.supervised:
        yield "algorithm", "omniglot has episodes only, no sessions to pretrain on", "use algorithm=maml"
    elif seen.get("warm_start") == "auto":
        yield "warm_start", "there is nothing to pretrain on images", "add warm_start=none, or give a PATH"


def dropout_missing(seen: Seen) -> Iterator[Refusal]:
    """Dropout in the query loss for a model without any; 0 asks for nothing and passes."""
    if seen.get("model.name") is not None and seen.get("train.dropout") and seen.get("model.dropout") is None:
        yield "train.dropout", f"model={seen.get('model.name')} has no dropout", "drop it"


def images_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of a log or of pretraining on images, and options of images on a log: they would do nothing."""
    if seen.get("dataset.source") == "omniglot":
        for section in ("sessions", "core", "split", "columns", "world", "episodes"):
            for key in seen.asked(f"dataset.{section}"):
                yield (
                    key,
                    "does nothing: omniglot is images, in a split of its own",
                    "drop it, or set dataset.images.*",
                )
        for key in seen.asked("pretrain"):
            yield key, "does nothing: nothing is pretrained on images", "drop it"
    elif seen.get("dataset") is not None:
        for key in seen.asked("dataset.images"):
            yield key, f"does nothing: dataset={seen.get('dataset.name')} is a log", "drop it, or use dataset=omniglot"


def images_objective(seen: Seen) -> Iterator[Refusal]:
    """Any other loss than cross-entropy on images: among n_way classes nothing is drawn."""
    name = seen.get("objective.name")
    if seen.get("dataset.source") == "omniglot" and name not in (None, "cross_entropy"):
        what = "the few classes of an episode are scored all at once: there is nothing to draw, count or cut"
        yield "objective", what, "drop it"


def images_reliability(seen: Seen) -> Iterator[Refusal]:
    """Support weighed by the session's reliability where there are no sessions."""
    key = "algorithm.inner.support_weights"
    if seen.get("dataset.source") == "omniglot" and seen.get(key) == "reliability":
        yield key, "is that of a session, and images have no sessions", "drop it, or use recency"


def draws_all(seen: Seen) -> Iterator[Refusal]:
    """Known ahead in the embedded world; of a log, `metarec.build.draws` says it once the items are counted."""
    if seen.get("dataset.source") != "synthetic" or seen.get("objective.with_repeats"):
        return
    n_items = seen.get("dataset.world.n_items")
    for key in ("objective.n_samples", "objective.n_negatives"):
        if (seen.get(key) or 0) >= n_items:
            what = f"the world has dataset.world.n_items={n_items}, so nothing would be left to draw"
            yield key, what, f"give {n_items - 1} or fewer, or use objective=cross_entropy"


def warmup_too_long(seen: Seen) -> Iterator[Refusal]:
    """A warm-up of more steps than there are: the full step size would never be reached."""
    steps = seen.get("train.steps")
    if steps is not None and seen.get("schedule.warmup_steps", 0) > steps:
        fix = f"give at most {steps}, or raise train.steps"
        yield "schedule.warmup_steps", f"is more than train.steps={steps}", fix


def minutes_and_steps(seen: Seen) -> Iterator[Refusal]:
    """A number of steps beside a time: the minutes decide how many there are."""
    if seen.get("train.minutes") is not None:
        for key in seen.asked("train.steps"):
            yield key, "does nothing: train.minutes sets the number of steps", "give one of the two"


def never_validated(seen: Seen) -> Iterator[Refusal]:
    """Validation rarer than training is long: the best could be chosen of the start and the end only."""
    steps = seen.get("train.steps")
    if steps is not None and not seen.supervised and seen.get("train.eval_every") > steps:
        fix = f"add train.eval_every={steps} or less, or raise train.steps"
        yield "train.eval_every", f"is more than train.steps={steps}, so nothing would be validated", fix


def pretrain_never_validated(seen: Seen) -> Iterator[Refusal]:
    """The same of pretraining, counted in epochs."""
    epochs = seen.get("pretrain.epochs")
    if seen.get("pretrain.steps") is not None or seen.get("pretrain.eval_every") is not None:
        return  # `rules_pretrain` has those
    if epochs is not None and seen.get("pretrain.eval_every_epochs") > epochs:
        fix = f"give at most {epochs}, or raise pretrain.epochs"
        yield "pretrain.eval_every_epochs", f"is more than pretrain.epochs={epochs}, so nothing would be validated", fix


def resume_with_others(seen: Seen) -> Iterator[Refusal]:
    """resume=DIR with any other key: the run would go on as something else than it began as."""
    if seen.get("resume") is not None:
        others = sorted(seen.given - {"resume"})
        if others:
            what = f"a run carries on with its own options, not with {', '.join(others)}"
            yield "resume", what, "give resume=DIR alone"


RULES: tuple[Callable[[Seen], Iterator[Refusal]], ...] = (
    supervised_residual,
    random_residual,
    supervised_from_nothing,
    supervised_outer,
    pretrain_unused,
    parts_among_themselves,
    adapts_beside,
    learned_from_zero,
    inner_unused,
    outer_unused,
    norms_missing,
    images_and_models,
    images_start,
    dropout_missing,
    images_unused,
    images_objective,
    images_reliability,
    draws_all,
    warmup_too_long,
    minutes_and_steps,
    never_validated,
    pretrain_never_validated,
    supervised_test_steps,
    batch_below_piece,
    world_kept_exact,
    resume_with_others,
    *of_residual.RULES,
    *of_inner.RULES,
    of_guard.guard_unused,
    of_guard.guard_never_judges,
    of_guard.min_gain_unused,
    of_compare.variants_of_a_comparison,
    of_compare.contrasts_of_a_comparison,
    of_lm.lm_unused,
    of_lm.lm_items_frozen,
    *of_anchor.RULES,
    *of_surprise.RULES,
    *of_rows.RULES,
    *of_optimizer.RULES,
    *of_pretraining.RULES,
    *of_teachers.RULES,
    *of_generators.RULES,
    of_data.dataset_path_missing,
    of_data.dataset_path_unused,
    of_data.data_dir_missing,
    of_data.world_unused,
    of_data.world_ranges,
    of_data.clock_needed,
    of_data.column_missing,
    of_data.split_shape,
    of_data.split_unused,
    of_data.gap_unused,
    of_data.delimiter_unused,
    *of_order.RULES,
    of_run.mps_precision,
    of_run.compile_unused,
    of_run.store_is_a_file,
    of_run.checkpoint_missing,
    of_run.split_of_a_run,
    of_run.step_size_unused,
    of_export.export_unused,
    ev.panel_names,
    ev.candidates_of_images,
    ev.images_have_no_curve,
    ev.ks_twice,
    ev.history_of_images,
    ev.vocabulary_of_a_log,
    *of_text.RULES,
    *of_characters.RULES,
)


def contradictions(seen: Seen) -> list[ConfigError]:
    """What all rules refuse."""
    return [ConfigError(key, _value(seen, key), what, fix) for rule in RULES for key, what, fix in rule(seen)]


def _value(seen: Seen, key: str) -> str:
    value = seen.get(key)
    return show(getattr(value, "name", value)) if not isinstance(value, WorldSpec) else value.kind
