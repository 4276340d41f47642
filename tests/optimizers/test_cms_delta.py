"""CMS over the delta rule: a matrix that steps once in a chunk forgets along all that it has read in the chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec import build, parts
from metarec.core import inputs, ops
from metarec.errors import DivergedError
from metarec.optimizers import cms
from metarec.runs import checkpoint
from metarec.train import Plan, Store, fit, restore

LEVELS = [["table", "bias"], ["layer"], ["out"]]
CHUNKS = [1, 3, 8]
LAST = 17


def start() -> dict[str, Tensor]:
    """score = relu(E[id] W^T + b) O^T"""
    drawn = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"table": (6, 4), "layer": (4, 4), "bias": (4,), "out": (6, 4)}
    made = {n: torch.randn(shape, generator=drawn, dtype=torch.float64) for n, shape in shapes.items()}
    return {name: value.requires_grad_() for name, value in made.items()}


def ids(step: int) -> Tensor:
    """Of another number in every step: a mean over the chunk is none of the steps' means."""
    return torch.randint(1, 6, (1, 3 + step % 4), generator=torch.Generator().manual_seed(step))


def loss_at(params: dict[str, Tensor], step: int) -> Tensor:
    own = ids(step)
    target = torch.randn(1, own.shape[1], 6, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)
    with inputs.reading(True, params):
        h = ops.linear(ops.embed(own, params["table"]), params["layer"], params["bias"]).relu()
        return (ops.linear(h, params["out"]) - target).square().mean()


def made(params: dict[str, Tensor], name: str = "cms", **options: Any) -> Any:
    schema = parts.options("optimizer", name)
    assert schema is not None
    return build.optimizer(schema(**{"lr": 0.05, "decay": 0.03, **options}), params, build.OUTER_LR["weights"])


def over(params: dict[str, Tensor], base: str, form: str, chunks: list[int] = CHUNKS, **options: Any) -> cms.CMS:
    found = made(params, base=base, form=form, levels=LEVELS, chunks=chunks, **options)
    assert isinstance(found, cms.CMS)
    return found


def run(params: dict[str, Tensor], optimizer: Any, steps: int) -> list[dict[str, Tensor]]:
    seen = [{name: value.detach().clone() for name, value in params.items()}]
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with optimizer.recording():
            loss_at(params, step).backward()
        optimizer.step()
        seen.append({name: value.detach().clone() for name, value in params.items()})
    return seen


@pytest.mark.parametrize("form", ["explicit", "proximal"])
@pytest.mark.parametrize("base", ["delta_sgd", "delta_adam"])
def test_with_chunks_of_one_it_is_the_delta_rule_bit_for_bit(base: str, form: str) -> None:
    ours, theirs = start(), start()
    run(ours, over(ours, base, form, [1, 1, 1]), 6)
    run(theirs, made(theirs, base, form=form), 6)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("form", ["explicit", "proximal"])
