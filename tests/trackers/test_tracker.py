"""The guard: what a failing tracker may do to a run (nothing), and what is told after all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarec.errors import EnvironmentFault, Stopped
from metarec.runs.history import History
from metarec.trackers.card import Card, Closing, Row
from metarec.trackers.tracker import LIVE_S, Tracker, reason, state_of, tracked

DOCUMENT = {"training": {"steps": 2}, "metrics": {"fewshot": {"mrr": 0.5}}, "protocol": {"split": "test"}}


class Memory:
    """A tracker in memory that fails in the methods named."""

    name, where = "memory", "nowhere"

    def __init__(self, *failing: str) -> None:
        self.failing, self.rows, self.calls = set(failing), list[Row](), list[str]()
        self.closing: Closing | None = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise ValueError(f"{name} fails\nand says why at length")

    def connect(self) -> None:
        self._call("connect")

    def begin(self, card: Card, rows: list[Row]) -> None:
        self._call("begin")
        self.card, self.rows = card, list(rows)

    def tell(self, rows: list[Row]) -> None:
        self._call("tell")
        self.rows += rows

    def finish(self, closing: Closing) -> None:
        self._call("finish")
        self.closing = closing

    def close(self, ended: str | None) -> None:
        self._call(f"close {ended}")


def train(step: int) -> dict[str, Any]:
    return {"step": step, "kind": "train", "loss": float(step)}


def run(tracker: Tracker, directory: Path) -> None:
    tracker.begin({"seed": 1}, {}, [])
    with History(directory / "history.jsonl", tracker) as history:
        history.append(train(1))
        history.append({"step": 1, "kind": "val", "fewshot": {"mrr": 0.25}})
        history.append(train(2))
    tracker.finish(DOCUMENT, [])


WHOLE = [(1, {"train/loss": 1.0}), (1, {"val/fewshot/mrr": 0.25}), (2, {"train/loss": 2.0})]


def test_records_are_told_with_a_validation_a_sync_or_after_a_while(tmp_path: Path) -> None:
    now = [0.0]
    memory = Memory()
    tracker = Tracker(memory, tmp_path, "sweep", clock=lambda: now[0])
    tracker.append(train(0))  # nobody listens yet
    tracker.begin({"seed": 1}, {"dataset": "d"}, [train(1)])
    assert (memory.card.name, memory.card.group, memory.card.config) == (tmp_path.name, "sweep", {"seed": 1})
    tracker.append(train(2))
    assert [step for step, _ in memory.rows] == [1]
    now[0] += LIVE_S
    tracker.append(train(3))
    assert [step for step, _ in memory.rows] == [1, 2, 3]
    tracker.append(train(4))
    tracker.sync()
    tracker.append({"step": 4, "kind": "val", "fewshot": {"mrr": 0.25}})
    assert [step for step, _ in memory.rows] == [1, 2, 3, 4, 4]
    tracker.finish(DOCUMENT, [])
    assert memory.closing == Closing(
        2, {"metrics/fewshot/mrr": 0.5, "training/steps": 2.0}, {"protocol": {"split": "test"}}, ()
    )
    tracker.append(train(5))
    tracker.close("failed")
    assert memory.calls[-1] == "finish"


def test_a_failure_is_said_once_and_made_good_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory("tell")
    run(Tracker(memory, tmp_path), tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "logger=memory: ValueError: tell fails: the run goes on without it -- all is told once more at the end",
        "logger=memory: everything was told at the end",
    ]
    assert memory.calls == ["begin", "tell", "close None", "begin", "finish"]
    assert memory.rows == WHOLE
    assert json.loads((tmp_path / "tracker.json").read_text())["told"] == "everything"


def test_what_stays_untold_is_said_and_on_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Tracker(Memory("finish"), tmp_path), tmp_path)
    assert "ValueError: finish fails: not everything was told" in capsys.readouterr().err
    assert json.loads((tmp_path / "tracker.json").read_text())["told"] == "ValueError: finish fails"


@pytest.mark.parametrize("method", ["connect", "begin"])
def test_before_the_first_step_a_failure_is_refused(method: str, tmp_path: Path) -> None:
    said = rf"logger=memory: ValueError: {method} fails: .* -- mend or move away"
    with pytest.raises(EnvironmentFault, match=said), tracked(Memory(method), tmp_path) as tracker:
        run(tracker, tmp_path)


@pytest.mark.parametrize(
    ("error", "ended"),
    [(RuntimeError("bug"), "failed"), (Stopped("SIGTERM", "step 1", "stopped", "go on", 15), "stopped")],
)
def test_how_a_run_ended_is_told_and_its_error_goes_on(error: Exception, ended: str, tmp_path: Path) -> None:
    memory = Memory(f"close {ended}")  # whose own failure is nobody's

    def breaks_off(tracker: Tracker) -> None:
        tracker.begin({}, {}, [])
        tracker.append(train(1))
        raise error

    with pytest.raises(type(error)), tracked(memory, tmp_path) as tracker:
        breaks_off(tracker)
    assert memory.calls == ["connect", "begin", "tell", f"close {ended}"]


def test_a_signal_is_no_failure_of_the_tracker(tmp_path: Path) -> None:
    """Between checkpoints a signal raises Stopped wherever the run is, in the middle of a telling too."""

    class Signalled(Memory):
        def tell(self, rows: list[Row]) -> None:
            raise Stopped("SIGTERM", "between checkpoints", "stopped as asked", "go on", 15)

    memory = Signalled()
    with pytest.raises(Stopped), tracked(memory, tmp_path) as tracker:
        run(tracker, tmp_path)
    assert memory.calls == ["connect", "begin", "close stopped"]


def test_a_run_carried_on_keeps_its_id_and_group(tmp_path: Path) -> None:
    first = Memory()
    Tracker(first, tmp_path, "sweep").begin({}, {}, [])
    second = Memory()
    Tracker(second, tmp_path, None).begin({}, {}, [])
    assert (second.card.id, second.card.group) == (first.card.id, "sweep")
    (tmp_path / "tracker.json").write_text("{}")
    with pytest.raises(EnvironmentFault, match=r"tracker\.json: KeyError: names no run of the tracker -- remove it"):
        state_of(tmp_path)


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    with tracked(None, tmp_path) as tracker:
        run(tracker, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]


def test_a_reason_is_one_line() -> None:
    assert reason(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
    assert reason(TimeoutError()) == "TimeoutError"
