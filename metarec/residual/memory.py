"""Memory: what a user has had comes back. A cache over his support and the query's own prefix, mixed into the scores.

    p(i)     = (1 - gate) softmax(exp(sharpness) scores)(i) + gate p_mem(i)
    p_mem(i) = sum over entries e with x_e = i of w_e / sum of all w_e
    w_e      = exp(similarity cos(h, k_e) - recency log(1 + a_e) + own s_e)
    gate     = sigmoid(b), or with `gate: state` sigmoid(b + u . h / sqrt(H))

An entry is an event known before the target (`data.recall`): x_e its item, k_e the hidden state just before it (without one
the cosine is 0), a_e its age counted back from the latest entry, s_e = 1 in the pair's own prefix. h is the state that the
pair is scored from. Objective and ranking see log p; without any entry p is the model's, sharpened.

A model that is surer of itself than it may be outvotes any memory; one number for all of its scores says how sure it may be.

Nothing is adapted: a user is his events. sharpness, similarity, recency, own, b and u are learned for all users in the outer
loop with a step size of their own, over frozen weights (`train_weights` learns these too). They start at 0 and b at the
logit of `start`, where p_mem is the relative frequency in support and prefix. In the support's own loss the memory is
causal. A model has seen the users it was pretrained on: what they repeat it knows by heart, and a gate learned on them
closes. So they are best learned on others (`pretrain.hold_out`).

Source: Grave, Joulin & Usunier 2017, arXiv:1612.04426, eq. 3-5 (continuous cache, linear interpolation); the labels of a
support as a datastore: Khandelwal et al. 2020, arXiv:1911.00172 (kNN-LM); a gate between repeating and exploring: Ren et
al. 2019, arXiv:1812.02646 (RepeatNet); one temperature: Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599, sec. 4.2.
Shapes: T tasks, N pairs, C entries of a pair, S states of a task, V items, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core.batch import PairBatch, Sequences
from metarec.core.weights import Params, Weights, own
from metarec.errors import ConfigError
from metarec.options import ranged
from metarec.residual import Named

PREFIX = "memory."  # what the names of the learned numbers begin with
STRAIGHT = 40.0  # above it log(1 + e^x) is x, to the last digit of float64


@dataclass
class Config:
    """conf/residual/memory.yaml"""

    name: str = "memory"
    gate: str = ranged("one", choices=["one", "state"])
    keys: bool = True
    start: float = ranged(0.2, min=0, max=1, exclusive=["min", "max"])
    lr: float = ranged(0.03, min=0, exclusive=["min"])
    train_weights: bool = False

    adapts: ClassVar[bool] = False
    reads_memory: ClassVar[bool] = True

    @property
    def frozen(self) -> bool:
        """Whether the pretrained weights stay as they are: then there must be some."""
        return not self.train_weights

    @property
    def outer_lrs(self) -> dict[str, float]:
        """The outer step size of the memory's own numbers."""
        return {"memory.": self.lr}


def numbers(config: Config, model: Named) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what the memory learns; ConfigError where the model does not say how wide its states are."""
    names = ["gate", *(["similarity"] if config.keys else []), "recency", "own", "sharpness"]
    found: dict[str, tuple[int, ...]] = {PREFIX + name: () for name in names}
    if config.gate == "state":
        shift = model.context_shapes().get("context.shift")
        if shift is None:
            what = "the model has no context.shift, which says how wide its states are"
            raise ConfigError("residual.gate", "state", what, "use residual.gate=one")
        found[PREFIX + "direction"] = shift
    return found


def learnable(config: Config, model: Named) -> dict[str, bool]:
    """The memory's numbers, and with `train_weights` all weights; none adapts."""
    weights = model.shapes() if config.train_weights else ()
    return dict.fromkeys([*weights, *numbers(config, model)], False)


def build(config: Config, base: Params, model: Named) -> MemoryResidual:
    """Of the model only the width of its states is read."""
    return MemoryResidual(
        base, numbers(config, model), math.log(config.start / (1 - config.start)), config.train_weights
    )


