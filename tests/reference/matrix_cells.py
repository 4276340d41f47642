"""The cells of the exactness matrix (`algorithms/test_matrix.py`): what the engine is given, and the same for the reference.

`ASKED` holds the configurations of every algorithm; `cell` makes a cell, `found` says what engine and reference find there,
and `check_losses`, `check_gradients` compare the two. Residuals that are not of the matrix have their cells in
`residual/test_lora.py`, `test_head.py` and `test_bias.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from reference.matrix_models import MODELS, WAY
from reference.meta_reference import Loop, Loss, Params, imaml, maml, reptile, second_order_at, step_weights
from reference.small_episodes import small_log
from torch import Tensor

from metarec import build, parts
from metarec.algorithms import Algorithm, meta_sgd
from metarec.core.batch import EpisodeBatch, ImageBatch
from metarec.evaluate import Control
from metarec.objectives.cross_entropy import cross_entropy
from metarec.options import DifferentiatedInner, Inner, LearnedInner
from metarec.tasks import Tasks

T, K, Q, STEPS, OUTER = 3, 3, 4, 3, 20
ALGORITHMS = ("maml", "fomaml", "maml_pp", "anil", "meta_sgd", "reptile", "imaml")
RESIDUALS = ("off", "on", "context")
DELTAS, RANK = ("on", "head", "bias"), 2  # base + alpha * delta; rank of the factors of residual=lora
CELLS = [(model, algorithm, residual) for model in MODELS for algorithm in ALGORITHMS for residual in RESIDUALS]


@dataclass(frozen=True)
class Asked:
    """A configuration, and the same in the words of the reference."""

    config: Any
    order: str = "second"
    multi_step: str = "last"
    step: int = 0  # of OUTER
    switch_step: int = 0
    until: int = 0
    loop: dict[str, Any] = field(default_factory=dict)  # what of the inner loop is not as by default
    norms: bool = False  # for each step
    statistics: bool = False


CLIP, PROX = 0.6, 0.4
CONFIG: dict[str, Any] = {name: parts.options("algorithm", name) for name in parts.names("algorithm")}
inner, of_sgd, of_pp = LearnedInner, meta_sgd.InnerOptions, DifferentiatedInner
half = {"switch": 0.5, "msl_until": 0.75}  # of OUTER: 10 and 15
# "clip": the clip acts, with residual=on a pull; "prox": a proximal term, steps recomputed, pairs count differently, only
# contexts are trained; "cut": first order, of the algorithms that can be of either
ASKED: dict[tuple[str, str], Asked] = {
    ("maml", "clip"): Asked(
        CONFIG["maml"](order="annealed", switch=0.5, multi_step="uniform", inner=inner(rates="tensor", clip=CLIP)),
        "annealed", "uniform", step=10, switch_step=10, loop={"rates": "tensor", "clip": CLIP},
    ),
    ("maml", "prox"): Asked(
        CONFIG["maml"](inner=inner(rates="element_step", prox=PROX, recompute=True)),
        loop={"rates": "element_step", "prox": PROX},
    ),
    ("maml", "cut"): Asked(
        CONFIG["maml"](order="annealed", switch=0.5, inner=inner(clip=CLIP)),
        "annealed", step=9, switch_step=10, loop={"clip": CLIP},
    ),
    ("fomaml", "clip"): Asked(CONFIG["fomaml"](inner=inner(clip=CLIP)), "first", loop={"clip": CLIP}),
    ("fomaml", "prox"): Asked(
        CONFIG["fomaml"](multi_step="annealed", multi_step_until=0.5, inner=inner(rates="tensor_step", prox=PROX)),
        "first", "annealed", step=5, until=10, loop={"rates": "tensor_step", "prox": PROX},
    ),
    ("maml_pp", "clip"): Asked(
        CONFIG["maml_pp"](**half, inner=of_pp(clip=CLIP)), "annealed", "annealed", 12, 10, 15,
        {"rates": "tensor_step", "clip": CLIP}, norms=True, statistics=True,
    ),
    ("maml_pp", "prox"): Asked(
        CONFIG["maml_pp"](**half, lslr=False, bnrs=False, inner=of_pp(prox=PROX, recompute=True)),
        "annealed", "annealed", 12, 10, 15, {"prox": PROX}, norms=True,
    ),
    ("maml_pp", "cut"): Asked(
        CONFIG["maml_pp"](**half, bnwb=False, inner=of_pp(clip=CLIP)), "annealed", "annealed", 3, 10, 15,
        {"rates": "tensor_step", "clip": CLIP}, statistics=True,
    ),
    ("anil", "clip"): Asked(CONFIG["anil"](inner=inner(clip=CLIP)), loop={"clip": CLIP}),
    ("anil", "prox"): Asked(
        CONFIG["anil"](inner=inner(rates="tensor_step", prox=PROX, recompute=True)),
        loop={"rates": "tensor_step", "prox": PROX},
    ),
    ("anil", "cut"): Asked(CONFIG["anil"](order="first", inner=inner(clip=CLIP)), "first", loop={"clip": CLIP}),
    ("meta_sgd", "clip"): Asked(
        CONFIG["meta_sgd"](inner=of_sgd(clip=CLIP)), loop={"rates": "element", "clip": CLIP}
    ),
    ("meta_sgd", "prox"): Asked(
        CONFIG["meta_sgd"](inner=of_sgd(prox=PROX, recompute=True)), loop={"rates": "element", "prox": PROX},
    ),
    ("meta_sgd", "cut"): Asked(
        CONFIG["meta_sgd"](order="first", inner=of_sgd(clip=CLIP)), "first", loop={"rates": "element", "clip": CLIP}
    ),
    ("reptile", "clip"): Asked(CONFIG["reptile"](inner=Inner(clip=CLIP)), "first", loop={"clip": CLIP}),
    # no configuration gives Reptile a proximal term, but its loop can have one
    ("reptile", "prox"): Asked(CONFIG["reptile"](), "first", loop={"prox": PROX}),
    # three steps that are clipped: the formula holds wherever the loop ends
    ("imaml", "clip"): Asked(
        CONFIG["imaml"](lam=12.0, cg_steps=25, inner=Inner(lr=0.05, clip=CLIP)),
        "first", loop={"clip": CLIP, "prox": 12.0, "lr": 0.05},
    ),
    # lambda far above any curvature here (-7 to 21), so that each step leaves a twentieth of the way
    ("imaml", "prox"): Asked(
        CONFIG["imaml"](lam=400.0, cg_steps=8, inner=Inner(lr=1 / 405, steps=10)),
        "first", loop={"prox": 400.0, "lr": 1 / 405, "steps": 10},
    ),
}  # fmt: skip


# -- a cell ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What the engine is given, and the same for the reference."""

    algorithm: Algorithm
    tasks: Tasks
    batch: EpisodeBatch
    weights: Tensor | None  # of support pairs [K]
    phi: Params
    asked: Asked
    loop: Loop
    each: list[tuple[Loss, Loss]]

    @property
    def trained(self) -> list[str]:
        return [name for name in self.phi if name not in self.loop.fixed]

    def losses(self, phi: Params, asked: Algorithm | None = None) -> Tensor:
        """The engine's meta-losses [T]."""
        support = self.tasks.loss(self.batch.support, None, self.weights)
        query = self.tasks.loss(self.batch.query)
        return (asked or self.algorithm).meta_losses(phi, support, query, T, self.asked.step)

    def engine(self, asked: Algorithm | None = None) -> tuple[Tensor, Params]:
        """(meta-losses, gradient of their mean), as an outer step takes them."""
        phi = {n: value.detach().requires_grad_(n not in self.loop.fixed) for n, value in self.phi.items()}
        losses, leaves = self.losses(phi, asked), [phi[name] for name in self.trained]
        found = torch.autograd.grad(losses.mean(), leaves, allow_unused=True, materialize_grads=True)
        return losses.detach(), dict(zip(self.trained, found, strict=True))

    def reference(self, loop: Loop | None = None) -> tuple[Tensor, Params]:
        asked, loop = self.asked, loop or self.loop
        if isinstance(asked.config, CONFIG["reptile"]):
            losses, grads = reptile(loop, self.phi, self.each, K / (K + Q))
        elif isinstance(asked.config, CONFIG["imaml"]):
            losses, grads = imaml(loop, asked.config.lam, self.phi, self.each)
        else:
            counts = step_weights(asked.multi_step, STEPS, asked.step, asked.until)
            second = second_order_at(asked.order, asked.step, asked.switch_step)
            losses, grads = maml(loop, self.phi, self.each, counts, second)
        return torch.tensor(losses, dtype=torch.float64), {name: grads[name] for name in self.trained}


