"""What a loop tells of its timescales: counts by the law of levels, the largest by dense eigenvalues, and when nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec import build, parts
from metarec.core import inputs, ops
from metarec.objectives import seen
from metarec.runs import checkpoint
from metarec.runs.guard import Guard, Rules
from metarec.runs.guarded import Guarded
from metarec.runs.history import History, read_history
from metarec.runs.timescales import Timescales
from metarec.train import Plan, Store, fit, restore

CHUNKS = [1, 3, 8]
NAMES = ("fast", "medium", "slow")
IDS = torch.tensor([[1, 3, 3, 5, 2, 3, 1]])


def start(tied: bool = False) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    shapes = {"table": (6, 4), "layer": (4, 4)} | ({} if tied else {"out": (6, 4)})
    made = {name: torch.randn(shape, generator=drawn, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: value.requires_grad_() for name, value in made.items()}


def optimizer(name: str, params: dict[str, Tensor], **options: Any) -> torch.optim.Optimizer:
    schema = parts.options("optimizer", name)
    assert schema is not None
    return build.optimizer(schema(**{"lr": 0.05, **options}), params, 0.1)


def loss_at(params: dict[str, Tensor], step: int) -> Tensor:
    """relu(E[id] W^T) O^T, by other items and towards another target in each step."""
    target = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)
    with inputs.reading(True, params):
        h = ops.linear(ops.embed((IDS + step) % 6, params["table"]), params["layer"]).relu()
        return (ops.linear(h, params.get("out", params["table"])) - target).square().mean()


def cms(params: dict[str, Tensor], **options: Any) -> Any:
    return optimizer("cms", params, chunks=CHUNKS, levels=[["table"], ["layer"], ["out"]], **options)


def fitted(
    directory: Path, params: dict[str, Tensor], own: Any, steps: int, *, resume: bool = False, upto: int | None = None,
    bad: tuple[int, ...] = (), every: int = 1,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """`timescales` of the lines by `train.fit`, which dies at `upto` and skips steps of NaN losses, and the document."""
    directory.mkdir(exist_ok=True)
    watch, at = Timescales.of(own, False), None
    assert watch is not None
    guard = Guarded(Guard(Rules(on_nonfinite="skip"), directory / "events.jsonl", lambda line: None), params, own)
    if resume:
        found, _ = checkpoint.latest_good(directory)
        assert found is not None
        at, tensors, stored = restore(found, params, own)
        guard.load(tensors, stored.get("guard"))
        watch.load(tensors)

    def loss(step: int) -> Tensor:
        if step == upto:
            raise KeyboardInterrupt
        return loss_at(params, step) * (math.nan if step in bad else 1.0)

    with History(directory / "history.jsonl") as history:
        at, _ = fit(
            params, loss, own, lambda step: 1.0, Plan(steps, 5, 0, 5, 0.0, "score", every), lambda: {"score": 0.0},
            at=at, store=Store(directory, {}, {}), history=history, guard=guard, watch=watch,
        )  # fmt: skip
    return read_history(directory / "history.jsonl"), watch.document(at.step)


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("base", ["adam", "sgd"])
@pytest.mark.parametrize("steps", [17, 24])
def test_updates_are_floor_and_flush_and_since_is_what_is_left(
    steps: int, base: str, flush: bool, tmp_path: Path
) -> None:
    params = start()
    lines, document = fitted(tmp_path, params, cms(params, base=base, flush=flush), steps)
    told = {line["step"]: line["timescales"] for line in lines if line["kind"] == "train"}
    assert sorted(told) == list(range(1, steps + 1))
    for t in range(1, steps):
        assert told[t] == {
            "updates": {str(at + 1): t // chunk for at, chunk in enumerate(CHUNKS)},
            "since": {str(at + 1): t % chunk for at, chunk in enumerate(CHUNKS)},
        }
    levels = document["levels"]
    for at, chunk in enumerate(CHUNKS):
        own = levels[str(at + 1)]
        flushed = int(flush and steps % chunk > 0)
        assert own["updates"] == steps // chunk + flushed == told[steps]["updates"][str(at + 1)]
        assert own["since"] == (0 if flushed else steps % chunk)
        assert (own["chunk"], own["parameters"]) == (chunk, 1)
        assert own["numbers"] == params[["table", "layer", "out"][at]].numel()
    assert document["steps"] == steps


def test_a_step_that_a_guard_left_out_is_no_gradient(tmp_path: Path) -> None:
    params = start()
    _, document = fitted(tmp_path, params, cms(params, flush=False), 17, bad=(4, 9))
    assert [own["updates"] for own in document["levels"].values()] == [15, 5, 1]
    assert [own["since"] for own in document["levels"].values()] == [0, 0, 7]


def test_surprise_of_a_step_that_a_guard_left_out_is_not_seen(tmp_path: Path) -> None:
    """Nor that of one whose inner loop gave up half-way; the sums of steps 0, 1, 3 are told at the end."""
    params = start()
    own = optimizer("adam", params)
    watch = Timescales.of(own, True)
    assert watch is not None
    guard = Guarded(Guard(Rules(on_nonfinite="skip"), tmp_path / "events.jsonl", lambda line: None), params, own)
    one = torch.ones(1, 1, 1)

    def loss(step: int) -> Tensor:
        assert seen.active is watch.seen
        seen.active.add("fast", one, one * (step + 1), one[0] * (math.nan if step == 2 else step), one[0] > 0)
        return loss_at(params, step) * (math.nan if step == 2 else 1.0)

    with History(tmp_path / "history.jsonl") as history:
        fit(
            params, loss, own, lambda step: 1.0, Plan(4, 4, 0, 4, 0.0, "score", 4), lambda: {"score": 0.0},
            history=history, guard=guard, watch=watch,
        )  # fmt: skip
    assert seen.active is None
    (line,) = [line for line in read_history(tmp_path / "history.jsonl") if line["kind"] == "train"]
    wanted = pytest.approx({"u": (1 + 2 + 4) / 3, "term": (0 + 1 + 3) / 3, "cosine": 1.0})
    assert line["timescales"]["surprise"]["fast"] == wanted
    assert watch.document(4)["surprise"]["fast"]["pairs"] == 3


def test_a_level_without_gradients_has_not_stepped() -> None:
    params = start()
    own = cms(params)
    for _ in range(9):
        own.zero_grad(set_to_none=True)
        params["table"].square().sum().backward()
        own.step()
    assert [level["updates"] for level in own.timescales()["levels"].values()] == [9, 0, 0]


@pytest.mark.parametrize("form", ["explicit", "proximal"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_largest_is_that_of_the_dense_operators(form: str, tied: bool, tmp_path: Path) -> None:
    """Of W -> W M + diag(f) W as a Kronecker matrix, by the schedule's a; the maximum over steps, in single precision."""
    params, a = start(tied), 0.03
    own, wanted = optimizer("delta_sgd", params, decay=a, form=form), dict[str, float]()
    watch = Timescales.of(own, False)
    assert watch is not None
    for step in range(12):
        rate = 0.8 ** (step % 5)
        for group in own.param_groups:
            group["lr"] = 0.05 * rate
        with torch.no_grad():
            ids = (IDS[0] + step) % 6
            x = params["table"][ids]
            h = (x @ params["layer"].T).relu()
        f = torch.bincount(ids, minlength=6).double() / 7
        m_x, m_h, none = x.T @ x / 7, h.T @ h / 7, torch.zeros(4, 4, dtype=torch.float64)
        rows, eye = torch.eye(6, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
        dense = {"table": torch.kron(rows, m_h if tied else none) + torch.kron(f.diag(), eye), "layer": m_x}
        if not tied:
            dense["out"] = m_h
        for name, matrix in dense.items():
            # of a tied table the operator's own largest is at most that of M and f added, which the rule goes by
            top = float(torch.linalg.eigvalsh(matrix)[-1])
            bound = float(torch.linalg.eigvalsh(m_h)[-1] + f.max()) if tied and name == "table" else top
            assert bound == pytest.approx(top, rel=1e-12)  # reached: M and diag(f) act on two sides
            wanted[name] = max(wanted.get(name, 0.0), a * rate * top)
        own.zero_grad(set_to_none=True)
        with own.recording():  # type: ignore[attr-defined]
            loss_at(params, step).backward()
        own.step()
        assert watch.line()["timescales"] == {"largest": pytest.approx(wanted, rel=1e-6)}
    assert watch.document(12) == {"steps": 12, "largest": pytest.approx(wanted, rel=1e-6)}


@pytest.mark.parametrize("name", ["cms", "delta_adam"])
def test_killed_and_resumed_it_tells_the_same(name: str, tmp_path: Path) -> None:
    """Between two lines, in mid-chunk."""

    def made() -> tuple[dict[str, Tensor], Any]:
        params = start()
        return params, cms(params) if name == "cms" else optimizer(name, params, decay=0.02)

    lines, document = fitted(tmp_path / "whole", *made(), 23, every=3)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", *made(), 23, upto=11, every=3)
    kept = [line for line in read_history(tmp_path / "cut" / "history.jsonl") if line["step"] <= 10]
    again, other = fitted(tmp_path / "cut", *made(), 23, resume=True, every=3)
    assert other == document
    assert kept + [line for line in again if line["step"] > 10] == lines


def test_where_there_is_nothing_to_tell_there_is_nothing() -> None:
    params = start()
    for own in (
        torch.optim.Adam(params.values()), optimizer("adam", params), optimizer("delta_adam", params, decay=0.0),
    ):  # fmt: skip
        assert Timescales.of(own, False) is None
        watch = Timescales.of(own, True)
        assert watch is not None
        assert watch.line() == {}
        assert watch.tensors() == {}
