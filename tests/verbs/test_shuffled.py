"""A whole run on shuffled sessions: its record and its table say so, and no optimum stands in it."""

from __future__ import annotations

import pytest
from reference.tiny_runs import Work, metrics

from metarec.errors import ConfigError
from metarec.report.finished import read_run
from metarec.report.protocol import refusals


def test_a_shuffled_run_says_so_and_is_not_paired_with_a_real_one(work: Work) -> None:
    words = ("algorithm=supervised", "evaluation.panel=none")
    real, other = (work.train(*words, f"dataset.sessions.order={order}") for order in ("real", "shuffled"))
    one, two = metrics(real), metrics(other)
    assert "bayes_fewshot" in one["metrics"]
    assert not [method for method in two["metrics"] if method.startswith("bayes")]
    assert "order" not in one["protocol"]
    assert two["protocol"]["order"] == "shuffled"
    assert "ORDER SHUFFLED: items permuted inside their sessions (seed 20260107)" in two["protocol"]["split_note"]
    assert one["protocol"]["episodes_sha256"] == two["protocol"]["episodes_sha256"]
    assert one["counts"]["targets"] == two["counts"]["targets"]
    (error,) = refusals([read_run(real, "real"), read_run(other, "other")])
    assert isinstance(error, ConfigError)
    assert (error.where, error.value) == ("order", "real in real; shuffled in other")


def test_prepare_shows_it(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert work.main("prepare", "dataset.world.n_users=300", "dataset.sessions.order=shuffled") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "ORDER SHUFFLED: items permuted inside their sessions (seed 20260107), not as they came" in out
    assert "shuffled order" in out