def normal(shape: tuple[int, ...], generator: torch.Generator, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=generator, dtype=torch.float64)


Part = list[tuple[Any, int]]  # of one task: a prefix or an image, and its target


@cache
def episodes(model: str, seed: int) -> tuple[EpisodeBatch, list[tuple[Part, Part]]]:
    """The packed batch, and each task's support and query as plain lists."""
    if model != "conv4":
        log = small_log(seed, n_users=T, n_pairs=K + Q, max_len=5, unknown=0.2)
        return log.episodes(K, Q), log.plain_episodes(K, Q)
    generator = torch.Generator().manual_seed(seed)
    images = [normal((T, n, 1, 16, 16), generator) for n in (K, Q)]
    targets = [torch.randint(1, WAY + 1, (T, n), generator=generator) for n in (K, Q)]
    support, query = (ImageBatch(x, y) for x, y in zip(images, targets, strict=True))
    plain = [
        tuple(list(zip(x[t], y[t].tolist(), strict=True)) for x, y in zip(images, targets, strict=True))
        for t in range(T)
    ]
    return EpisodeBatch(support, query, torch.arange(T)), plain  # type: ignore[return-value]


def mean_loss(logits: Callable[[Params, Any], Tensor], part: Part, weights: list[float]) -> Loss:
    """The mean cross-entropy of one task's pairs with a known target; 0 where there is none."""

    def loss(own: Params) -> Tensor:
        inputs = [given for given, _ in part]
        found = logits(own, torch.stack(inputs) if isinstance(inputs[0], Tensor) else inputs)
        rows = zip(found, part, weights, strict=True)
        known = [(row, target, w) for row, (_, target), w in rows if target > 0]
        total = sum(w * F.cross_entropy(row, torch.tensor(target - 1)) for row, target, w in known)
        return total / sum(w for *_, w in known) if known else found.sum() * 0

    return loss


