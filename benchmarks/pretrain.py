"""Claim: pretraining in one pass over sessions is at least 5x faster than over expanded prefixes, with the same gradient.

    python benchmarks/pretrain.py                # V=1,518, 128 sessions a step, about 12 events a session
    python benchmarks/pretrain.py --items 20000
    python benchmarks/pretrain.py --model gru4rec
    python benchmarks/pretrain.py --quick

Contenders, with the same targets in every step (GRU4Rec: d=64, h=128, dropout 0.1; SASRec: d=64, two layers, two heads,
dropout 0.2 at the same places, tied; float32, Adam), for each model:

    metarec    sessions packed, one hidden state for every position; includes making the batch from the arrays
    expanded   every prefix of every session as a padded row of its own through nn.GRU or nn.TransformerEncoder, its last
               valid state scored
    one_pass   the same sessions as padded rows through the same module, every valid state scored

Padded tensors of the other contenders are made before and not timed. Gradients (without dropout) are compared first.
The last line is one JSON object; its figures of SASRec stand under "sasrec".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import alternate, machine, medians, peak_of_own_process, peak_rss_bytes
from torch import Tensor, nn

from metarec.core import heap
from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.data.batches import Batcher
from metarec.models.gru4rec import GRU4Rec
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

DIM, HIDDEN, MAX_LEN, LR = 64, 128, 50, 1e-3
LAYERS, HEADS = 2, 2
WAYS = ("expanded", "one_pass")  # beside metarec
DROPOUT = {"gru4rec": 0.1, "sasrec": 0.2}


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


class PlainGRU4Rec(nn.Module):
    """GRU4Rec as it is usually written."""

    def __init__(self, n_items: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, DIM)
        self.gru = nn.GRU(DIM, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(HIDDEN, n_items)

    def load(self, params: Params) -> list[Tensor]:
        """The weights in the order of `params`."""
        self.load_state_dict(params)
        return list(self.parameters())

    def states(self, items: Tensor) -> Tensor:
        return self.gru(self.embedding(items))[0]

    def score(self, states: Tensor) -> Tensor:
        return self.fc(self.dropout(states))


class PlainSASRec(nn.Module):
    """SASRec out of torch's encoder layers; padding stands behind, where the causal mask hides it."""

    def __init__(self, n_items: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(n_items + 1, DIM), nn.Embedding(MAX_LEN, DIM)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(DIM, HEADS, DIM, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(DIM), enable_nested_tensor=False)
        for one in self.encoder.layers:  # dropout where metarec has it, no further
            one.self_attn.dropout = one.dropout.p = 0.0

    def load(self, params: Params) -> list[Tensor]:
        names = {
            "attention.in.": "self_attn.in_proj_", "attention.out": "self_attn.out_proj", "ffn1": "linear1",
            "ffn2": "linear2", "layers.": "encoder.layers.",
        }  # fmt: skip
        state = {}
        for name, value in params.items():
            for mine, theirs in names.items():
                name = name.replace(mine, theirs)
            state["encoder." + name if name.startswith("norm.") else name] = value
        self.load_state_dict(state)
        own = dict(self.named_parameters())
        return [own[name] for name in state]

    def states(self, items: Tensor) -> Tensor:
        length = items.shape[1]
        h = self.dropout(self.embedding(items) + self.position.weight[:length])
        return self.encoder(h, nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)

    def score(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embedding.weight[1:])


def expanded(module: Any, items: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(module.score(module.states(items)[torch.arange(len(items)), lengths - 1]), target)


def one_pass(module: Any, items: Tensor, counts: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(module.score(module.states(items)[counts]), target)


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


def contenders(kind: str, log: Log, n_items: int, dropout: float) -> dict[str, Contender]:
    if kind == "gru4rec":
        model, plain = GRU4Rec(n_items, DIM, HIDDEN, dropout), PlainGRU4Rec
    else:
        model, plain = SASRec(n_items, DIM, LAYERS, HEADS, dropout, MAX_LEN), PlainSASRec
    params = model.init(torch.Generator().manual_seed(1))
    tasks = Tasks(model, cross_entropy, lambda phi: phi)
    phi = {name: value.clone().requires_grad_() for name, value in params.items()}
    n_steps = len(log.steps)

    def packed(step: int) -> Tensor:
        chosen = log.steps[step]
        pairs = log.batcher.sessions(log.begin[chosen], log.end[chosen])
        return tasks.loss(pairs, generator(1, "dropout", step))(phi)[0]

    made = {"metarec": Contender(packed, list(phi.values()), n_steps)}
    for way, tensors in ((expanded, log.expanded), (one_pass, log.padded)):
        module = plain(n_items, dropout)
        weights = module.load(params)
        ready = [tensors(step) for step in range(n_steps)]
        loss = partial(lambda step, way, of, given: way(of, *given[step]), way=way, of=module, given=ready)
        made[way.__name__] = Contender(loss, weights, n_steps)
    return made


def compared(kind: str, log: Log, n_items: int) -> dict[str, float]:
    """How far the gradients of the others are from those of the expanded prefixes; SystemExit when too far."""
    gradients = {name: one.gradients() for name, one in contenders(kind, log, n_items, dropout=0.0).items()}
    difference = {}
    for name in ("metarec", "one_pass"):
        pairs = zip(gradients[name], gradients["expanded"], strict=True)
        difference[name] = max(float((got - wanted).abs().max() / wanted.abs().max()) for got, wanted in pairs)
        print(
            f"{kind}: gradient of {name} against expanded: "
            f"largest difference {difference[name]:.1e} of the tensor's largest"
        )
        if not difference[name] < 1e-4:
            raise SystemExit(f"{name} does not give the gradient of the expanded prefixes: {difference[name]}")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1518)
    parser.add_argument("--batch", type=int, default=128, help="sessions a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    parser.add_argument("--model", choices=sorted(DROPOUT), help="this one alone")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    heap.keep_freed()  # as a run does
    log = Log(options.items, options.steps, options.batch)
    events = {"mean": log.lengths.mean(), **{f"p{p}": np.percentile(log.lengths, p) for p in (50, 90, 99)}}
    events = {name: round(float(value), 1) for name, value in events.items()}
    print("events a session: " + ", ".join(f"{name} {value}" for name, value in events.items()))

    kinds = [options.model] if options.model else sorted(DROPOUT)
    if options.only:
        contenders(kinds[0], log, options.items, DROPOUT[kinds[0]])[options.only].epoch()
        print(json.dumps({"peak_rss": peak_rss_bytes()}))
        return
    difference = {kind: compared(kind, log, options.items) for kind in kinds}
    runs = {
        f"{kind} {name}": one.epoch
        for kind in kinds
        for name, one in contenders(kind, log, options.items, DROPOUT[kind]).items()
    }
    every = alternate(runs, 2 if options.quick else options.repeats)
    for name, value in medians(every).items():
        spread = f"{min(every[name]) * 1e3:.0f} to {max(every[name]) * 1e3:.0f}"
        print(
            f"{name:17s} {value * 1e3:7.0f} ms an epoch of {options.steps} steps (median; {spread})"
            f"   {log.n_targets / value:9.0f} targets/s"
        )
    figures = {}
    for kind in kinds:
        memory = {} if options.quick else {name: peak(kind, name, options) for name in ("metarec", *WAYS)}
        figures[kind] = figures_of(kind, medians(every), log.n_targets, memory, difference[kind])
    sizes = {
        "items": options.items,
        "sessions_a_step": options.batch,
        "steps": options.steps,
        "targets": log.n_targets,
        "embedding_dim": DIM,
        "hidden_dim": HIDDEN,
        "layers": LAYERS,
        "heads": HEADS,
        "events_a_session": events,
    }
    first, *rest = kinds
    print(
        json.dumps(
            {
                "benchmark": "pretrain",
                "model": first,
                **figures[first],
                **{kind: figures[kind] for kind in rest},
                "sizes": sizes,
                "machine": machine(),
            }
        )
    )


def figures_of(
    kind: str, seconds: dict[str, float], n_targets: int, memory: dict[str, int], difference: dict[str, float]
) -> dict[str, Any]:
    own = {name: seconds[f"{kind} {name}"] for name in ("metarec", *WAYS)}
    return {
        "ratios": {f"{name}_over_metarec": round(own[name] / own["metarec"], 3) for name in WAYS},
        "seconds": own,
        "targets_per_s": {name: round(n_targets / value) for name, value in own.items()},
        "bytes": {"peak_rss": peak_rss_bytes(), **{f"peak_rss_{name}": value for name, value in memory.items()}},
        "gradient_difference": difference,
    }


def peak(kind: str, name: str, options: argparse.Namespace) -> int:
    same = ["--items", str(options.items), "--batch", str(options.batch), "--steps", str(options.steps)]
    return peak_of_own_process(__file__, [*same, "--threads", str(options.threads), "--model", kind, "--only", name])


if __name__ == "__main__":
    main()
