"""Claim: one meta-batch is many times faster than one task at a time, with the same meta-gradient.

    python benchmarks/meta_step.py                    # T=32, K=5, Q=10, 3 inner steps, V=1,518; four meta-batches
    python benchmarks/meta_step.py --items 20000 --vmap
    python benchmarks/meta_step.py --items 1000000 --chunk 4 --contenders metarec,supervised --batches 1
    python benchmarks/meta_step.py --steps 5 --contenders metarec,second,recompute     # first against second order
    python benchmarks/meta_step.py --device cuda --steps 5
    python benchmarks/meta_step.py --contenders metarec,compiled,second,second_compiled --threads 1 --quick
    python benchmarks/meta_step.py --quick            # fewer repetitions, no memory measurement
    python benchmarks/meta_step.py --record           # also append a line to docs/results/performance.md

Contenders, on the same episodes and weights (GRU4Rec, d=64, h=128, float32), each giving the meta-gradient:

    metarec    tasks together on the task axis; includes laying out the steps of the recurrence (once a batch)
    loop       one task at a time, the published way: deepcopy of an nn.Module, prefixes expanded and padded to max_len
               (50), torch.optim.SGD for the inner steps, backward of the query loss, gradients summed
    loop_tight the same with each set padded to its own longest prefix only, the kindest form of the loop
    vmap       with --vmap: torch.func over full copies, a GRU written with torch operators (nn.GRU has no batching rule)
    second     metarec with the exact second-order meta-gradient (MAML);  recompute: no graph of inner steps kept
    mixed      metarec with hardware.precision=bfloat16;  second_mixed: second with it
    compiled   metarec with hardware.compile=true;  second_compiled: second with it
    supervised one supervised step over the same T*(K+Q) examples through nn.GRU, expanded: no adaptation, a floor

Histories: sessions of a long-tailed length, all pairs of a session, windows of K+Q pairs; so prefixes are nested as in
real episodes. Padded tensors of the other contenders are made before and not timed; `batching` is the time ours take.
Gradients are compared first. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import alternate, busy_share, finish, machine, medians, peak_of_own_process, peak_rss_bytes
from torch import Tensor, nn

from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.core import fused, heap
from metarec.core.batch import EpisodeBatch, PairBatch, Sequences
from metarec.core.weights import Params
from metarec.data.batches import Batcher
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.tasks import Tasks

MAX_LEN, DIM, HIDDEN = 50, 64, 128
Padded = tuple[Tensor, Tensor, Tensor]  # items [N, L], lengths [N], targets [N] (0-based)


def histories(n_users: int, n_items: int, n_pairs: int, seed: int) -> tuple[Batcher, np.ndarray]:
    """A batcher over long-tailed sessions (prefixes: mean about 6, 90 % below about 19) and a window of each user."""
    rng = np.random.default_rng(seed)
    begin, event, first, at = [], [], [], 0
    for _ in range(n_users):
        wanted, made = n_pairs + int(rng.integers(25, 85)), 0
        own = len(begin)
        while made < wanted:
            length = 1 + max(1, int(np.ceil(rng.lognormal(-0.5, 1.6))))
            begin += [at] * (length - 1)
            event += range(at + 1, at + length)
            at, made = at + length, made + length - 1
        first.append(own + int(rng.integers(0, made - n_pairs + 1)))
    popularity = 1.0 / np.arange(1, n_items + 1) ** 0.8
    item = rng.choice(np.arange(1, n_items + 1), size=at, p=popularity / popularity.sum()).astype(np.int32)
    return Batcher(item, np.array(begin), np.array(event), MAX_LEN), np.array(first)


def padded(batcher: Batcher, pairs: np.ndarray) -> Padded:
    """Each pair's prefix as a row of its own, zeros behind it."""
    prefixes = []
    for pair in pairs:
        begin, event = batcher.pair_begin[pair], batcher.pair_event[pair]
        prefixes.append(torch.from_numpy(batcher.item[max(begin, event - batcher.max_len) : event].astype(np.int64)))
    target = torch.from_numpy(batcher.item[batcher.pair_event[pairs]].astype(np.int64) - 1)
    return (
        nn.utils.rnn.pad_sequence(prefixes, batch_first=True),
        torch.tensor([len(prefix) for prefix in prefixes]),
        target,
    )


