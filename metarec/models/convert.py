"""Weights from elsewhere -> a metarec model: flat state dicts of `Embedding, GRU, Linear`, with 0-based item ids.

Such a dict numbers items from 0 and pads with 0 as well. Here 0 is padding only, so item i there is item i + 1 here:
the embedding gets a zero row in front, the output layer (no logit for padding) stays as it is. A dict whose embedding
has one row more than the output layer has that row already.
"""

from __future__ import annotations

from pathlib import Path

import torch

from metarec.core.weights import Params
from metarec.errors import CheckpointError, nearest


def from_state_dict(tensors: Params, shapes: dict[str, tuple[int, ...]], where: Path, dtype: torch.dtype) -> Params:
    """The weights by the names and shapes of `GRU4Rec.shapes()`. CheckpointError names the tensor that does not fit."""
    missing = [name for name in shapes if name not in tensors]
    if missing:
        near = nearest(missing[0], set(tensors) - set(shapes))
        raise CheckpointError(
            where, missing[0], "the checkpoint has no such tensor" + (f" (it has {near})" if near else ""),
            f"give one with {', '.join(shapes)}",
        )  # fmt: skip
    extra = sorted(set(tensors) - set(shapes))
    if extra:
        raise CheckpointError(where, extra[0], "a tensor that the model has no place for", "give a one-layer GRU4Rec")
    params = {name: tensors[name].to(dtype) for name in shapes}
    embedding = params["embedding.weight"]
    n_rows, width = shapes["embedding.weight"]
    if tuple(embedding.shape) == (n_rows - 1, width):
        params["embedding.weight"] = torch.cat([torch.zeros_like(embedding[:1]), embedding])
    for name, shape in shapes.items():
        if tuple(params[name].shape) != shape:
            what = "the number of items or a width is not the model's"
            if params["fc.bias"].numel() != shapes["fc.bias"][0]:
                what = f"made for {params['fc.bias'].numel()} items, the dataset has {shapes['fc.bias'][0]}"
            raise CheckpointError(
                where, f"{name} {list(params[name].shape)}", f"{what}; {list(shape)} is needed",
                "use the dataset and the model options it was trained with",
            )  # fmt: skip
    return params
