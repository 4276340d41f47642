"""Claim: a step with cms, the delta rule or surprise costs little more than the step without.

    python benchmarks/nested.py --threads 1                                 # all settings
    python benchmarks/nested.py --threads 1 --settings wikitext2 --turns 30
    python benchmarks/nested.py --tiny                                      # a few steps of small worlds: does it run

Settings, each a step as a run makes it (batch, loss, gradient and its norm, optimizer; what a run tells of its timescales
included), on one set of weights a contender:

    wikitext2   pretraining of model=nested: 1,024 characters in blocks of 50 (needs the corpus)
    gru4rec, sasrec, nested    pretraining on the embedded world, batch of the default size
    outer       outer steps of FOMAML over all weights of GRU4Rec on the embedded world

Contenders: adam, sgd; cms (chunks 1, 16, 256); delta_sgd and delta_adam, explicit and proximal, at the default decay; Adam
with surprise 0.05 / 0.01 of first order, its zero control, and of second order. Each ratio is of contender and base in the
same turn, so what disturbs the machine disturbs both: the median over turns with its 95 % interval (from the order of the
turns, which assumes no distribution). With one thread, seconds are those that the processor worked for it: what waits for
others does not count, but their cache misses do. `peak` is what a step allocates beyond what is there, as torch's profiler
counts it.
Targets: cms 1.05, delta 1.3, surprise of first order 1.5. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from machine import finish, machine
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from metarec import build, train
from metarec.config.overrides import check_words
from metarec.core import heap
from metarec.core.seeding import generator
from metarec.evaluate import Control
from metarec.objectives.surprise import Surprise
from metarec.pretrain import loss_of_step, training_pieces
from metarec.runs.timescales import Timescales
from metarec.text_bench import TextBench
from metarec.verbs import measure, meta_train
from metarec.verbs.weighting import weighting_of

OWN = {
    "wikitext2": ("dataset=wikitext2", "model=nested", "pretrain.batch_size=1024", "algorithm=supervised"),
    "gru4rec": ("model=gru4rec", "algorithm=supervised"),
    "sasrec": ("model=sasrec", "algorithm=supervised"),
    "nested": ("model=nested", "algorithm=supervised"),
    "outer": ("model=gru4rec", "algorithm=fomaml", "residual=off"),
}
SURPRISE = ("objective.surprise.fast=0.05",)
WAYS = {
    "adam": ("optimizer=adam",),
    "sgd": ("optimizer=sgd",),
    "cms": ("optimizer=cms", "optimizer.chunks=[1,16,256]"),
    "delta_sgd": ("optimizer=delta_sgd",),
    "delta_sgd proximal": ("optimizer=delta_sgd", "optimizer.form=proximal"),
    "delta_adam": ("optimizer=delta_adam",),
    "delta_adam proximal": ("optimizer=delta_adam", "optimizer.form=proximal"),
    "surprise": ("optimizer=adam", *SURPRISE),
    "surprise zero": ("optimizer=adam", *SURPRISE, "objective.surprise.target=zero"),
    "surprise second order": ("optimizer=adam", *SURPRISE, "objective.surprise.second_order=true"),
}
BASE = {name: "sgd" if name.startswith("delta_sgd") else "adam" for name in WAYS if name not in ("adam", "sgd")}
TARGETS = {name: 1.05 if name == "cms" else 1.3 for name in BASE if not name.startswith("surprise")} | {"surprise": 1.5}
SMALL = (
    "dataset.world.n_users=200", "dataset.world.n_items=30", "dataset.world.n_topics=5", "pretrain.batch_size=64",
)  # fmt: skip
CONTROL = Control(0.05, 3, 0.0, [])
DISCARDED = 2  # steps before the first turn, beside the turn that is not measured


@dataclass
class Loop:
    """A loop of a run, step by step, as `metarec.train.fit` goes through it."""

    losses: Callable[[int], Any]
    leaves: list[Tensor]
    optimizer: torch.optim.Optimizer
    clip: float
    watch: Timescales | None
    log_every: int
    step: int = 0

    def take(self, steps: int) -> None:
        """The next steps."""
        for _ in range(steps):
            recording = getattr(self.optimizer, "recording", train.nullcontext)
            watched = train.nullcontext if self.watch is None else self.watch.step
            self.optimizer.zero_grad(set_to_none=True)
            with recording(), watched():
                total, length = train._differentiate(self.losses(self.step), self.leaves)
            if not math.isfinite(total):
                raise SystemExit(f"the loss of step {self.step} is {total}")
            torch.nn.utils.clip_grads_with_norm_(self.leaves, self.clip, length)
            self.optimizer.step()
            self.step += 1
            if self.watch is not None:
                self.watch.stand()
                if self.step % self.log_every == 0:
                    self.watch.line()


def made(setting: str, way: str, options: argparse.Namespace) -> Loop:
    """The loop of a setting with what a contender puts into it, from the same weights and over the same batches."""
    words = [*OWN[setting], *WAYS[way], "hardware=cpu", f"hardware.threads={options.threads}", "logger.console=quiet"]
    words += [] if setting == "outer" else ["pretrain.optimizer=run"]
    if "model=nested" in words and "surprise" in way:
        words.append("objective.surprise.medium=0.01")
    words += [word for word in SMALL if options.tiny and (setting != "outer" or not word.startswith("pretrain"))]
    config: Any = check_words("train", words).jobs[0].config
    on = build.hardware(config.hardware)
    bench = build.bench(config, config.evaluation, build.data(config, config.dataset, lambda line: None), on)
    start = bench.model.init(generator(config.seed, "init"), on.dtype)
    asked = build.surprise(config)
    if setting == "outer":
        algorithm = measure.algorithm_of(bench, config, config.algorithm, CONTROL, config.train.steps)
        over = build.residual(config.residual, bench.model, start)
        phi = build.trainable(algorithm.learned(over.init(generator(config.seed, "residual"))))
        optimizer = build.optimizer(config.optimizer, phi, build.outer_lr(config), model=bench.model)
        weighting = weighting_of(config.algorithm)

        def losses(step: int) -> Any:
            return meta_train._losses(config, bench, over, algorithm, phi, weighting, None, step)

        clip, loop = config.optimizer.clip_norm, "outer"
    else:
        phi = build.trainable(start)
        optimizer = build.pretrain_optimizer(config, phi, bench.model)
        size = config.pretrain.batch_size
        if isinstance(bench, TextBench):
            pieces = bench.pieces(size, config.seed)
        else:
            own: Any = bench
            pieces = training_pieces(
                own.prepared, config.model.max_len, size, config.seed, own.batcher.stream, own.unread
            )
        pays = lambda step: Surprise.at(asked, "pretrain", step)  # noqa: E731
        losses = loss_of_step(bench.tasks(), bench.batcher, pieces, phi, on.device, pays)
        clip, loop = config.pretrain.clip_norm, "pretrain"
    leaves = [value for value in phi.values() if value.requires_grad]
    watch = Timescales.of(optimizer, Surprise.at(asked, loop, 0) is not None)
    return Loop(losses, leaves, optimizer, clip, watch, config.logger.every)


def in_turns(loops: Mapping[str, Loop], turns: int, steps: int, every_thread: bool) -> dict[str, list[float]]:
    """Seconds of every loop's steps, in turn, behind a round that is not measured; of the processor where one thread is all
    that works, else by the clock."""
    now = time.process_time if every_thread else time.perf_counter
    seconds: dict[str, list[float]] = {way: [] for way in loops}
    for turn in range(-1, turns):
        for way, loop in loops.items():
            began = now()
            loop.take(steps)
            if turn >= 0:
                seconds[way].append(now() - began)
    return seconds


def middle(ratios: Sequence[float]) -> dict[str, float]:
    """The median with its interval by order statistics, x_(k+1) to x_(n-k) with P(Bin(n, 1/2) <= k) <= .025 (n >= 6)."""
    order, n = sorted(ratios), len(ratios)
    low, tail = 0, 0.5**n
    while low + 1 < n // 2 and (tail := tail + math.comb(n, low + 1) * 0.5**n) <= 0.025:
        low += 1
    return {"median": statistics.median(order), "low": order[low], "high": order[n - 1 - low]}


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call holds at most beyond what is there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    now = most = 0
    for event in sorted(seen.events(), key=lambda e: e.time_range.end):
        now += event.self_cpu_memory_usage
        most = max(most, now)
    return most


def measured(setting: str, ways: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and peak bytes of a step of each contender, and ratios to its base."""
    loops = {way: made(setting, way, options) for way in ways}
    for loop in loops.values():
        loop.take(DISCARDED)
    seconds = in_turns(loops, options.turns, options.steps, every_thread=options.threads == 1)
    found: dict[str, Any] = {"ms": {}, "ratios": {}, "peak_bytes": {}}
    for way, loop in loops.items():
        found["ms"][way] = round(1e3 * statistics.median(seconds[way]) / options.steps, 3)
        found["peak_bytes"][way] = peak(lambda loop=loop: loop.take(1))  # type: ignore[misc]
        words = f"{setting:10s} {way:22s} {found['ms'][way]:8.2f} ms, peak {found['peak_bytes'][way] / 2**20:7.2f} MB"
        if way in BASE and BASE[way] in loops:
            own = middle([a / b for a, b in zip(seconds[way], seconds[BASE[way]], strict=True)])
            found["ratios"][way] = {key: round(value, 3) for key, value in own.items()}
            target = f", target {TARGETS[way]:g}" if way in TARGETS else ""
            words += f"   {own['median']:.3f} [{own['low']:.3f}, {own['high']:.3f}] of {BASE[way]}{target}"
        print(words, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is asked for and print it; returns the object of the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=",".join(OWN), help="comma-separated")
    parser.add_argument("--contenders", default=",".join(WAYS), help="comma-separated; ratios need their base")
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument(
        "--steps", type=int, default=16, help="of a turn; a multiple of 16 has each second level of cms"
    )
    parser.add_argument("--threads", type=int, default=1, help="0 = as torch chooses")  # as `hardware.threads`
    parser.add_argument("--tiny", action="store_true", help="small worlds, two turns of two steps")
    parser.add_argument("--record", action="store_true", help="append a line to docs/results/performance.md")
    options = parser.parse_args(argv)
    settings, ways = options.settings.split(","), options.contenders.split(",")
    for what, asked, known in (("--settings", settings, OWN), ("--contenders", ways, WAYS)):
        if unknown := set(asked) - set(known):
            parser.error(f"{what}: {sorted(unknown)}; there are {sorted(known)}")
    if options.tiny:
        options.turns = options.steps = 2
    heap.keep_freed()  # as a run does
    every = {setting: measured(setting, ways, options) for setting in settings}
    document = {
        "benchmark": "nested",
        "ratios": {
            f"{setting} {way}": one["median"] for setting, own in every.items() for way, one in own["ratios"].items()
        },
        "settings": every,
        "turns": options.turns,
        "steps": options.steps,
        "machine": machine(),
    }
    finish(document, options.record)
    return document


if __name__ == "__main__":
    main()
