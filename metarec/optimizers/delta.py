"""The delta rule: beside its gradient step, a matrix forgets along the inputs that it reads.

    M = mean over positions of x x^T,  f = share of look-ups of each row       of the losses of this step (`core.inputs`)
    explicit    W <- W - a W M - d                              of a table - a diag(f) W; of what is both, both are taken off
    proximal    W <- V,  V + a V M = W - d                      of a table + a diag(f) V

d is the step of SGD (lr * g) or Adam, W the weight before it. Forgetting is W x -> (1 - a |x|^2) W x along an input: the
explicit form contracts where a times the largest eigenvalue (of M, of f, of both their sum) is below 2, and W grows where
it is not: `unstable` says whether that stops the run, or a is cut for this step to where the largest eigenvalue is taken
to 0. The proximal form is stable for every a.

**The proximal form** is the minimiser over V of <d, V> + |V - W|^2 / 2 + a / 2 * mean |V x|^2, so V (I + a M) = W - d: an
implicit step. Of one position, with d = - a u x^T (u = -dL/dy, step size a), the inverse is that of Sherman and Morrison
and this is the published W - a' (W x) x^T + a' u x^T, a' = a / (1 + a |x|^2). Of many it is solved exactly by the
eigenvectors of M = Q diag(l) Q^T: ((W - d) Q)_ij / (1 + a l_j + a f_i), then Q^T; f where W is a table as well (a tied
one), which keeps it exact.

a is `decay` times what schedule and guard make of the step size. What forgets is every trained matrix that an operator
reads as a linear layer or a table, of the step sizes' own group; vectors, learned step sizes and contexts do not. Of a
residual it is the delta, or each low-rank factor, by its own inputs.

**Which passes.** Pretraining: the loss of the step. The outer loop: every pass of the query loss, the one that the outer
gradient descends, under adapted weights, over all tasks; support passes do not count. Behrouz et al. 2025, Nested Learning,
eq. for the update of W by the delta rule; Schlag, Irie & Schmidhuber 2021, arXiv:2102.11174, for the rule.
The same of single tasks, in inner steps: `algorithms.forgetting`.

Shapes: W [out, in]; parameters are of any shape [*S].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from metarec.core import inputs
from metarec.errors import ConfigError, DivergedError
from metarec.optimizers import Given
from metarec.optimizers.base import step

# slots: the largest a * eigenvalue so far, a scalar; of a matrix in mid-chunk what it has read since its last step
READ = {"total": "read_total", "count": "read_count", "rows": "read_rows"}
OWN = ("largest", *READ.values())
LIMIT = 2.0
MARGIN = 1.0001  # of a bound, for rounding
WELL = 10.0  # condition number less one, below which I + a M is inverted as it is
WIDE = 128  # width from which on it is inverted by halves


def matrices_of(given: Given, decay: float) -> dict[str, Tensor]:
    """What may forget, [out, in] each: matrices of the groups without a step size of their own (before torch has filled the
    groups in). ConfigError where there is none."""
    own = {value for group in given.groups if "lr" not in group for value in group["params"]}
    found = {name: value for name, value in given.params.items() if value in own and value.dim() == 2}
    if decay and not found:
        raise _nothing(f"no matrix is among what is trained ({', '.join(given.params)})")
    return found


def _nothing(why: str) -> ConfigError:
    return ConfigError("optimizer.decay", "> 0", f"{why}, so nothing would forget", "use optimizer=adam or sgd")


class Delta(torch.optim.Optimizer):
    """`matrices`: name -> W [out, in]. Groups and state are the base's own, so a step size set here is set there."""

    def __init__(
        self, base: torch.optim.Optimizer, matrices: Mapping[str, Tensor], decay: float, form: str, unstable: str
    ) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.matrices, self.decay, self.form, self.unstable = base, matrices, decay, form, unstable
        self.state, self.moments = base.state, inputs.Moments(matrices)
        self._began = [(group, float(group["lr"])) for group in self.param_groups]
        self.due: Collection[str] | None = None  # names of what steps now, None = all; the others go on reading

    def recording(self) -> AbstractContextManager[None]:
        """Around the losses of a step."""
        return inputs.recorded(self.moments) if self.decay else nullcontext()

    def largest(self) -> dict[str, float]:
        """Name -> the largest a * eigenvalue that there was, of each matrix that forgets."""
        return {
            name: float(self.state[value]["largest"])
            for name, value in self.matrices.items()
            if "largest" in self.state.get(value, {})
        }

    def shown(self) -> dict[str, float]:
        """The largest of all so far, for history.jsonl."""
        found = self.largest()
        return {"delta_largest": max(found.values())} if found else {}

    def timescales(self) -> dict[str, dict[str, float]]:
        """`largest`, for the page of a run; nothing where nothing forgets."""
        return {"largest": self.largest()} if self.decay else {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Forget and step. DivergedError, before anything has moved, where a matrix would grow and `unstable` is stop."""
        assert closure is None
        read = {name: sums.means() for name, sums in self._read().items()} if self.decay else {}
        pulls: dict[str, Tensor] = {}
        solves: dict[str, tuple[float, Tensor | None, Tensor | None]] = {}
        products: dict[str, float] = {}
        for name, (moment, shares) in read.items():
            rate, held = self._rate(name), float(self.state[self.matrices[name]].get("largest", 0.0))
            if not within(min(held, LIMIT), rate, moment, shares):
                top = eigenvalue(name, moment, shares)
                products[name] = rate * top
            if self.form == "proximal":
                solves[name] = rate, moment, shares
                continue
            if products.get(name, 0.0) >= LIMIT:
                if self.unstable == "stop":
                    raise _unstable(name, rate, top)
                rate = 1 / top
            pulls[name] = rate * pulled(self.matrices[name], moment, shares)
        for name, product in products.items():
            state = self.state[self.matrices[name]]
            state["largest"] = torch.tensor(max(product, float(state.get("largest", 0.0))))
        step(self.base, OWN)
        for name, pull in pulls.items():
            self.matrices[name].sub_(pull)
        for name, (rate, moment, shares) in solves.items():
            self.matrices[name].copy_(solved(self.matrices[name], rate, moment, shares))

    def _read(self) -> dict[str, inputs.Sums]:
        """What those have read that step now, since their last step; of the others it is kept in their slots."""
        now = self.moments.sums()
        if not now and not any(slot in self.state.get(value, {}) for value in self.matrices.values() for slot in OWN):
            raise _nothing("no trained matrix is read as a linear layer or a table")
        if self.due is None:
            return now
        found = {}
        for name, value in self.matrices.items():
            state, sums = self.state[value], now.get(name)
            for part, slot in READ.items():
                new, held = None if sums is None else getattr(sums, part), state.get(slot)
                if new is not None:
                    state[slot] = new if held is None else held + new
            if name in self.due:
                held = {part: state.pop(slot, None) for part, slot in READ.items()}
                if any(part is not None for part in held.values()):
                    found[name] = inputs.Sums(**held)
        return found

    def _rate(self, name: str) -> float:
        """a now: `decay`, scaled as the step size of its group is."""
        for group, began in self._began:
            if any(value is self.matrices[name] for value in group["params"]):
                return self.decay * (float(group["lr"]) / began)
        raise KeyError(name)


def eigenvalue(name: str, moment: Tensor | None, shares: Tensor | None) -> float:
    """The largest of W -> W M + diag(f) W: of M [in, in] and of f [rows], added. DivergedError where it is not finite."""
    parts = []
    if moment is not None:
        parts.append(float(torch.linalg.eigvalsh(moment)[-1]) if bool(moment.isfinite().all()) else math.nan)
    if shares is not None:
        parts.append(float(shares.max()))
    if not math.isfinite(sum(parts)):
        what = "the second moment of its inputs is not finite; the weights are as before this step"
        raise DivergedError(f"delta rule, {name}", sum(parts), what, "lower optimizer.lr, or set optimizer.clip_norm")
    return max(sum(parts), 0.0)


def within(limit: float, rate: float, moment: Tensor | None, shares: Tensor | None) -> bool:
    """Whether rate * the largest eigenvalue of M [in, in] and f [rows] is surely below `limit`; False: it may be above.

    By norms of powers, |M^p|_F^(1/p), p = 1, 2, 4: never below the largest eigenvalue of M, and soon close to it. One costs
    a product of matrices, the eigenvalue at least seven (in float32 on a processor, widths 64 to 256).
    """
    if moment is None or limit <= 0:
        return False  # of a table alone it is at hand
    added = 0.0 if shares is None else float(shares.max())
    size = float(torch.linalg.matrix_norm(moment))
    if not 0 < size < math.inf:
        return False
    power, bound = moment / size, size
    for halvings in range(3):
        if rate * (bound * MARGIN + added) < limit:
            return True
        if halvings < 2:
            power = power @ power
            bound = size * float(torch.linalg.matrix_norm(power)) ** (0.5 ** (halvings + 1))
    return False


def pulled(weight: Tensor, moment: Tensor | None, shares: Tensor | None) -> Tensor:
    """W M + diag(f) W, [out, in]."""
    if moment is None:
        assert shares is not None
        return shares[:, None] * weight
    found = weight @ moment
    return found if shares is None else found + shares[:, None] * weight


def solved(weight: Tensor, rate: float, moment: Tensor | None, shares: Tensor | None) -> Tensor:
    """The V [out, in] of  V + rate * (V M + diag(f) V) = weight.

    Without f by the inverse of I + rate * M, where that is well conditioned, for a fraction of what eigenvectors cost.
    """
    if moment is not None and shares is None and rate * float(torch.linalg.matrix_norm(moment)) < WELL:
        whole = rate * moment
        whole.diagonal().add_(1)
        return _divided(weight, whole)
    scale = torch.ones_like(weight[:, :1]) if shares is None else 1 + rate * shares[:, None]
    if moment is None:
        return weight / scale
    values, vectors = torch.linalg.eigh(moment)
    found: Tensor = (weight @ vectors / (scale + rate * values.clamp(min=0))) @ vectors.T
    return found


def _divided(weight: Tensor, whole: Tensor) -> Tensor:
    """weight [out, in] times the inverse of a well conditioned positive definite `whole` [in, in].

    A wide one by the Schur complement of its first half, again and again: products of matrices are several times as fast as
    a factorisation of the same size (256 to 64 on a processor: 0.57 of the time).
    """
    width = len(whole)
    if width < WIDE:
        return weight @ torch.cholesky_inverse(torch.linalg.cholesky(whole))
    half, rows = width // 2, len(weight)
    near = _divided(torch.cat([weight[:, :half], whole[half:, :half]]), whole[:half, :half])
    first, across = near[:rows], near[rows:]
    corner = whole[:half, half:]
    second = _divided(weight[:, half:] - first @ corner, whole[half:, half:] - across @ corner)
    return torch.cat([first - second @ across, second], 1)


def _unstable(name: str, rate: float, top: float) -> DivergedError:
    what = (
        f"{name} would grow along its inputs: {rate:.4g} times the largest eigenvalue {top:.4g} of their second moment is "
        "not below 2; the weights are as before this step"
    )
    fix = f"lower optimizer.decay to below {2 / top:.2g}, or set optimizer.form=proximal or optimizer.unstable=clip"
    return DivergedError("delta rule", f"{rate * top:.4g}", what, fix)
