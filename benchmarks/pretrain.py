"""Claim: pretraining in one pass over sessions is at least 5x faster than over expanded prefixes, with the same gradient.

    python benchmarks/pretrain.py                # V=1,518, 128 sessions a step, about 12 events a session
    python benchmarks/pretrain.py --items 20000
    python benchmarks/pretrain.py --quick

Contenders, with the same targets in every step (GRU4Rec, d=64, h=128, dropout 0.1, float32, Adam):

    metarec    sessions packed, one hidden state for every position; includes making the batch from the arrays
    expanded   every prefix of every session as a padded row of its own through nn.GRU, its last valid state scored
    one_pass   the same sessions as padded rows through nn.GRU, every valid state scored

Padded tensors of the other contenders are made before and not timed. Gradients (without dropout) are compared first.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from machine import alternate, machine, medians, peak_of_own_process, peak_rss_bytes
from torch import Tensor, nn

from metarec.core.seeding import generator
from metarec.data.batches import Batcher
from metarec.models.gru4rec import GRU4Rec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

DIM, HIDDEN, DROPOUT, MAX_LEN, LR = 64, 128, 0.1, 50, 1e-3


class Log:
    """Sessions of `batch` a step: 2 to 51 events, long-tailed, mean about 12."""

    def __init__(self, n_items: int, n_steps: int, batch: int) -> None:
        rng = np.random.default_rng(1)
        self.lengths = np.clip(np.ceil(rng.lognormal(2.15, 0.95, n_steps * batch)), 2, MAX_LEN + 1).astype(np.int64)
        self.end = np.cumsum(self.lengths)
        self.begin = self.end - self.lengths
        popularity = 1.0 / np.arange(1, n_items + 1) ** 0.8
        self.item = rng.choice(np.arange(1, n_items + 1), self.end[-1], p=popularity / popularity.sum()).astype(
            np.int32
        )
        self.steps = np.arange(n_steps * batch).reshape(n_steps, batch)
        self.batcher = Batcher(self.item, np.zeros(0, np.int64), np.zeros(0, np.int64), MAX_LEN)

    @property
    def n_targets(self) -> int:
        return int((self.lengths - 1).sum())

    def rows(self, step: int) -> list[Tensor]:
        return [torch.from_numpy(self.item[self.begin[s] : self.end[s]].astype(np.int64)) for s in self.steps[step]]

    def expanded(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prefixes [P, L], lengths [P], targets [P] (0-based)."""
        rows = self.rows(step)
        prefixes = [row[:end] for row in rows for end in range(1, len(row))]
        lengths = torch.tensor([len(prefix) for prefix in prefixes])
        return nn.utils.rnn.pad_sequence(prefixes, batch_first=True), lengths, torch.cat([row[1:] for row in rows]) - 1

    def padded(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sessions without their last event [B, L], which places count [B, L], their targets [P] (0-based)."""
        rows = self.rows(step)
        items = nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
        return items, items > 0, torch.cat([row[1:] for row in rows]) - 1


class Plain(nn.Module):
    """GRU4Rec as it is usually written."""

    def __init__(self, n_items: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, DIM)
        self.gru = nn.GRU(DIM, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(HIDDEN, n_items)

    def expanded(self, items: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(items))
        return F.cross_entropy(self.fc(self.dropout(states[torch.arange(len(items)), lengths - 1])), target)

    def one_pass(self, items: Tensor, counts: Tensor, target: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(items))
        return F.cross_entropy(self.fc(self.dropout(states[counts])), target)


class Contender:
    """A loss of step 0, 1, ... with Adam on it."""

    def __init__(self, loss: Callable[[int], Tensor], weights: list[Tensor], n_steps: int) -> None:
        self.loss, self.weights, self.n_steps = loss, weights, n_steps
        self.optimizer = torch.optim.Adam(weights, lr=LR)

    def gradients(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.loss(0), self.weights)

    def epoch(self) -> None:
        for step in range(self.n_steps):
            self.optimizer.zero_grad()
            self.loss(step).backward()
            self.optimizer.step()


def contenders(log: Log, n_items: int, dropout: float) -> dict[str, Contender]:
    model = GRU4Rec(n_items, DIM, HIDDEN, dropout)
    params = model.init(torch.Generator().manual_seed(1))
    tasks = Tasks(model, cross_entropy, lambda phi: phi)
    phi = {name: value.clone().requires_grad_() for name, value in params.items()}
    n_steps = len(log.steps)

    def packed(step: int) -> Tensor:
        chosen = log.steps[step]
        pairs = log.batcher.sessions(log.begin[chosen], log.end[chosen])
        return tasks.loss(pairs, generator(1, "dropout", step))(phi)[0]

    made = {"metarec": Contender(packed, list(phi.values()), n_steps)}
    for name, tensors in (("expanded", log.expanded), ("one_pass", log.padded)):
        module = Plain(n_items, dropout)
        module.load_state_dict(params)
        ready = [tensors(step) for step in range(n_steps)]
        loss = partial(lambda step, of, given: of(*given[step]), of=getattr(module, name), given=ready)
        made[name] = Contender(loss, list(module.parameters()), n_steps)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1518)
    parser.add_argument("--batch", type=int, default=128, help="sessions a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    log = Log(options.items, options.steps, options.batch)
    events = {"mean": log.lengths.mean(), **{f"p{p}": np.percentile(log.lengths, p) for p in (50, 90, 99)}}
    events = {name: round(float(value), 1) for name, value in events.items()}
    print("events a session: " + ", ".join(f"{name} {value}" for name, value in events.items()))

    if options.only:
        contenders(log, options.items, DROPOUT)[options.only].epoch()
        print(json.dumps({"peak_rss": peak_rss_bytes()}))
        return
    gradients = {name: one.gradients() for name, one in contenders(log, options.items, dropout=0.0).items()}
    difference = {}
    for name in ("metarec", "one_pass"):
        pairs = zip(gradients[name], gradients["expanded"], strict=True)
        difference[name] = max(float((got - wanted).abs().max() / wanted.abs().max()) for got, wanted in pairs)
        print(f"gradient of {name} against expanded: largest difference {difference[name]:.1e} of the tensor's largest")
        if not difference[name] < 1e-4:
            raise SystemExit(f"{name} does not give the gradient of the expanded prefixes: {difference[name]}")

    runs = {name: one.epoch for name, one in contenders(log, options.items, DROPOUT).items()}
    every = alternate(runs, 2 if options.quick else options.repeats)
    seconds = medians(every)
    for name, value in seconds.items():
        spread = f"{min(every[name]) * 1e3:.0f} to {max(every[name]) * 1e3:.0f}"
        rate = log.n_targets / value
        print(
            f"{name:9s} {value * 1e3:7.0f} ms an epoch of {options.steps} steps (median; {spread})   {rate:9.0f} targets/s"
        )
    memory = {}
    if not options.quick:
        same = ["--items", str(options.items), "--batch", str(options.batch), "--steps", str(options.steps)]
        same += ["--threads", str(options.threads)]
        memory = {name: peak_of_own_process(__file__, [*same, "--only", name]) for name in runs}
    print(
        json.dumps(
            {
                "benchmark": "pretrain",
                "ratios": {
                    "expanded_over_metarec": round(seconds["expanded"] / seconds["metarec"], 3),
                    "one_pass_over_metarec": round(seconds["one_pass"] / seconds["metarec"], 3),
                },
                "seconds": seconds,
                "targets_per_s": {name: round(log.n_targets / value) for name, value in seconds.items()},
                "bytes": {
                    "peak_rss": peak_rss_bytes(),
                    **{f"peak_rss_{name}": value for name, value in memory.items()},
                },
                "sizes": {
                    "items": options.items,
                    "sessions_a_step": options.batch,
                    "steps": options.steps,
                    "targets": log.n_targets,
                    "embedding_dim": DIM,
                    "hidden_dim": HIDDEN,
                    "events_a_session": events,
                },
                "gradient_difference": difference,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
