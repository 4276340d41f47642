"""What a batch of pairs costs under some weights: model and objective in one place, for every path.

One forward pass serves pretraining, the inner loop, the outer loss and evaluation: sequences -> states -> scores. An
objective gives the loss of every pair; the loss of a task is their weighted mean.

**Mixed precision** (Micikevicius et al. 2018, arXiv:1710.03740) is entered here and nowhere else: a model runs under
torch.autocast, so its products are of bfloat16 numbers, and what it gives is float32 again. Losses, gradients of weights,
offsets and optimizer never see it. bfloat16 has the range of float32, so no loss needs to be scaled.

Shapes: T tasks, N pairs, V items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core import inputs
from metarec.core.batch import ImageBatch, PairBatch
from metarec.core.states import Watch
from metarec.core.weights import Params, Weights
from metarec.objectives.kl_anchor import Anchor
from metarec.objectives.scores import Scores
from metarec.objectives.surprise import Surprise

# phi, scores [T, N, V], pairs, all states, what gives those of other pairs -> scores in their place (`residual.memory`)
Mix = Callable[[Weights, Tensor, PairBatch, Tensor, Callable[[PairBatch], Tensor]], Tensor]
ComposeOn = Callable[[PairBatch | ImageBatch], Callable[[Weights], Weights]]
Objective = Callable[[Scores, Tensor, torch.Generator | None], Tensor]  # scores, target [T, N], generator -> [T, N]


class Model(Protocol):
    """A model: named weights, states of its inputs, scores of all items or of some (`objectives.scores.Scorer`).

    A generator switches dropout on.

    `context_shapes`: further named vectors, zero without effect, that `residual=context` adapts for each task; `encode` and
    `score` read them where `params` holds them. `head`: names of the weights that `score` reads (contexts among them).

    A model may have `scale_shapes` as well: what `residual=ia3` adapts, in the same way. And `item_rows`, what
    `residual=rows` adapts: name of each weight that has a row for every item -> item's number less that of its row. And
    `output`: the one of these whose rows score a state by their products with it, and nothing else but a bias.
    `slower`, for `optimizer=cms`: patterns of names of its second, third, ... level.

    And `linear`, names of the matrices that nothing reads but `core.ops.linear` and `linear_rows`: those that can forget in
    an inner step (`algorithms.forgetting`).

    And `levels`, names of parts of itself: then `encode` takes a `watch` (`core.states.Watch`), calls it with what each puts
    out, [T + S, H], and goes on with what it gives back. Of any other model what `encode` gives is the level `fast`.
    """

    @property
    def n_items(self) -> int:
        """V: items are 1..V, 0 is padding and has no score."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, in the order in which they are drawn."""

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each context; empty where the model takes none."""

    @property
    def head(self) -> tuple[str, ...]:
        """What `score` reads, by name; names that no residual has put in are passed over."""

    def init(self, generator: torch.Generator, dtype: torch.dtype = ...) -> Params:
        """Fresh weights of `shapes`, a function of the generator; contexts are not among them."""

    def encode(self, params: Weights, inputs: Any, generator: torch.Generator | None = None) -> Tensor:
        """States: of sequences [T + S, H], of each task before any event, then behind every event; of images [T, N, F]."""

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """states [T, N, H] -> scores [T, N, V]; `items` as `objectives.scores.Scorer` takes them."""


@dataclass(frozen=True)
class Mixed:
    """A model that multiplies in bfloat16; weights come, and states and scores go, in float32."""

    model: Model
    device: str  # its type

    @property
    def levels(self) -> tuple[str, ...]:
        """The model's, where it names any."""
        return tuple(getattr(self.model, "levels", ()))

    @property
    def n_items(self) -> int:
        """V, the model's."""
        return self.model.n_items

    def encode(
        self, params: Weights, inputs: Any, generator: torch.Generator | None = None, watch: Watch | None = None
    ) -> Tensor:
        """As the model's, under autocast; the states are float32. `watch`: of a model that has levels."""
        with torch.autocast(self.device, torch.bfloat16):
            more: dict[str, Any] = {} if watch is None else {"watch": watch}
            return self.model.encode(params, inputs, generator, **more).float()

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """As the model's, under autocast; the scores are float32."""
        with torch.autocast(self.device, torch.bfloat16):
            return self.model.score(params, states, generator, items).float()


