"""Compiled element-wise work: the numbers of the functions as they stand, the same bits again, and what does not compile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from reference.matrix_cells import cell
from torch import Tensor

from metarec.core import fused
from metarec.core.fused import Kernel
from metarec.core.weights import Params
from metarec.errors import Stopped

CPU = torch.device("cpu")
KERNELS = ("gates", "slopes", "bends")


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    yield
    fused.switch(False, CPU, print)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what was compiled; in every step of a recurrence too, as on a GPU."""

    def forget() -> None:
        torch._dynamo.reset()
        for name in KERNELS:
            monkeypatch.setattr(fused, name, Kernel(getattr(fused, f"_{name}")))

    forget()
    return forget


def meta_step(seed: int, residual: str = "off") -> tuple[Tensor, Params]:
    """Of second order, in float64."""
    return cell("gru4rec", "maml", residual, "clip", seed).engine()


def assert_close(found: tuple[Tensor, Params], wanted: tuple[Tensor, Params]) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-10, atol=1e-10)
    for name, value in wanted[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-10, atol=1e-10 * float(value.abs().max()))


def same(one: tuple[Tensor, Params], other: tuple[Tensor, Params]) -> bool:
    return torch.equal(one[0], other[0]) and all(torch.equal(one[1][name], other[1][name]) for name in other[1])


@pytest.mark.slow
def test_a_compiled_meta_step_is_the_plain_one_and_the_same_in_every_process(
    anew: Callable[[], None], said: list[str]
) -> None:
    """What is compiled first has another number of rows in the second round: it must leave no trace."""
    cells = [(1, "off"), (2, "context")]
    plain = {at: meta_step(*at) for at in cells}
    rounds = []
    for order in (cells, cells[::-1]):
        anew()
        assert fused.switch(True, CPU, said.append)
        rounds.append({at: meta_step(*at) for at in order})
        assert all(getattr(fused, name).compiled is not None for name in KERNELS)
    assert said == []
    for at in cells:
        assert_close(rounds[0][at], plain[at])
        assert same(rounds[0][at], rounds[1][at])


@pytest.mark.slow
def test_a_kernel_that_computes_something_else_is_seen(anew: Callable[[], None], said: list[str]) -> None:
    plain = meta_step(1)
    fused.switch(True, CPU, said.append)
    fused.slopes.compiled = lambda *given: tuple(part * 1.000001 for part in fused._slopes(*given))
    with pytest.raises(AssertionError):
        assert_close(meta_step(1), plain)


def test_a_step_is_compiled_where_kernels_are_launched_only() -> None:
    assert [getattr(fused, name).within_a_step for name in KERNELS] == [True, False, False]


def test_switched_off_nothing_is_compiled(anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    meta_step(1)
    assert fused.switch(False, CPU, print) is False


def failing(monkeypatch: pytest.MonkeyPatch, raised: Exception, but_for: int = 0) -> None:
    """torch.compile gives functions that raise; the first `but_for` of them work."""
    made = []

    def compile_(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        made.append(function)

        def fails(*given: Any) -> None:
            raise raised

        return function if len(made) <= but_for else fails

    monkeypatch.setattr(torch, "compile", compile_)


@pytest.mark.parametrize("but_for", [0, 1])
def test_what_does_not_compile_runs_as_it_stands_and_is_told_once(
    but_for: int, anew: Callable[[], None], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = meta_step(1)
    failing(monkeypatch, ValueError("this platform\nis not known"), but_for)
    assert fused.switch(True, CPU, said.append) is (but_for > 0)
    assert same(meta_step(1), plain)
    assert said == ["hardware.compile: the run goes on without it: ValueError: this platform"]


NO_COMPILER = """
import torch
from torch._inductor import config
from metarec.core import fused
config.cpp.cxx, config.force_disable_caches = ("no-such-compiler",), True
assert fused.switch(True, torch.device("cpu"), print) is False
"""


def test_a_missing_compiler_is_told() -> None:
    """The whole of torch.compile; in a process of its own, for it remembers that it found none."""
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("hardware.compile: the run goes on without it: InvalidCxxCompiler: No working C++ compiler")
    assert "no-such-compiler" in line


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_signal_that_ends_the_run_is_no_failure_to_compile(
    wrapped: bool, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Stopped("SIGTERM", "between checkpoints", "stopped as asked", "go on", 15)
    raised: Exception = stopped
    if wrapped:
        raised = RuntimeError("the compiler failed")
        raised.__cause__ = stopped
    failing(monkeypatch, raised)
    with pytest.raises(Stopped):
        fused.switch(True, CPU, said.append)
    assert said == []
