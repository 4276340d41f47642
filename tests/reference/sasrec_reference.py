"""SASRec with its context written out, one prefix, query and head at a time: the slow second version of `models.sasrec`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core.weights import Params
from metarec.models.sasrec import SASRec


def slow_logits(model: SASRec, params: Params, prefixes: Sequence[Sequence[int]]) -> Tensor:
    """Written out with the context, one prefix, query and head at a time; differentiable as often as one likes."""
    d, size, found = model.dim, model.dim // model.n_heads, []
    p = params.get("position.weight")
    tokens = params.get("context.prefix")

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, (d,)) * params[f"{name}.weight"] + params[f"{name}.bias"]

    for prefix in prefixes:
        state = torch.zeros(d, dtype=torch.float64)
        if prefix:
            h = params["embedding.weight"][list(prefix)] + p[: len(prefix)]
            for i in range(model.n_layers):
                at = f"layers.{i}"
                w_in, b_in = params[f"{at}.attention.in.weight"], params[f"{at}.attention.in.bias"]
                q, k, v = (norm(h, f"{at}.norm1") @ w_in.T + b_in).split(d, 1)
                rows = []
                for j in range(len(prefix)):
                    parts = []
                    for head in range(model.n_heads):
                        own = slice(head * size, head * size + size)
                        mass = (k[: j + 1, own] @ q[j, own] / size**0.5).softmax(0)
                        part = mass @ v[: j + 1, own]
                        if tokens is not None:
                            keys = norm(p[: len(tokens)] + tokens, f"{at}.norm1") @ w_in[d : 2 * d].T
                            values = tokens @ w_in[2 * d :].T
                            part = part + (keys[:, own] @ q[j, own] / size**0.5).softmax(0) @ values[:, own]
                        parts.append(part)
                    rows.append(torch.cat(parts))
                out = torch.stack(rows) @ params[f"{at}.attention.out.weight"].T + params[f"{at}.attention.out.bias"]
                h = h + out
                inside = (norm(h, f"{at}.norm2") @ params[f"{at}.ffn1.weight"].T + params[f"{at}.ffn1.bias"]).relu()
                h = h + inside @ params[f"{at}.ffn2.weight"].T + params[f"{at}.ffn2.bias"]
            state = norm(h[-1], "norm")
        if "context.shift" in params:
            state = state + params["context.shift"]
        if model.tie:
            found.append(params["embedding.weight"][1:] @ state)
        else:
            found.append(params["fc.weight"] @ state + params["fc.bias"])
    return torch.stack(found)