@dataclass(frozen=True)
class Tasks:
    model: Model
    objective: Objective
    compose: Callable[[Weights], Weights]  # what is adapted -> the model's weights (the residual)
    mixed: bool = False  # products in bfloat16
    mix: Mix | None = None  # what a residual makes of the scores, before anything else sees them
    compose_on: ComposeOn | None = None  # in place of `compose` in a loss, where it depends on the pairs

    def logits(self, phi: Weights, pairs: PairBatch | ImageBatch, generator: torch.Generator | None = None) -> Tensor:
        """[T, N, V]; a generator switches dropout on."""
        theta, model = self.compose(phi), self._on(pairs)
        states = model.encode(theta, pairs.inputs, generator)
        scores = model.score(theta, pairs.gather(states), generator)
        return scores if self.mix is None else self._mixed(phi, theta, pairs, states)(scores)

    def loss(
        self,
        pairs: PairBatch | ImageBatch,
        generator: torch.Generator | None = None,
        weights: Tensor | None = None,
        items: torch.Generator | None = None,
        anchor: Anchor | None = None,
        recorded: bool = False,
        surprise: Surprise | None = None,
    ) -> Callable[[Weights], Tensor]:
        """phi -> the loss of every task [T]: sum(w * each) / sum(w) over the pairs that count, 0 where none does.

        A generator switches dropout on. An objective that draws items draws them from `items`; without it, from a stream
        of the generator's own; without both, as `objectives.standing` says, or not at all. The loss is a function of phi
        alone: every call drops the same units and draws the same items, so it can be adapted by for several steps,
        recomputed, and compared with a difference; and the generators given are left as they were, so another loss needs
        others (`core.seeding`). What is drawn depends on no shape, so pieces of a batch that are given equal `items` are
        judged against the same ones. `weights` float [N] or [T, N], >= 0: what a pair counts, 1 without. `anchor` is
        part of what a pair costs, and `surprise`, which reads the gradient of all the rest. `recorded`: what weights read is
        shown to an optimizer that looks (`core.inputs`).
        """
        kept = None if generator is None else generator.clone_state()
        draw = items.clone_state() if items is not None else None if kept is None else _apart(kept)
        target, counts, model = pairs.target, pairs.target > 0, self._on(pairs)
        compose = self.compose if self.compose_on is None else self.compose_on(pairs)

        def mean(each: Tensor) -> Tensor:
            if weights is None:
                return each.sum(1) / counts.sum(1).clamp(min=1)
            total = (weights * counts).sum(1)
            return (weights * each).sum(1) / torch.where(total > 0, total, 1.0)

        def loss(phi: Weights) -> Tensor:
            theta, dropping = compose(phi), None if kept is None else kept.clone_state()
            levels: dict[str, Tensor] = {}
            with inputs.reading(recorded, phi, theta):
                states = _encoded(model, theta, pairs, dropping, None if surprise is None else levels)
                scores = Scores.of_model(model, theta, pairs.gather(states), dropping)
                with inputs.only(lambda: counts):
                    if self.mix is not None:
                        scores = scores.through(self._mixed(phi, theta, pairs, states))
                    scores = scores if anchor is None else scores.kept()
                    each = self.objective(scores, target, None if draw is None else draw.clone_state())
            if anchor is not None:
                with inputs.apart():  # scores asked for once more
                    each = each + anchor(scores, target)
            if surprise is not None:
                each = each + surprise(mean(each), levels, pairs.gather, target)
            return mean(each)

        return loss if surprise is None else _with_gradient(loss)

    def evidence(self, theta: Params, pairs: PairBatch | ImageBatch) -> tuple[Tensor, Tensor]:
        """What each pair is, as the model of weights `theta` sees it: ([T, N, 2 H + 1], bool [T, N] which are there).

        Of a pair: its state h [H], and the direction in which the score of its target rises with h, each normalised; then
        whether the target is known, without which the second is zero. All that the model thinks of the pair, but for
        biases, follows from these, and no other item is scored, so the cost does not grow with their number. Constants:
        no gradient runs through them.
        """
        model, column, known = self._on(pairs), (pairs.target - 1).clamp(min=0), pairs.target > 0
        with torch.no_grad():
            states = pairs.gather(model.encode(theta, pairs.inputs))
            table = getattr(self.model, "output", None)
            if table is None:
                rising = _rising(lambda h: model.score(theta, h), states, column)
            else:  # the same by the rows of the output layer
                rising = theta[table[0]][column + (1 - table[1])]
            parts = F.layer_norm(torch.stack([states, rising], 2), states.shape[-1:]).flatten(2)
            known = known[..., None]
            shown = torch.cat([parts, known.to(parts.dtype)], -1)
            if not bool(known.all()):
                shown[..., states.shape[-1] :] *= known
        return shown, pairs.target != 0

    def _mixed(
        self, phi: Weights, theta: Weights, pairs: PairBatch | ImageBatch, states: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Scores -> what the residual makes of them. Other pairs are read under the same weights, and without dropout."""
        assert isinstance(pairs, PairBatch)  # the rules refuse images
        mix, of, model = self.mix, pairs, self._on(pairs)
        assert mix is not None
        return lambda scores: mix(phi, scores, of, states, lambda other: model.encode(theta, other.inputs))

    def _on(self, pairs: PairBatch | ImageBatch) -> Model | Mixed:
        return Mixed(self.model, pairs.target.device.type) if self.mixed else self.model


def _rising(score: Callable[[Tensor], Tensor], states: Tensor, column: Tensor) -> Tensor:
    """The gradient [T, N, H] by states [T, N, H] of the score in a column [T, N]."""
    with torch.enable_grad():
        h = states.detach().requires_grad_()
        chosen = score(h).gather(2, column[..., None])
        return torch.autograd.grad(chosen.sum(), h)[0]


def _encoded(
    model: Model | Mixed, theta: Weights, pairs: PairBatch | ImageBatch, dropping: torch.Generator | None,
    levels: dict[str, Tensor] | None,
) -> Tensor:  # fmt: skip
    """The states; with `levels`, what each level puts out is noted there, such that it can be differentiated by."""
    if levels is None:
        return model.encode(theta, pairs.inputs, dropping)

    def watch(name: str, states: Tensor) -> Tensor:
        levels[name] = states if states.requires_grad else states.requires_grad_()  # nothing below it is trained
        return states

    if getattr(model, "levels", ()):
        watched: Any = model
        found: Tensor = watched.encode(theta, pairs.inputs, dropping, watch=watch)
        return found
    return watch("fast", model.encode(theta, pairs.inputs, dropping))


def _with_gradient(loss: Callable[[Weights], Tensor]) -> Callable[[Weights], Tensor]:
    """The same loss where no gradient is wanted of it, though it takes one of its own."""

    def value(phi: Weights) -> Tensor:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            found = loss(phi)
        return found if wanted else found.detach()

    return value


def _apart(generator: torch.Generator) -> torch.Generator:
    """Another stream of numbers, for items to draw: what is dropped must say nothing about what is drawn."""
    key = hashlib.sha256(b"items" + generator.get_state().numpy().tobytes()).digest()
    return torch.Generator(generator.device).manual_seed(int.from_bytes(key[:8], "little") >> 1)


def evidence_width(model: Model) -> int | None:
    """2 H + 1, of `Tasks.evidence`; None for a model that does not say how wide its states are."""
    shift = model.context_shapes().get("context.shift")
    return None if shift is None else 2 * shift[0] + 1
