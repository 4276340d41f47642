"""What every optimizer keeps to: adam, adamw and sgd are torch's own, and each has all it knows in `optimizer.state`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metarec import build, parts
from metarec.core import inputs, ops
from metarec.optimizers import adam, adamw, sgd
from metarec.train import optimizer_tensors

WORDS: dict[str, dict[str, Any]] = {
    "cms": {"levels": [["w"], ["v"]], "chunks": [1, 3], "lr": 0.01},
    "sgd": {"momentum": 0.9},
    "delta_sgd": {"momentum": 0.9, "lr": 0.01},
}


def start() -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return {name: torch.randn(3, 3, generator=drawn).requires_grad_() for name in ("w", "v")}


def made(name: str, params: dict[str, Tensor], **options: Any) -> torch.optim.Optimizer:
    schema = parts.options("optimizer", name)
    assert schema is not None
    return build.optimizer(schema(**{**WORDS.get(name, {}), **options}), params, build.OUTER_LR["weights"])


def step(params: dict[str, Tensor], optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(set_to_none=True)
    recording = getattr(optimizer, "recording", None)
    with recording() if recording else torch.enable_grad(), inputs.reading(True, params):
        ops.linear(ops.linear(x, params["w"]).tanh(), params["v"]).sub(1).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", parts.names("optimizer"))
def test_it_goes_on_from_the_tensors_of_its_state_with_the_same_bits(name: str) -> None:
    ours = start()
    optimizer = made(name, ours)
    for number in range(4):
        step(ours, optimizer, number)
    theirs = {n: value.detach().clone().requires_grad_() for n, value in ours.items()}
    again = made(name, theirs)
    for key, held in optimizer_tensors(ours, optimizer).items():
        _, own, slot = key.split("/")
        assert isinstance(held, Tensor)
        again.state[theirs[own]][slot] = held.clone()
    for number in range(4, 9):
        step(ours, optimizer, number)
        step(theirs, again, number)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", parts.names("optimizer"))
def test_a_step_size_of_zero_moves_nothing(name: str) -> None:
    """What schedules and a guard set is the step size of the groups, and all that moves follows it."""
    params = start()
    optimizer = made(name, params)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for number in range(4):
        step(params, optimizer, number)
    assert all(torch.equal(value, start()[n]) for n, value in params.items())


@pytest.mark.parametrize("name", parts.names("optimizer"))
def test_it_descends(name: str) -> None:
    params = start()
    optimizer = made(name, params, lr=0.03)

    def loss() -> float:
        x = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(99))
        return float(ops.linear(ops.linear(x, params["w"]).tanh(), params["v"]).sub(1).square().mean().detach())

    before = loss()
    for number in range(60):
        step(params, optimizer, number)
    assert loss() < 0.8 * before


@pytest.mark.parametrize(
    ("config", "twin"),
    [
        (adam.Config(lr=0.02, betas=[0.8, 0.9], eps=1e-5, weight_decay=0.1),
         lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.1)),
        (adam.Config(), lambda p: torch.optim.Adam(p, lr=3e-4)),
        (adamw.Config(lr=0.02), lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.01)),
        (sgd.Config(momentum=0.5, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.1)),
    ],
    ids=["adam", "adam as it is", "adamw", "sgd"],
)  # fmt: skip
def test_the_plain_ones_are_torch_s_own(config: Any, twin: Any) -> None:
    ours, theirs = start(), start()
    optimizer, other = build.optimizer(config, ours, build.OUTER_LR["weights"]), twin(theirs.values())
    for number in range(8):
        step(ours, optimizer, number)
        step(theirs, other, number)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    kept = sum(value.numel() for key, value in optimizer_tensors(ours, optimizer).items() if not key.endswith("/step"))
    assert kept == config.slots * sum(value.numel() for value in ours.values())
