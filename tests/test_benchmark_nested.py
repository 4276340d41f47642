"""benchmarks/nested.py: its interval by the binomial law, its contenders, and (slow) that it runs in a tiny setting."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "nested.py"


@pytest.fixture(scope="module")
def nested() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPT.parent))  # for what benchmarks share
    spec = importlib.util.spec_from_file_location("nested_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


@pytest.mark.parametrize(("n", "k"), [(6, 0), (9, 1), (21, 5), (30, 9)])
def test_the_interval_of_a_median_covers_95_percent_by_the_binomial_law(n: int, k: int, nested: ModuleType) -> None:
    found = nested.middle([float(value) for value in reversed(range(n))])
    assert found == {"median": (n - 1) / 2, "low": k, "high": n - 1 - k}

    def outside(ends: int) -> float:
        return 2 * sum(math.comb(n, i) for i in range(ends + 1)) / 2**n

    assert outside(k) <= 0.05 < outside(k + 1)  # no narrower one does


def test_every_contender_has_its_base_and_what_has_a_target_is_measured(nested: ModuleType) -> None:
    assert set(nested.BASE.values()) == {"adam", "sgd"} <= set(nested.WAYS)
    assert set(nested.TARGETS) <= set(nested.BASE) == set(nested.WAYS) - {"adam", "sgd"}


@pytest.mark.slow
def test_it_runs_in_a_tiny_setting() -> None:
    command = [sys.executable, str(SCRIPT), "--tiny", "--settings", "gru4rec,outer"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = json.loads(lines[-1])
    ways = {"cms", "delta_sgd", "delta_sgd proximal", "delta_adam", "delta_adam proximal", "surprise", "surprise zero",
            "surprise second order"}  # fmt: skip
    assert set(found["ratios"]) == {f"{setting} {way}" for setting in ("gru4rec", "outer") for way in ways}
    assert all(value > 0 for value in found["ratios"].values())
    assert all(size > 0 for own in found["settings"].values() for size in own["peak_bytes"].values())
    assert found["machine"]["threads"] == 1
