"""Whether runs may be paired: the same users, targets, candidates and rules, key by key.

A difference between two methods means something only where both were asked the same questions. So every key of the
protocol is compared, then the options of the data, then what follows from both (vocabulary, episodes, users); for each
key that differs there is one refusal with the values and their runs. What merely follows is named only where no cause is.

A key that some runs do not record (they come from an older metarec) is compared among those that do, and told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metarec.errors import ConfigError
from metarec.options import flat
from metarec.report.cells import listed, plain
from metarec.report.finished import Run

# key of the protocol -> why runs that differ in it are not paired
REASONS = {
    "split": "figures of different splits are of different users",
    "split_by": "the splits hold other users and other targets",
    "leaky": "one split leaks through time, the other does not",
    "classification": "images and sequences have no target in common",
    "unit": "tokens of text and items have no target in common",
    "n_support": "more support pairs are more knowledge of a user",
    "n_query": "other targets",
    "ties": "tied items are ranked by another rule",
    "candidates": "targets are ranked among other items",
    "order": "in one the items of every session stand as they came, in the other shuffled: other prefixes, other targets",
    "max_len": "prefixes are cut at another length, so the methods read other histories",
}
FOLLOWS = {
    "n_items": "targets are ranked among other items",
    "vocabulary_sha256": "the candidates are other items",
    "episodes_sha256": "the episodes are others",
    "data_sha256": "the data were prepared from another log, or otherwise",
}
# words for a reader; what `max_len` is judged by; what a method reads, not what it is asked
NO_MATTER = {"split_note", "longest_prefix", "history"}
# options of the data that move no question asked: places, memory, and how often training users are windowed
DATA_NO_MATTER = (
    "path",
    "in_data_dir",
    "memory_limit",
    "episodes.stride",
    "history",
    "prompts.order",
    "prompts.pretrain",
)
TOLD = {"split.by": "split_by", "episodes.n_support": "n_support", "episodes.n_query": "n_query",
        "prompts.n_support": "n_support", "prompts.n_query": "n_query",
        "characters.n_support": "n_support", "characters.n_query": "n_query",
        "sessions.order": "order", "sessions.shuffle_seed": "order"}  # fmt: skip
FIX = "compare runs of one protocol"


def refusals(runs: Sequence[Run]) -> list[ConfigError]:
    """One error for each key in which the runs may not differ and do; empty where they may be paired."""
    contents = {run.document["protocol"].get("data_sha256") for run in runs}
    same = len(contents) == 1 and None not in contents  # then names and options of the data tell nothing more
    named = [] if same else [*_named(runs)]
    causes = [*named, *_protocol(runs), *([] if same or named else _data(runs))]
    return causes or [*_follows(runs)] or [*_users(runs)]


def order_notes(protocol: Mapping[str, Any]) -> list[str]:
    """The line under a table whose sessions were shuffled; none where the order is the log's."""
    if protocol.get("order", "real") == "real":
        return []
    return ["ORDER SHUFFLED: items permuted inside their sessions, in training and test alike; a control, not the log"]


def unrecorded(runs: Sequence[Run]) -> list[str]:
    """The keys of the protocol that only some of the runs record."""
    every = [run.document["protocol"] for run in runs]
    return [key for key in dict.fromkeys(key for one in every for key in one) if not all(key in one for one in every)]


def _named(runs: Sequence[Run]) -> Iterator[ConfigError]:
    yield from _differing("dataset", [(run, run.document["dataset"]) for run in runs], "other data")


def _protocol(runs: Sequence[Run]) -> Iterator[ConfigError]:
    keys = dict.fromkeys([*REASONS, *(key for run in runs for key in run.document["protocol"])])
    for key in keys:
        if key in FOLLOWS or key in NO_MATTER or (key == "max_len" and not _cut(runs)):
            continue
        # sequences do not say that they are no images and no text, nor that their order is the log's
        absent = {"classification": False, "leaky": False, "unit": "item", "order": "real"}.get(key)
        values = [(run, run.document["protocol"].get(key, absent)) for run in runs]
        known = [(run, value) for run, value in values if value is not None]
        yield from _differing(key, known, REASONS.get(key, "the figures were taken by another rule"))


def _cut(runs: Sequence[Run]) -> bool:
    """Whether the smallest max_len cuts any prefix; where the longest is not recorded it may."""
    known = [run.document["protocol"] for run in runs if run.document["protocol"].get("max_len") is not None]
    shortest = min((one["max_len"] for one in known), default=0)
    return any(one.get("longest_prefix") is None or one["longest_prefix"] > shortest for one in known)


def _data(runs: Sequence[Run]) -> Iterator[ConfigError]:
    """Options of the data that differ and that the protocol has not named already."""
    options = [(run, _options(run)) for run in runs]
    said = {error.where for error in _protocol(runs)}
    for key in dict.fromkeys(key for _, one in options for key in one):
        if TOLD.get(key) not in said:
            values = [(run, one.get(key)) for run, one in options]
            yield from _differing(f"dataset.{key}", values, "other data, users or targets")


def _options(run: Run) -> dict[str, Any]:
    spec = dict(run.document["config"]["dataset"])
    if spec.get("source") != "synthetic":
        spec.pop("world", None)
    if spec.get("source") != "omniglot":
        spec.pop("images", None)
    if spec.get("source") != "prompts":
        spec.pop("prompts", None)
    if spec.get("source") != "characters":
        spec.pop("characters", None)
    found = {key: value for key, value in flat(spec).items() if key not in DATA_NO_MATTER}
    if found.get("sessions.order", "real") == "real":  # which is what runs without the option had
        for key in ("sessions.order", "sessions.shuffle_seed"):
            found.pop(key, None)
    return found


def _follows(runs: Sequence[Run]) -> Iterator[ConfigError]:
    for key, what in FOLLOWS.items():
        values = [(run, run.document["protocol"].get(key)) for run in runs]
        yield from _differing(key, [(run, str(value)[:12]) for run, value in values if value is not None], what)


def _users(runs: Sequence[Run]) -> Iterator[ConfigError]:
    first = runs[0]
    for run in runs[1:]:
        if len(run.users) != len(first.users):
            yield _apart("users", first, f"{len(first.users):,}", run, f"{len(run.users):,}")
        elif not np.array_equal(run.users, first.users):
            at = int(np.argmax(run.users != first.users))
            yield _apart(f"users: row {at + 1}", first, first.users[at], run, run.users[at])
        elif not np.array_equal(run.n_targets, first.n_targets):
            at = int(np.argmax(run.n_targets != first.n_targets))
            where = f"targets of user {first.users[at]}"
            yield _apart(where, first, f"{first.n_targets[at]:g}", run, f"{run.n_targets[at]:g}")


def _apart(where: str, first: Run, its: object, run: Run, other: object) -> ConfigError:
    what = f"the figures are of different {where.partition(' ')[0].rstrip(':')}"
    return ConfigError(where, f"{its} in {first.name}; {other} in {run.name}", what, FIX)


def _differing(key: str, values: Sequence[tuple[Run, Any]], what: str) -> Iterator[ConfigError]:
    """The refusal of `key` where its values are not the same for all runs."""
    by_value: dict[str, list[str]] = {}
    for run, value in values:
        by_value.setdefault(plain(value), []).append(run.name)
    if len(by_value) > 1:
        yield ConfigError(key, "; ".join(f"{v} in {listed(names)}" for v, names in by_value.items()), what, FIX)
