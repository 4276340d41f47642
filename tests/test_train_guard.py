"""`fit` under guard, with faults put in: what is skipped, rolled back, stopped, and that nothing else changes a bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec.errors import DivergedError, Stopped
from metarec.runs import checkpoint
from metarec.runs.guard import Guard, Rules
from metarec.runs.guarded import Guarded
from metarec.runs.history import History, read_history, truncate_after
from metarec.runs.kept import Kept
from metarec.runs.signals import Stop
from metarec.train import Plan, Progress, Store, fit, restore

Params = dict[str, Tensor]
Loss = Callable[[Params, int], Tensor]


def start() -> Params:
    """Two that are learned and a statistic that every loss moves by itself."""
    params = {"w": torch.tensor([4.0, -2.0]).requires_grad_(), "b": torch.tensor([1.0]).requires_grad_()}
    return {**params, "mean": torch.zeros(1)}


def square(params: Params, step: int) -> Tensor:
    """Moves the statistic, as a model with batch norm does; its value does not depend on it."""
    with torch.no_grad():
        params["mean"].mul_(0.9).add_(0.1 * (step + 1))
    return (params["w"].square().sum() + params["b"].square().sum()) * (1 + step % 3)


def nan_at(*steps: int) -> Loss:
    return lambda params, step: square(params, step) * (math.nan if step in steps else 1.0)


def inf_gradient_at(*steps: int) -> Loss:
    """A finite loss whose gradient is not: a square root at zero."""

    def loss(params: Params, step: int) -> Tensor:
        root = (params["b"] - params["b"].detach()).square().sum().sqrt() if step in steps else 0.0
        return square(params, step) + root

    return loss


def explode_at(*steps: int) -> Callable[[int], float]:
    """The rate of these steps is wrong by far, that of all others constant."""
    return lambda step: 1e4 if step in steps else 1.0


def adam(params: Params) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in params.values() if p.requires_grad], lr=0.05)


def plan(**options: Any) -> Plan:
    given = {"steps": 20, "eval_every": 5, "patience": 0, "checkpoint_every": 100, "clip_norm": 0.0, "monitor": "score"}
    return Plan(**(given | options))


RULES = {"on_spike": "off", "window": 8, "sigma": 8.0, "warmup_steps": 3, "keep_every": 4}


def run(
    loss: Loss = square, rules: dict[str, Any] | None = None, *, factor: Callable[[int], float] = lambda step: 1.0,
    events: Path | None = None, **options: Any,
) -> tuple[Params, torch.optim.Optimizer, Progress]:  # fmt: skip
    """A run without store; rules None = without a guard."""
    params = start()
    optimizer = adam(params)
    guard = None if rules is None else Guarded(Guard(Rules(**(RULES | rules)), events), params, optimizer)
    score = lambda: {"score": -float(params["w"].detach().square().sum())}  # noqa: E731
    at, _ = fit(params, lambda step: loss(params, step), optimizer, factor, plan(**options), score, guard=guard)
    return params, optimizer, at


def moments(params: Params, optimizer: torch.optim.Optimizer) -> Params:
    return {f"{name}/{slot}": held for name in ("w", "b") for slot, held in optimizer.state[params[name]].items()}


def same(
    one: tuple[Params, torch.optim.Optimizer, Progress], other: tuple[Params, torch.optim.Optimizer, Progress]
) -> bool:
    pairs = [(one[0], other[0]), (moments(*one[:2]), moments(*other[:2]))]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def without(left_out: set[int], steps: int = 20) -> tuple[Params, torch.optim.Optimizer, Progress]:
    """By hand: the same steps less those left out."""
    params = start()
    optimizer = adam(params)
    for step in range(steps):
        if step not in left_out:
            optimizer.zero_grad()
            square(params, step).backward()
            optimizer.step()
    return params, optimizer, Progress()


@pytest.mark.parametrize("action", ["stop", "skip", "rollback"])
def test_a_guard_that_never_fires_changes_no_bit(action: str, tmp_path: Path) -> None:
    rules = {"on_nonfinite": action, "on_spike": action, "keep_every": 1, "sigma": 1e6}
    guarded = run(square, rules, events=tmp_path / "events.jsonl")
    assert same(guarded, run(square, None))
    assert guarded[2] == run(square, None)[2]
    assert not (tmp_path / "events.jsonl").exists()


def test_a_warning_changes_no_bit(tmp_path: Path) -> None:
    rules = {"on_spike": "warn", "sigma": 1e-3}
    assert same(run(square, rules, events=tmp_path / "events.jsonl"), run(square, None))
    assert {event["action"] for event in read_history(tmp_path / "events.jsonl")} == {"warn"}


@pytest.mark.parametrize("bad", [nan_at, inf_gradient_at])
@pytest.mark.parametrize("steps", [(0,), (7,), (7, 8, 15), (19,)])
def test_skipped_is_as_left_out(bad: Callable[..., Loss], steps: tuple[int, ...], tmp_path: Path) -> None:
    found = run(bad(*steps), {"on_nonfinite": "skip"}, events=tmp_path / "events.jsonl")
    assert same(found, without(set(steps)))
    assert found[2].step == 20
    kind = "nonfinite_loss" if bad is nan_at else "nonfinite_gradient"
    events = read_history(tmp_path / "events.jsonl")
    assert [(e["step"], e["kind"], e["action"]) for e in events] == [(s + 1, kind, "skip") for s in steps]
    assert {event["value"] for event in events} <= {"nan", "inf"}


def gives_up_at(*steps: int) -> Loss:
    """An inner loop that finds its support loss not finite raises, and leaves no loss."""

    def loss(params: Params, step: int) -> Tensor:
        found = square(params, step)
        if step in steps:
            raise DivergedError(
                "inner step 0, task 2 of the batch", math.nan, "the support loss is not finite", "lower"
            )
        return found

    return loss


def test_an_inner_loop_that_gives_up_is_skipped_or_rolled_back_too(tmp_path: Path) -> None:
    found = run(gives_up_at(7), {"on_nonfinite": "skip"}, events=tmp_path / "events.jsonl")
    assert same(found, without({7}))
    back = run(gives_up_at(7), {"on_nonfinite": "rollback"}, events=tmp_path / "events.jsonl")
    assert same(back, run(nan_at(7), {"on_nonfinite": "rollback"}))
    events = read_history(tmp_path / "events.jsonl")
    assert [(e["step"], e["kind"], e["action"]) for e in events] == [
        (8, "nonfinite_loss", "skip"), (8, "nonfinite_loss", "rollback"),
    ]  # fmt: skip
    for rules in (None, {"on_spike": "skip"}):  # else it ends as it always did, naming the task
        with pytest.raises(DivergedError, match="inner step 0, task 2 of the batch"):
            run(gives_up_at(7), rules)


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half of the guard taken out: the checks above fail."""
    monkeypatch.setattr(Guarded, "before_step", lambda self: None)  # statistics are not put back
    assert not same(run(nan_at(7), {"on_nonfinite": "skip"}), without({7}))
    monkeypatch.undo()
    monkeypatch.setattr(Guarded, "lets_through", lambda self, *args, **options: True)  # nothing is judged
    with pytest.raises(DivergedError, match="weights after the step"):  # by the weights alone, too late
        run(inf_gradient_at(7), {"on_nonfinite": "skip"})
    monkeypatch.setattr(Guarded, "lets_stand", lambda self, step: True)
    assert not torch.isfinite(run(inf_gradient_at(7), {"on_nonfinite": "skip"})[0]["b"]).all()