@dataclass(frozen=True)
class MemoryResidual:
    base: Params
    numbers: Mapping[str, tuple[int, ...]]
    logit: float  # of the gate at the start
    train_weights: bool = False

    def init(self, generator: torch.Generator) -> Params:
        """Zeros but for the gate, and the pretrained weights where they are trained; nothing is drawn."""
        like = next(iter(self.base.values()))
        phi = {name: value.clone() for name, value in self.base.items()} if self.train_weights else {}
        found = {name: like.new_zeros(shape) for name, shape in self.numbers.items()}
        return phi | found | {PREFIX + "gate": like.new_tensor(self.logit)}

    def compose(self, phi: Weights) -> Weights:
        """The weights: those of phi where they are trained, else the base; the memory's numbers are none."""
        rest = {name: weight for name, weight in phi.items() if not name.startswith(PREFIX)}
        return rest if self.train_weights else {**self.base, **rest}

    def mix(
        self, phi: Weights, scores: Tensor, pairs: PairBatch, states: Tensor, encode: Callable[[PairBatch], Tensor]
    ) -> Tensor:
        """scores [T, N, V], the batch's states [T + S, H] -> log p [T, N, V]; `encode` gives the states of the support."""
        recall, n_tasks = pairs.recall, pairs.n_tasks
        assert recall is not None  # `metarec.build.bench` asks for it
        h = pairs.gather(states)

        def number(name: str) -> Tensor:
            return own(phi[PREFIX + name], n_tasks)  # of its own for each task, where it is adapted

        there = recall.item > 0
        log_w = -number("recency")[:, None, None] * recall.age.to(scores.dtype).log1p()
        log_w = log_w + number("own")[:, None, None] * recall.own
        if PREFIX + "similarity" in phi:
            keys = by_task(states, pairs.sequences)
            if recall.support is not None:
                of_support = by_task(encode(recall.support), recall.support.sequences)
                keys = torch.cat([keys, of_support[:, 1:]], dim=1)
            cosine = torch.bmm(unit(h), unit(keys).transpose(1, 2)).gather(2, recall.key.clamp(min=0))
            log_w = log_w + number("similarity")[:, None, None] * torch.where(recall.key < 0, 0.0, cosine)
        w = log_w.masked_fill(~there, torch.finfo(log_w.dtype).min).softmax(-1) * there  # no entry at all: zeros
        p_mem = torch.zeros_like(scores).scatter_add(2, (recall.item - 1).clamp(min=0), w)

        gate = number("gate")[:, None]
        if PREFIX + "direction" in phi:
            gate = gate + (h * number("direction")[:, None, :]).sum(-1) / h.shape[-1] ** 0.5
        sharp = number("sharpness").exp()[:, None, None] * scores
        return mixed(sharp.log_softmax(-1), p_mem, gate.expand(h.shape[:2]), there.any(-1))


def mixed(log_p: Tensor, p_mem: Tensor, logit: Tensor, there: Tensor) -> Tensor:
    """log((1 - gate) p + gate p_mem) [T, N, V] from log p, p_mem [T, N, V], the gate's logit, and whether there is a memory.

    logit, there [T, N]. Nothing is taken to the power of a difference that could overflow, nor is a zero's logarithm taken.
    """
    found = p_mem > 0
    rest = log_p + torch.where(there, F.logsigmoid(-logit), 0.0)[..., None]
    more = F.logsigmoid(logit)[..., None] + torch.where(found, p_mem, 1.0).log() - rest
    return rest + torch.where(found, F.softplus(torch.where(found, more, 0.0), threshold=STRAIGHT), 0.0)


def by_task(states: Tensor, sequences: Sequences) -> Tensor:
    """[T + S, H] -> [T, 1 + W, H]: of each task the state before any event, then its own states; behind them, the first."""
    counts = sequences.lengths.sum(1)
    place = torch.arange(int(counts.max()) if len(counts) else 0, device=states.device)
    begin = torch.arange(len(counts), device=states.device)[:, None]
    index = torch.where(place < counts[:, None], len(counts) + sequences.places[:, :1] + place, begin)
    return states[torch.cat([begin, index], dim=1)]


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis, and 0 where x is 0 (with no gradient there)."""
    square = x.square().sum(-1, keepdim=True)
    return torch.where(square > 0, x * torch.where(square > 0, square, 1.0).rsqrt(), 0.0)
