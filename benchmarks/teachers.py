"""Claim: teachers of thousands of users are made together faster than one user at a time, and are the same.

    METAREC_DATA=... python benchmarks/teachers.py                 # 5,000 users of MovieLens-1M, at most 64 pairs each
    python benchmarks/teachers.py --users 500 --single 20
    python benchmarks/teachers.py --residual context --lr 3
    python benchmarks/teachers.py --dataset synthetic --users 150  # without any data set

A teacher is what the inner loop finds for a user on all his pairs but the last Q (`metarec/teach.py`). Contenders, by one
code on the same weights (GRU4Rec, d=64, h=128, float32, drawn: what is found does not matter here), from the log to numbers:

    together   all users, those with few pairs first, in batches of --chunk or of so many pairs as a cache has room for
    single     --single of them, evenly spaced, one user at a time

How much faster is a matter of the data: one user of long sessions has work enough for a CPU, where each of his pairs reads
a window of its own. The numbers of these users are compared first, in float64 as well. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import alternate, finish, machine, medians, peak_rss_bytes

from metarec import build, teach
from metarec.algorithms.inner import InnerLoop
from metarec.benches import SequenceBench
from metarec.config.overrides import check_words
from metarec.core import heap
from metarec.core.weights import Params
from metarec.data.past import Past
from metarec.tasks import Tasks
from metarec.workbench import spread

# of the default split half of the users train; here every user does, but for his last two pairs
DATA = {"ml1m": ["dataset=ml1m", "dataset.split.by=leave_one_out"], "synthetic": []}
LARGEST = {torch.float32: 1e-3, torch.float64: 1e-10}  # difference, of the largest number found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(DATA), default="ml1m")
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--single", type=int, default=50, help="of them, made one at a time as well")
    parser.add_argument("--pairs", type=int, default=64, help="of a user's history, at most")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--chunk", type=int, default=64, help="users in memory at once, at most")
    parser.add_argument("--residual", choices=["lora", "context"], default="lora")
    parser.add_argument("--repeats", type=int, default=1, help="of each, in turn, behind one that is not measured")
    parser.add_argument("--threads", type=int, default=0, help="0 = the cores that this process may use")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--record", action="store_true", help="append a line to docs/results/performance.md")
    options = parser.parse_args()
    heap.keep_freed()  # as a run does

    words = [*DATA[options.dataset], f"residual={options.residual}", f"hardware={options.device}"]
    words += [f"hardware.threads={options.threads}", f"algorithm.teacher.pairs={options.pairs}"]
    words += [f"cache_dir={os.environ.get('METAREC_CACHE', '~/.cache/metarec')}"]
    words += [f"data_dir={os.environ['METAREC_DATA']}"] if "METAREC_DATA" in os.environ else []
    (job,) = check_words("teachers", words).jobs
    config: Any = job.config
    config.cache_dir = str(Path(config.cache_dir).expanduser())
    on = build.hardware(config.hardware)
    bench = build.bench(config, config.evaluation, build.data(config, config.dataset, print), on)
    assert isinstance(bench, SequenceBench)
    past = bench.past("train", most=options.pairs)
    most = teach.most_pairs(bench.n_items, on.device)
    past = replace(past.of(spread(len(past), options.users)).by_length(), most=most)
    alone = spread(len(past), options.single)
    print(f"{len(past):,} users, {past.pairs.mean():.1f} pairs each, of them {len(alone)} one at a time; {on.line}")

    def setting(dtype: torch.dtype) -> tuple[Tasks, Params, InnerLoop]:
        drawn = bench.model.init(torch.Generator().manual_seed(1), dtype)
        base = {name: value.to(on.device) for name, value in drawn.items()}
        over = build.residual(config.residual, bench.model, base)
        moving = build.adapted(config.algorithm, config.residual, bench.model)
        phi = over.init(torch.Generator().manual_seed(2))
        return bench.tasks(over), phi, InnerLoop(options.lr, options.steps, adapted=moving)

    def made(users: Past, chunk: int, dtype: torch.dtype = torch.float32) -> Params:
        tasks, phi, loop = setting(dtype)
        parts = list(teach.found(tasks, phi, users.of(np.arange(len(users)), chunk), loop))
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}

    difference = {}
    for dtype, most in LARGEST.items():
        together, single = made(past.of(alone), options.chunk, dtype), made(past.of(alone), 1, dtype)
        off = {name: float((together[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
               for name, value in single.items() if value.is_floating_point()}  # fmt: skip
        difference[str(dtype).removeprefix("torch.")] = max(off.values())
        if not max(off.values()) < most:
            raise SystemExit(f"in {dtype} teachers made together are not those made alone: {off}")
    told = ", ".join(f"{value:.1e} in {name}" for name, value in difference.items())
    print(f"numbers and losses, together and alone: largest difference {told}, of the largest of each")

    ways = {"together": lambda: made(past, options.chunk), "single": lambda: made(past.of(alone), 1)}
    seconds = medians(alternate(ways, options.repeats))
    counts = {"together": len(past), "single": len(alone)}
    speed = {name: counts[name] / value for name, value in seconds.items()}
    for name, value in seconds.items():
        print(f"{name:9s} {counts[name]:6,} users {value:8.2f} s {speed[name]:9.1f} users/s")
    print(f"together {speed['together'] / speed['single']:.1f}x")
    finish(
        {
            "benchmark": "teachers",
            "ratios": {"together_over_single": round(speed["together"] / speed["single"], 3)},
            "seconds": seconds,
            "users_per_second": speed,
            "bytes": {"peak_rss": peak_rss_bytes()},
            "sizes": {
                "dataset": options.dataset, "users": len(past), "single": len(alone), "pairs": options.pairs,
                "pairs_mean": float(past.pairs.mean()), "inner_steps": options.steps, "chunk": options.chunk,
                "residual": options.residual, "items": bench.n_items,
            },
            "difference": difference,
            "machine": machine(),
        },
        options.record,
    )  # fmt: skip


if __name__ == "__main__":
    main()
