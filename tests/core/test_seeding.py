"""Generators are a pure function of (seed, purpose, step)."""

from __future__ import annotations

import torch

from metarec.core.seeding import generator


def draw(seed: int, purpose: str, step: int = 0) -> list[float]:
    return torch.rand(4, generator=generator(seed, purpose, step)).tolist()


def test_same_key_same_numbers_whatever_was_drawn_before() -> None:
    first = draw(1, "dropout", 3)
    torch.rand(10)
    assert draw(1, "dropout", 3) == first


def test_every_part_of_the_key_counts() -> None:
    keys = [
        (1, "dropout", 3),
        (2, "dropout", 3),
        (1, "init", 3),
        (1, "dropout", 4),
        (1, "dropout 3", 0),
        (13, "dropout", 0),
    ]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_the_stream_of_this_version() -> None:
    """Stored checkpoints go on with these numbers: a change is a change of results."""
    assert generator(1, "init").initial_seed() == 7065721046704990328
