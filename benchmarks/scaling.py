"""Claim: time grows with tasks, with prefix length and with items no faster than that of a supervised step.

    python benchmarks/scaling.py --over tasks                      # meta-batches of 1 to 128 tasks, 5 inner steps, V=1,518
    python benchmarks/scaling.py --over length                     # sessions of 5 to 200 events
    python benchmarks/scaling.py --over items --values 1518 20000 100000
    python benchmarks/scaling.py --over tasks --device cuda --values 32 128 512 2048

For every value, side by side on the same episodes (GRU4Rec, d=64, h=128, float32):

    metarec    the meta-gradient of FOMAML, all tasks together;  second: of MAML, through the inner steps
    supervised one supervised step over the same T*(K+Q) examples through nn.GRU, prefixes expanded and padded

The last line is one JSON object: tasks a second at every value, and how many times the largest value takes of the smallest.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from machine import alternate, busy_share, finish, machine, medians, peak_rss_bytes
from meta_step import DIM, HIDDEN, Published, World, supervised, together

from metarec.algorithms.inner import InnerLoop
from metarec.core import heap
from metarec.data.batches import Batcher
from metarec.models.gru4rec import GRU4Rec

VALUES = {
    "tasks": [1, 4, 16, 32, 64, 128],
    "length": [5, 10, 20, 50, 100, 200],
    "items": [1518, 20_000, 100_000],
}


def of_length(length: int, n_users: int, n_items: int, n_pairs: int, seed: int) -> tuple[Batcher, np.ndarray]:
    """Each user has one session, and its last `n_pairs` prefixes end with `length` events at the longest."""
    rng = np.random.default_rng(seed)
    size = max(length, n_pairs) + 1
    popularity = 1.0 / np.arange(1, n_items + 1) ** 0.8
    item = rng.choice(np.arange(1, n_items + 1), size=n_users * size, p=popularity / popularity.sum())
    begin = np.repeat(np.arange(n_users) * size, size - 1)
    event = begin + np.tile(np.arange(1, size), n_users)
    first = np.arange(n_users) * (size - 1) + size - 1 - n_pairs
    return Batcher(item.astype(np.int32), begin, event, size), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over", choices=list(VALUES), default="tasks")
    parser.add_argument("--values", type=int, nargs="+")
    parser.add_argument("--items", type=int, default=1518)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--support", type=int, default=5)
    parser.add_argument("--query", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.01)
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
    device, loop = torch.device(options.device), InnerLoop(options.lr, options.steps)
    values, rows = options.values or VALUES[options.over], []
    for value in values:
        own = argparse.Namespace(**{**vars(options), "chunk": 0})
        if options.over != "length":
            setattr(own, options.over, value)
        log = None
        if options.over == "length":
            log = of_length(value, options.tasks, options.items, options.support + options.query, seed=4)
        world = World(own, 4, log).to(device)
        params = GRU4Rec(own.items, DIM, HIDDEN).init(torch.Generator().manual_seed(1))
        params = {name: tensor.to(device) for name, tensor in params.items()}
        module = Published(own.items).to(device)
        module.load_state_dict(params)
        ways = {
            "metarec": lambda world=world, params=params: together(params, world, loop),
            "second": lambda world=world, params=params: together(params, world, loop, "second"),
            "supervised": lambda world=world, module=module: supervised(module, world.everything),
        }
        seconds = medians(alternate(ways, options.repeats))
        row = {
            options.over: value,
            "seconds": seconds,
            "tasks_per_second": {name: own.tasks / took for name, took in seconds.items()},
            "metarec_over_supervised": seconds["metarec"] / seconds["supervised"],
        }
        if options.device == "cuda":
            row["idle"] = 1 - busy_share(ways["metarec"])
        rows.append(row)
        shown = ", ".join(f"{name} {own.tasks / took:,.0f}" for name, took in seconds.items())
        idle = f", GPU idle {row['idle']:.0%}" if "idle" in row else ""
        print(
            f"{options.over} {value:>9,}: tasks/s {shown}; metarec/supervised {row['metarec_over_supervised']:.2f}{idle}"
        )
    ratios = {
        f"{name}_{values[-1]}_over_{values[0]}": rows[-1]["seconds"][name] / rows[0]["seconds"][name]
        for name in ("metarec", "second", "supervised")
    }
    ratios |= {f"metarec_over_supervised_{row[options.over]}": row["metarec_over_supervised"] for row in rows}
    finish(
        {
            "benchmark": f"scaling over {options.over}",
            "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
            "seconds": {str(row[options.over]): row["seconds"] for row in rows},
            "rows": rows,
            "bytes": {"peak_rss": peak_rss_bytes()},
            "sizes": {
                "tasks": options.tasks, "support": options.support, "query": options.query, "inner_steps": options.steps,
                "items": options.items, "embedding_dim": DIM, "hidden_dim": HIDDEN,
            },
            "machine": machine(),
        },
        options.record,
    )  # fmt: skip


if __name__ == "__main__":
    main()
