"""What the tests of surprise compare with: levels and aims of torch's own layers, one pair at a time, and slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from reference.small_episodes import small_log
from torch import Tensor, nn
from torch.func import functional_call

from metarec.core.weights import Params
from metarec.models.gru4rec import GRU4Rec
from metarec.models.nested import Nested
from metarec.models.sasrec import SASRec
from metarec.objectives.cross_entropy import cross_entropy
from metarec.objectives.surprise import Surprise
from metarec.tasks import Tasks

V, T, N = 11, 3, 5
LOG = small_log(7, n_users=T, n_pairs=2 * N, n_items=V, max_len=5, unknown=0.2)
SUPPORT, QUERY = LOG.episodes(N, N).support, LOG.episodes(N, N).query
PLAIN = [query for _, query in LOG.plain_episodes(N, N)]
BOTH = {"fast": 0.3, "medium": 0.2, "slow": 0.1}
MODELS: dict[str, Any] = {
    "gru4rec": GRU4Rec(V, 4, 5, dropout=0.0),
    "sasrec": SASRec(V, 4, 1, 2, 0.0, 5),
    "nested": Nested(V, 4, "gru", 3, 5, 0.0),
    "lstm": Nested(V, 4, "lstm", 3, 5, 0.0),
}


def weights(name: str, seed: int = 1) -> Params:
    draw = torch.Generator().manual_seed(seed)
    found = MODELS[name].init(draw, torch.float64)
    return {n: v + 0.4 * torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in found.items()}


def leaves(params: Params) -> Params:
    return {name: value.clone().requires_grad_() for name, value in params.items()}


def lambdas(name: str) -> dict[str, float]:
    return BOTH if name in ("nested", "lstm") else {"fast": 0.3}


def engine(name: str, term: Surprise | None, batch: Any = QUERY, **more: Any) -> Callable[[Any], Tensor]:
    return Tasks(MODELS[name], cross_entropy, lambda phi: phi).loss(batch, surprise=term, **more)


# -- the slow second version: torch's own layers, a prefix at a time ------------------------------------------------


def shown(
    name: str, params: Params, prefix: Sequence[int], bend: dict[str, Tensor] | None = None
) -> tuple[Any, Tensor]:
    """(level -> its state [d], logits [V]) behind a prefix; `bend` is added to a level's state ahead of what reads it."""
    bend = bend or {}
    levels = {}

    def at(level: str, y: Tensor) -> Tensor:
        levels[level] = y + bend.get(level, 0.0)
        found: Tensor = levels[level]
        return found

    if name in ("nested", "lstm"):
        fast = {n[5:]: v for n, v in params.items() if n.startswith("fast.")}
        if prefix:
            kind = nn.GRU if name == "nested" else nn.LSTM
            theirs = {f"{n}_l0": fast[n] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            x = params["embedding.weight"][list(prefix)]
            h, _ = functional_call(kind(4, 4, dtype=torch.float64), theirs, (x,))
            y = at("fast", F.layer_norm(x[-1] + h[-1], (4,), fast["norm.weight"], fast["norm.bias"]))
            for level in ("medium", "slow"):
                of = {n[len(level) + 1 :]: v for n, v in params.items() if n.startswith(f"{level}.")}
                inner = F.gelu(of["up.weight"] @ y + of["up.bias"])
                y = y + of["down.weight"] @ inner + of["down.bias"]
                y = at(level, F.layer_norm(y, (4,), of["norm.weight"], of["norm.bias"]))
        else:
            zero = torch.zeros(4, dtype=torch.float64)
            for level in ("fast", "medium"):
                at(level, zero)
            y = at("slow", zero)
        return levels, params["fc.weight"] @ y + params["fc.bias"]
    assert name == "gru4rec"
    weights_of = {n[4:]: v for n, v in params.items() if n.startswith("gru.")}
    y = torch.zeros(5, dtype=torch.float64)
    if prefix:
        h, _ = functional_call(
            nn.GRU(4, 5, dtype=torch.float64), weights_of, (params["embedding.weight"][list(prefix)],)
        )
        y = h[-1]
    y = at("fast", y)
    return levels, params["fc.weight"] @ y + params["fc.bias"]


def aims(name: str, params: Params, term: Surprise, task: int, graph: bool = False) -> list[dict[str, Tensor]]:
    """u of every pair and level, by the definition: from the loss of the pair alone, through a change of its state."""
    known = [(prefix, target) for prefix, target in PLAIN[task] if target > 0]
    found = []
    for prefix, target in known:
        levels, _ = shown(name, params, prefix)
        zero = {level: torch.zeros_like(levels[level]).requires_grad_() for level in term.weights}
        _, logits = shown(name, params, prefix, zero)
        cost = F.cross_entropy(logits, torch.tensor(target - 1))
        grads = torch.autograd.grad(
            cost, list(zero.values()), create_graph=graph, allow_unused=True, materialize_grads=True
        )
        own = {}
        for level, g in zip(zero, grads, strict=True):
            u = {"neg_grad": -g, "grad": g, "zero": 0 * g}[term.target]
            length = u.norm()
            if term.scale == "raw":
                u = u / len(known)
            if term.scale == "normalised" and float(length.detach()) > 0:
                u = u / length
            if term.clip and float(u.detach().norm()) > term.clip:
                u = u * term.clip / u.norm()
            own[level] = u if graph else u.detach()
        found.append(own)
    return found


def slow(name: str, params: Params, term: Surprise, task: int, us: list[dict[str, Tensor]] | None = None) -> Tensor:
    """The task's loss with the term, u as given or as it is under `params`."""
    us = aims(name, params, term, task, graph=term.second_order) if us is None else us
    known = [(prefix, target) for prefix, target in PLAIN[task] if target > 0]
    total = torch.zeros((), dtype=torch.float64)
    for (prefix, target), own in zip(known, us, strict=True):
        levels, logits = shown(name, params, prefix)
        total = total + F.cross_entropy(logits, torch.tensor(target - 1))
        for level, weight in term.weights.items():
            total = total + weight * ((levels[level] - own[level]) ** 2).sum()
    return total / max(len(known), 1)


# -- central differences ---------------------------------------------------------------------------------------------


def directions(params: Params, n: int = 3) -> list[Params]:
    draw = torch.Generator().manual_seed(5)
    return [{k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in params.items()} for _ in range(n)]


def slope(value: Callable[[Params], Tensor], params: Params, along: Params, h: float = 2e-6) -> float:
    ends = [float(value({n: v + s * h * along[n] for n, v in params.items()}).detach().sum()) for s in (1, -1)]
    return (ends[0] - ends[1]) / (2 * h)


def check_slope(value: Callable[[Params], Tensor], grads: Params, params: Params, tolerance: float = 1e-7) -> None:
    for along in directions(params):
        wanted = slope(value, params, along)
        got = sum(float((grads[n] * along[n]).sum()) for n in params)
        assert abs(got - wanted) < tolerance * max(1.0, abs(wanted)), (got, wanted)


def gradients(value: Callable[[Params], Tensor], params: Params) -> Params:
    own = leaves(params)
    return dict(zip(own, torch.autograd.grad(value(own).sum(), list(own.values())), strict=True))