class Published(nn.Module):
    """GRU4Rec as it is usually written."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, DIM)
        self.gru = nn.GRU(DIM, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, n_items)

    def forward(
        self, items: Tensor, lengths: Tensor, start: Tensor | None = None, shift: Tensor | float = 0.0
    ) -> Tensor:
        before = None if start is None else start.expand(1, len(items), -1).contiguous()
        states, _ = self.gru(self.embedding(items), before)
        return self.fc(states[torch.arange(len(items)), lengths - 1] + shift)


def one_task_at_a_time(module: Published, tasks: list[tuple[Padded, Padded]], lr: float, steps: int) -> Params:
    total = [torch.zeros_like(value) for value in module.parameters()]
    for (items, lengths, target), (query_items, query_lengths, query_target) in tasks:
        own = copy.deepcopy(module)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(own(items, lengths), target).backward()
            optimizer.step()
        optimizer.zero_grad()
        F.cross_entropy(own(query_items, query_lengths), query_target).backward()
        for grad, value in zip(total, own.parameters(), strict=True):
            grad.add_(value.grad, alpha=1 / len(tasks))
    return {name: grad for (name, _), grad in zip(module.named_parameters(), total, strict=True)}


def to_max_len(part: Padded) -> Padded:
    items, lengths, target = part
    return F.pad(items, (0, max(MAX_LEN - items.shape[1], 0))), lengths, target


def supervised(module: Published, everything: Padded) -> None:
    module.zero_grad()
    F.cross_entropy(module(everything[0], everything[1]), everything[2]).backward()


def fresh(batch: EpisodeBatch) -> EpisodeBatch:
    """The same batch without what an earlier repetition has left in it (the order of steps, made once for a batch)."""

    def again(pairs: PairBatch) -> PairBatch:
        held = pairs.sequences
        return PairBatch(Sequences(held.items, held.starts, held.lengths), pairs.at, pairs.target)

    return EpisodeBatch(again(batch.support), again(batch.query), batch.user)


def together(params: Params, world: World, loop: InnerLoop, order: str = "first", mixed: bool = False) -> Params:
    """The meta-gradient by metarec, chunk of tasks after chunk; a first order algorithm is FOMAML, a second MAML.

    Batches come from the host.
    """
    device = params["fc.bias"].device
    phi = {name: value.detach().requires_grad_() for name, value in params.items()}
    tasks = Tasks(GRU4Rec(len(phi["fc.bias"]), DIM, HIDDEN), CrossEntropy(), lambda weights: weights, mixed)
    for batch in (fresh(part).to(device) for part in world.parts):
        support, query = tasks.loss(batch.support), tasks.loss(batch.query)
        losses = MAML(loop, order).meta_losses(phi, support, query, batch.n_tasks)
        torch.autograd.backward(losses.sum() / len(world.first))
    return {name: grad for name, value in phi.items() if (grad := value.grad) is not None}


def compiled(way: Callable[[], Params]) -> Params:
    """The same with compiled element-wise work; not being able to compile ends the benchmark."""
    if not fused.switch(True, torch.device("cpu"), print):
        raise SystemExit(1)
    try:
        return way()
    finally:
        fused.switch(False, torch.device("cpu"), print)


def functional_loss(params: Params, items: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """The loss of one task with torch operators that vmap knows."""
    x = F.linear(params["embedding.weight"][items], params["gru.weight_ih_l0"], params["gru.bias_ih_l0"])
    h = x.new_zeros(items.shape[0], HIDDEN)
    for step in range(items.shape[1]):
        r, z, n = x[:, step].chunk(3, -1)
        hr, hz, hn = F.linear(h, params["gru.weight_hh_l0"], params["gru.bias_hh_l0"]).chunk(3, -1)
        r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
        n = torch.tanh(n + r * hn)
        h = torch.where((step < lengths)[:, None], (1 - z) * n + z * h, h)
    return F.cross_entropy(F.linear(h, params["fc.weight"], params["fc.bias"]), target)


def over_copies(params: Params, support: list[Tensor], query: list[Tensor], lr: float, steps: int) -> Params:
    def of_one(s: list[Tensor], q: list[Tensor]) -> Params:
        own = params
        for _ in range(steps):
            grads = torch.func.grad(functional_loss)(own, *s)
            own = {name: value - lr * grads[name] for name, value in own.items()}
        return torch.func.grad(functional_loss)(own, *q)

    return {name: grad.mean(0) for name, grad in torch.func.vmap(of_one)(support, query).items()}


def stacked(parts: list[Padded]) -> list[Tensor]:
    width = max(items.shape[1] for items, _, _ in parts)
    items = torch.stack([F.pad(items, (0, width - items.shape[1])) for items, _, _ in parts])
    return [items, torch.stack([lengths for _, lengths, _ in parts]), torch.stack([target for _, _, target in parts])]


class World:
    """One meta-batch in the form that each contender takes."""

    def __init__(self, options: argparse.Namespace, seed: int, log: tuple[Batcher, np.ndarray] | None = None) -> None:
        self.k, self.q = options.support, options.query
        self.batcher, self.first = log or histories(options.tasks, options.items, self.k + self.q, seed)
        self.span = self.first[:, None] + np.arange(self.k + self.q)
        self.parts = self.make(options.chunk)
        self.tight = [(padded(self.batcher, own[: self.k]), padded(self.batcher, own[self.k :])) for own in self.span]
        self.fixed = [tuple(to_max_len(part) for part in both) for both in self.tight]
        self.stacked = stacked([support for support, _ in self.tight]), stacked([query for _, query in self.tight])
        self.everything = padded(self.batcher, self.span.ravel())

    def to(self, device: torch.device) -> World:
        """What the other contenders take, on the device."""

        def placed(part: Any) -> Any:
            return part.to(device) if isinstance(part, Tensor) else type(part)(placed(own) for own in part)

        for name in ("tight", "fixed", "stacked", "everything"):
            setattr(self, name, placed(getattr(self, name)))
        return self

    def make(self, chunk: int) -> list[EpisodeBatch]:
        """The meta-batch, in chunks of tasks."""
        user, size = np.arange(len(self.first)), chunk or len(self.first)
        parts = [slice(begin, begin + size) for begin in range(0, len(user), size)]
        return [self.batcher.episodes(user[part], self.first[part], self.k, self.q) for part in parts]

    def prefix_lengths(self) -> np.ndarray:
        return np.minimum(self.batcher.pair_event[self.span] - self.batcher.pair_begin[self.span], MAX_LEN).ravel()


PAIRS = [
    *(("loop", name) for name in ("metarec", "loop_tight", "supervised", "vmap", "second")),
    ("loop_tight", "metarec"), ("vmap", "metarec"), ("metarec", "supervised"), ("second", "metarec"),
    ("recompute", "second"), ("second", "supervised"), ("compiled", "metarec"),
    ("second_compiled", "second"), ("mixed", "metarec"), ("second_mixed", "second"),
]  # fmt: skip


def over_all(way: Callable[[World], object], worlds: list[World]) -> None:
    for world in worlds:
        way(world)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1518)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--support", type=int, default=5)
    parser.add_argument("--query", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--vmap", action="store_true", help="also vmap over copies (slow; gigabytes at many items)")
    parser.add_argument("--chunk", type=int, default=0, help="tasks in memory at once; 0 = all")
    parser.add_argument("--contenders", default="metarec,loop,loop_tight,supervised", help="comma-separated")
    parser.add_argument("--record", action="store_true", help="append a line to docs/results/performance.md")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    heap.keep_freed()  # as a run does
    if options.threads:
        torch.set_num_threads(options.threads)
    k, q, lr, steps = options.support, options.query, options.lr, options.steps

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    device = torch.device(options.device)
    worlds = [World(options, seed).to(device) for seed in range(4, 4 + options.batches)]
    lengths = np.concatenate([world.prefix_lengths() for world in worlds])
    prefix = {"mean": lengths.mean(), **{f"p{p}": np.percentile(lengths, p) for p in (50, 90, 99)}}
    prefix = {name: round(float(value), 1) for name, value in prefix.items()}
    print("prefix length, cut at 50: " + ", ".join(f"{name} {value}" for name, value in prefix.items()))

    params = GRU4Rec(options.items, DIM, HIDDEN).init(torch.Generator().manual_seed(1))
    params = {name: value.to(device) for name, value in params.items()}
    module = Published(options.items).to(device)
    module.load_state_dict(params)
    loop = InnerLoop(lr, steps)
    every_way: dict[str, Callable[[World], Params | None]] = {
        "metarec": lambda world: together(params, world, loop),
        "second": lambda world: together(params, world, loop, "second"),
        "recompute": lambda world: together(params, world, replace(loop, recompute=True), "second"),
        "mixed": lambda world: together(params, world, loop, mixed=True),
        "second_mixed": lambda world: together(params, world, loop, "second", mixed=True),
        "compiled": lambda world: compiled(lambda: together(params, world, loop)),
        "second_compiled": lambda world: compiled(lambda: together(params, world, loop, "second")),
        "vmap": lambda world: over_copies(params, *world.stacked, lr, steps),
        "loop": lambda world: one_task_at_a_time(module, world.fixed, lr, steps),
        "loop_tight": lambda world: one_task_at_a_time(module, world.tight, lr, steps),
        "supervised": lambda world: supervised(module, world.everything),
    }
    asked = options.contenders.split(",") + (["vmap"] if options.vmap else [])
    if unknown := set(asked) - set(every_way):
        parser.error(f"--contenders: {sorted(unknown)}; there are {sorted(every_way)}")
    ways = {name: every_way[name] for name in asked}
    contenders = {name: partial(over_all, way, worlds) for name, way in ways.items()}
    if options.only:
        contenders[options.only]()
        print(json.dumps({"peak_rss": peak_rss_bytes()}))
        return

    difference = {}
    wanted = ways["loop"](worlds[0]) if "loop" in ways else None
    for name in sorted({"metarec", "loop_tight", "vmap"} & set(ways)) if wanted else ():
        got = ways[name](worlds[0])
        assert got is not None
        assert wanted is not None
        off = max(float((got[key] - wanted[key]).abs().max() / wanted[key].abs().max()) for key in wanted)
        difference[name] = off
        print(f"meta-gradient of {name} against the loop: largest difference {off:.1e} of the tensor's largest entry")
        if not off < 1e-4:
            raise SystemExit(f"{name} does not give the loop's meta-gradient: {off}")

    start = time.perf_counter()
    for _ in range(5):
        for world in worlds:
            world.make(options.chunk)
    batching = (time.perf_counter() - start) / 5 / len(worlds)

    every = alternate(contenders, 2 if options.quick else options.repeats)
    every = {name: [value / len(worlds) for value in values] for name, values in every.items()}  # a meta-batch
    seconds = medians(every)
    for name, value in seconds.items():
        spread = f"{min(every[name]) * 1e3:.1f} to {max(every[name]) * 1e3:.1f}"
        against = f"   {seconds['loop'] / value:6.2f}x the loop" if "loop" in seconds else ""
        print(f"{name:11s} {value * 1e3:8.1f} ms (median; {spread}){against}")
    print(f"{'batching':11s} {batching * 1e3:8.1f} ms")
    memory = {}
    if not options.quick and options.device == "cpu":
        same = ["--items", str(options.items), "--tasks", str(options.tasks), "--steps", str(steps)]
        same += ["--batches", "1", "--threads", str(options.threads)]
        same += ["--support", str(k), "--query", str(q), "--chunk", str(options.chunk), "--contenders", ",".join(ways)]
        memory = {name: peak_of_own_process(__file__, [*same, "--only", name]) for name in contenders}
    ratios = {
        f"{slow}_over_{quick}": seconds[slow] / seconds[quick]
        for slow, quick in PAIRS
        if slow in seconds and quick in seconds
    }
    if "loop" in seconds and "metarec" in seconds:
        ratios["loop_over_metarec_with_batching"] = seconds["loop"] / (seconds["metarec"] + batching)
    if options.device == "cuda":
        ratios |= {f"busy_{name}": busy_share(run) for name, run in contenders.items()}
    for name in ("second", "recompute"):
        if name in memory and "metarec" in memory:
            ratios[f"peak_{name}_over_metarec"] = memory[name] / memory["metarec"]
    finish(
        {
            "benchmark": "meta_step",
            "ratios": {name: round(value, 3) for name, value in ratios.items()},
            "seconds": {**seconds, "batching": batching},
            "bytes": {
                "peak_rss": peak_rss_bytes(),
                **{f"peak_rss_{name}": value for name, value in memory.items()},
            },
            "sizes": {
                "meta_batches": options.batches,
                "tasks": options.tasks,
                "support": k,
                "query": q,
                "inner_steps": steps,
                "items": options.items,
                "embedding_dim": DIM,
                "hidden_dim": HIDDEN,
                "prefix_length": prefix,
            },
            "gradient_difference": difference,
            "machine": machine(),
        },
        options.record,
    )


if __name__ == "__main__":
    main()
