"""What the rules of `dataset.sessions.order` refuse, and the sensible command nearby (`config/test_rules.py`)."""

from __future__ import annotations

TABLES = "dataset=episode_tables dataset.path=tables"
# rule, command line that it refuses, key and words of the line, a sensible command line nearby
CASES = [
    (
        "order_is_given",
        f"{TABLES} dataset.sessions.order=shuffled",
        "dataset.sessions.order: shuffled: the tables hold finished prefixes and episodes, not the events",
        f"{TABLES} dataset.sessions.order=real",
    ),
    (
        "shuffle_seed_unused",
        "dataset.sessions.shuffle_seed=3",
        "dataset.sessions.shuffle_seed: 3: does nothing: dataset.sessions.order=real permutes nothing",
        "dataset.sessions.shuffle_seed=3 dataset.sessions.order=shuffled",
    ),
    (
        "tables_without_a_label",
        "prepare dataset.sessions.order=shuffled export=tables",
        "export: tables: dataset.sessions.order=shuffled, and tables that are read again do not say so",
        "prepare dataset.sessions.order=shuffled",
    ),
]
