"""What the options of a part are written with: fields with their allowed values, and what many parts have in common.

Nothing of torch stands here, so that help and refusals can read options without it. See `metarec.parts`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from metarec.errors import ConfigError

Refusal = tuple[str, str, str]  # key, what is wrong, the way out


def ranged(
    default: Any,
    *,
    min: float | None = None,
    max: float | None = None,
    exclusive: Iterable[str] = (),
    choices: Iterable[Any] | None = None,
    length: int | None = None,
    path: bool = False,
    filled: bool = False,
) -> Any:
    """A field with its allowed values: `min`/`max` (left out themselves where `exclusive` names them), or `choices`.

    Of a mapping the names are the choices, those that it has when a value is checked. For a list the limits hold for every
    element; it may not be empty, and has `length` elements where one is given. `path` marks a file or directory: never
    empty, and a leading ~ is the home directory; `filled`, text that is not empty.
    """
    limits = {
        "min": min,
        "max": max,
        "exclusive": frozenset(exclusive),
        "choices": choices if choices is None or isinstance(choices, Mapping) else tuple(choices),
        "length": length,
        "path": path or None,
        "filled": filled or None,
    }
    metadata = {key: value for key, value in limits.items() if value is not None}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Inner:
    """The inner loop of every algorithm: the section `algorithm.inner`."""

    lr: float | None = ranged(None, min=0)  # None = the control's for whole weights, the model's for contexts
    steps: int | None = ranged(None, min=0)  # None = the control's for whole weights, 1 for contexts
    clip: float = ranged(0.0, min=0)
    adapt: list[str] | None = None
    support_weights: str = ranged("uniform", choices=["uniform", "recency", "reliability"])
    recency: float = ranged(0.5, min=0)


@dataclass
class DifferentiatedInner(Inner):
    """The inner loop of the algorithms whose meta-gradient runs through it."""

    rates_lr: float = ranged(0.03, min=0, exclusive=["min"])
    prox: float = ranged(0.0, min=0)
    recompute: bool = False
    rule: str = ranged("sgd", choices=["sgd", "delta"])  # delta: `metarec.algorithms.forgetting`
    decay: float = ranged(0.01, min=0)
    form: str = ranged("explicit", choices=["explicit", "proximal"])
    unstable: str = ranged("stop", choices=["stop", "clip"])


@dataclass
class LearnedInner(DifferentiatedInner):
    """The same, where step sizes may be learned in any of the ways there are."""

    rates: str = ranged("fixed", choices=["fixed", "tensor", "tensor_step", "element", "element_step"])


@dataclass
class KLAnchor:
    """A pull of what a model says to what another one says of the same pairs: the section `objective.kl_anchor`."""

    weight: float = ranged(0.0, min=0)
    direction: str = ranged("base_adapted", choices=["base_adapted", "adapted_base"])
    where: str = ranged("outer", choices=["inner", "outer", "both"])
    temperature: float = ranged(1.0, min=0, exclusive=["min"])
    reference: str = ranged("pretrained", choices=["pretrained", "initial"])


@dataclass
class SurpriseTerm:
    """A pull of what the levels of a model put out to where the loss would have it: the section `objective.surprise`."""

    fast: float = ranged(0.0, min=0)
    medium: float = ranged(0.0, min=0)
    slow: float = ranged(0.0, min=0)
    target: str = ranged("neg_grad", choices=["neg_grad", "grad", "zero"])
    scale: str = ranged("per_token", choices=["per_token", "raw", "normalised"])
    clip: float = ranged(10.0, min=0)
    every: int = ranged(1, min=1)
    second_order: bool = False
    where: str = ranged("both", choices=["pretrain", "outer", "both"])


@dataclass
class Anchored:
    """What every objective has (`metarec.objectives.kl_anchor`, `metarec.objectives.surprise`)."""

    name: str = ""
    kl_anchor: KLAnchor = field(default_factory=KLAnchor)
    surprise: SurpriseTerm = field(default_factory=SurpriseTerm)


@dataclass
class Delta:
    """The options of the residuals that put base + alpha * delta in place of weights (`metarec.residual.on`)."""

    name: str = ""
    alpha: float = 1.0
    l2: float = ranged(0.0, min=0)
    init_scale: float = ranged(0.0, min=0)

    frozen: ClassVar[bool] = True

    def refused(self) -> Iterator[Refusal]:
        """alpha 0: the model would stay the pretrained one whatever is learned."""
        if self.alpha == 0:
            yield "alpha", "with alpha 0 no weight can move", "give a value other than 0"


@dataclass
class Several:
    """The options of a list of residuals: a section for each, under its name (`metarec.parts` adds them)."""

    name: str = ""  # those of the parts, joined by "+"

    @property
    def parts(self) -> list[Any]:
        """The options of each part, in the order of the list."""
        return [getattr(self, name) for name in self.name.split("+")]

    @property
    def adapts(self) -> bool:
        """Whether any part has numbers that an inner loop moves."""
        return any(getattr(part, "adapts", True) for part in self.parts)

    @property
    def beside(self) -> bool:
        """Whether all that adapts are few numbers beside the weights: what adapts decides."""
        moving = [part for part in self.parts if getattr(part, "adapts", True)]
        return bool(moving) and all(getattr(part, "beside", False) for part in moving)

    @property
    def frozen(self) -> bool:
        """Whether no part trains the pretrained weights."""
        return all(getattr(part, "frozen", False) for part in self.parts)

    @property
    def reads_memory(self) -> bool:
        """Whether any part asks what is known ahead of each pair."""
        return any(getattr(part, "reads_memory", False) for part in self.parts)

    @property
    def of_support(self) -> bool:
        """Whether what adapts in any part depends on the support's items."""
        return any(getattr(part, "of_support", False) for part in self.parts)

    @property
    def outer_lrs(self) -> dict[str, float]:
        """The outer step sizes of what has its own, of all parts."""
        return {name: lr for part in self.parts for name, lr in getattr(part, "outer_lrs", {}).items()}

    def refused(self) -> Iterator[Refusal]:
        """What each part refuses, and a pull, which has no part to act on: an inner loop pulls all that it moves."""
        for part in self.parts:
            for key, what, fix in getattr(part, "refused", tuple)():
                yield f"{part.name}.{key}", what, fix
            if getattr(part, "adapter", None) is not None:
                yield f"{part.name}.adapter", "in a list no part starts from a file", f"use residual={part.name} alone"
            if getattr(part, "l2", 0.0):
                yield f"{part.name}.l2", "in a list it would pull what the other parts adapt as well", "drop it"


def matching(key: str, patterns: Sequence[str], names: Collection[str], what: str = "weight") -> frozenset[str]:
    """The names that shell patterns match; ConfigError, naming the option `key`, for a pattern that matches none."""
    found: set[str] = set()
    for pattern in patterns:
        own = fnmatch.filter(names, pattern)
        if not own:
            raise ConfigError(key, pattern, f"matches no {what}", f"the names are {', '.join(names) or 'none'}")
        found.update(own)
    return frozenset(found)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything that is no section; a list stays one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