def test_stop_is_what_no_guard_does(tmp_path: Path) -> None:
    """The same words and exit code, the weights as before; one event more."""
    for loss in (nan_at(7), inf_gradient_at(7)):
        with pytest.raises(DivergedError) as bare:
            run(loss, None)
        with pytest.raises(DivergedError) as guarded:
            run(loss, {}, events=tmp_path / "events.jsonl")
        assert str(guarded.value) == str(bare.value)
        assert guarded.value.exit_code == 6
    assert [event["action"] for event in read_history(tmp_path / "events.jsonl")] == ["stop", "stop"]


def test_a_nan_is_rolled_back_to_the_last_good_state_at_half_the_rate(tmp_path: Path) -> None:
    """By hand: steps 0 to 7, back to what was there after 5 (a checkpoint), from step 8 on at half the rate."""
    found = run(nan_at(7), {"on_nonfinite": "rollback"}, events=tmp_path / "events.jsonl")
    params, optimizer, _ = without(set(), steps=5)
    optimizer.param_groups[0]["lr"] *= 0.5
    for step in range(8, 20):
        optimizer.zero_grad()
        square(params, step).backward()
        optimizer.step()
    assert same(found, (params, optimizer, Progress()))
    (event,) = read_history(tmp_path / "events.jsonl")
    assert (event["step"], event["to"], event["rate"], event["action"]) == (8, 5, 0.5, "rollback")


