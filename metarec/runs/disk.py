"""What a run will write, told before anything is trained: a disk that cannot take it refuses the run, not its last step.

    need = (kept + 5) * checkpoint + reserve        kept: periodic checkpoints still to come, one every `checkpoint_every`
    checkpoint = weights + learned + optimizer's slots + the state kept by a guard + state.json

The five are the best, the last, both of the checkpoint before it, and the one that is being written. The reserve is for
histories, figures and tables. What others write meanwhile nobody knows: a disk that fills up during the run ends it with
one line, the last good checkpoint kept (`runs.atomic`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from metarec.errors import EnvironmentFault
from metarec.runs import atomic

MIB = 2**20
RESERVE = 16 * MIB
STATE = MIB // 4  # bytes of state.json, configuration and control included: a few hundredths of it as a rule
AT_ONCE = 5


def checkpoints_bytes(tensors: int, steps: int, done: int, every: int) -> int:
    """Bytes of all checkpoints of a run from step `done` to `steps`, each of so many bytes of `tensors`."""
    periodic = steps // every - done // every + (done == 0)
    return (periodic + AT_ONCE) * (tensors + STATE)


def refuse(directory: Path, needed: int, way_out: str) -> None:
    """EnvironmentFault where `needed` bytes and the reserve are more than is free on the disk of `directory`."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise atomic.fault(directory, error) from error
    if needed + RESERVE > free:
        raise EnvironmentFault(
            directory, f"{free / MIB:,.0f} MiB free", f"the run will write about {(needed + RESERVE) / MIB:,.0f} MiB there",
            f"free some space, {way_out}",
        )  # fmt: skip
