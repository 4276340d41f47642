"""A first stretch of the mutated inputs; 100,000 of them: `python -m tests.reliability fuzz`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from reliability import fuzz_readers as fuzz

from metarec.errors import DataError


@pytest.mark.parametrize("kind", ["csv", "jsonl", "manifest", "vocabulary"])
def test_mutated_inputs(kind: str) -> None:
    assert fuzz.here(kind, fuzz.QUICK[kind]) == []


def test_mutated_parquet_in_a_process_that_may_die() -> None:
    assert fuzz.apart("parquet", fuzz.QUICK["parquet"], print) == []


def test_a_mutant_is_a_function_of_its_number() -> None:
    for kind in fuzz.FULL:
        assert fuzz.mutant(kind, 7) == fuzz.mutant(kind, 7) != fuzz.mutant(kind, 8)
        assert sum(fuzz.mutant(kind, n) != fuzz.ORIGINALS[kind] for n in range(50)) > 40
    assert sum(fuzz.FULL.values()) >= 100_000


def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def bug(kind: str, path: Path, data: bytes) -> None:
        raise ZeroDivisionError("planted")

    def lines(kind: str, path: Path, data: bytes) -> None:
        raise type("Two", (DataError,), {"__str__": lambda self: "a\nb -- c"})("a", "b", "c", "d")

    monkeypatch.setattr(fuzz, "read", bug)
    assert fuzz.fault_of("csv", 3, tmp_path / "x") == "csv 3: ZeroDivisionError: planted"
    monkeypatch.setattr(fuzz, "read", lines)
    assert "not one line" in str(fuzz.fault_of("csv", 3, tmp_path / "x"))
    monkeypatch.setattr(fuzz, "read", lambda *given: time.sleep(5))
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert "Hang" in str(fuzz.fault_of("csv", 3, tmp_path / "x"))