@pytest.mark.parametrize("step", range(4, 19))  # before, at and behind kept states and checkpoints
@pytest.mark.parametrize("keep_every", [1, 4])
def test_an_exploded_rate_is_rolled_back_and_the_run_finishes(step: int, keep_every: int, tmp_path: Path) -> None:
    rules = {"on_spike": "rollback", "on_nonfinite": "rollback", "keep_every": keep_every}
    params, _, at = run(square, rules, factor=explode_at(step), events=tmp_path / "events.jsonl")
    assert at.step == 20
    assert float(params["w"].detach().abs().max()) < 4.0  # unguarded: hundreds
    (event,) = read_history(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"]) == ("spike", step + 2)  # the loss after the step that did it
    assert event["to"] <= step
    assert event["value"] > event["threshold"]
    assert float(run(square, None, factor=explode_at(step))[0]["w"].detach().abs().max()) > 100.0


def test_weights_that_overflow_are_rolled_back_before_a_validation() -> None:
    """At the last step before a checkpoint: no loss would come in between."""
    factor = lambda step: math.inf if step == 4 else 1.0  # noqa: E731
    params, _, at = run(square, {"on_nonfinite": "rollback"}, factor=factor)
    assert at.step == 20
    assert all(torch.isfinite(value).all() for value in params.values())
    with pytest.raises(DivergedError, match=r"outer step 4: .* the weights after the step are not finite"):
        run(square, {"on_nonfinite": "skip"}, factor=factor)


def test_a_moment_that_is_not_finite_is_seen_before_the_step(tmp_path: Path) -> None:
    """An infinite second moment shows in nothing else; rolled back it is gone."""
    params = start()
    optimizer = adam(params)
    guard = Guarded(Guard(Rules(on_nonfinite="rollback"), tmp_path / "events.jsonl"), params, optimizer)
    guard.begin(0)
    for step in range(3):
        optimizer.zero_grad()
        square(params, step).backward()
        assert guard.lets_through(step, 1.0, 1.0, keep=step == 2)
        if step < 2:
            optimizer.step()
    before = {name: value.clone() for name, value in moments(params, optimizer).items()}
    optimizer.state[params["b"]]["exp_avg_sq"][0] = math.inf
    assert not guard.lets_through(3, 1.0, 1.0, keep=False)
    assert all(torch.equal(value, before[name]) for name, value in moments(params, optimizer).items())
    optimizer.state[params["b"]]["exp_avg"][0] = -math.inf
    guard.judge.rules = Rules(on_nonfinite="skip")  # which does not mend it
    with pytest.raises(DivergedError, match=r"outer step 4: inf: the optimizer's state is not finite \(exp_avg of b\)"):
        guard.lets_through(4, 1.0, 1.0, keep=False)
    events = [(e["kind"], e["action"], e["where"]) for e in read_history(tmp_path / "events.jsonl")]
    assert events == [("nonfinite_state", "rollback", "exp_avg_sq of b"), ("nonfinite_state", "stop", "exp_avg of b")]


def test_weights_whose_sum_overflows_are_finite() -> None:
    params = {"w": torch.full((2,), 3e38).requires_grad_()}
    guard = Guarded(Guard(Rules()), params, torch.optim.SGD(params.values(), lr=0.1))
    assert guard.lets_stand(0)
    with torch.no_grad():
        params["w"][0], params["w"][1] = math.inf, -math.inf
    with pytest.raises(DivergedError, match="weights after the step"):
        guard.lets_stand(0)


def test_when_the_rollbacks_are_used_up_the_run_ends() -> None:
    with pytest.raises(DivergedError, match=r"guard\.max_rollbacks=2 are used up"):
        run(nan_at(7, 9, 11), {"on_nonfinite": "rollback", "max_rollbacks": 2})
    with pytest.raises(DivergedError, match=r"guard\.max_skips=3 steps in a row"):
        run(nan_at(*range(7, 20)), {"on_nonfinite": "skip", "max_skips": 3})
    with pytest.raises(DivergedError, match=r"the loss is a spike, above"):
        run(square, {"on_spike": "stop"}, factor=explode_at(7))


def test_a_step_left_out_is_in_no_record(tmp_path: Path) -> None:
    params = start()
    optimizer = adam(params)
    guard = Guarded(Guard(Rules(on_nonfinite="skip"), tmp_path / "events.jsonl"), params, optimizer)
    shown = list[tuple[int, Any]]()
    with History(tmp_path / "history.jsonl") as history:
        fit(
            params, lambda step: nan_at(3)(params, step), optimizer, lambda step: 1.0, plan(steps=6, log_every=1),
            lambda: {"score": 0.0}, history=history, guard=guard, on_step=lambda *told: shown.append(told),
        )  # fmt: skip
    assert [r["step"] for r in read_history(tmp_path / "history.jsonl") if r["kind"] == "train"] == [1, 2, 3, 5, 6]
    assert (4, {}) in shown


def test_the_global_generator_goes_back_too() -> None:
    params = start()
    optimizer = adam(params)
    kept = Kept.of(0, params, optimizer, {}, {})
    drawn = torch.rand(3)
    kept.put_back(params, optimizer)
    assert torch.equal(torch.rand(3), drawn)


# Resume


def stored(
    directory: Path, rules: dict[str, Any], *, loss: Loss, factor: Callable[[int], float] = lambda step: 1.0,
    upto: int | None = None, resume: bool = False,
) -> Progress:  # fmt: skip
    """20 steps with store, history and events; a signal comes in step `upto`."""
    params, stop, at = start(), Stop(), None
    optimizer = adam(params)
    guard = Guarded(Guard(Rules(**(RULES | rules)), directory / "events.jsonl"), params, optimizer)
    if resume:
        found, _ = checkpoint.latest_good(directory / "checkpoints")
        assert found is not None
        at, tensors, state = restore(found, params, optimizer)
        guard.load(tensors, state["guard"])
        for name in ("history.jsonl", "events.jsonl"):
            truncate_after(directory / name, at.step)

    def loss_at(step: int) -> Tensor:
        if step == upto:
            stop.wanted = 15
        return loss(params, step)

    directory.mkdir(exist_ok=True)
    with History(directory / "history.jsonl") as history:
        return fit(
            params, loss_at, optimizer, factor, plan(checkpoint_every=4, log_every=1), lambda: {"score": 0.0}, at=at,
            store=Store(directory / "checkpoints", {}, {}), history=history, stop=stop, guard=guard,
        )[0]  # fmt: skip


FAULTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("skips", {"on_nonfinite": "skip"}, {"loss": nan_at(6, 11)}),
    ("rolls back", {"on_nonfinite": "rollback"}, {"loss": nan_at(6, 11)}),
    ("spikes", {"on_spike": "rollback"}, {"loss": square, "factor": explode_at(9)}),
]


