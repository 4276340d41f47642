"""Claim: 100,000 query pairs are ranked against all of 50,000 items at once much faster than user by user, in little memory.

    python benchmarks/evaluate.py                                   # 100,000 pairs of 10,000 users, 50,000 items, 128 states
    python benchmarks/evaluate.py --pairs 5000 --loop-users 20      # a quick one
    python benchmarks/evaluate.py --device cuda

What is timed starts with the last hidden state of every pair and ends with the rank of its target and the ten best items.

    together   chunks of `ranks.rows_at_once` pairs, whoever they belong to: GRU4Rec.score, then `ranks.rank_and_top`
    sorting    a user at a time, the usual way: the scores of his pairs, all items sorted, the first ten, the target's rank
    heap       a user at a time and as kind as a loop can be: the scores, topk instead of a sort, one comparison for the rank

The loops are timed on the first `--loop-users` users, in turn with `together` over all pairs, and compared by the time of a
pair. States and item table hold whole numbers up to 200, so that scores are exact in float32 whatever the order of
summation: ranks and lists of the three must be equal, ties among them. The last line is one JSON object.
"""

from __future__ import annotations

import argparse

import torch
from machine import alternate, finish, machine, medians, peak_rss_bytes
from torch import Tensor

from metarec.core import heap
from metarec.metrics.ranks import rank_and_top, rows_at_once
from metarec.models.gru4rec import GRU4Rec

TOP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--query", type=int, default=10, help="pairs of a user")
    parser.add_argument("--loop-users", type=int, default=100, help="users that the loops are timed on")
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
    device, generator = torch.device(options.device), torch.Generator().manual_seed(0)

    def whole_numbers(*shape: int) -> Tensor:
        return torch.randint(-200, 201, shape, generator=generator).float().to(device)

    model = GRU4Rec(options.items, 8, options.hidden)  # its embedding is not read
    params = {"fc.weight": whole_numbers(options.items, options.hidden), "fc.bias": whole_numbers(options.items)}
    states = whole_numbers(options.pairs, options.hidden)
    target = torch.randint(1, options.items + 1, (options.pairs,), generator=generator).to(device)
    looped = min(options.loop_users * options.query, options.pairs)
    before = peak_rss_bytes()

    def scores(rows: slice) -> Tensor:
        return model.score(params, states[None, rows])[0]

    def together(pairs: int = options.pairs) -> tuple[Tensor, Tensor]:
        size, found = rows_at_once(options.items), []
        for begin in range(0, pairs, size):
            rows = slice(begin, min(begin + size, pairs))
            found.append(rank_and_top(scores(rows), target[rows], k=TOP))
        return torch.cat([rank for rank, _ in found]), torch.cat([top for _, top in found])

    def loop(best: str) -> tuple[Tensor, Tensor]:
        ranks, tops = [], []
        for begin in range(0, looped, options.query):
            rows = slice(begin, min(begin + options.query, looped))
            logits = scores(rows)
            if best == "sort":
                tops.append(logits.sort(dim=-1, descending=True, stable=True).indices[:, :TOP] + 1)
            else:
                tops.append(logits.topk(TOP, dim=-1).indices + 1)
            ranks.append((logits >= logits.gather(1, target[rows, None] - 1)).sum(-1))
        return torch.cat(ranks), torch.cat(tops)

    with torch.no_grad():
        rank, top = together(looped)
        for name in ("sort", "topk"):
            own_rank, own_top = loop(name)
            same = (
                torch.equal(top, own_top) if name == "sort" else True
            )  # topk leaves open which of equal items it takes
            if not torch.equal(rank, own_rank) or not same:
                raise SystemExit(f"the loop by {name} does not give the ranks and lists of together")
        ways = {"together": together, "sorting": lambda: loop("sort"), "heap": lambda: loop("topk")}
        seconds = medians(alternate(ways, options.repeats))
    pairs = {"together": options.pairs, "sorting": looped, "heap": looped}
    each = {name: value / pairs[name] for name, value in seconds.items()}
    for name, value in each.items():
        whole, ratio = value * options.pairs, value / each["together"]
        print(f"{name:9s} {1e6 * value:9.1f} us a pair, {whole:9.1f} s for all; {ratio:6.2f}x")
    peak, at_once = peak_rss_bytes(), 4 * options.items * min(rows_at_once(options.items), options.pairs)
    print(
        f"peak memory {peak / 2**20:,.0f} MiB, {(peak - before) / 2**20:,.0f} MiB above states and table; "
        f"{at_once / 2**20:,.0f} MiB of scores at once, all would be {4 * options.items * options.pairs / 2**30:,.1f} GiB"
    )
    facts = machine()
    print(f"machine: {facts.get('gpu') or facts['cpu']}, {facts['threads']} threads, load {facts['load']}")
    finish(
        {
            "benchmark": "evaluate",
            "ratios": {f"{name}_over_together": round(each[name] / each["together"], 3) for name in ("sorting", "heap")},
            "seconds": {name: value * options.pairs for name, value in each.items()},
            "pairs_per_second": {name: 1 / value for name, value in each.items()},
            "bytes": {"peak_rss": peak, "above_states_and_table": peak - before, "scores_at_once": at_once},
            "sizes": {
                "pairs": options.pairs, "items": options.items, "hidden_dim": options.hidden, "query": options.query,
                "loop_pairs": looped, "chunk": rows_at_once(options.items),
            },
            "machine": facts,
        },
        options.record,
    )  # fmt: skip


if __name__ == "__main__":
    main()
