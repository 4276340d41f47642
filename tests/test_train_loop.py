"""The outer loop `fit` on a problem whose every step is known: what is kept, when it ends, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec import schedules
from metarec.errors import CheckpointError, DivergedError, Stopped
from metarec.runs import checkpoint
from metarec.runs.guard import Guard, Rules
from metarec.runs.guarded import Guarded
from metarec.runs.history import History, read_history, truncate_after
from metarec.runs.signals import Stop
from metarec.train import Plan, Progress, Store, fit, restore

Params = dict[str, Tensor]


def start() -> Params:
    return {"w": torch.tensor([4.0, -2.0]).requires_grad_(), "b": torch.tensor([1.0]).requires_grad_()}


def square(params: Params) -> Callable[[int], Tensor]:
    """A loss that differs from step to step, as a function of the step alone."""
    return lambda step: sum((value.square().sum() for value in params.values()), torch.zeros(())) * (1 + step % 3)


def plan(**options: object) -> Plan:
    given = {"steps": 10, "eval_every": 2, "patience": 0, "checkpoint_every": 4, "clip_norm": 0.0, "monitor": "score"}
    return Plan(**(given | options))  # type: ignore[arg-type]


class Scores:
    """Validation scores in order; what the parameters were at each."""

    def __init__(self, params: Params, scores: list[float]) -> None:
        self.params, self.scores, self.seen = params, list(scores), list[Tensor]()

    def __call__(self) -> dict[str, float]:
        self.seen.append(self.params["w"].detach().clone())
        return {"score": self.scores.pop(0)}


def sgd(params: Params, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(params.values(), lr=lr)


def constant(step: int) -> float:
    return 1.0


@pytest.mark.parametrize(("scores", "best"), [([9, 1, 2, 3], 0), ([1, 5, 9, 9], 4), ([1, 2, 3, 4], 6)])
def test_the_best_is_kept_the_start_included_and_a_tie_goes_to_the_earlier(scores: list[float], best: int) -> None:
    params = start()
    validate = Scores(params, scores)
    at, kept = fit(params, square(params), sgd(params), constant, plan(steps=6), validate)
    assert (at.step, at.best_step, at.best_value) == (6, best, max(scores))
    assert torch.equal(kept["w"], validate.seen[best // 2])
    assert torch.equal(params["w"], validate.seen[-1])  # the parameters themselves go on to the end


def test_patience_counts_validations_without_gain() -> None:
    params = start()
    at, _ = fit(params, square(params), sgd(params), constant, plan(patience=2), Scores(params, [1, 2, 2, 1, 9]))
    assert (at.step, at.best_step, at.waited, at.stopped) == (6, 2, 2, True)
    params = start()
    at, _ = fit(params, square(params), sgd(params), constant, plan(), Scores(params, [1, 0, 0, 0, 0, 0]))
    assert (at.step, at.stopped) == (10, False)  # 0 = never


def test_the_last_step_is_validated_even_off_the_rhythm() -> None:
    params = start()
    validate = Scores(params, [1, 2, 3])
    at, _ = fit(params, square(params), sgd(params), constant, plan(steps=5, eval_every=4), validate)
    assert (at.step, at.best_step, validate.scores) == (5, 5, [])


def test_steps_are_those_of_the_optimizer_with_schedule_and_clipping() -> None:
    """By hand: w <- w - lr * factor * clipped gradient."""
    params, twin = start(), start()
    factor = lambda step: schedules.factor(step, steps=4, name="linear", warmup_steps=1, final_factor=0.0)  # noqa: E731
    fit(params, square(params), sgd(params), factor, plan(steps=4, eval_every=4, clip_norm=0.5), lambda: {"score": 0.0})
    for step in range(4):
        grads = {name: 2 * (1 + step % 3) * value.detach() for name, value in twin.items()}
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))
        scale = min(1.0, 0.5 / (norm + 1e-6)) * 0.1 * factor(step)
        twin = {name: value - scale * grads[name] for name, value in twin.items()}
    torch.testing.assert_close(params["w"], twin["w"], rtol=0, atol=1e-6)


def test_the_step_size_is_put_back_at_the_end() -> None:
    params = start()
    optimizer = sgd(params, 0.25)
    fit(params, square(params), optimizer, lambda step: 0.5, plan(steps=3), lambda: {"score": 0.0})
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_what_is_not_finite_is_refused_before_the_step(place: str, bad: float) -> None:
    """The weights and the optimizer's moments are bitwise as before, and the step is named."""
    params = start()
    optimizer = torch.optim.Adam(params.values(), lr=0.1)
    good, before = square(params), dict[str, Tensor]()

    def loss_at(step: int) -> Tensor:
        loss = good(step)
        if step == 3:
            before.update({name: value.detach().clone() for name, value in params.items()})
            before["moment"] = optimizer.state[params["w"]]["exp_avg"].clone()
            if place == "loss":
                return loss + bad
            # a finite loss with a gradient that is not: the square root at zero
            return loss + torch.where(params["b"] > 1e9, params["b"], torch.zeros(1) * params["b"]).pow(0.5).sum()
        return loss

    with pytest.raises(DivergedError, match=rf"outer step 3: .* the {place} is not finite") as caught:
        fit(params, loss_at, optimizer, constant, plan(), lambda: {"score": 0.0})
    assert caught.value.exit_code == 6
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert torch.equal(optimizer.state[params["w"]]["exp_avg"], before["moment"])


