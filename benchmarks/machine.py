"""What every benchmark of steps needs: facts about the machine, alternating timing, peak memory, the last line."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The machine in a few words; `load` is the 1-minute load average, since a busy machine bends every time."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}
    return {
        **gpu,
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def peak_rss_bytes() -> int:
    """The largest resident memory that this process has had.

    Linux tells it in /proc; getrusage there also counts what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alternate(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contender, `repeats` times, in turn: what disturbs the machine disturbs all of them.

    One round that is not measured comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(-1, repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def busy_share(run: Callable[[], object]) -> float:
    """Of the time of `run` on a GPU, the share in which a kernel or a copy was running (they do not overlap here)."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    whole = time.perf_counter() - start  # without the profiler, which slows the host down
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    busy = sum(event.self_device_time_total for event in found.key_averages()) * 1e-6
    return min(busy / whole, 1.0)


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish(document: dict[str, Any], record: bool) -> None:
    """Print the one JSON object that a benchmark ends with; `record`: also a line in docs/results/performance.md."""
    print(json.dumps(document))
    if record:
        page = Path(__file__).resolve().parent.parent / "docs" / "results" / "performance.md"
        ratios = ", ".join(f"{name} {value:g}" for name, value in document["ratios"].items())
        facts = document["machine"]
        where = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads"
        command = " ".join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}", *(w for w in sys.argv[1:] if w != "--record")]
        )
        with page.open("a", encoding="utf-8") as stream:
            stream.write(f"| `{command}` | {ratios} | {where}, torch {facts['torch']} |\n")


def peak_of_own_process(script: str, options: list[str]) -> int:
    """Peak resident bytes of a child process that runs one contender (the script's last line tells them)."""
    command = [sys.executable, str(Path(script).resolve()), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.strip().splitlines()[-1])["peak_rss"])
