"""The two mappings of metrics: what a line of them needs, the published names, and that names cost no import."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest

from metarec.config.reading import CompareRuns, Report
from metarec.config.schema import EvaluationConfig
from metarec.metrics import LISTS, METRICS, OF_LISTS, OF_RANKS, Entry, heading

# keys of metrics.json that are out there: they keep their order, others may stand between them
PUBLISHED = ["hr@1", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr"]
PUBLISHED_LISTS = ["coverage@10", "popularity_percentile@10"]


def test_published_names_stay_and_no_name_is_given_twice() -> None:
    assert [name for name in METRICS if name in PUBLISHED] == PUBLISHED
    assert [name for name in LISTS if name in PUBLISHED_LISTS] == PUBLISHED_LISTS
    assert not set(METRICS) & set(LISTS)
    headings = [entry.heading for entry in (*OF_RANKS.values(), *OF_LISTS.values())]
    assert len({*headings}) == len(headings)
    assert [heading("ndcg@10"), heading("coverage@10"), heading("gone@3")] == ["NDCG@10", "coverage@10", "GONE@3"]


@pytest.mark.parametrize(("found", "entries"), [(METRICS, OF_RANKS), (LISTS, OF_LISTS)], ids=["ranks", "lists"])
def test_every_line_finds_its_function_and_a_word_on_it(found: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    assert list(found) == list(entries)
    for name, (file, _, k) in entries.items():
        module = import_module(f"metarec.metrics.{file}")
        function = getattr(module, file)
        assert (module.__doc__ or "").strip() and (function.__doc__ or "").strip(), name
        assert ("k" in inspect.signature(function).parameters) == (k is not None), name
        assert k is None or name.endswith(f"@{k}"), name
        assert callable(found[name])


def test_the_mappings_are_read_only_and_know_no_other_name() -> None:
    with pytest.raises(TypeError):
        METRICS["rbp"] = METRICS["mrr"]  # type: ignore[index]
    assert "os" not in METRICS
    with pytest.raises(KeyError):
        LISTS["os"]


def test_choices_of_the_configuration_are_the_names() -> None:
    for schema, key in ((EvaluationConfig, "monitor"), (CompareRuns, "metric"), (Report, "metric")):
        (spec,) = (spec for spec in dataclasses.fields(schema) if spec.name == key)
        assert list(spec.metadata["choices"]) == list(METRICS)


def test_names_are_known_without_numpy() -> None:
    code = (
        "import sys; from metarec.config.reading import Report; from metarec.metrics import LISTS, METRICS, heading;"
        "assert 'mrr' in METRICS and 'x' not in LISTS and [heading(name) for name in (*METRICS, *LISTS)];"
        "print([name for name in ('numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
