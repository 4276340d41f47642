"""The delta rule against its dense formula, the published rule for one position, the linear solve, and its base."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarec import build, parts
from metarec.core import inputs, ops
from metarec.errors import ConfigError, DivergedError
from metarec.optimizers import adam, delta, sgd
from metarec.runs import checkpoint
from metarec.runs.history import History, read_history
from metarec.train import Plan, Store, fit, restore

SGD, ADAM = {"name": "delta_sgd", "lr": 0.05}, {"name": "delta_adam", "lr": 0.05}
KINDS = [SGD, ADAM]
IDS = torch.tensor([[1, 3, 3, 5, 2, 3, 1]])


def start(seed: int = 3, tied: bool = False) -> dict[str, Tensor]:
    """A table, a layer, a bias and an output: score = relu(E[id] W^T + b) O^T; tied, O is the table."""
    drawn = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"table": (6, 4), "layer": (4, 4), "bias": (4,)} | (
        {} if tied else {"out": (6, 4)}
    )
    made = {n: torch.randn(shape, generator=drawn, dtype=torch.float64) for n, shape in shapes.items()}
    return {name: value.requires_grad_() for name, value in made.items()}


def loss_at(params: dict[str, Tensor], step: int) -> Tensor:
    target = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)
    with inputs.reading(True, params):
        h = ops.linear(ops.embed(IDS, params["table"]), params["layer"], params["bias"]).relu()
        return (ops.linear(h, params.get("out", params["table"])) - target).square().mean()


def read(params: dict[str, Tensor]) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """M and f of each matrix as they are by definition."""
    with torch.no_grad():
        x = params["table"][IDS[0]]
        h = (x @ params["layer"].T + params["bias"]).relu()
    unit = torch.nn.functional.one_hot(IDS[0], 6).double()
    f = (unit.T @ unit / 7).diagonal()
    m_x, m_h = (torch.stack([torch.outer(one, one) for one in each]).mean(0) for each in (x, h))
    if "out" in params:
        return {"table": (None, f), "layer": (m_x, None), "out": (m_h, None)}
    return {"table": (m_h, f), "layer": (m_x, None)}


def made(params: dict[str, Tensor], kind: dict[str, Any], **options: Any) -> Any:
    schema = parts.options("optimizer", kind["name"])
    assert schema is not None
    return build.optimizer(schema(**{**kind, **options}), params, build.OUTER_LR["weights"])


def step(params: dict[str, Tensor], optimizer: Any, number: int) -> None:
    optimizer.zero_grad(set_to_none=True)
    with optimizer.recording():
        loss_at(params, number).backward()
    optimizer.step()


def twin(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def base(params: dict[str, Tensor], kind: dict[str, Any]) -> torch.optim.Optimizer:
    return build.optimizer((sgd if kind is SGD else adam).Config(lr=kind["lr"]), params, build.OUTER_LR["weights"])  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["explicit", "proximal"])
@pytest.mark.parametrize("kind", KINDS, ids=["sgd", "adam"])
def test_without_decay_it_is_the_base_bit_for_bit(kind: dict[str, Any], form: str) -> None:
    ours, theirs = start(), start()
    optimizer, plain = made(ours, kind, decay=0.0, form=form), base(theirs, kind)
    for number in range(15):
        step(ours, optimizer, number)
        plain.zero_grad()
        loss_at(theirs, number).backward()
        plain.step()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert optimizer.shown() == {}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", ["explicit", "proximal"])
@pytest.mark.parametrize("kind", KINDS, ids=["sgd", "adam"])
def test_against_the_dense_formula(kind: dict[str, Any], form: str, tied: bool) -> None:
    """The operator W -> W M + diag(f) W as a Kronecker matrix over all entries of W; the step d is torch's own."""
    params, a = start(tied=tied), 0.03
    optimizer, shadow = made(params, kind, decay=a, form=form), twin(params)
    plain = base(shadow, kind)
    for number in range(5):
        before = {name: value.detach().clone() for name, value in params.items()}
        with torch.no_grad():
            for name, value in shadow.items():
                value.copy_(before[name])
        moments = read(params)
        step(params, optimizer, number)
        plain.zero_grad()
        loss_at(shadow, number).backward()
        plain.step()  # of the same gradients, so with the same moments of Adam
        for name, after in params.items():
            expected = shadow[name].detach()
            if name in moments:
                m, f = moments[name]
                rows, width = after.shape
                forget = torch.zeros(rows * width, rows * width, dtype=torch.float64)
                if m is not None:
                    forget += torch.kron(torch.eye(rows, dtype=torch.float64), m)
                if f is not None:
                    forget += torch.kron(f.diag(), torch.eye(width, dtype=torch.float64))
                if form == "explicit":
                    expected = expected - (a * forget @ before[name].flatten()).view_as(after)
                else:
                    whole = torch.eye(rows * width, dtype=torch.float64) + a * forget
                    expected = torch.linalg.solve(whole, expected.flatten()).view_as(after)
            torch.testing.assert_close(after.detach(), expected, rtol=0, atol=1e-12)
    assert set(optimizer.largest()) == set(moments)