@pytest.mark.parametrize("last", [2, 5, 6, 7, 9, 10, 12])  # before, in and behind events and checkpoints
@pytest.mark.parametrize(("rules", "fault"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_resumed_across_an_event_ends_with_the_same_bits(
    rules: dict[str, Any], fault: dict[str, Any], last: int, tmp_path: Path
) -> None:
    """Window, counters, rate and the kept state come out of the checkpoint; events are written once."""
    whole = stored(tmp_path / "whole", rules, **fault)
    with pytest.raises(Stopped):
        stored(tmp_path / "cut", rules, upto=last, **fault)
    assert stored(tmp_path / "cut", rules, resume=True, **fault) == whole
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path / "whole" / "checkpoints")]
    assert names == [path.name for path in checkpoint.list_checkpoints(tmp_path / "cut" / "checkpoints")]
    for name in names:
        pair = [checkpoint.load_checkpoint(tmp_path / part / "checkpoints" / name) for part in ("whole", "cut")]
        assert pair[0][1] == pair[1][1]
        assert pair[0][0].keys() == pair[1][0].keys()
        assert all(torch.equal(pair[0][0][key], pair[1][0][key]) for key in pair[0][0])
    for name in ("history.jsonl", "events.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert read_history(tmp_path / "whole" / "events.jsonl") != []


def test_a_resume_that_forgets_the_guard_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is no formality: without its state the rate is whole again."""
    rules, fault = {"on_nonfinite": "rollback"}, {"loss": nan_at(6)}
    stored(tmp_path / "whole", rules, **fault)
    with pytest.raises(Stopped):
        stored(tmp_path / "cut", rules, upto=9, **fault)
    monkeypatch.setattr(Guarded, "load", lambda self, tensors, state: None)
    stored(tmp_path / "cut", rules, resume=True, **fault)
    pair = [checkpoint.load_checkpoint(tmp_path / part / "checkpoints" / "step-000020")[0] for part in ("whole", "cut")]
    assert not torch.equal(pair[0]["phi/w"], pair[1]["phi/w"])


def test_the_state_kept_is_never_older_than_a_good_checkpoint(tmp_path: Path) -> None:
    stored(tmp_path, {"on_nonfinite": "rollback", "keep_every": 100}, loss=square)
    for path in checkpoint.list_checkpoints(tmp_path / "checkpoints"):
        _, state = checkpoint.load_checkpoint(path)
        before = [step for step in range(state["progress"]["step"]) if step % 4 == 0 or step % 5 == 0]
        assert state["guard"]["kept"]["step"] == (before[-1] if before else 0)


# Early stopping


@pytest.mark.parametrize(("min_gain", "waited"), [(0.0, 0), (0.25, 0), (0.5, 0), (1.0, 2), (1.5, 2), (4.0, 3)])
def test_a_validation_must_gain_more_than_the_least(min_gain: float, waited: int) -> None:
    """Scores 0, 1, 2, 2.5, 3: small gains add up until they count; the best is the best whatever it gained."""
    scores = iter([0.0, 1.0, 2.0, 2.5, 3.0])
    params = start()
    at, _ = fit(
        params, lambda step: square(params, step), adam(params), lambda step: 1.0, plan(patience=3, min_gain=min_gain),
        lambda: {"score": next(scores)},
    )  # fmt: skip
    assert (at.step, at.best_value, at.waited) == ((15, 2.5, 3) if waited == 3 else (20, 3.0, waited))


def test_a_checkpoint_without_the_last_gain_gained_with_its_best(tmp_path: Path) -> None:
    params = start()
    optimizer = adam(params)
    progress = {"step": 3, "best_step": 2, "best_value": 0.5, "waited": 1, "stopped": False}
    tensors = {f"phi/{name}": value for name, value in params.items()}
    path = checkpoint.save_checkpoint(tmp_path, "step-000003", tensors, {"progress": progress})
    assert restore(path, params, optimizer)[0].gained_value == 0.5
    path = checkpoint.save_checkpoint(
        tmp_path, "step-000003", tensors, {"progress": progress | {"best_value": None, "best_step": -1}}
    )
    assert restore(path, params, optimizer)[0].gained_value == -math.inf
