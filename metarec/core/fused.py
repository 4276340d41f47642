"""The element-wise work of the GRU as a few functions: as they stand here, or each made one kernel by torch.compile.

What is compiled works on rows, and only their number changes from call to call. (A whole meta-step has shapes that follow
the data: it would be compiled without end.) A compiled function gives the same bits whenever it is given the same numbers,
in every run; against the function as it stands it differs by rounding. One row alone is not worth a kernel of its own.

Two of them see all entries of a pass at once; `gates` is called in every step of the recurrence, where a call costs as much
as it saves on a CPU, so it is compiled on a GPU only, where five kernels become one (figures: docs/engine.md).

The switch is one for the process, as those for threads and determinism are. What cannot be compiled runs as it stands.

Shapes: B rows of a block, L entries of a plan, H hidden; gate order r, z, n along 3H (`core.gru`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metarec.errors import MetarecError

SHAPES = 64  # of one function in a process; compilers give up at a few

_say: Callable[[str], None] | None = None  # None = off


def switch(on: bool, device: torch.device, say: Callable[[str], None]) -> bool:
    """Compile from now on, or not; whether it works here. Where it does not, `say` is told why in one line."""
    global _say
    _say = say if on else None
    if on:
        torch._dynamo.config.recompile_limit = SHAPES
        Kernel(_probe)(torch.ones(2, 4, device=device))
    return _say is not None


class Kernel:
    """A function of tensors [B, ...], compiled where that is switched on and pays."""

    def __init__(self, function: Callable[..., Any], *, within_a_step: bool = False) -> None:
        self.function, self.within_a_step = function, within_a_step
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *given: Tensor | None) -> Any:
        if _say is None:
            return self.function(*given)
        first = given[0]
        assert first is not None
        pays = len(first) > 1 and not (self.within_a_step and first.device.type == "cpu")
        return self._compiled(*given) if pays else self.function(*given)

    def _compiled(self, *given: Tensor | None) -> Any:
        global _say
        try:
            if self.compiled is None:
                # whole or not at all: half a function would be more kernels, not fewer; and but for the number of rows one
                # for each shape, so that no kernel depends on which shapes came first
                self.compiled = torch.compile(self.function, fullgraph=True, dynamic=False)
            for value in given:
                if value is not None:
                    torch._dynamo.maybe_mark_dynamic(value, 0)
            return self.compiled(*given)
        except Exception as reason:  # of a compiler, anything
            _pass_on(reason)
            say, _say = _say, None
            if say is not None:
                cause = getattr(reason, "inner_exception", None) or reason  # what the compiler said of itself
                line = next(iter(str(cause).strip().splitlines()), "")
                say(f"hardware.compile: the run goes on without it: {type(cause).__name__}: {line}")
            return self.function(*given)


def _pass_on(reason: BaseException | None) -> None:
    """Raise what is no failure to compile: a signal that ends the run (compilers wrap it), and memory that ran out."""
    while reason is not None:
        if isinstance(reason, MetarecError | torch.OutOfMemoryError):
            raise reason
        reason = reason.__cause__ or reason.__context__


def _probe(x: Tensor) -> Tensor:
    return x.sigmoid() * x


def _gates(gate: Tensor, product: Tensor, h: Tensor, out: Tensor) -> None:
    """gate [B, 3H] holds x and becomes r, z, n; product [B, 3H] = W h + b; the state behind h [B, H] goes to out [B, H]."""
    hidden = h.shape[1]
    rz = gate[:, : 2 * hidden].add_(product[:, : 2 * hidden]).sigmoid_()
    n = gate[:, 2 * hidden :].addcmul_(rz[:, :hidden], product[:, 2 * hidden :]).tanh_()
    torch.lerp(n, h, rz[:, hidden:], out=out)


def _slopes(gates: Tensor, pn: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """r, z, n [L, 3H], P_n and the state before [L, H] -> kappa [L, H] and D [L, 3H]."""
    r, z, n = gates.chunk(3, 1)
    kappa = (1 - z) * (1 - n * n)
    return kappa, torch.cat([kappa * pn * r * (1 - r), (before - n) * z * (1 - z), kappa * r], 1)


def _bends(
    gates: Tensor,
    pn: Tensor,
    before: Tensor,
    kappa: Tensor,
    t: Tensor,
    u: Tensor,
    c_n: Tensor | None,
    tau_before: Tensor,
    e_before: Tensor,
) -> tuple[Tensor, Tensor]:
    """The cotangents of what stands in D, kappa and z: of P [L, 3H], of the tanh's argument [L, H]; e_before in place."""
    r, z, n = gates.chunk(3, 1)
    u_r, u_z, u_n = u.chunk(3, 1)
    a_n, bend_r, bend_z = t * kappa, r * (1 - r), z * (1 - z)
    a = u_n * r + u_r * pn * bend_r  # the cotangent of dx_n
    if c_n is not None:
        a = a + c_n
    at, through_z = a * t, u_z * t
    e_r = a_n * (u_n + u_r * pn * (1 - 2 * r))
    e_z = through_z * (before - n) * (1 - 2 * z) - at * (1 - n * n) + tau_before * t
    e_n = (-through_z * bend_z - 2 * at * (1 - z) * n) * (1 - n * n)
    e_pn = u_r * a_n * bend_r + e_n * r
    e_before.addcmul_(through_z, bend_z)
    return torch.cat([(e_r + e_n * pn) * bend_r, e_z * bend_z, e_pn], 1), e_n


gates = Kernel(_gates, within_a_step=True)
slopes = Kernel(_slopes)
bends = Kernel(_bends)
