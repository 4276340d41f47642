"""A memory as plain loops over events, one pair at a time: the slow second version of `data.recall` and `residual.memory`.

States come from a GRU cell stepped by hand, so nothing of the packed batches is shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from reference.small_episodes import SmallLog
from torch import Tensor

Params = dict[str, Tensor]


@dataclass(frozen=True)
class SlowMemory:
    """Of one user: his support pairs, and the log that all numbers of events belong to."""

    log: SmallLog
    support: list[int]

    def ends(self, pair: int) -> tuple[int, int]:
        return int(self.log.batcher.pair_begin[pair]), int(self.log.batcher.pair_event[pair])

    def item(self, event: int) -> int:
        return int(self.log.batcher.item[event])

    def entries(self, pair: int) -> list[tuple[int, int, bool]]:
        """(event, item, whether it is of the own prefix) of what is known before the target, the earliest first."""
        begin, target = self.ends(pair)
        events = set(range(begin, target))
        for other in self.support:
            if other < pair:
                events |= set(range(self.ends(other)[0], self.ends(other)[1] + 1))
        return [(e, self.item(e), begin <= e) for e in sorted(events) if self.item(e) > 0]

    def window(self, pair: int, event: int) -> list[int] | None:
        """What the model has read just before an event that a pair holds; None where it is cut off."""
        begin, target = self.ends(pair)
        start = max(begin, target - self.log.batcher.max_len)
        if event < start or (event == start and start > begin):
            return None
        return self.readable(start, event)

    def readable(self, start: int, end: int) -> list[int]:
        most = self.log.batcher.n_read
        items = [self.item(e) for e in range(start, end)]
        return [i for i in items if i > 0 and (most is None or i <= most)]

    def key(self, pair: int, event: int, own: bool) -> list[int] | None:
        if own:
            return self.window(pair, event)
        holder = next(s for s in self.support if self.ends(s)[0] <= event <= self.ends(s)[1])
        return self.window(holder, event)


def state(params: Params, items: list[int]) -> Tensor:
    h = params["context.state"] if "context.state" in params else params["gru.weight_hh_l0"].new_zeros(
        params["gru.weight_hh_l0"].shape[1]
    )  # fmt: skip
    for item in items:
        gates = [params[f"gru.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = torch.gru_cell(params["embedding.weight"][item][None], h[None], *gates)[0]
    return h


def log_p(memory: SlowMemory, pair: int, params: Params) -> Tensor:
    """[V]; `params`: a GRU4Rec's weights and contexts, and the memory's numbers."""
    begin, target = memory.ends(pair)
    start = max(begin, target - memory.log.batcher.max_len)
    h = state(params, memory.readable(start, target))
    shift = params.get("context.shift", torch.zeros_like(h))
    scores = params["fc.weight"] @ (h + shift) + params["fc.bias"]
    if "memory.sharpness" in params:
        scores = math.e ** params["memory.sharpness"] * scores
    p = scores.softmax(0)
    entries = memory.entries(pair)
    if not entries:
        return p.log()
    weights = []
    for number, (event, _, own) in enumerate(entries):
        age = len(entries) - 1 - number
        key, cosine = memory.key(pair, event, own), torch.zeros((), dtype=h.dtype)
        if "memory.similarity" in params and key is not None:
            k = state(params, key)
            if float(h.detach().norm()) > 0 and float(k.detach().norm()) > 0:
                cosine = (h @ k) / (h.norm() * k.norm())
        log_w = -params["memory.recency"] * math.log(1 + age) + params["memory.own"] * float(own)
        if "memory.similarity" in params:
            log_w = log_w + params["memory.similarity"] * cosine
        weights.append(log_w.exp())
    total = torch.stack(weights).sum()
    columns = [torch.zeros((), dtype=h.dtype) for _ in range(len(p))]
    for w, (_, item, _) in zip(weights, entries, strict=True):
        columns[item - 1] = columns[item - 1] + w / total
    gate = params["memory.gate"]
    if "memory.direction" in params:
        gate = gate + params["memory.direction"] @ h / math.sqrt(len(h))
    share = gate.sigmoid()
    return ((1 - share) * p + share * torch.stack(columns)).log()


def mean_loss(memory: SlowMemory, pairs: list[int], params: Params) -> Tensor:
    """Over the pairs whose target is in the vocabulary."""
    targets = [(pair, memory.item(memory.ends(pair)[1])) for pair in pairs]
    known = [-log_p(memory, pair, params)[item - 1] for pair, item in targets if item > 0]
    return torch.stack(known).mean() if known else sum(v.sum() for v in params.values()) * 0  # type: ignore[return-value]
