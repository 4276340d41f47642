"""A generator of adapters: from a task's support to its own numbers in one forward pass, without an inner loop.

    z_t = encoder(v_t1, ..., v_tK)             a set of support pairs, each as the frozen pretrained model sees it
    phi_t[name] = phi[name] + W_name z_t + b_name                  `factors`: every number that adapts has a head of its own
    A_t = diag(W z_t + b) A,  B_t = B          `basis`: a user weighs r shared directions of a large matrix, and owns no more

All heads but those are zero at the start, and the weights W, b of a basis as well: what is generated changes nothing then,
bit for bit. A factored update is s B A.

**Losses**, of which any mix may be asked for, each normalised so that generating nothing costs 1:

    delta_w      mean over modules of |s_G B_G A_G - s_T B_T A_T|^2 / mean_t |s_T B_T A_T|^2        what an adapter does
    ab           the same of A and of B as they are written; a teacher is known up to (R A, B R^-1) only, this one is not
    functional   KL(teacher || generated) of the scores on the query pairs, in nats
    task         the query loss itself: end to end, no teacher

Teachers are adapters that an inner loop has found with more of the user's history (`metarec teachers`). With `fine_tune`,
the last share of the outer steps descends the task loss alone. `refine_steps` inner steps go on from what was generated.

Source: Ha, Dai & Le 2017 (hypernetworks), arXiv:1609.09106; Requeima et al. 2019 (CNAPs, amortised adaptation),
arXiv:1906.07697; Jin et al. 2025 (adapters generated from examples) in spirit; distances of products: `core.gram`.
Shapes: T tasks, K support pairs, F numbers that say what a pair is, Q query pairs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.algorithms import Given, Shown, Taught, inner
from metarec.algorithms.inner import OWN, InnerLoop, TaskLoss
from metarec.algorithms.maml import MAML, at_test
from metarec.core.gram import Product, squared_distance
from metarec.core.offsets import Dense
from metarec.core.seeding import generator
from metarec.core.set_encoder import HEADS, SetEncoder
from metarec.core.weights import FastWeight, Params
from metarec.errors import ConfigError
from metarec.options import Inner, Refusal, ranged

MADE = OWN[1]  # what the names of a generator's own weights begin with
TINY = 1e-30


@dataclass
class Losses:
    """What the generator descends: the section `algorithm.loss`."""

    task: float = ranged(1.0, min=0)
    delta_w: float = ranged(0.0, min=0)
    ab: float = ranged(0.0, min=0)
    functional: float = ranged(0.0, min=0)

    @property
    def taught(self) -> bool:
        """Whether any of them needs a teacher."""
        return self.delta_w > 0 or self.ab > 0 or self.functional > 0


@dataclass
class Teacher:
    """How teachers are made, or where they are: the section `algorithm.teacher`."""

    path: str | None = ranged(None, path=True)  # None = made when a loss needs them, and kept in the cache
    users: int | None = ranged(None, min=1)  # None = all training users
    pairs: int = ranged(64, min=1)  # the latest of a user's history
    steps: int | None = ranged(None, min=1)  # None = tuned on validation users
    lr: float | None = ranged(None, min=0, exclusive=["min"])
    chunk: int = ranged(64, min=1)  # users at once


@dataclass
class Config:
    """conf/algorithm/generator.yaml"""

    name: str = "generator"
    inner: Inner = field(default_factory=Inner)
    width: int = ranged(128, min=4)
    layers: int = ranged(1, min=0)
    queries: int = ranged(4, min=1)
    hidden: int = ranged(128, min=1)
    head: str = ranged("auto", choices=["auto", "factors", "basis"])
    largest_head: int = ranged(32768, min=1)
    drop_pairs: float = ranged(0.4, min=0, max=1, exclusive=["max"])
    drop_evidence: float = ranged(0.3, min=0, max=1, exclusive=["max"])
    refine_steps: int = ranged(0, min=0)
    fine_tune: float = ranged(0.0, min=0, max=1)
    loss: Losses = field(default_factory=Losses)
    teacher: Teacher = field(default_factory=Teacher)

    needs_adapted: ClassVar[bool] = True
    reads_support: ClassVar[bool] = True
    generates: ClassVar[bool] = True
    outer_lr: ClassVar[float] = 1e-3

    def refused(self) -> Iterator[Refusal]:
        """A width that the attention's heads do not divide; no loss at all; shares of a loss that is not there."""
        if self.width % 4:
            yield "width", "the attention between pairs has 4 heads, of equal width", "give a multiple of 4"
        if not (self.loss.taught or self.loss.task):
            yield "loss.task", "with every weight of algorithm.loss at 0 there is nothing to learn from", "give one"
        if self.fine_tune and not self.loss.taught:
            yield "fine_tune", "does nothing: algorithm.loss has the task loss alone from the start", "drop it"


