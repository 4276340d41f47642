"""What the tests of SASRec share: a small model, tied and untied, its weights and logits, and how results compare."""

from __future__ import annotations

from dataclasses import replace

import torch
from reference.small_tensors import normal
from torch import Tensor

from metarec.core.batch import PairBatch
from metarec.core.weights import Params, Weights
from metarec.models.sasrec import SASRec

V, D = 11, 6
MODEL = SASRec(V, D, n_layers=2, n_heads=2, dropout=0.3, max_len=12, ffn_dim=5)
UNTIED = replace(MODEL, tie=False, n_heads=3)
MODELS = {"tied": MODEL, "untied": UNTIED}


def weights(model: SASRec = MODEL, context: float | None = None, seed: int = 1) -> Params:
    """Large enough that attention is far from uniform; `context` is the size of the context's numbers."""
    params = {
        name: 0.6 * normal(*shape, seed=seed + number) + (name in model.norms and name.endswith("weight"))
        for number, (name, shape) in enumerate(model.shapes().items())
    }
    if context is not None:
        for number, (name, shape) in enumerate(model.context_shapes().items()):
            params[name] = context * normal(*shape, seed=seed + 100 + number)
    return params


def logits(
    params: Weights, pairs: PairBatch, model: SASRec = MODEL, generator: torch.Generator | None = None
) -> Tensor:
    return model.score(params, pairs.gather(model.encode(params, pairs.sequences, generator)), generator)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
