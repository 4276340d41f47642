"""Whole runs small enough to be killed a hundred times: five methods, and what the drivers of kills and signals share."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

from reference.tiny_runs import Work

OUTER = (
    "train.steps=40", "train.eval_every=8", "train.checkpoint_every=12", "train.patience=0",
    "optimizer.clip_norm=0.1",
)  # fmt: skip
RESIDUAL = ("residual.init_scale=0.01", "residual.l2=0.01")
METHODS: dict[str, tuple[str, ...]] = {
    "fomaml": (*OUTER, *RESIDUAL),
    "maml_pp": (*OUTER, *RESIDUAL, "algorithm=maml_pp"),
    "generator": (
        *OUTER, "algorithm=generator", "residual=lora", "residual.rank=2", "schedule.warmup_steps=2", "algorithm.width=8",
        "algorithm.hidden=8", "evaluation.panel=none",
    ),
    "supervised": ("algorithm=supervised", "pretrain.epochs=8", "pretrain.batch_size=64", "pretrain.patience=0"),
    "cms": (*OUTER, "residual=off", "optimizer=cms", "optimizer.chunks=[1,5,11]"),
}  # fmt: skip

_making = threading.Lock()


class Wholes:
    """The uninterrupted run of each method, made when first asked for, in a process of its own."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache

    def of(self, method: str) -> Path:
        """Its run directory."""
        work = Work(self.root / f"whole-{method}", self.cache)
        with _making:
            if (work.root / "cpu_seconds").exists():
                return work.directories("train")[0]
            shutil.rmtree(work.root, ignore_errors=True)
            work.root.mkdir(parents=True)
            process, cpu = work.start_train(*METHODS[method]), 0.0
            while process.is_alive():
                cpu = max(cpu, cpu_seconds(process.pid or 0))
                process.join(0.02)
            assert process.exitcode == 0, f"{method} ended with {process.exitcode}: {work.output(process)[-500:]}"
            (work.root / "cpu_seconds").write_text(repr(cpu))
            return work.directories("train")[0]

    def cpu_seconds(self, method: str) -> float:
        """What it took of a processor."""
        self.of(method)
        return float((self.root / f"whole-{method}" / "cpu_seconds").read_text())


def cpu_seconds(pid: int) -> float:
    """What a process has had of the processors so far: a clock that no load distorts; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def card(work: Work) -> Path | None:
    """The run directory, once it says what the run is; before that there is nothing to resume."""
    return next((path for path in work.directories("train") if (path / "config.yaml").exists()), None)


def lines(work: Work) -> int:
    """Records in the history so far."""
    run = card(work)
    path = run / "history.jsonl" if run else None
    return len(path.read_bytes().splitlines()) if path and path.exists() else 0
