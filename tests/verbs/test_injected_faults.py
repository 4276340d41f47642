"""The faults of benchmarks/injected_faults.py in whole runs: what a skip and a rollback promise, and a kill behind one.

The reference of an event is a run without fault and guard whose optimizer is made to leave steps out, by hand.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reference.tiny_runs import assert_same_run, state

from metarec import cli
from metarec.runs.guarded import Guarded
from metarec.runs.history import read_history
from metarec.runs.kept import Kept

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "injected_faults.py"
WORDS = ("algorithm=fomaml", "residual=on", "seed=1")


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("injected_faults", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("fault", "guard", "kind", "action"),
    [
        ("nan", "skip", "nonfinite_loss", "skip"),
        ("support", "skip", "nonfinite_loss", "skip"),
        pytest.param("inf", "skip", "nonfinite_gradient", "skip", marks=pytest.mark.slow),
        pytest.param("inf", "rollback", "nonfinite_gradient", "rollback", marks=pytest.mark.slow),
        ("rate", "rollback", "spike", "rollback"),
    ],
)
def test_a_run_ends_as_its_event_promises(
    fault: str, guard: str, kind: str, action: str, faults: ModuleType, tmp_path: Path
) -> None:
    row = faults.cell(tmp_path, fault, guard, 14, *WORDS)
    (event,) = row["events"]
    assert (event["kind"], event["action"], event["step"]) == (kind, action, 16 if fault == "rate" else 15)
    assert (row["code"], row["finite"], row["steps"], row["equal"]) == (0, True, 30, True)
    assert row["last"] < row["before"] * 1.05


@pytest.mark.slow
def test_a_broken_promise_is_seen(faults: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback that leaves the moments of Adam where they are; a skip that is compared with another step left out."""
    real = Kept.put_back

    def weights_only(self: Kept, params: Any, optimizer: Any) -> None:
        held = {value: dict(slots) for value, slots in optimizer.state.items()}
        real(self, params, optimizer)
        optimizer.state.update(held)

    monkeypatch.setattr(Kept, "put_back", weights_only)
    assert faults.cell(tmp_path, "inf", "rollback", 14, *WORDS)["equal"] is False
    monkeypatch.undo()
    with faults.injected("nan", 14):
        run = faults.trained(tmp_path, *WORDS, *faults.GUARDS["skip"])
    (event,) = run.events
    assert not faults.same(run.weights(), faults.by_hand(tmp_path, event | {"step": 14}, *WORDS).weights())
    monkeypatch.setattr(Guarded, "lets_through", lambda self, *args, **options: True)
    monkeypatch.setattr(Guarded, "lets_stand", lambda self, step: True)
    with faults.injected("inf", 2):
        found = faults.trained(tmp_path, *WORDS, *faults.GUARDS["skip"])
    assert found.code == 6  # nothing is judged: the checkpoint itself refuses what is not finite


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4, 12], ids=lambda steps: f"{steps} steps behind")
def test_killed_behind_a_rollback_and_resumed_ends_with_the_same_bits(
    after: int, faults: ModuleType, tmp_path: Path
) -> None:
    """A process of its own, killed so many steps behind the event: before and behind the next checkpoint."""
    words = [
        *faults.SMALL, *WORDS, *faults.GUARDS["rollback"], "train.steps=60", f"cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip

    def command(name: str) -> list[str]:
        return ["train", *words, f"output_dir={tmp_path / name}"]

    with faults.injected("rate", 14):
        assert cli.main(command("whole")) == 0
    (whole,) = (tmp_path / "whole" / "train").iterdir()
    (event,) = read_history(whole / "events.jsonl")
    assert (event["step"], event["action"]) == (16, "rollback")

    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--fault", "rate", "--step", "14", "--command", *command("cut")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 120
    while time.monotonic() < end and reached(tmp_path / "cut") < event["step"] + after:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    if process.stderr:
        process.stderr.close()
    (cut,) = (tmp_path / "cut" / "train").iterdir()
    assert not (cut / "metrics.json").exists()
    assert len(read_history(cut / "events.jsonl")) == 1  # it had happened
    with faults.injected("rate", 14):
        assert cli.main(["train", f"resume={cut}"]) == 0
    assert_same_run(cut, whole)
    assert state(cut, "last")["guard"] == state(whole, "last")["guard"]
    assert (cut / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()


def reached(output: Path) -> int:
    """The last step in the history of the run below `output`; 0 before there is one."""
    found = list(output.glob("train/*/history.jsonl"))
    if not found:
        return 0
    lines = [line for line in found[0].read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return max((int(line.split(b'"step":')[1].split(b",")[0]) for line in lines), default=0)
