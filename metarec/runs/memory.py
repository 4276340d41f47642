"""Peak memory of a part of a run: of the process on a CPU, of the allocator on a GPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from metarec.core import heap

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Started where the part begins; `bytes` is the largest use since, `growth` that less what was in use at the start.

    Where the system cannot reset its high-water mark (everywhere but Linux and CUDA), `growth` is None and `bytes` is
    that of the whole process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before: int | None = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif _CLEAR.exists():
            heap.give_back()
            try:
                _CLEAR.write_text("5")
                self.before = _kib("VmRSS")
            except OSError:  # a container may forbid it
                self.before = None

    @property
    def bytes(self) -> int:
        """Bytes, of the device's allocator or of the process; at the end of the part."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if _STATUS.exists():
            return _kib("VmHWM")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    @property
    def growth(self) -> int | None:
        """Bytes above what was in use at the start, >= 0; None where the system cannot tell."""
        return None if self.before is None else max(self.bytes - self.before, 0)


def _kib(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024
