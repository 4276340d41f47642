"""The detector against values by hand, and what the guard makes of its options."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from metarec.runs.guard import Detector, Event, Guard, Rules, counted, said
from metarec.runs.history import read_history


def fed(losses: list[float], **options: float) -> Detector:
    given = {"window": 4, "sigma": 2.0, "warmup_steps": 2} | options
    detector = Detector(int(given["window"]), given["sigma"], int(given["warmup_steps"]))
    for loss in losses:
        detector.add(loss)
    return detector


@pytest.mark.parametrize(
    ("losses", "threshold"),
    [
        ([], None),
        ([1.0], None),
        ([1.0, 3.0], 2 + 2 * math.sqrt(2)),  # deviations -1 and 1: sqrt(2 / 1)
        ([2.0, 4.0, 4.0, 6.0], 4 + 2 * math.sqrt(8 / 3)),  # squares 4, 0, 0, 4 over 3
        ([100.0, 2.0, 4.0, 4.0, 6.0], 4 + 2 * math.sqrt(8 / 3)),  # the first has left the window
        ([5.0, 5.0, 5.0], 5 + 2 * 0.005),  # the floor: a thousandth of the mean
        ([-5.0, -5.0, -5.0], -5 + 2 * 0.005),  # of its size, where a loss is negative
        ([1e200, -1e200], None),  # too large to square: no judgement
    ],
)
def test_threshold_by_hand(losses: list[float], threshold: float | None) -> None:
    assert fed(losses).threshold() == (None if threshold is None else pytest.approx(threshold, rel=1e-12))


def test_nothing_is_judged_in_the_warm_up() -> None:
    assert fed([1.0, 3.0, 2.0], warmup_steps=4).threshold() is None
    assert fed([1.0, 3.0, 2.0, 2.0], warmup_steps=4).threshold() is not None
    # counted are the losses let through, those that have left the window included
    assert fed([1.0, 3.0, 2.0, 2.0, 2.0], window=2, warmup_steps=5).threshold() == pytest.approx(2 + 2 * 0.002)


def guard(path: Path | None = None, **rules: object) -> Guard:
    given: dict[str, object] = {"on_spike": "stop", "window": 4, "sigma": 2.0, "warmup_steps": 2}
    return Guard(Rules(**(given | rules)), path)  # type: ignore[arg-type]


def test_a_loss_at_the_threshold_passes_and_the_next_float_does_not() -> None:
    one, other = guard(warmup_steps=4), guard(warmup_steps=4)
    for each in (one, other):
        assert [each.judge(step, loss, 1.0) for step, loss in enumerate([2.0, 4.0, 4.0, 6.0])] == [None] * 4
    allowed = 4 + 2 * math.sqrt(8 / 3)
    assert one.judge(5, allowed, 1.0) is None
    event = other.judge(5, math.nextafter(allowed, math.inf), 1.0)
    assert event is not None
    assert (event.step, event.kind, event.threshold, event.action) == (5, "spike", allowed, "stop")
    assert other.judge(6, 2.0, 1.0) is None  # a fall is no spike


@pytest.mark.parametrize("action", ["warn", "skip", "rollback", "stop"])
def test_only_what_is_let_through_enters_the_window(action: str) -> None:
    one = guard(on_spike=action)
    for step, loss in enumerate([1.0, 1.0, 1.0]):
        one.judge(step, loss, 1.0)
    event = one.judge(4, 50.0, 1.0)
    assert event is not None
    assert event.action == action
    assert one.detector.losses == ([1.0, 1.0, 1.0, 50.0] if action == "warn" else [1.0] * 3)
    assert one.rate == (0.5 if action == "rollback" else 1.0)


def test_off_judges_no_loss_but_what_is_not_finite() -> None:
    one = guard(on_spike="off", on_nonfinite="skip")
    assert [one.judge(step, loss, 1.0) for step, loss in enumerate([1.0, 1.0, 1.0, 1e9])] == [None] * 4
    kinds = [one.judge(5, *pair) for pair in ((math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0))]
    assert [event.kind for event in kinds if event] == ["nonfinite_loss", "nonfinite_gradient", "nonfinite_loss"]


def test_a_skip_or_a_rollback_too_many_is_a_stop() -> None:
    one = guard(on_nonfinite="skip", max_skips=2)
    assert one.judge(1, 1.0, 1.0) is None
    actions = [event.action for step in range(3) if (event := one.judge(step, math.nan, 1.0))]
    assert actions == ["skip", "skip", "stop"]
    one = guard(on_nonfinite="skip", max_skips=2)
    for step in range(6):  # in a row: a good step between them starts the count again
        assert one.judge(2 * step, 1.0, 1.0) is None
        event = one.judge(2 * step + 1, math.nan, 1.0)
        assert event is not None
        assert event.action == "skip"
    one = guard(on_nonfinite="rollback", max_rollbacks=2)
    events = [one.judge(step, math.nan, 1.0) for step in range(3)]
    assert [event.action for event in events if event] == ["rollback", "rollback", "stop"]
    assert one.rate == 0.25
    assert events[-1] is not None
    assert "guard.max_rollbacks=2" in events[-1].why


def test_weights_that_are_not_finite_cannot_be_skipped() -> None:
    assert guard().judge_weights(1, 3.0) is None
    for wanted, action in (("skip", "stop"), ("stop", "stop"), ("rollback", "rollback")):
        event = guard(on_nonfinite=wanted).judge_weights(1, math.nan)
        assert event is not None
        assert (event.kind, event.action) == ("nonfinite_weights", action)


def test_a_state_holds_all_of_it_through_json() -> None:
    one, other = guard(on_spike="rollback", on_nonfinite="skip"), guard(on_spike="rollback", on_nonfinite="skip")
    losses = [0.1, 0.3, 0.2, 9.0, math.nan, 0.1 + 0.2]
    for step, loss in enumerate(losses):
        one.judge(step, loss, 1.0)
    assert (one.rollbacks, one.detector.seen) == (1, 4)
    other.load(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    assert other.rate == one.rate
    assert other.judge(9, 7.0, 1.0) == one.judge(9, 7.0, 1.0)


def test_events_are_lines_of_json_and_are_counted(tmp_path: Path) -> None:
    told = list[str]()
    one = Guard(Rules(on_nonfinite="skip"), tmp_path / "events.jsonl", told.append)
    one.write(Event(3, "nonfinite_loss", math.nan, None, "skip"))
    one.write(Event(8, "spike", 9.0, 2.5, "rollback"), to=5, rate=0.5)
    records = read_history(tmp_path / "events.jsonl")
    assert records == [
        {"step": 3, "kind": "nonfinite_loss", "value": "nan", "threshold": None, "action": "skip"},
        {"step": 8, "kind": "spike", "value": 9.0, "threshold": 2.5, "action": "rollback", "to": 5, "rate": 0.5},
    ]
    assert told == [f"guard: {said(record)}" for record in records]
    assert said(records[1]) == "step 8, spike: 9 above 2.5, rollback to step 5, rate x 0.5"
    found = counted(records)
    assert (found["events"], found["rate"]) == (2, 0.5)
    assert found["kinds"] == {"nonfinite_loss": 1, "nonfinite_gradient": 0, "nonfinite_weights": 0, "spike": 1}
    assert found["actions"] == {"warn": 0, "skip": 1, "rollback": 1, "stop": 0}
    assert counted([])["events"] == 0
