"""GRU4Rec as a plain module of torch's own layers, one prefix at a time: the slow second version of `models.gru4rec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class ReferenceGRU4Rec(nn.Module):
    """`Embedding, GRU, Linear`; `n_rows` rows in the embedding (n_items + 1 here, n_items in 0-based checkpoints)."""

    def __init__(self, n_rows: int, n_items: int, embedding_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_rows, embedding_dim)
        self.gru = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.fc = nn.Linear(hidden_dim, n_items)

    def forward(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Logits [N, V]; column c is the item of the c-th output unit. An empty prefix has hidden state zero."""
        states = []
        for prefix in prefixes:
            if prefix:
                output, _ = self.gru(self.embedding(torch.tensor([list(prefix)])))
                states.append(output[0, -1])
            else:
                states.append(self.fc.weight.new_zeros(self.gru.hidden_size))
        return self.fc(torch.stack(states))


def reference_of(params: Mapping[str, Tensor]) -> ReferenceGRU4Rec:
    """The module with a copy of the weights of `GRU4Rec.shapes()`."""
    (n_rows, d), (n_items, h) = params["embedding.weight"].shape, params["fc.weight"].shape
    module = ReferenceGRU4Rec(n_rows, n_items, d, h).to(params["fc.weight"].dtype)
    module.load_state_dict({name: value.detach().clone() for name, value in params.items()})
    return module