def test_steps_by_hand(form: str) -> None:
    """Gradients by autograd and moments by plain loops, at the weights of each step; sgd, in float64."""
    params, a, lr = start(), 0.03, 0.05
    optimizer = over(params, "delta_sgd", form)
    seen = run(params, optimizer, LAST)
    optimizer.finish()
    seen.append({name: value.detach().clone() for name, value in params.items()})
    w = {name: value.clone() for name, value in seen[0].items()}
    chunk = {name: c for c, names in zip(CHUNKS, LEVELS, strict=True) for name in names}
    gradient = {name: torch.zeros_like(value) for name, value in w.items()}
    read: dict[str, list[Tensor]] = {"layer": [], "out": [], "table": []}

    def forgets(name: str) -> None:
        if name != "bias":
            m = torch.stack([torch.outer(x, x) for x in read[name]]).mean(0)
            d, eye = lr * gradient[name], torch.eye(len(m), dtype=torch.float64)
            if name == "table":  # its inputs are unit vectors on the other side
                w[name] = (
                    (eye - a * m) @ w[name] - d if form == "explicit" else torch.linalg.inv(eye + a * m) @ (w[name] - d)
                )
            else:
                w[name] = (
                    w[name] @ (eye - a * m) - d if form == "explicit" else (w[name] - d) @ torch.linalg.inv(eye + a * m)
                )
            read[name] = []
        else:
            w[name] = w[name] - lr * gradient[name]
        gradient[name] = torch.zeros_like(w[name])

    for step in range(LAST):
        at = {name: value.clone().requires_grad_() for name, value in w.items()}
        loss_at(at, step).backward()
        for name, value in at.items():
            gradient[name] += value.grad
        x = w["table"][ids(step)[0]]
        read["layer"] += list(x)
        read["out"] += list((x @ w["layer"].T + w["bias"]).relu())
        read["table"] += list(torch.eye(6, dtype=torch.float64)[ids(step)[0]])
        for name, value in w.items():
            if (step + 1) % chunk[name] == 0:
                forgets(name)
            torch.testing.assert_close(
                seen[step + 1][name], w[name], rtol=0, atol=1e-12, msg=f"{name} behind step {step}"
            )
            if (step + 1) % chunk[name]:
                assert torch.equal(seen[step + 1][name], seen[step][name])
            del value
    for name in ("layer", "out"):
        forgets(name)
        torch.testing.assert_close(seen[-1][name], w[name], rtol=0, atol=1e-12)
    assert torch.equal(seen[-1]["table"], seen[-2]["table"])


@pytest.mark.parametrize("base", ["delta_sgd", "delta_adam"])
def test_a_run_resumed_in_mid_chunk_ends_with_the_same_bits(base: str, tmp_path: Path) -> None:
    def fitted(directory: Path, resume: bool = False, upto: int | None = None) -> dict[str, Tensor]:
        params = start()
        optimizer, at = over(params, base, "proximal"), None
        if resume:
            found, _ = checkpoint.latest_good(directory)
            assert found is not None
            at, *_ = restore(found, params, optimizer)

        def loss(step: int) -> Tensor:
            if step == upto:
                raise KeyboardInterrupt
            return loss_at(params, step)

        plan, store = Plan(LAST, 5, 0, 5, 0.0, "score"), Store(directory, {}, {})
        fit(params, loss, optimizer, lambda step: 0.9**step, plan, lambda: {"score": 0.0}, at=at, store=store)
        return {name: value.detach() for name, value in params.items()}

    whole = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", upto=12)  # the checkpoint is of step 10: 9 and 12, 8 and 16
    held, _ = checkpoint.load_checkpoint(checkpoint.latest_good(tmp_path / "cut")[0])  # type: ignore[arg-type]
    of_mid_chunk = {
        f"optimizer/{name}/{slot}" for name in ("layer", "out") for slot in ("pending", "read_total", "read_count")
    }
    assert of_mid_chunk <= set(held)
    assert not {key for key in held if key.startswith("optimizer/table/read")}
    again = fitted(tmp_path / "cut", resume=True)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_what_would_grow_stops_at_the_end_of_its_chunk() -> None:
    params = start()
    optimizer = over(params, "delta_sgd", "explicit", decay=3.0, lr=1e-4)
    with pytest.raises(DivergedError, match="delta rule"):
        run(params, optimizer, 8)
    assert optimizer.timescales()["levels"]["1"]["chunk"] == 1


def test_a_step_tells_of_both() -> None:
    params = start()
    optimizer = over(params, "delta_adam", "explicit")
    run(params, optimizer, LAST)
    told = optimizer.timescales()
    assert [level["updates"] for level in told["levels"].values()] == [17, 5, 2]
    assert set(told["largest"]) == {"table", "layer", "out"}
    assert optimizer.shown()["delta_largest"] == max(told["largest"].values())
