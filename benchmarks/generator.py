"""Claim: one forward pass gives a user's adapter at least 5 times as fast as 3 inner steps, one user at a time.

    python benchmarks/generator.py                          # V=1,518, K=5, LoRA of rank 8
    python benchmarks/generator.py --residual context --items 20000
    python benchmarks/generator.py --device cuda

Contenders, on the same users, weights (GRU4Rec, d=64, h=128, float32) and support sets, from a packed batch to adapted
weights:

    generator    the encoder over the support as the frozen model sees it, and the heads
    inner loop   3 steps of the same residual from its shared start

at batch 1 (one call a user) and at batch 1,000 (one call for all). `adapt` is what a claim is about; `adapt and score` adds
the scores of all items for the next event, which both pay alike. `bytes_per_user` is what belongs to one user afterwards;
`peak` is what a call allocates beyond what is there, as torch's profiler counts it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import alternate, finish, machine, medians
from meta_step import DIM, HIDDEN, histories
from torch.profiler import ProfilerActivity, profile

from metarec import build, parts
from metarec.algorithms import Shown
from metarec.algorithms.generator import Generator
from metarec.core import heap
from metarec.core.batch import EpisodeBatch
from metarec.core.offsets import tensors
from metarec.core.weights import FastWeight, Params
from metarec.evaluate import Control
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.tasks import Tasks

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000, help="of the large batch")
    parser.add_argument("--single", type=int, default=50, help="users that are served one at a time")
    parser.add_argument("--items", type=int, default=1518)
    parser.add_argument("--support", type=int, default=5)
    parser.add_argument("--residual", choices=["lora", "context"], default="lora")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--head", choices=["auto", "factors", "basis"], default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--record", action="store_true", help="append a line to docs/results/performance.md")
    options = parser.parse_args()
    heap.keep_freed()  # as a run does
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    device = torch.device(options.device)

    k = options.support
    batcher, first = histories(options.users, options.items, k + 1, seed=7)
    model = GRU4Rec(options.items, DIM, HIDDEN)
    base: Params = {name: value.to(device) for name, value in model.init(torch.Generator().manual_seed(1)).items()}
    on: Any = parts.default("residual", options.residual)
    if options.residual == "lora":
        on.rank = options.rank
    config: Any = parts.default("algorithm", "generator")
    config.head = options.head
    made = build.algorithm(
        config, on, model, Control(0.05, STEPS, 0.0, []), outer_steps=1, support_share=0.5, context_lr=0.05
    )
    assert isinstance(made, Generator)
    over = build.residual(on, model, base)
    phi = made.learned(over.init(torch.Generator().manual_seed(2)))
    plain, tasks = Tasks(model, CrossEntropy(), lambda theta: theta), Tasks(model, CrossEntropy(), over.compose)

    def batches(users: int, size: int) -> list[EpisodeBatch]:
        return [
            batcher.episodes(own, first[own], k, 1).to(device)
            for own in np.array_split(np.arange(users), max(users // size, 1))
        ]

    def generated(batch: EpisodeBatch) -> dict[str, FastWeight]:
        with torch.no_grad():
            shown = Shown(tasks.loss(batch.support), *plain.evidence(base, batch.support))
            return made.adapt(phi, shown, batch.n_tasks, steps=0)

    def stepped(batch: EpisodeBatch) -> dict[str, FastWeight]:
        with torch.no_grad():
            return made.by_inner_loop(phi, tasks.loss(batch.support), batch.n_tasks, steps=STEPS)

    ways = {"generator": generated, "inner loop": stepped}
    sizes = {"batch 1": (options.single, 1), f"batch {options.users:,}": (options.users, options.users)}
    seconds: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    for label, (users, size) in sizes.items():
        for scoring in (False, True):
            name = f"{label}, {'adapt and score' if scoring else 'adapt'}"
            per_user = {}
            runs = {way: _run(adapt, batches(users, size), tasks, scoring, device) for way, adapt in ways.items()}
            for way, value in medians(alternate(runs, options.repeats)).items():
                per_user[way] = value / users
            seconds[name] = per_user
            ratios[name] = per_user["inner loop"] / per_user["generator"]
            print(f"{name:30s} generator {per_user['generator'] * 1e6:10.1f} us/user   inner loop "
                  f"{per_user['inner loop'] * 1e6:10.1f} us/user   {ratios[name]:6.2f}x")  # fmt: skip

    one, many = batches(1, 1)[0], batches(options.users, options.users)[0]
    moving = sum(value.numel() for name, value in phi.items() if made.inner.moves(name) and "generator/" not in name)
    memory: dict[str, Any] = {}
    for way, adapt in ways.items():
        own = [w.offset for w in adapt(one).values() if w.offset is not None]
        held = sum(t.numel() * t.element_size() for offset in own for t in tensors(offset))
        peak = _peak(lambda adapt=adapt: adapt(many), device) / options.users  # type: ignore[misc]
        memory[way] = {"bytes_per_user": held, "peak_bytes_per_user": round(peak)}
        print(f"{way:11s} keeps {held:,} bytes a user ({moving:,} numbers adapt); at batch {options.users:,} a call takes "
              f"{peak:,.0f} bytes a user at its peak")  # fmt: skip
    finish(
        {
            "benchmark": "generator",
            "ratios": {name: round(value, 2) for name, value in ratios.items()},
            "seconds_per_user": seconds,
            "bytes": memory,
            "sizes": {
                "users": options.users, "single": options.single, "support": k, "inner_steps": STEPS,
                "items": options.items, "residual": options.residual, "rank": options.rank, "head": options.head,
                "embedding_dim": DIM, "hidden_dim": HIDDEN,
            },
            "machine": machine(),
        },
        options.record,
    )  # fmt: skip


def _run(
    adapt: Callable[[EpisodeBatch], dict[str, FastWeight]],
    batches: list[EpisodeBatch],
    tasks: Tasks,
    scoring: bool,
    device: torch.device,
) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            own = adapt(batch)
            if scoring:
                with torch.no_grad():
                    tasks.logits(own, batch.query)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _peak(call: Callable[[], object], device: torch.device) -> float:
    """Bytes that a call holds at most beyond what is there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    del kept
    now = most = 0
    for event in sorted(seen.events(), key=lambda e: e.time_range.end):
        now += (
            event.self_cpu_memory_usage
        )  # of an operator what it holds at its end; what is freed between has lines of its own
        most = max(most, now)
    return float(most)


if __name__ == "__main__":
    main()
