"""The estimate by hand on small shapes, what a machine has, and the refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarec.errors import EnvironmentFault
from metarec.runs import memory_need
from metarec.runs.memory_need import (
    LIBRARIES,
    MIB,
    Batch,
    Loop,
    Need,
    available,
    compared,
    enough_memory,
    estimate,
    refuse,
)

# a table of 11 rows, a recurrent layer, a head of 10 items
BASE = {
    "embedding.weight": (11, 4),
    "gru.weight_ih": (15, 4),
    "gru.weight_hh": (15, 5),
    "bias": (15,),
    "fc.weight": (10, 5),
}
BATCH = Batch(tasks=3, support=2, query=4, support_states=20, query_states=50, longest=9, columns=10)
NUMBERS = 44 + 60 + 75 + 15 + 50


def of(loop: Loop, **options: object) -> Need:
    given = {"per_state": 7, "itemsize": 4, "slots": 2, "keeps": False} | options
    return estimate(BASE, BASE, BASE, {"fc.weight"}, BATCH, loop, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "optimizer", "guard"),
    [({}, 2, 0), ({"slots": 0}, 0, 0), ({"slots": 1, "keeps": True}, 1, 2), ({"keeps": True}, 2, 3)],
)
def test_what_lasts_is_exact(options: dict[str, object], optimizer: int, guard: int) -> None:
    found = of(Loop(2, False), **options)
    assert (found.weights, found.learned, found.gradients) == (4 * NUMBERS,) * 3
    assert (found.optimizer, found.guard) == (4 * optimizer * NUMBERS, 4 * guard * NUMBERS)
    assert found.saving == 2 * 4 * (2 + optimizer + guard) * NUMBERS
    assert of(Loop(2, False), trained=10, **options).gradients == 40
    assert of(Loop(2, False), itemsize=8, **options).weights == 8 * NUMBERS


def test_what_a_step_takes_by_hand() -> None:
    dense = 75 + 15  # the recurrent matrix and the bias
    low = 20 * 4 + 20 * (15 + 4) + 3 * 2 * (10 + 5)  # rows of the table, the input layer, the head at 6 support pairs
    first = of(Loop(2, False))
    assert first.tasks == 4 * (6 * 3 * dense + 3 * low)
    assert first.activations == 4 * (2 * 50 * 7 + 3 * 3 * 4 * 10)  # the query's is the larger
    second = of(Loop(2, True))
    assert second.tasks == 4 * (11 * 3 * dense + 4 * low)
    assert of(Loop(2, True, forgets=True)).tasks == 4 * (11 * 3 * dense + 8 * low)
    steps = 4 * 20 * 7 + 5 * 3 * 2 * 10
    assert second.activations == 4 * (2 * steps + 2 * 50 * 7 + 3 * 3 * 4 * 10)
    assert of(Loop(2, True, recompute=True)).activations == second.activations - 4 * steps
    assert of(Loop(2, True, judged=3)).activations == 4 * (2 * steps + 3 * (2 * 50 * 7 + 3 * 3 * 4 * 10))
    lasting = 4 * (1 + 1 + 1 + 2) * NUMBERS
    assert second.total == lasting + max(second.tasks + second.activations, second.saving) + LIBRARIES
    assert second.beyond_weights == second.total - 4 * NUMBERS
    on_gpu = of(Loop(2, True), on_cpu=False)
    assert (on_gpu.saving, on_gpu.libraries) == (0, 0)


def test_what_a_state_takes_where_the_model_does_not_say() -> None:
    assert memory_need.state_numbers(BASE, {"fc.weight", "bias"}) == 4 + (15 + 4) + (15 + 5)


def test_more_than_there_is_is_refused_in_one_line() -> None:
    need = Need(300 * MIB, MIB, MIB, 2 * MIB, 0, 5 * MIB, 40 * MIB, 600 * MIB)
    assert need.total == 904 * MIB
    refuse(need, need.total, "memory")
    refuse(need, None, "memory")
    refuse(need, 604 * MIB, "memory", weights_are_there=True)
    with pytest.raises(EnvironmentFault) as refused:
        refuse(need, need.total - 1, "memory")
    assert refused.value.exit_code == 5
    (line,) = str(refused.value).splitlines()
    assert line.startswith("memory: 904 MiB needed: 904 MiB are available; the largest part is saving -- ")
    assert all(way in line for way in ("train.task_chunk", "model.gradient_checkpointing", "hardware.precision"))


def test_told_in_mib_without_what_takes_nothing() -> None:
    need = Need(300 * MIB, MIB // 2, 0, 0, 0, 5 * MIB, 40 * MIB, 0)
    assert need.line() == "memory: about 346 MiB: weights 300, learned 0.5, tasks 5.0, activations 40"
    assert compared(need, 50 * MIB, 900 * MIB) == "memory: grew by 50 MiB where 46 were expected, peak 900 MiB"
    assert compared(need, None, 900 * MIB) == "memory: peak 900 MiB"
    assert need.document()["total"] == need.total


def test_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller of free memory and of what the control group has left; unlimited groups say nothing."""
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     700 kB\n")
    (tmp_path / "cgroup").write_text("3:cpu:/x\n0::/mine\n")
    monkeypatch.setattr(memory_need, "FREE", tmp_path / "meminfo")
    monkeypatch.setattr(memory_need, "SELF", tmp_path / "cgroup")
    monkeypatch.setattr(memory_need, "GROUPS", tmp_path)
    assert available() == 700 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert available() == 700 * 1024
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "memory.max").write_text("400000\n")
    (tmp_path / "mine" / "memory.current").write_text("150000\n")
    assert available() == 250_000
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1\n")
    assert available() == 250_000
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    assert available() == 999
    monkeypatch.setattr(memory_need, "FREE", tmp_path / "none")
    monkeypatch.setattr(memory_need, "GROUPS", tmp_path / "none")
    assert available() is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1.46 TiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_memory_that_is_not_there_is_no_bug(error: Exception) -> None:
    with (
        pytest.raises(EnvironmentFault, match=r"memory: .*llocate .*: there is not so much -- "),
        enough_memory(),
    ):
        raise error


def test_other_errors_of_torch_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), enough_memory():
        raise RuntimeError("shape mismatch")
