"""Foreign state dicts: the same logits on shifted ids, or an error that names the tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.gru4rec_reference import ReferenceGRU4Rec

from metarec.core.weights import Params
from metarec.data.batches import Batcher
from metarec.errors import CheckpointError
from metarec.models.convert import from_state_dict
from metarec.models.gru4rec import GRU4Rec

MODEL = GRU4Rec(n_items=7, embedding_dim=3, hidden_dim=4)
WHERE = Path("old.pth")


def legacy(n_items: int = 7) -> tuple[ReferenceGRU4Rec, Params]:
    """A model that numbers items from 0 and has no row for padding."""
    torch.manual_seed(2)
    module = ReferenceGRU4Rec(n_items, n_items, 3, 4)
    return module, {name: value.detach().clone() for name, value in module.state_dict().items()}


def check_same_logits(convert: Callable[..., Params] = from_state_dict) -> None:
    module, tensors = legacy()
    module = module.double()
    params = convert(tensors, MODEL.shapes(), WHERE, torch.float64)
    items = np.array([0, 3, 6, 6, 1, 0, 2])  # 0-based, item 0 among them
    prefixes = [items[:end].tolist() for end in range(1, 7)]
    batch = Batcher((items + 1).astype(np.int32), np.zeros(6, np.int64), np.arange(1, 7), 50).pairs(np.arange(6)[None])
    got = MODEL.score(params, batch.gather(MODEL.encode(params, batch.sequences)))[0]
    torch.testing.assert_close(got, module(prefixes), rtol=0, atol=1e-12)
    assert torch.equal(batch.target[0] - 1, torch.from_numpy(items[1:]))  # and logit column = 0-based id


def test_zero_based_ids_give_the_same_logits() -> None:
    check_same_logits()


def test_a_forgotten_shift_is_seen() -> None:
    def unshifted(*given: Any) -> Params:
        params = from_state_dict(*given)
        return params | {"embedding.weight": params["embedding.weight"].roll(-1, 0)}  # the zero row at the end

    with pytest.raises(AssertionError):
        check_same_logits(unshifted)


def test_a_dict_with_the_padding_row_is_taken_as_it_is() -> None:
    params = MODEL.init(torch.Generator().manual_seed(1))
    taken = from_state_dict(params, MODEL.shapes(), WHERE, torch.float32)
    assert list(taken) == list(params)
    assert all(torch.equal(taken[name], params[name]) for name in params)


def test_the_published_size() -> None:
    module = ReferenceGRU4Rec(1518, 1518, 64, 128)
    assert sum(value.numel() for value in module.parameters()) == 367_470
    params = from_state_dict(dict(module.state_dict()), GRU4Rec(1518).shapes(), WHERE, torch.float32)
    assert sum(value.numel() for value in params.values()) == 367_470 + 64


def test_a_missing_tensor_is_named_with_the_nearest() -> None:
    _, tensors = legacy()
    tensors["gru.weight_hh"] = tensors.pop("gru.weight_hh_l0")
    with pytest.raises(CheckpointError, match=r"old.pth: gru.weight_hh_l0: .*no such tensor \(it has gru.weight_hh\)"):
        from_state_dict(tensors, MODEL.shapes(), WHERE, torch.float32)


def test_an_extra_tensor_is_named() -> None:
    _, tensors = legacy()
    tensors["gru.weight_hh_l1"] = torch.zeros(12, 4)
    with pytest.raises(CheckpointError, match=r"gru\.weight_hh_l1: a tensor that the model has no place for"):
        from_state_dict(tensors, MODEL.shapes(), WHERE, torch.float32)


@pytest.mark.parametrize("n_items", [5, 8, 6])
def test_another_number_of_items_is_said(n_items: int) -> None:
    """8 is the trap: its 8 embedding rows without padding are as many as 7 items with padding have."""
    _, tensors = legacy(n_items)
    with pytest.raises(CheckpointError, match=f"made for {n_items} items, the dataset has 7"):
        from_state_dict(tensors, MODEL.shapes(), WHERE, torch.float32)


@pytest.mark.parametrize("name", list(MODEL.shapes()))
def test_a_wrong_shape_is_named(name: str) -> None:
    _, tensors = legacy()
    for wrong in (torch.zeros(()), torch.zeros(2, 2, 2)):
        with pytest.raises(CheckpointError, match=r"old\.pth: ") as caught:
            from_state_dict(tensors | {name: wrong}, MODEL.shapes(), WHERE, torch.float32)
        assert name in str(caught.value)
