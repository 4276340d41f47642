"""The models of the exactness matrix (`algorithms/test_matrix.py`): a model joins it by one entry here.

The names of weights are written by hand, so that the reference does not hear them from the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from reference import model_reference
from torch import Tensor

from metarec.models.conv4 import Conv4
from metarec.models.gru4rec import GRU4Rec
from metarec.models.narm import NARM
from metarec.models.nested import Nested
from metarec.models.sasrec import SASRec

WAY = 3
Params = dict[str, Tensor]


@dataclass(frozen=True)
class InMatrix:
    model: Any  # small, without dropout
    logits: Callable[[Params, Any], Tensor]  # the slow second version: inputs of one task -> [N, V]
    head: tuple[str, ...]  # what ANIL adapts
    contexts: tuple[str, ...]
    norms: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()


def each(one: Callable[[Params, Any], Tensor]) -> Callable[[Params, Any], Tensor]:
    """Of one prefix -> of all prefixes of a task."""
    return lambda params, prefixes: torch.stack([one(params, prefix) for prefix in prefixes])


BLOCKS = range(1, 5)
MODELS = {
    "gru4rec": InMatrix(
        GRU4Rec(n_items=11, embedding_dim=4, hidden_dim=5, dropout=0.0),
        each(model_reference.gru4rec),
        head=("fc.weight", "fc.bias"),
        contexts=("context.state", "context.shift"),
    ),
    "sasrec": InMatrix(
        SASRec(n_items=11, dim=4, n_layers=1, n_heads=2, dropout=0.0, max_len=5),
        each(lambda params, prefix: model_reference.sasrec(params, prefix, 2)),
        head=("embedding.weight",),
        contexts=("context.prefix", "context.shift"),
        norms=tuple(f"{n}.{p}" for n in ("layers.0.norm1", "layers.0.norm2", "norm") for p in ("weight", "bias")),
    ),
    "narm": InMatrix(
        NARM(n_items=11, embedding_dim=3, hidden_dim=4, dropout=0.0, embedding_dropout=0.0),
        each(model_reference.narm),
        head=("embedding.weight", "decoder.weight"),
        contexts=("context.state", "context.shift"),
    ),
    "nested": InMatrix(
        Nested(n_items=11, dim=4, medium_dim=3, slow_dim=5, dropout=0.0),
        each(model_reference.nested),
        head=("fc.weight", "fc.bias"),
        contexts=("context.state", "context.shift"),
        norms=tuple(f"{level}.norm.{p}" for level in ("fast", "medium", "slow") for p in ("weight", "bias")),
    ),
    "conv4": InMatrix(
        Conv4(WAY, filters=3, image_size=16),
        model_reference.conv4,
        head=("fc.weight", "fc.bias"),
        contexts=("context.channels", "context.shift"),
        norms=tuple(f"norm{i}.{part}" for i in BLOCKS for part in ("weight", "bias")),
        statistics=tuple(f"norm{i}.{part}" for i in BLOCKS for part in ("mean", "var")),
    ),
}