def cell(
    model_name: str, algorithm: str, residual: str, setting: str, seed: int = 1, l2: float | None = None, **wrong: Any
) -> Cell:
    """`wrong`: what the engine's residual, and not the reference, has another value of."""
    entry, asked = MODELS[model_name], ASKED[algorithm, setting]
    model = entry.model
    generator = torch.Generator().manual_seed(seed)
    base = {name: value + normal(value.shape, generator, 0.4) for name, value in
            model.init(generator, torch.float64).items()}  # fmt: skip
    if "embedding.weight" in base:
        base["embedding.weight"][0] = 0.0
    if l2 is None:
        l2 = 0.3 if residual in DELTAS else 0.0
    alpha, train_weights = (0.7, True) if setting != "prox" else (-1.3, algorithm in ("anil", "reptile"))
    on: Any = parts.default("residual", residual)
    if residual in DELTAS:
        on = replace(on, alpha=alpha, l2=l2)
    elif residual == "lora":
        scaling, factor = ("alpha/r", 1.4 / RANK) if setting != "prox" else ("alpha/sqrt(r)", 1.4 / RANK**0.5)
        on = replace(on, rank=RANK, alpha=1.4, scaling=scaling, targets=["*"])
    elif residual == "context":
        on = replace(on, train_weights=train_weights)

    # the engine
    lr = asked.loop.get("lr", 0.6 if residual == "context" else 0.2)
    config = replace(asked.config, inner=replace(asked.config.inner, lr=lr, steps=asked.loop.get("steps", STEPS)))
    control = Control(0.0, 0, 0.0, [])  # nothing is left open
    made = build.algorithm(config, on, model, control, outer_steps=OUTER, support_share=K / (K + Q))
    if (algorithm, setting) == ("reptile", "prox"):
        made = replace(made, inner=replace(made.inner, prox=PROX))  # type: ignore[type-var]
    over, statistics = build.residual(on, model, base), build.statistics(made, model)
    over = replace(over, **wrong)  # type: ignore[type-var]
    start = {
        name: value + normal(value.shape, generator, 0.3 if name.startswith("context.") else 0.15)
        for name, value in over.init(generator).items()
    } | {name: torch.zeros(shape, dtype=torch.float64) for name, shape in statistics.items()}
    phi = {
        name: value + normal(value.shape, generator, 0.3 if name.startswith("rates/") else 0.05)
        for name, value in made.learned(start).items()
    }
    for name in statistics:
        phi[name] = normal(phi[name].shape, generator, 0.3).exp() * (3.0 if name.endswith("var") else 0.2)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if setting == "prox" else None

    # the reference
    def compose(own: Params) -> Params:
        if residual in DELTAS:
            return base | {n: base[n] + alpha * value if n in base else value for n, value in own.items()}
        if residual == "lora":
            more = {n: factor * own[f"{n}.lora_b"] @ own[f"{n}.lora_a"] for n in matrices}
            rest = {n: value for n, value in own.items() if ".lora_" not in n}
            return base | rest | {n: base[n] + value for n, value in more.items()}
        return base | own

    matrices = [name for name, value in base.items() if value.dim() == 2]
    head, adapted = (list(entry.head) if algorithm == "anil" else None), list(base)
    if residual == "context":
        head, adapted = head and ["context.shift"], list(entry.contexts)
    elif residual == "lora":
        head, matrices_of_head = None, [name for name in matrices if head is None or name in head]
        adapted = [f"{name}.lora_{factor_of}" for name in matrices_of_head for factor_of in "ab"]
    elif residual == "head":
        adapted = list(entry.head)
    elif residual == "bias":
        adapted = [name for name, value in base.items() if value.dim() == 1 and (head is None or name in head)]
        head = None
    adapted = adapted if head is None else head
    there = residual in ("off", "on", "bias") or (residual == "context" and train_weights)
    norms = list(entry.norms) if asked.norms and there else []
    fixed = list(entry.statistics) if asked.statistics else []
    loop = Loop(
        **{"lr": lr, "steps": STEPS, "pull": l2, **asked.loop}, adapted=adapted, per_step=norms + fixed, fixed=fixed
    )
    batch, plain = episodes(model_name, seed)
    ways = [1.0] * K if weights is None else weights.tolist()

    def logits(own: Params, inputs: Any) -> Tensor:
        return entry.logits(compose(own), inputs)

    each = [(mean_loss(logits, support, ways), mean_loss(logits, query, [1.0] * Q)) for support, query in plain]
    return Cell(made, Tasks(model, cross_entropy, over.compose), batch, weights, phi, asked, loop, each)


# -- one task at a time ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What engine and reference say: meta-losses [T], gradient of their mean."""

    losses: Tensor
    grads: Params
    slow_losses: Tensor
    slow_grads: Params


@cache
def found(model: str, algorithm: str, residual: str, setting: str, seed: int) -> Found:
    it = cell(model, algorithm, residual, setting, seed)
    return Found(*it.engine(), *it.reference())


def check_losses(it: Found) -> None:
    torch.testing.assert_close(it.losses, it.slow_losses, rtol=1e-10, atol=1e-10)


def check_gradients(it: Found) -> None:
    """Of each tensor relative to its own largest entry; absolute, to 1e-12 of the largest of all, where that is small."""
    assert list(it.grads) == list(it.slow_grads)
    largest = max(float(value.abs().max()) for value in it.slow_grads.values())
    assert largest > 1e-2
    for name, slow in it.slow_grads.items():
        allowed = 1e-10 * max(float(slow.abs().max()), 1e-2 * largest)
        assert float((it.grads[name] - slow).abs().max()) < allowed, name
