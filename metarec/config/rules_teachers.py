"""Rules of teachers: of `metarec teachers`, and of runs that learn from them (`metarec.config.rules` collects them)."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

HOW = ("users", "pairs", "steps", "lr", "chunk")  # of algorithm.teacher: how teachers are made
OF_A_ROW = ("pairs", "steps", "lr")  # of these, what the row "teacher" is made with
READ = ("control", "monitor", "ties", "candidates", "task_chunk")  # of evaluation: what tuning reads


def _made(seen: Seen) -> bool:
    """Whether teachers are made: by the verb, or by a run whose loss needs them and has no directory of them."""
    if seen.verb == "teachers":
        return seen.get("algorithm.teacher") is not None
    return bool(seen.get("algorithm.loss.taught")) and seen.get("algorithm.teacher.path") is None


def teachers_of_another(seen: Seen) -> Iterator[Refusal]:
    """`metarec teachers` for an algorithm that has no use for them."""
    if seen.verb == "teachers" and seen.get("algorithm.teacher") is None:
        what = f"algorithm={seen.get('algorithm.name')} learns from no teacher and has no section algorithm.teacher"
        yield "algorithm", what, "use algorithm=generator"


def teachers_without_history(seen: Seen) -> Iterator[Refusal]:
    """Images and text: a task has no more than its episode; histories as prefixes: a teacher has read them already."""
    if not _made(seen):
        return
    source = seen.get("dataset.source")
    if source in ("omniglot", "prompts"):
        of = {"omniglot": "images", "prompts": "text"}[source]
        what = f"teachers see more of a user's history, and a task of {of} has none beyond its episode"
        yield "dataset", what, "use a data set of users and items"
    if seen.get("dataset.history") == "user":
        what = "prefixes hold all that a user did before, so that more pairs show a teacher nothing more"
        yield "dataset.history", what, "use dataset.history=sessions"


def teachers_without_numbers(seen: Seen) -> Iterator[Refusal]:
    """Residuals of which a user has no numbers, or not the same ones as another."""
    if not _made(seen) or seen.supervised:
        return
    name = seen.get("residual.name")
    if not seen.get("residual.adapts", True):
        yield (
            "residual",
            f"with residual={name} no number is a user's own, so there is nothing to find",
            "use residual=lora",
        )
    elif seen.get("residual.of_support"):
        what = f"with residual={name} a user has the rows of his own support, and a generator makes the same for all"
        yield "residual", what, "use residual=lora or residual=context"
    elif seen.get("residual.reads_memory"):
        what = f"residual={name} remembers the support of an episode, and a teacher has another"
        yield "residual", what, "use residual=lora or residual=context"
    if seen.get("residual.adapter") is not None:
        yield "residual.adapter", "teachers start where nothing has been added yet, at B = 0", "drop it"


def teachers_anchored(seen: Seen) -> Iterator[Refusal]:
    """An anchor inside the inner loop, which a teacher's does not have."""
    if _made(seen) and seen.get("objective.kl_anchor.weight") and seen.get("objective.kl_anchor.where") != "outer":
        what = "teachers descend the plain loss of their pairs"
        yield "objective.kl_anchor.where", what, "use objective.kl_anchor.where=outer"


def teachers_given_twice(seen: Seen) -> Iterator[Refusal]:
    """How teachers are made beside a directory of teachers that are there, or for a loss that asks for none."""
    if seen.verb == "teachers":
        if seen.get("algorithm.teacher.path") is not None:
            yield "algorithm.teacher.path", "is where metarec train finds them", "write to=DIR"
        return
    if seen.get("algorithm.teacher") is None:
        return
    how = [key for name in HOW for key in seen.asked(f"algorithm.teacher.{name}")]
    if not seen.get("algorithm.loss.taught"):
        judged = seen.get("evaluation.panel") not in ("none", [])  # against teachers of the users under test
        read = [f"algorithm.teacher.{name}" for name in OF_A_ROW] if judged else []
        for key in (*how, *seen.asked("algorithm.teacher.path")):
            if key not in read:
                what = "does nothing: no loss that has a weight learns from teachers"
                yield key, what, "drop it, or give algorithm.loss.delta_w=1"
    elif seen.get("algorithm.teacher.path") is not None:
        for key in how:
            what = f"does nothing: {seen.get('algorithm.teacher.path')} says how its teachers were made"
            yield key, what, "drop it, or drop algorithm.teacher.path"


def teachers_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of meta-training and of measuring in `metarec teachers`, which does neither."""
    if seen.verb != "teachers":
        return
    if seen.get("resume") is not None:
        yield "resume", "is for metarec train", "give the same words and the same to=DIR again: it goes on"
    idle = ["train", "schedule", "reported"] + ["optimizer"] * (seen.get("pretrain.optimizer") != "run")
    for section in idle:
        for key in seen.asked(section):
            yield key, "does nothing: nothing is meta-trained", "drop it"
    for key in seen.asked("algorithm"):
        if "." in key and not key.startswith(("algorithm.teacher.", "algorithm.inner.adapt")):
            yield key, "does nothing: a teacher is made as algorithm.teacher says", "drop it"
    for key in seen.asked("evaluation"):
        if "." in key and key.split(".")[1] not in READ:
            yield key, "does nothing: nothing is measured but by evaluation.monitor", "drop it"
    if seen.get("logger.name") != "files":
        yield "logger", "teachers have no curves to track", "use logger=files"


RULES = (
    teachers_of_another, teachers_without_history, teachers_without_numbers, teachers_anchored, teachers_given_twice,
    teachers_unused,
)  # fmt: skip
