"""What the tests of laws share: three tasks, one step size, tensors drawn from a seed, and how two are compared."""

from __future__ import annotations

import torch
from torch import Tensor

T = 3
LR = 0.2


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def differ(a: Tensor, b: Tensor, by: float = 1e-3) -> bool:
    return float((a - b).detach().abs().max()) > by