def test_nothing_of_a_diverged_run_is_lost(tmp_path: Path) -> None:
    params = start()
    good = square(params)
    store = Store(tmp_path, {}, {})
    with pytest.raises(DivergedError):
        fit(
            params, lambda step: good(step) * (math.nan if step == 5 else 1), sgd(params), constant, plan(),
            Scores(params, [1, 2, 3]), store=store,
        )  # fmt: skip
    assert checkpoint.resolve(tmp_path).name == "step-000004"
    tensors, state = checkpoint.load_checkpoint(tmp_path / "step-000004")
    assert state["progress"]["step"] == 4
    assert all(torch.isfinite(value).all() for value in tensors.values())


def run(directory: Path, *, upto: Callable[[int], bool] | None = None, resume: bool = False) -> Progress:
    """12 Adam steps with store and history; stopped where `upto` says so."""
    params = {name: value.detach().clone().requires_grad_() for name, value in start().items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.3)
    at, stop = None, Stop()
    if resume:
        found, _ = checkpoint.latest_good(directory / "checkpoints")
        assert found is not None
        at = restore(found, params, optimizer)[0]
        truncate_after(directory / "history.jsonl", at.step)
    loss = square(params)

    def loss_at(step: int) -> Tensor:
        if upto is not None and upto(step):
            stop.wanted = 15
        return loss(step)

    directory.mkdir(exist_ok=True)
    with History(directory / "history.jsonl") as history:
        return fit(
            params, loss_at, optimizer, lambda step: 1 / (1 + step), plan(steps=12, eval_every=3, log_every=1),
            lambda: {"score": -float(loss(0).detach())}, at=at, store=Store(directory / "checkpoints", {}, {}),
            history=history, stop=stop,
        )[0]  # fmt: skip


@pytest.mark.parametrize("last", [0, 3, 7, 11])  # before, at and behind validations and periodic checkpoints
def test_stopped_after_any_step_and_resumed_is_the_same(last: int, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped) as caught:
        run(tmp_path / "cut", upto=lambda step: step == last)
    assert caught.value.exit_code == 143
    assert f"step {last + 1}" in str(caught.value)
    assert run(tmp_path / "cut", resume=True) == whole
    for pointer in ("best", "last"):
        names = [checkpoint.read_pointer(tmp_path / part / "checkpoints", pointer) for part in ("whole", "cut")]
        assert names[0] is not None
        assert names[1] is not None
        assert names[0]["checkpoint"] == names[1]["checkpoint"]
        left, right = (
            checkpoint.load_checkpoint(tmp_path / part / "checkpoints" / names[0]["checkpoint"])[0]
            for part in ("whole", "cut")
        )
        assert left.keys() == right.keys()
        assert {name.split("/")[0] for name in left} == {"phi", "optimizer"}
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert (tmp_path / "whole" / "history.jsonl").read_bytes() == (tmp_path / "cut" / "history.jsonl").read_bytes()


def test_only_periodic_best_and_last_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path)
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-000000", "step-000004", "step-000008", "step-000012"]
    records = read_history(tmp_path / "history.jsonl")
    assert [r["step"] for r in records if r["kind"] == "val"] == [0, 3, 6, 9, 12]


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match=r"phi/w \[2\].*\[3\]"):
        restore(checkpoint.resolve(tmp_path), {"w": torch.zeros(3)}, None)
    with pytest.raises(CheckpointError, match="phi/v missing"):
        restore(checkpoint.resolve(tmp_path), {"v": torch.zeros(3)}, None)


class Told(torch.optim.SGD):
    """SGD that writes down what `fit` asks of it."""

    calls: list[str]

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.calls.append("(")
        yield
        self.calls.append(")")

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls.append("step")
        super().step()

    def finish(self) -> None:
        self.calls.append("finish")

    def shown(self) -> dict[str, float]:
        return {"own": float(len(self.calls))}


@pytest.mark.parametrize("skipped", [None, 2])
def test_an_optimizer_sees_losses_alone_and_ends_ahead_of_the_last_validation(
    skipped: int | None, tmp_path: Path
) -> None:
    params = start()
    optimizer = Told(params.values(), lr=0.1)
    calls = optimizer.calls = []
    guard = Guarded(Guard(Rules(on_nonfinite="skip"), tmp_path / "events.jsonl"), params, optimizer)

    def loss(step: int) -> Iterator[Tensor]:
        calls.append("loss")
        yield square(params)(step) * (math.nan if step == skipped else 1.0)

    def validate() -> dict[str, float]:
        calls.append("val")
        return {"score": 0.0}

    with History(tmp_path / "history.jsonl") as history:
        fit(
            params,
            loss,
            optimizer,
            constant,
            plan(steps=3, eval_every=2, log_every=1),
            validate,
            history=history,
            guard=guard,
        )
    once = ["(", "loss", ")"]
    last = ["step"] if skipped is None else []
    assert calls == ["val", *once, "step", *once, "step", "val", *once, *last, "finish", "val"]
    told = [line["own"] for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"]
    assert told == [5, 9, 15][: 3 if skipped is None else 2]


def test_patience_ends_without_finish() -> None:
    params = start()
    optimizer = Told(params.values(), lr=0.1)
    optimizer.calls = []
    fit(params, square(params), optimizer, constant, plan(patience=1), lambda: {"score": 0.0})
    assert "finish" not in optimizer.calls
