"""Runs of different protocols are not paired: for every key, the refusal names it, its values and the runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.small_reports import write_run

from metarec.report.comparison import comparison
from metarec.report.comparison_text import conditions
from metarec.report.finished import Run, read_run
from metarec.report.protocol import order_notes, refusals, unrecorded


def pair(tmp_path: Path, **second: Any) -> list[Run]:
    """Two runs, the second one changed; both named after their directories."""
    a = write_run(tmp_path / "a", seed=1, n_users=5)
    b = write_run(tmp_path / "b", seed=2, **{"n_users": 5, **second})
    return [read_run(a, "a"), read_run(b, "b")]


def test_equal_protocols_are_paired(tmp_path: Path) -> None:
    assert refusals(pair(tmp_path)) == []


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("split", "val", "test in a; val in b"),
        ("split_by", "leave_one_out", "user_time in a; leave_one_out in b"),
        ("leaky", True, "false in a; true in b"),
        ("classification", True, "false in a; true in b"),
        ("unit", "token", "item in a; token in b"),
        ("n_support", 3, "5 in a; 3 in b"),
        ("n_query", 5, "4 in a; 5 in b"),
        ("ties", "first", "conservative in a; first in b"),
        ("order", "shuffled", "real in a; shuffled in b"),
        ("candidates", "100 sampled", "the catalogue in a; 100 sampled in b"),
        ("n_items", 51, "50 in a; 51 in b"),
        ("max_len", 10, "50 in a; 10 in b"),  # the longest prefix has 12 events
        ("vocabulary_sha256", "0" * 64, f"{'f' * 12} in a; {'0' * 12} in b"),
        ("episodes_sha256", "0" * 64, f"{'e' * 12} in a; {'0' * 12} in b"),
        ("data_sha256", "0" * 64, f"{'d' * 12} in a; {'0' * 12} in b"),
    ],
)
def test_each_key_is_named_with_its_values_and_runs(key: str, value: Any, shown: str, tmp_path: Path) -> None:
    (error,) = refusals(pair(tmp_path, protocol={key: value}))
    assert (error.where, error.value, error.exit_code) == (key, shown, 2)
    assert str(error).count("\n") == 0


def test_a_key_of_a_later_metarec_is_compared_as_well(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", n_users=5, protocol={"filter_seen": True})
    b = write_run(tmp_path / "b", n_users=5, protocol={"filter_seen": False})
    (error,) = refusals([read_run(a, "a"), read_run(b, "b")])
    assert (error.where, error.value) == ("filter_seen", "true in a; false in b")


def test_a_key_that_one_run_does_not_record_is_told(tmp_path: Path) -> None:
    runs = pair(tmp_path, protocol={"candidates": None})
    del runs[1].document["protocol"]["candidates"]
    assert refusals(runs) == []
    assert unrecorded(runs) == ["candidates"]


def test_max_len_matters_only_where_it_cuts_a_prefix(tmp_path: Path) -> None:
    runs = pair(tmp_path, protocol={"max_len": 12})
    assert refusals(runs) == []  # no prefix is longer than 12
    del runs[1].document["protocol"]["longest_prefix"]
    assert [error.where for error in refusals(runs)] == ["max_len"]  # it may be


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [("dataset.split.seed", 7, "dataset.split.seed"), ("dataset.world.noise", 0.5, "dataset.world.noise"),
     ("dataset.core.min_item_events", 5, "dataset.core.min_item_events")],
)  # fmt: skip
def test_other_data_are_named_by_the_option_that_differs(option: str, value: Any, key: str, tmp_path: Path) -> None:
    runs = pair(tmp_path, config={option: value}, protocol={"data_sha256": "0" * 64, "episodes_sha256": "0" * 64})
    (error,) = refusals(runs)  # what follows from it, other episodes, is not told beside it
    assert error.where == key
    assert f"{value} in b" in error.value


def shuffled(tmp_path: Path, *seeds: int | None) -> list[Run]:
    """Two runs, shuffled by a seed or (None) from before there was the option, or in real order (-1)."""
    runs = []
    for n, seed in enumerate(seeds):
        protocol = {"data_sha256": f"{n}" * 64, **({"order": "shuffled"} if seed is not None and seed >= 0 else {})}
        run = read_run(write_run(tmp_path / f"{n}", n_users=5, protocol=protocol), "ab"[n])
        options = run.document["config"]["dataset"]["sessions"]
        options.update(order="real" if seed == -1 else "shuffled", shuffle_seed=max(seed or 0, 0))
        if seed is None:
            del options["order"], options["shuffle_seed"]
        runs.append(run)
    return runs


def test_shuffled_order_is_refused_once_and_with_its_reason(tmp_path: Path) -> None:
    for n, first in enumerate((-1, None)):
        (error,) = refusals(shuffled(tmp_path / f"{n}", first, 7))
        assert str(error).startswith(
            "order: real in a; shuffled in b: in one the items of every session stand as they came"
        )
    (error,) = refusals(shuffled(tmp_path / "2", 7, 8))
    assert (error.where, error.value) == ("dataset.sessions.shuffle_seed", "7 in a; 8 in b")
    runs = shuffled(tmp_path / "3", -1, None)  # the option is real where it is not recorded
    assert [error.where for error in refusals(runs)] == ["data_sha256"]
    for run in runs:
        del run.document["protocol"]["data_sha256"]
    assert refusals(runs) == []


def test_a_comparison_of_shuffled_runs_says_so(tmp_path: Path) -> None:
    for protocol, lines in (({"order": "shuffled"}, 1), ({}, 0)):
        assert len(order_notes(protocol)) == lines
    place = tmp_path / "run"
    runs = [read_run(write_run(place / n, seed=int(n), protocol={"order": "shuffled"}), n) for n in "12"]
    said = conditions(comparison(runs, defaults={}))
    assert sum(line.startswith("ORDER SHUFFLED: items permuted inside their sessions") for line in said) == 1


def test_options_are_compared_where_no_contents_are_recorded(tmp_path: Path) -> None:
    runs = pair(tmp_path, config={"dataset.split.seed": 7})
    assert refusals(runs) == []  # the same data with the same contents, whatever the options say
    for run in runs:
        del run.document["protocol"]["data_sha256"]
    assert [error.where for error in refusals(runs)] == ["dataset.split.seed"]


def test_another_place_or_stride_of_the_same_data_is_paired(tmp_path: Path) -> None:
    assert refusals(pair(tmp_path / "1", config={"dataset.path": "elsewhere.csv"})) == []
    runs = pair(tmp_path / "2", config={"dataset.episodes.stride": 5, "dataset.path": "elsewhere.csv"})
    for run in runs:
        del run.document["protocol"]["data_sha256"]
    assert refusals(runs) == []


def test_another_dataset_is_told_once(tmp_path: Path) -> None:
    changed = {"data_sha256": "0" * 64, "vocabulary_sha256": "0" * 64, "n_items": 9}
    runs = pair(tmp_path / "1", dataset="other", protocol=changed, config={"dataset.split.seed": 7})
    assert refusals(pair(tmp_path / "2", dataset="the same log by another name")) == []
    assert [(e.where, e.value) for e in refusals(runs)] == [("dataset", "synthetic in a; other in b")]


def test_other_users_and_targets(tmp_path: Path) -> None:
    (error,) = refusals(pair(tmp_path / "1", n_users=4))
    assert (error.where, error.value) == ("users", "5 in a; 4 in b")
    (error,) = refusals(pair(tmp_path / "2", user="somebody"))
    assert error.value == "user 0 in a; somebody 0 in b"
    runs = pair(tmp_path / "3")
    runs[1].table["n_targets"] = np.array([4, 4, 3, 4, 4])
    (error,) = refusals(runs)
    assert str(error).startswith("targets of user user 2: 4 in a; 3 in b: the figures are of different targets")


def test_many_runs_are_counted_rather_than_listed(tmp_path: Path) -> None:
    first, second = pair(tmp_path, protocol={"ties": "first"})
    runs = [*(replace(first, name=f"a{n}") for n in range(6)), second]
    (error,) = refusals(runs)
    assert error.value == "conservative in a0, a1, a2 and 3 more; first in b"


def test_every_cause_is_told(tmp_path: Path) -> None:
    runs = pair(tmp_path, protocol={"ties": "first", "n_support": 3, "episodes_sha256": "0" * 64})
    assert [error.where for error in refusals(runs)] == ["n_support", "ties"]