def one_position(a: float, kind: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor], Any]:
    """A layer that has read one x, with no gradient of its own: what it was, x, what is trained, the optimizer."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, 5, generator=drawn, dtype=torch.float64)
    params = {"w": torch.randn(3, 5, generator=drawn, dtype=torch.float64).requires_grad_()}
    optimizer = made(params, kind, decay=a / float(x.square().sum()), **options)
    before = params["w"].detach().clone()
    with optimizer.recording(), inputs.reading(True, params):
        (ops.linear(x, params["w"]).sum() * 0).backward()
    return before, x[0, 0], params, optimizer


@pytest.mark.parametrize("kind", KINDS, ids=["sgd", "adam"])
@pytest.mark.parametrize("product", [0.3, 1.0, 1.99, 2.01, 7.0])
def test_it_contracts_where_a_x_x_is_below_2_and_else_stops(kind: dict[str, Any], product: float) -> None:
    before, x, params, optimizer = one_position(product, kind)
    if product < 2:
        optimizer.step()
        after = params["w"].detach()
        torch.testing.assert_close(after @ x, (1 - product) * (before @ x), rtol=0, atol=1e-12)
        assert (after @ x).norm() < (before @ x).norm()
        side = torch.linalg.svd(x[None]).Vh[1:].T  # what is orthogonal to x is kept
        torch.testing.assert_close(after @ side, before @ side, rtol=0, atol=1e-12)
        assert optimizer.largest()["w"] == pytest.approx(product, rel=1e-6)
    else:
        with pytest.raises(
            DivergedError, match=r"w would grow along its inputs: .* lower optimizer\.decay to below .*proximal or"
        ):
            optimizer.step()
        assert torch.equal(params["w"].detach(), before)
        assert optimizer.state[params["w"]] == {}


@pytest.mark.parametrize("product", [1.99, 2.01, 7.0])
def test_clipped_it_forgets_the_worst_input_wholly(product: float) -> None:
    before, x, params, optimizer = one_position(product, SGD, unstable="clip")
    optimizer.step()
    left = 1 - product if product < 2 else 0.0
    torch.testing.assert_close(params["w"].detach() @ x, left * (before @ x), rtol=0, atol=1e-12)
    assert optimizer.shown()["delta_largest"] == pytest.approx(product, rel=1e-6)


def test_a_step_behind_a_larger_one_is_clipped_too() -> None:
    """3 is below the 7 that there was, and not below 2."""
    _, x, params, optimizer = one_position(7.0, SGD, unstable="clip")
    optimizer.step()
    with torch.no_grad():
        params["w"].copy_(torch.ones_like(params["w"]))
    again = x * math.sqrt(3 / 7)
    with optimizer.recording(), inputs.reading(True, params):
        (ops.linear(again[None, None], params["w"]).sum() * 0).backward()
    optimizer.step()
    torch.testing.assert_close(params["w"].detach() @ x, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert optimizer.shown()["delta_largest"] == pytest.approx(7.0, rel=1e-6)


@pytest.mark.parametrize("eta", [1e-3, 0.5, 40.0])
def test_proximal_of_one_position_is_the_published_rule(eta: float) -> None:
    """W - eta' (W x) x^T + eta' u x^T with eta' = eta / (1 + eta |x|^2), u = -dL/dy: decay and step size are one eta."""
    drawn = torch.Generator().manual_seed(2)
    x, target = (torch.randn(1, 1, n, generator=drawn, dtype=torch.float64) for n in (5, 3))
    params = {"w": torch.randn(3, 5, generator=drawn, dtype=torch.float64).requires_grad_()}
    before = params["w"].detach().clone()
    optimizer = made(params, SGD, lr=eta, decay=eta, form="proximal")
    with optimizer.recording(), inputs.reading(True, params):
        (0.5 * (ops.linear(x, params["w"]) - target).square().sum()).backward()
    optimizer.step()
    one, u = x[0, 0], (target[0, 0] - before @ x[0, 0])
    rate = eta / (1 + eta * one @ one)
    expected = before - rate * torch.outer(before @ one, one) + rate * torch.outer(u, one)
    torch.testing.assert_close(params["w"].detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("product", [1.0, 2.5, 1e6])
def test_proximal_contracts_for_every_a(product: float) -> None:
    before, x, params, optimizer = one_position(product, ADAM, form="proximal")
    optimizer.step()
    torch.testing.assert_close(params["w"].detach() @ x, (before @ x) / (1 + product), rtol=0, atol=1e-10)


def test_the_schedule_scales_what_is_forgotten() -> None:
    before, x, params, optimizer = one_position(0.8, SGD)
    for group in optimizer.param_groups:
        group["lr"] *= 0.25
    optimizer.step()
    torch.testing.assert_close(params["w"].detach() @ x, (1 - 0.2) * (before @ x), rtol=0, atol=1e-12)


def test_only_matrices_of_the_usual_step_size_forget() -> None:
    params = start() | {"rates/layer": torch.zeros(4, 4, dtype=torch.float64).requires_grad_()}
    config = parts.default("optimizer", "delta_sgd")
    found = build.optimizer(config, params, build.OUTER_LR["weights"], 0.03)
    assert isinstance(found, delta.Delta)
    assert set(found.matrices) == {"table", "layer", "out"}


def test_nothing_to_forget_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.decay: > 0: no matrix is among what is trained \(bias\)"):
        made({"bias": torch.zeros(4).requires_grad_()}, SGD)
    params = start()
    optimizer = made(params, ADAM)
    with optimizer.recording():
        params["table"].sum().backward()
    with pytest.raises(
        ConfigError, match="no trained matrix is read as a linear layer or a table, so nothing would forget"
    ):
        optimizer.step()


def test_an_input_that_is_not_finite_stops_before_anything_moves() -> None:
    params = start()
    optimizer = made(params, SGD)
    with optimizer.recording(), inputs.reading(True, params):
        ops.linear(torch.full((1, 1, 4), 1e200, dtype=torch.float64), params["layer"]).sum().backward()
    before = params["layer"].detach().clone()
    with pytest.raises(DivergedError, match=r"delta rule, layer: .*second moment of its inputs is not finite"):
        optimizer.step()
    assert torch.equal(params["layer"].detach(), before)


def fitted(
    directory: Path, kind: dict[str, Any], form: str, resume: bool = False, upto: int | None = None
) -> dict[str, Tensor]:
    directory.mkdir(exist_ok=True)
    params = start()
    optimizer, at = made(params, kind, decay=0.02, form=form), None
    if resume:
        found, _ = checkpoint.latest_good(directory)
        assert found is not None
        at, *_ = restore(found, params, optimizer)

    def loss(number: int) -> Tensor:
        if number == upto:
            raise KeyboardInterrupt
        return loss_at(params, number)

    plan = Plan(13, 5, 0, 5, 1.0, "score", log_every=1)
    with History(directory / "history.jsonl") as history:
        fit(
            params, loss, optimizer, lambda number: 0.9**number, plan, lambda: {"score": 0.0}, at=at,
            store=Store(directory, {}, {}), history=history,
        )  # fmt: skip
    return {name: value.detach() for name, value in params.items()}


@pytest.mark.parametrize("form", ["explicit", "proximal"])
@pytest.mark.parametrize("kind", KINDS, ids=["sgd", "adam"])
def test_a_resumed_run_ends_with_the_same_bits_and_tells_the_same(
    tmp_path: Path, kind: dict[str, Any], form: str
) -> None:
    whole = fitted(tmp_path / "whole", kind, form)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", kind, form, upto=7)
    again = fitted(tmp_path / "cut", kind, form, resume=True)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    lines, others = (
        {
            line["step"]: line["delta_largest"]
            for line in read_history(tmp_path / run / "history.jsonl")
            if line["kind"] == "train"
        }
        for run in ("whole", "cut")
    )
    assert lines == others
    assert sorted(lines.values()) == list(lines.values())  # the largest so far


@pytest.mark.parametrize("tied", [False, True])
def test_a_bound_never_says_below_what_is_above(tied: bool) -> None:
    """Of flat and of steep spectra: what is above the limit is never said to be below, what is a little below mostly is."""
    said = []
    for seed in range(60):
        drawn = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(24, 24, generator=drawn))[0]
        values = torch.linspace(1, 0, 24).abs() ** (seed % 6) * 10.0 ** (seed % 5 - 2)
        moment, shares = basis @ values.diag() @ basis.T, torch.rand(9, generator=drawn) if tied else None
        top = float(torch.linalg.eigvalsh(moment.double())[-1]) + (float(shares.max()) if shares is not None else 0.0)
        rate = 0.3
        assert not delta.within(rate * top * (1 - 1e-5), rate, moment, shares)
        assert delta.within(rate * top * 2.3, rate, moment, shares)  # 24^(1/4), of 24 equal ones
        said.append(delta.within(rate * top * 1.1, rate, moment, shares))
    assert sum(said) > 30


