"""What the rules of teachers refuse, and the sensible command nearby (`config/test_rules.py`)."""

from __future__ import annotations

RUN = "algorithm=generator residual=lora"
TAUGHT = f"{RUN} algorithm.loss.delta_w=1"
# rule, command line that it refuses, key and words of the line, a sensible command line nearby
CASES = [
    *(
        (
            "teachers_of_another",
            f"teachers algorithm={name}{rest}",
            f"algorithm: {name}: algorithm={name} learns from no teacher and has no section algorithm.teacher -- use",
            "teachers algorithm=generator",
        )
        for name, rest in (("fomaml", ""), ("supervised", " residual=off"))
    ),
    (
        "teachers_without_history",
        "teachers dataset=prompts",
        "dataset: prompts: teachers see more of a user's history, and a task of text has none beyond its episode",
        "teachers dataset=synthetic",
    ),
    (
        "teachers_without_history",
        "teachers dataset=omniglot data_dir=/data",
        "dataset: omniglot: teachers see more of a user's history, and a task of images has none beyond its episode",
        "teachers dataset=ml1m data_dir=/data",
    ),
    (
        "teachers_without_history",
        f"{TAUGHT} dataset.history=user",
        "dataset.history: user: prefixes hold all that a user did before",
        f"{TAUGHT} dataset.history=sessions",
    ),
    (
        "teachers_without_numbers",
        "teachers residual=memory",
        "residual: memory: with residual=memory no number is a user's own, so there is nothing to find",
        "teachers residual=context",
    ),
    (
        "teachers_without_numbers",
        "teachers residual=rows",
        "residual: rows: with residual=rows a user has the rows of his own support",
        "teachers residual=bias",
    ),
    (
        "teachers_without_numbers",
        "teachers residual=[memory,context]",
        "residual: memory+context: residual=memory+context remembers the support of an episode",
        "teachers residual=[lora,context]",
    ),
    (
        "teachers_without_numbers",
        "teachers residual.adapter=adapter",
        "residual.adapter: adapter: teachers start where nothing has been added yet",
        "teachers residual.rank=4",
    ),
    (
        "teachers_anchored",
        f"{TAUGHT} objective.kl_anchor.weight=1 objective.kl_anchor.where=both",
        "objective.kl_anchor.where: both: teachers descend the plain loss of their pairs",
        f"{TAUGHT} objective.kl_anchor.weight=1",
    ),
    (
        "teachers_given_twice",
        "teachers algorithm.teacher.path=teachers",
        "algorithm.teacher.path: teachers: is where metarec train finds them -- write to=DIR",
        "teachers to=teachers",
    ),
    (
        "teachers_given_twice",
        f"{TAUGHT} algorithm.teacher.path=teachers algorithm.teacher.steps=5",
        "algorithm.teacher.steps: 5: does nothing: teachers says how its teachers were made",
        f"{TAUGHT} algorithm.teacher.path=teachers",
    ),
    (
        "teachers_given_twice",
        f"{RUN} algorithm.teacher.users=8",
        "algorithm.teacher.users: 8: does nothing: no loss that has a weight learns from teachers",
        f"{RUN} algorithm.teacher.pairs=8",
    ),
    (
        "teachers_given_twice",
        f"{RUN} algorithm.teacher.pairs=8 evaluation.panel=none",
        "algorithm.teacher.pairs: 8: does nothing: no loss that has a weight learns from teachers",
        f"{TAUGHT} algorithm.teacher.pairs=8 evaluation.panel=none",
    ),
    ("teachers_unused", "teachers resume=RUN", "resume: RUN: is for metarec train", "teachers to=RUN"),
    ("teachers_unused", "teachers train.steps=5", "train.steps: 5: does nothing: nothing is", "teachers seed=5"),
    ("teachers_unused", "teachers optimizer.lr=1", "optimizer.lr: 1.0: does nothing: nothing is", "teachers seed=5"),
    (
        "teachers_unused",
        "teachers algorithm.width=8",
        "algorithm.width: 8: does nothing: a teacher is made as algorithm.teacher says",
        "teachers algorithm.teacher.lr=1 algorithm.inner.adapt=[*lora_b]",
    ),
    (
        "teachers_unused",
        "teachers evaluation.bootstrap=9",
        "evaluation.bootstrap: 9: does nothing: nothing is measured but by evaluation.monitor",
        "teachers evaluation.monitor=hr@5 evaluation.control.users=9",
    ),
    ("teachers_unused", "teachers logger=mlflow", "logger: mlflow: teachers have no curves", "teachers logger=files"),
]
