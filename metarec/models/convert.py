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

TABLE = "embedding.weight"


def from_state_dict(tensors: Params, shapes: dict[str, tuple[int, ...]], where: Path, dtype: torch.dtype) -> Params:
    """The weights by the names and shapes of a model. CheckpointError names the tensor that does not fit."""
    missing = [name for name in shapes if name not in tensors]
    if missing:
        near = nearest(missing[0], set(tensors) - set(shapes))
        raise CheckpointError(
            where, missing[0], "the checkpoint has no such tensor" + (f" (it has {near})" if near else ""),
            f"give one with {', '.join(shapes)}",
        )  # fmt: skip
    extra = sorted(set(tensors) - set(shapes))
    if extra:
        raise CheckpointError(
            where, extra[0], "a tensor that the model has no place for", f"give one with {', '.join(shapes)}"
        )
    params = {name: tensors[name].to(dtype) for name in shapes}
    if TABLE in shapes:
        table, (n_rows, width) = params[TABLE], shapes[TABLE]
        if tuple(table.shape) == (n_rows - 1, width):
            params[TABLE] = torch.cat([torch.zeros_like(table[:1]), table])
    for name, shape in shapes.items():
        if tuple(params[name].shape) != shape:
            what, key = "the number of items or a width is not the model's", "fc.bias"
            if key in shapes and params[key].numel() != shapes[key][0]:
                what = f"made for {params[key].numel()} items, the dataset has {shapes[key][0]}"
            raise CheckpointError(
                where, f"{name} {list(params[name].shape)}", f"{what}; {list(shape)} is needed",
                "use the dataset and the model options it was trained with",
            )  # fmt: skip
    return params
