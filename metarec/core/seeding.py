"""Random generators that are a pure function of what they are for: a resumed run has no state to restore."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` keyed by (seed, purpose, step)."""
    key = hashlib.sha256(f"{seed} {purpose} {step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") >> 1)
