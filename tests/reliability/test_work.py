"""The drivers of sweeps, workers and determinism in the sizes of the suite, and that each sees what it is there to see."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from reference.tiny_runs import Work
from reliability import determinism, sweep_jobs, workers
from reliability.__main__ import drivers
from reliability.processes import alive, below, seconds_until_gone

OURS = (sweep_jobs, workers, determinism)


def test_every_driver_is_found() -> None:
    assert {module.NAME for module in OURS} <= drivers().keys()


@pytest.mark.slow
@pytest.mark.parametrize("driver", OURS, ids=lambda module: module.NAME)
def test_promises_are_kept(driver: ModuleType, tmp_path: Path) -> None:
    result = driver.run(False, tmp_path)
    assert [one for one in result["figures"] if not one["kept"]] == []


def test_a_run_that_is_not_the_same_is_seen(tmp_path: Path) -> None:
    """Another seed; and copies of one run: keys in another order, one figure by 1e-15, one space behind a history."""
    work = Work(tmp_path, tmp_path / "cache")
    one, two = work.train("seed=1"), work.train("seed=2")
    found = determinism.differences(one, two)
    assert {"weights or optimizer of best", "history.jsonl", "metrics.json: metrics"} <= {*found}
    assert determinism.differences(one, one) == []
    other = shutil.copytree(one, tmp_path / "other")
    document = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps(dict(reversed(document.items()))))
    assert determinism.differences(one, other) == ["bytes of metrics.json"]
    document["metrics"]["fewshot"]["hr@10"] += 1e-15
    (other / "metrics.json").write_text(json.dumps(document))
    (other / "history.jsonl").write_bytes((one / "history.jsonl").read_bytes() + b" ")
    assert determinism.differences(one, other) == ["history.jsonl", "metrics.json: metrics"]


def test_an_orphan_is_seen() -> None:
    starter = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parent = subprocess.Popen([sys.executable, "-c", f"{starter}; print('there', flush=True); time.sleep(60)"],
                              stdout=subprocess.PIPE)  # fmt: skip
    assert parent.stdout is not None
    parent.stdout.readline()
    children = below(parent.pid)
    parent.kill()
    parent.wait()
    assert len(children) == 1
    assert seconds_until_gone(children, 0.2) is None
    os.kill(children[0][0], 9)
    assert seconds_until_gone(children, 20) is not None
    assert alive(children) == []
