"""What surprise has seen: of each level its aim, its term and the angle between state and aim, summed while losses are made.

    |u|        mean length of the aim, as it is used: scaled and clipped
    term       mean of lambda * || y - u ||^2
    cosine     mean of <y, u> / (|y| |u|), over the pairs where both have a length

Means over the pairs that count, each counting once, in all passes of the losses that pay it. Sums stay on the device, and
are read when a line of history.jsonl is written. With the target `zero` there is no aim: |u| is 0, no pair has a cosine.

The term (`objectives.surprise`) tells `active`; there is one only inside of `Seen.step`, which a loop with surprise opens
around the losses of a step, so what else is made of losses is not seen. Nothing here is differentiated.

Shapes: T tasks, N pairs, d width of a level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

SUMS = ("pairs", "u", "term", "turned", "cosine")  # `turned`: pairs that have a cosine
PREFIX = "timescales/surprise/"


class Seen:
    """Sums float64 [5] by level: of the step that is being made, since they were last told, and of the whole loop."""

    def __init__(self) -> None:
        self.now: dict[str, Tensor] = {}
        self.held: dict[str, Tensor] = {}  # [2, 5]: since last told, and all

    @torch.no_grad()
    def add(self, level: str, y: Tensor, u: Tensor | None, term: Tensor, counts: Tensor) -> None:
        """States y and aims u [T, N, d] (None: zero) and terms [T, N] of a level; counts bool [T, N]."""
        zero = term.new_zeros(())
        sums = [counts.sum(), zero, torch.where(counts, term, 0.0).sum(), zero, zero]
        if u is not None:
            length = torch.linalg.vector_norm(u, dim=2)
            both = length * torch.linalg.vector_norm(y, dim=2)
            there = counts & (both > 0)
            cosine = torch.where(there, torch.linalg.vecdot(y, u) / torch.where(there, both, 1.0), 0.0)
            sums[1], sums[3], sums[4] = torch.where(counts, length, 0.0).sum(), there.sum(), cosine.sum()
        found = torch.stack([one.double() for one in sums])
        self.now[level] = self.now[level] + found if level in self.now else found

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the losses of a step; what was seen of one before that did not stand is dropped. These do not nest."""
        global active
        assert active is None
        self.now, active = {}, self
        try:
            yield
        finally:
            active = None

    def stand(self) -> None:
        """The step stands."""
        for level, found in self.now.items():
            self.held[level] = self.held[level] + found if level in self.held else found.repeat(2, 1)
        self.now = {}

    def told(self) -> dict[str, dict[str, float]]:
        """Level -> means since this was last asked; levels of which nothing was seen are not among them."""
        found = _means({level: held[0] for level, held in self.held.items()})
        self.held = {level: torch.stack([torch.zeros_like(held[0]), held[1]]) for level, held in self.held.items()}
        return {level: {name: value for name, value in own.items() if name != "pairs"} for level, own in found.items()}

    def total(self) -> dict[str, dict[str, float]]:
        """Level -> number of pairs and means of the whole loop."""
        return _means({level: held[1] for level, held in self.held.items()})

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, [2, 5] each."""
        return {PREFIX + level: held for level, held in self.held.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from the tensors [*S] of a checkpoint, of which those of `tensors()` are read."""
        self.held = {
            name.removeprefix(PREFIX): held.to(device) for name, held in tensors.items() if name.startswith(PREFIX)
        }


active: Seen | None = None  # of the step whose losses are being made


def _means(sums: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Of sums [5] by level; a cosine only where a pair has one. By name: a checkpoint has them in no order."""
    out: dict[str, dict[str, float]] = {}
    names = sorted(sums)
    rows = torch.stack([sums[level] for level in names]).tolist() if sums else []  # read at once
    for level, (pairs, u, term, turned, cosine) in zip(names, rows, strict=True):
        if pairs:
            out[level] = {"pairs": int(pairs), "u": u / pairs, "term": term / pairs}
            if turned:
                out[level]["cosine"] = cosine / turned
    return out
