"""Claim: many users are adapted together much faster than one at a time, and a user's own part is small.

    python benchmarks/serve.py                          # 1,000 users, K=5, 5 inner steps, V=1,518
    python benchmarks/serve.py --items 100000 --users 200 --chunk 50
    python benchmarks/serve.py --residual context       # only a user's contexts move
    python benchmarks/serve.py --device cuda

Serving adapts a user on his K latest pairs, then scores every item for his next event. Contenders, on the same users and
weights (GRU4Rec, d=64, h=128, float32), each from raw events to scores:

    together   all users of a chunk on the task axis
    single     the same code, one user at a time
    plain      one user at a time, the usual way: torch.optim.SGD on a deepcopy of an nn.Module; with --residual context on
               the initial state and a shift of the last hidden state

Scores are compared first. `bytes_per_user` is what belongs to one user after adaptation: the tensors of his offsets,
counted. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
import torch.nn.functional as F
from machine import alternate, finish, machine, medians, peak_rss_bytes
from meta_step import DIM, HIDDEN, Published, histories, padded
from torch import Tensor

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.core import heap
from metarec.core.offsets import tensors
from metarec.core.weights import FastWeight, Params
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import CrossEntropy
from metarec.tasks import Tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=1518)
    parser.add_argument("--support", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--chunk", type=int, default=250, help="users in memory at once")
    parser.add_argument("--residual", choices=["off", "context"], default="off")
    parser.add_argument("--repeats", type=int, default=3)
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
    weights = model.init(torch.Generator().manual_seed(1))
    phi: Params = {name: value.to(device) for name, value in weights.items()}
    loop = InnerLoop(options.lr, options.steps)
    if options.residual == "context":
        shapes = model.context_shapes()
        phi |= {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        loop = InnerLoop(options.lr, options.steps, adapted=frozenset(shapes))
    tasks = Tasks(model, CrossEntropy(), lambda theta: theta)

    def adapted(users: np.ndarray) -> tuple[dict[str, FastWeight], Tensor]:
        """(weights of these users, scores [T, V] of their next event)."""
        batch = batcher.episodes(users, first[users], k, 1).to(device)
        with torch.no_grad():
            own = inner.adapt(tasks.loss(batch.support), phi, len(users), loop)
            return own, tasks.logits(own, batch.query)[:, 0]

    def in_chunks(size: int) -> Tensor:
        found = [
            adapted(np.arange(begin, min(begin + size, options.users)))[1].cpu()
            for begin in range(0, options.users, size)
        ]
        return torch.cat(found)

    module = Published(options.items)
    module.load_state_dict(weights)
    module.to(device)

    def plain() -> Tensor:
        found = []
        for start in first:
            items, lengths, target = (t.to(device) for t in padded(batcher, np.arange(start, start + k)))
            own = module if options.residual == "context" else copy.deepcopy(module)
            context = [
                torch.zeros(HIDDEN, device=device, requires_grad=options.residual == "context") for _ in range(2)
            ]
            moving = context if options.residual == "context" else list(own.parameters())
            optimizer = torch.optim.SGD(moving, lr=options.lr)
            for _ in range(options.steps):
                loss = F.cross_entropy(own(items, lengths, *context), target)
                for value, grad in zip(moving, torch.autograd.grad(loss, moving), strict=True):
                    value.grad = grad
                optimizer.step()
            with torch.no_grad():
                query, length, _ = (t.to(device) for t in padded(batcher, np.arange(start + k, start + k + 1)))
                found.append(own(query, length, *context)[0].cpu())
        return torch.stack(found)

    ways = {"together": lambda: in_chunks(options.chunk), "single": lambda: in_chunks(1), "plain": plain}
    wanted = ways["single"]()
    difference = {}
    for name in ways:
        off = float((ways[name]() - wanted).abs().max() / wanted.abs().max())
        difference[name] = off
        if not off < 1e-4:
            raise SystemExit(f"{name} does not give the scores of single: {off}")
    print(f"scores of {', '.join(ways)}: largest difference {max(difference.values()):.1e} of the largest score")

    own, _ = adapted(np.arange(min(options.chunk, options.users)))
    held = sum(t.numel() * t.element_size() for w in own.values() if w.offset is not None for t in tensors(w.offset))
    per_user = held / min(options.chunk, options.users)
    seconds = medians(alternate(ways, options.repeats))
    for name, value in seconds.items():
        print(f"{name:9s} {value:8.3f} s   {options.users / value:9.1f} users/s   {value / seconds['together']:6.2f}x")
    print(f"one user's own numbers: {per_user / 2**20:.3f} MiB")
    ratios = {f"{name}_over_together": value / seconds["together"] for name, value in seconds.items()}
    ratios.pop("together_over_together")
    finish(
        {
            "benchmark": "serve",
            "ratios": {name: round(value, 3) for name, value in ratios.items()},
            "seconds": seconds,
            "users_per_second": {name: options.users / value for name, value in seconds.items()},
            "bytes": {"per_user": per_user, "peak_rss": peak_rss_bytes()},
            "sizes": {
                "users": options.users, "support": k, "inner_steps": options.steps, "items": options.items,
                "chunk": options.chunk, "residual": options.residual, "embedding_dim": DIM, "hidden_dim": HIDDEN,
            },
            "score_difference": difference,
            "machine": machine(),
        },
        options.record,
    )  # fmt: skip


if __name__ == "__main__":
    main()