def test_an_eigenvalue_problem_is_solved_only_for_a_new_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is told is what it would be if each step solved its own."""
    told: list[dict[str, float]] = []
    solved: list[int] = []
    plain = delta.eigenvalue
    monkeypatch.setattr(delta, "eigenvalue", lambda *args: solved.append(1) or plain(*args))
    for always in (False, True):
        if always:
            monkeypatch.setattr(delta, "within", lambda *args: False)
        params, count = start(), len(solved)
        optimizer = made(params, SGD, decay=0.02)
        for number in range(30):
            step(params, optimizer, number)
        told.append(optimizer.largest())
        solved.append(-count)
    assert told[0] == told[1]
    assert sum(one for one in solved if one > 0) < 2 * 3 * 30


@pytest.mark.parametrize("width", [8, 130, 257])
@pytest.mark.parametrize("rate", [0.01, 3.0, 1e6])
def test_the_solve_without_look_ups_is_that_of_eigenvectors(rate: float, width: int) -> None:
    """On both sides of where the inverse is trusted; of wide ones by halves, odd ones too."""
    drawn = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(n, width, generator=drawn, dtype=torch.float64) for n in (2 * width + 30, 5))
    moment = x.T @ x / len(x)
    whole = torch.eye(width, dtype=torch.float64) + rate * moment
    found = delta.solved(weight, rate, moment, None)
    torch.testing.assert_close(found, torch.linalg.solve(whole, weight, left=False), rtol=0, atol=1e-11)
