"""Second moments of what weights read while losses are made, for optimizers that step by them (`optimizers.delta`).

    of a matrix W [out, in]           M = mean over positions of x x^T       [in, in],  x what the operator multiplies by W
    of a table E [rows, d]            f = how often a row is looked up       [rows], a share: E is the transpose of a matrix
                                                                             whose inputs are unit vectors, and M = diag(f)

`of_tasks` asks the same of each task on its own, of weights that carry a tap and are read as linear layers: what is told
then stands at their taps (`core.weights.Read`), in the graph where a gradient of second order is to run through it.

Operators (`core.ops`, `core.gru`) are the readers of weights, and tell `active` what they read; there is one only inside of
`recorded`, which an optimizer opens around the losses of a step, and there only inside of `reading`, which a loss opens that
counts. Anything else costs them a comparison with None.

A weight is known by where its numbers lie, so a detached one, or rows of it, are it as well; and by name, so that what is
composed of a base and a residual counts for the residual. `only` says which positions of a packed batch are real: a mean is
over these. But for what taps keep, nothing here is differentiated.

Shapes: T tasks, N positions a task, S states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metarec.core.weights import FastWeight, Weights


@dataclass(frozen=True)
class Sums:
    """What was read of one weight; None where it was not read that way."""

    total: Tensor | None  # sum of x x^T [in, in]
    count: Tensor | None  # number of x, a scalar
    rows: Tensor | None  # look-ups of each row [rows]

    def means(self) -> tuple[Tensor | None, Tensor | None]:
        """M [in, in] and f [rows]."""
        moment = None if self.total is None or self.count is None else self.total / self.count.clamp(min=1)
        return moment, None if self.rows is None else self.rows / self.rows.sum().clamp(min=1)


@dataclass
class Moments:
    """Sums over all passes since they were last taken, of the weights called `names`."""

    names: Collection[str]
    inputs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # sum of x x^T [in, in], number of x
    rows: dict[str, Tensor] = field(default_factory=dict)  # look-ups of each row [rows]

    def take(self) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """Name -> (M [in, in], f [rows]) of each weight that was read, None where it was not read that way; then empty."""
        return {name: sums.means() for name, sums in self.sums().items()}

    def sums(self) -> dict[str, Sums]:
        """Name -> what was read of each weight that was read at all, in the order of `names`; then empty."""
        found = {}
        for name in self.names:
            if name in self.inputs or name in self.rows:
                total, count = self.inputs.get(name, (None, None))
                found[name] = Sums(total, count, self.rows.get(name))
        self.clear()
        return found

    def clear(self) -> None:
        """Forget what was read."""
        self.inputs, self.rows = {}, {}


class Reading:
    """One pass: which numbers are which weight's, and which positions are real."""

    def __init__(self, into: Moments, *of: Weights) -> None:
        self.into, self.real, self.all_real = into, None, False
        self.places: dict[int, list[tuple[int, int, str]]] = {}
        for weights in of:
            for name, weight in weights.items():
                shared = weight.shared if isinstance(weight, FastWeight) else weight
                if name in into.names and isinstance(shared, Tensor) and shared.numel():
                    begin = shared.data_ptr()
                    place = (begin, begin + shared.numel() * shared.element_size(), name)
                    self.places.setdefault(shared.untyped_storage().data_ptr(), []).append(place)

    real: Tensor | None  # bool [T, N]
    all_real: bool  # then nothing needs to be picked out

    def name(self, shared: Tensor) -> str | None:
        """Of the weight [*S] that these numbers are; None for one that nobody asks for."""
        at = shared.data_ptr()
        near = self.places.get(shared.untyped_storage().data_ptr(), ())
        return next((name for begin, end, name in near if begin <= at < end), None)

    def read(self, weight: FastWeight, x: Tensor) -> None:
        """x [T, N, in] is multiplied by a weight of tasks."""
        self.seen(weight.shared, x)

    @torch.no_grad()
    def seen(self, shared: Tensor, x: Tensor, every: bool = False) -> None:
        """x [..., in] is multiplied by `shared` [out, in]; `every`: at real positions alone, whatever `only` says."""
        name = self.name(shared)
        if name is None:
            return
        with torch.autocast(x.device.type, enabled=False):
            flat = x.detach().to(shared.dtype).reshape(-1, x.shape[-1])
            if self.real is not None and not every:
                real = self._real(x.shape[:-1])
                flat = flat if self.all_real else flat[real]
            total, count = _squares(flat), flat.new_tensor(float(len(flat)))
            if name in self.into.inputs:
                before, number = self.into.inputs[name]
                total, count = before + total, number + count
            self.into.inputs[name] = (total, count)

    @torch.no_grad()
    def looked_up(self, shared: Tensor, ids: Tensor, every: bool = False) -> None:
        """Rows ids int64 [...] of `shared` [rows, d] are read."""
        name = self.name(shared)
        if name is None:
            return
        flat = ids.reshape(-1)
        if self.real is not None and not every:
            flat = flat[self._real(ids.shape)]
        counts = torch.bincount(flat, minlength=len(shared)).to(shared.dtype)
        self.into.rows[name] = self.into.rows[name] + counts if name in self.into.rows else counts

    def _real(self, shape: torch.Size) -> Tensor:
        assert self.real is not None
        if self.real.shape != shape:
            raise ValueError(f"positions {list(shape)} are read, and which are real is said of {list(self.real.shape)}")
        return self.real.reshape(-1)


