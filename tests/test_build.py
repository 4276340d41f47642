"""`build.hardware`: which device and precision a machine gives, and what it refuses. Missing devices are pretended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from metarec import build
from metarec.config.schema import HardwareConfig
from metarec.core import fused
from metarec.errors import EnvironmentFault


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)
    fused.switch(False, torch.device("cpu"), print)


@pytest.mark.parametrize(
    ("precision", "dtype", "mixed", "changes"),
    [
        ("float32", torch.float32, False, []),
        ("float64", torch.float64, False, []),
        ("bfloat16", torch.float32, True, ["mixed"]),
    ],
)
def test_what_a_precision_means(precision: str, dtype: torch.dtype, mixed: bool, changes: list[str]) -> None:
    found = build.hardware(HardwareConfig("cpu", precision, 1))
    assert (found.dtype, found.mixed, found.changes) == (dtype, mixed, changes)
    assert found.line == f"cpu, {precision}, 1 threads"


@pytest.mark.parametrize(("precision", "device"), [("float32", "mps"), ("float64", "cpu"), ("bfloat16", "cpu")])
def test_auto_leaves_out_a_device_that_cannot_do_the_precision(
    precision: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert build.hardware(HardwareConfig("auto", precision, 1)).device.type == device


def test_a_gpu_that_does_not_multiply_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(
        EnvironmentFault, match=r"hardware\.precision: bfloat16: Tesla V100 .*use hardware\.precision=float32"
    ):
        build.hardware(HardwareConfig("cuda", "bfloat16", 1))


def test_without_a_compiler_the_run_is_told_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(*given: object, **more: object) -> None:
        raise RuntimeError("no C++ compiler found\nand a page of advice")

    monkeypatch.setattr(torch, "compile", no_compiler)
    found = build.hardware(HardwareConfig("cpu", "float32", 1, compile=True))
    assert (found.compiled, found.changes, found.line) == (False, [], "cpu, float32, 1 threads")
    told = capsys.readouterr()
    assert told.err == "hardware.compile: the run goes on without it: RuntimeError: no C++ compiler found\n"
    assert told.out == ""


def test_a_start_without_compilation_does_not_wait_for_the_compiler() -> None:
    """Its import is 1.3 s, and `torch.use_deterministic_algorithms` takes it along."""
    code = (
        "import sys, torch; from metarec.config.schema import HardwareConfig; from metarec.workbench import hardware; "
        "hardware(HardwareConfig()); assert torch.are_deterministic_algorithms_enabled(); "
        "sys.exit('torch._inductor.config' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