def build(config: Config, given: Given) -> Generator:
    """Of the numbers that adapt; ConfigError where a basis is asked for and nothing is a product of two factors."""
    assert HEADS == 4  # as `Config.refused` says
    encoder = SetEncoder(given.evidence, config.width, config.layers, config.queries, config.hidden)
    if config.head == "basis" and not given.products:
        what = "a basis is of low-rank updates, and of what adapts nothing is one"
        raise ConfigError("algorithm.head", "basis", what, "use residual=lora, or algorithm.head=factors")
    from_step = round((1 - config.fine_tune) * given.outer_steps)
    return Generator(
        given.inner, encoder, dict(given.products), config.loss, config.refine_steps, config.head,
        config.largest_head, from_step if config.fine_tune else None, given.seed, config.drop_pairs, config.drop_evidence,
    )  # fmt: skip


@dataclass(frozen=True)
class Generator:
    inner: InnerLoop  # of refinement, and of the row that it is compared with
    encoder: SetEncoder
    products: Mapping[str, tuple[str, str, float]]  # weight -> names of A [r, in] and B [out, r], and the factor s
    loss: Losses = field(default_factory=Losses)
    refine_steps: int = 0
    head: str = "auto"
    largest_head: int = 32768
    fine_tune_from: int | None = None  # the outer step from which the task loss stands alone
    seed: int = 0
    drop_pairs: float = 0.0  # share of the support pairs that the encoder does not see, in training
    drop_evidence: float = 0.0  # share of the numbers of a pair that it does not see, in training
    reads_support: ClassVar[bool] = True

    def learned(self, phi: Params) -> Params:
        """`phi`, with the weights of encoder and heads beside it: matrices drawn, heads zero."""
        drawn = torch.Generator().manual_seed(self.seed)
        like = next(iter(phi.values()))
        made = {f"encoder/{name}": value for name, value in self.encoder.init(drawn, like).items()}
        weighed = self._weighed(phi)
        of_basis = {name for weight in weighed for name in self.products[weight][:2]}
        for name, value in phi.items():
            if self.inner.moves(name) and name not in of_basis:
                made[f"head/{name}.weight"] = value.new_zeros(value.numel(), self.encoder.hidden)
                made[f"head/{name}.bias"] = value.new_zeros(value.numel())
        for weight in weighed:
            a, b = (phi[name] for name in self.products[weight][:2])
            for side, shape in (("a", a.shape), ("b", b.shape)):
                value = torch.randn(shape, generator=drawn, dtype=a.dtype) * shape[-1] ** -0.5
                made[f"basis/{weight}.{side}"] = value.to(a.device)
            made[f"gain/{weight}.weight"] = a.new_zeros(len(a), self.encoder.hidden)
            made[f"gain/{weight}.bias"] = a.new_zeros(len(a))
        return phi | {MADE + name: value for name, value in made.items()}

    def _weighed(self, phi: Params) -> list[str]:
        """The matrices that have a basis."""
        sizes = {weight: phi[a].numel() + phi[b].numel() for weight, (a, b, _) in self.products.items()}
        if self.head == "auto":
            return [weight for weight, size in sizes.items() if size > self.largest_head]
        return list(sizes) if self.head == "basis" else []

    def gives(self, phi: Params) -> dict[str, int]:
        """Name of each number that is generated -> how many a task has of its own; of a basis r for A, and none for B."""
        found = {name: value.numel() for name, value in phi.items() if f"{MADE}head/{name}.bias" in phi}
        for weight, (a, b, _) in self.products.items():
            if f"{MADE}gain/{weight}.bias" in phi:
                found |= {a: phi[f"{MADE}gain/{weight}.bias"].numel(), b: 0}
        return found

    def generate(self, phi: Params, support: Shown) -> dict[str, FastWeight]:
        """The weights of every task, in one pass over what its support is; differentiable with respect to `phi`.

        What is generated has no learned start of its own: heads have a bias.
        """
        own = {name[len(MADE) :]: value for name, value in phi.items() if name.startswith(MADE)}
        encoder = {name[8:]: value for name, value in own.items() if name.startswith("encoder/")}
        z = self.encoder(encoder, support.pairs, support.there)
        found: dict[str, FastWeight] = {}
        for name, value in inner.start(phi, self.inner).items():
            if f"head/{name}.weight" in own:
                offset = F.linear(z, own[f"head/{name}.weight"], own[f"head/{name}.bias"])
                found[name] = FastWeight(value.detach(), Dense(offset.view(-1, *value.shape)))
            else:
                found[name] = FastWeight(value)
        for weight, (a, b, _) in self.products.items():
            if f"basis/{weight}.a" in own:
                gain = F.linear(z, own[f"gain/{weight}.weight"], own[f"gain/{weight}.bias"])
                directions = own[f"basis/{weight}.a"]
                found[a] = FastWeight(torch.zeros_like(directions), Dense(gain[:, :, None] * directions))
                found[b] = FastWeight(own[f"basis/{weight}.b"])
        return found

    def thinned(self, support: Shown, step: int) -> Shown:
        """The support as the encoder sees it in training: pairs left out by chance `drop_pairs`, and of what a pair is
        numbers by chance `drop_evidence`, drawn anew in every outer step."""
        if self.drop_pairs:
            drawn = torch.rand(support.there.shape, generator=generator(self.seed, "pairs", step))
            support = replace(support, there=support.there & (drawn >= self.drop_pairs).to(support.there.device))
        if self.drop_evidence:
            drawn = torch.rand(support.pairs.shape, generator=generator(self.seed, "evidence", step))
            kept = (drawn >= self.drop_evidence).to(support.pairs) / (1 - self.drop_evidence)
            support = replace(support, pairs=support.pairs * kept)
        return support

    def adapt(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """What is generated, and then `steps` inner steps from there (None: `refine_steps`).

        `support_loss` is a `Shown`: it says as well what the support is.
        """
        assert isinstance(support_loss, Shown)
        made = self.generate(phi, support_loss)
        _check_finite(made)
        loop = at_test(self.inner, lr, self.refine_steps if steps is None else steps)
        return inner.adapt(support_loss, phi, n_tasks, loop, began=made) if loop.steps else made

    def by_inner_loop(
        self, phi: Params, support_loss: TaskLoss, n_tasks: int, *, lr: float | None = None, steps: int | None = None
    ) -> dict[str, FastWeight]:
        """What the inner loop alone finds from the start that all share: the row to be compared with."""
        return MAML(self.inner).adapt(phi, support_loss, n_tasks, lr=lr, steps=steps)

    def meta_losses(
        self, phi: Params, support_loss: TaskLoss, query_loss: TaskLoss, n_tasks: int, step: int = 0
    ) -> Tensor:
        """[T], the mix that is asked for; the task loss judges what refinement has made of the generated weights."""
        assert isinstance(support_loss, Shown)
        alone = self.fine_tune_from is not None and step >= self.fine_tune_from
        made = self.generate(phi, self.thinned(support_loss, step))
        _check_finite(made)
        loop = replace(self.inner, steps=self.refine_steps)
        total = support_loss.pairs.new_zeros(n_tasks)
        if self.loss.task or alone:
            refined = inner.adapt(support_loss, phi, n_tasks, loop, began=made) if loop.steps else made
            total = total + (self.loss.task or 1.0) * query_loss(refined)
        if self.loss.taught and not alone:
            assert isinstance(query_loss, Taught)
            total = total + self._from_teacher(made, query_loss)
        return total

    def _from_teacher(self, made: Mapping[str, FastWeight], taught: Taught) -> Tensor:
        total: Tensor | float = 0.0
        if self.loss.delta_w:
            total = total + self.loss.delta_w * self.weight_distance(made, taught)
        if self.loss.ab:
            each = [
                (made[name].dense() - number).flatten(1).square().sum(1) / max(taught.sizes[name], TINY)
                for name, number in taught.numbers.items()
            ]
            total = total + self.loss.ab * torch.stack(each).mean(0)
        if self.loss.functional:
            with torch.no_grad():
                told = taught.outputs(taught.weights(made))
            said = taught.outputs(made)
            divergence = (told.exp() * (told - said)).sum(-1) * taught.there  # [T, Q]
            total = total + self.loss.functional * divergence.sum(1) / taught.there.sum(1).clamp(min=1)
        assert isinstance(total, Tensor)
        return total

    def weight_distance(self, made: Mapping[str, FastWeight], taught: Taught) -> Tensor:
        """[T]: |dW - dW of the teacher|^2 of each module over the mean |dW|^2 of teachers, and of these the mean.

        A number that is no factor is a module of its own.
        """
        each = []
        for weight, (a, b, scale) in self.products.items():
            mine = Product(made[a].dense(), made[b].dense(), scale)
            theirs = Product(taught.numbers[a], taught.numbers[b], taught.scales[weight])
            each.append(squared_distance(mine, theirs) / max(taught.sizes[weight], TINY))
        factors = {name for a, b, _ in self.products.values() for name in (a, b)}
        for name, number in taught.numbers.items():
            if name not in factors:
                apart = (made[name].dense() - number).flatten(1).square().sum(1)
                each.append(apart / max(taught.sizes[name], TINY))
        return torch.stack(each).mean(0)


def _check_finite(made: Mapping[str, FastWeight]) -> None:
    offsets = {name: weight.offset for name, weight in made.items() if weight.offset is not None}
    inner.check_offsets(offsets, "as generated")
