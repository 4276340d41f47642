"""What a run ran on, as far as it can change its numbers; no host name, no user name, no environment variables."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "numpy", "pandas", "pyarrow", "duckdb", "safetensors", "hydra-core", "omegaconf", "filelock", "rich",
    "matplotlib",
)  # fmt: skip


def capture(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, machine, threads, git commit of the working directory and command line (this process's by default)."""
    return {
        "metarec": metarec_version(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.orig_argv if command is None else command),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "platform": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "cpus": {"present": os.cpu_count(), "usable": _usable_cpus()},
        "torch": _torch(),
        "git": _git(Path.cwd()),
    }


def metarec_version() -> str:
    """The installed version, the same that a checkpoint's manifest records."""
    return _version("metarec") or "not installed"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _torch() -> dict[str, Any] | None:
    """Threads, device and determinism, only where the run has loaded torch (preparing data does not)."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(directory: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a repository or without git."""
    try:
        commit = _git_output(directory, "rev-parse", "HEAD")
        changed = _git_output(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def _git_output(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout.strip()