class OwnReading:
    """One pass whose weights are told at their taps what each task reads by them; nobody else asks."""

    real: Tensor | None = None  # bool [T, N]
    all_real: bool = False

    def name(self, shared: Tensor) -> None:
        """Of no weight [*S] are numbers asked for by where they lie."""

    def read(self, weight: FastWeight, x: Tensor) -> None:
        """x [T, N, in] is multiplied by a weight; ValueError where it is said of other positions which are real."""
        if weight.tap is None:
            return
        if self.real is not None and self.real.shape != x.shape[:-1]:
            given = f"{list(x.shape[:-1])} are read, and which are real is said of {list(self.real.shape)}"
            raise ValueError(f"positions {given}")
        weight.tap.read(x, self.real)

    def seen(self, shared: Tensor, x: Tensor, every: bool = False) -> None:
        """x [..., in], of an operator that is no linear layer: not told."""

    def looked_up(self, shared: Tensor, ids: Tensor, every: bool = False) -> None:
        """Rows ids int64 [...] of a table: not told."""


WIDE, PARTS = 128, 4  # inputs of a width from which on the moment is made in so many strips


def _squares(x: Tensor) -> Tensor:
    """x^T x [in, in] of x [n, in]; of wide ones what stands below the diagonal is copied, for 70 to 80 % of the time."""
    width = x.shape[1]
    if width < WIDE:
        return x.T @ x
    out, strip = x.new_empty(width, width), -(-width // PARTS)
    for begin in range(0, width, strip):
        end = min(begin + strip, width)
        found = x[:, begin:end].T @ x[:, begin:]
        out[begin:end, begin:] = found
        out[end:, begin:end] = found[:, end - begin :].T
    return out


active: Reading | OwnReading | None = None  # of the pass that is being made
_into: Moments | None = None  # of the optimizer whose step it is


@contextmanager
def recorded(into: Moments) -> Iterator[None]:
    """Passes inside that count are added to `into`, which is emptied first. Contexts of this kind do not nest."""
    global _into
    assert _into is None
    into.clear()
    _into = into
    try:
        yield
    finally:
        _into = None


def reading(counts: bool, *of: Weights) -> AbstractContextManager[None]:
    """A pass over weights, given as often as they have other numbers under the same names; without `counts` it is none."""
    return _now(Reading(_into, *of)) if counts and _into is not None else nullcontext()


def of_tasks(asked: bool) -> AbstractContextManager[None]:
    """A pass whose taps are told what each task reads, where that is asked."""
    return _now(OwnReading()) if asked else nullcontext()


def apart() -> AbstractContextManager[None]:
    """What is read inside is read for another reason than its result."""
    return nullcontext() if active is None else _now(None)


@contextmanager
def _now(pass_: Reading | OwnReading | None) -> Iterator[None]:
    global active
    before, active = active, pass_
    try:
        yield
    finally:
        active = before


def only(real: Callable[[], Tensor | None]) -> AbstractContextManager[None]:
    """Of the positions read inside, those of real() bool [T, N] count; of None all. Not called where nobody looks."""
    return nullcontext() if active is None else _masked(active, real())


@contextmanager
def _masked(pass_: Reading | OwnReading, real: Tensor | None) -> Iterator[None]:
    before = pass_.real, pass_.all_real
    pass_.real, pass_.all_real = real, real is not None and bool(real.all())
    try:
        yield
    finally:
        pass_.real, pass_.all_real = before
