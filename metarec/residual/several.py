"""Several residuals at once: each composes its own part over one base, and all that they learn stands in one phi.

    theta[name] = part_of(name).compose(phi of that part)[name],   base[name] where no part has it

`residual=[memory,context]` is two of them. What adapts decides what a user is and which step sizes are taken: a memory
beside contexts behaves as contexts, beside factors as factors. No weight may be moved by two parts, since neither knows of
the other. Numbers are drawn part by part, in the order of the list.

A composition like that of prompt, adapter and factors in He, Zhou, Ma, Berg-Kirkpatrick & Neubig 2022, arXiv:2110.04366,
sec. 4, here of whole residuals.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarec.core.batch import ImageBatch, PairBatch
from metarec.core.weights import Params, Weight, Weights
from metarec.errors import ConfigError
from metarec.options import Several
from metarec.residual import Named, Residual

Compose = Callable[[Weights], Weights]


def files(config: Several) -> list[tuple[Any, Any]]:
    """The options of each part and its file, in the order of the list."""
    return [(part, importlib.import_module(f"metarec.residual.{part.name}")) for part in config.parts]


def owned(config: Several, model: Named) -> list[dict[str, bool]]:
    """What each part learns (name -> whether it adapts). Raises ConfigError where two of them move the same weight."""
    found, mover = list[dict[str, bool]](), dict[str, Any]()
    for part, file in files(config):
        try:
            names: dict[str, bool] = file.learnable(part, model)
        except ConfigError as error:
            raise _of_part(error, part) from error
        weights = dict.fromkeys(getattr(file, "weight_of", str)(name) for name in names)
        for weight in weights:
            if weight in mover:
                raise ConfigError("residual", config.name, *_both(weight, mover[weight], part))
        mover |= dict.fromkeys(weights, part)
        found.append(names)
    return found


def _both(weight: str, first: Any, second: Any) -> tuple[str, str]:
    """Why two parts do not go together, and the way out."""
    trained = [part.name for part in (first, second) if getattr(part, "train_weights", False)]
    fix = " or ".join(f"residual.{name}.train_weights=false" for name in trained)
    return f"{first.name} and {second.name} both move {weight}", f"set {fix}" if trained else "leave one of them out"


def _of_part(error: ConfigError, part: Any) -> ConfigError:
    """The same error, its key and its way out under the part's own section."""
    here = f"residual.{part.name}."
    where = error.where.replace("residual.", here, 1) if error.where.startswith("residual.") else error.where
    return ConfigError(where, error.value, error.what, error.fix.replace("residual.", here))


def learnable(config: Several, model: Named) -> dict[str, bool]:
    """All that any part learns; ConfigError as of `owned`."""
    return {name: moves for names in owned(config, model) for name, moves in names.items()}


def build(config: Several, base: Params, model: Named) -> SeveralResidual:
    """Every part on the same base; ConfigError as of `owned`."""
    names = owned(config, model)
    parts = []
    for (part, file), own in zip(files(config), names, strict=True):
        made: Residual = file.build(part, base, model)
        parts.append(Part(made, frozenset(own), frozenset(getattr(file, "weight_of", str)(name) for name in own)))
    mixing = [part for part in parts if hasattr(part.residual, "mix")]
    if len(mixing) > 1:
        raise ConfigError("residual", config.name, "two parts change the scores", "leave one of them out")
    return Mixing(base, tuple(parts), mixing[0].residual) if mixing else SeveralResidual(base, tuple(parts))


@dataclass(frozen=True)
class Part:
    residual: Any
    names: frozenset[str]  # in phi
    weights: frozenset[str]  # of the model, or beside it


@dataclass(frozen=True)
class SeveralResidual:
    base: Params
    parts: tuple[Part, ...]

    def init(self, generator: torch.Generator) -> Params:
        """phi of all parts, drawn one after the other."""
        return {name: value for part in self.parts for name, value in part.residual.init(generator).items()}

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names in phi that the outer loop does not train, of all parts."""
        return tuple(name for part in self.parts for name in getattr(part.residual, "fixed", ()))

    @property
    def dropout(self) -> float:
        """The largest rate at which a part drops units of its own; 0 where none does."""
        return max(getattr(part.residual, "dropout", 0.0) for part in self.parts)

    def compose(self, phi: Weights) -> Weights:
        """The base, and over it what each part makes of its own; what is of none, such as statistics, stays as it is."""
        return self._composed(phi, [part.residual.compose for part in self.parts])

    def compose_on(self, pairs: PairBatch | ImageBatch) -> Compose:
        """`compose` for a loss of these pairs, where a part's gradient depends on them."""
        ways = [part.residual for part in self.parts]
        found = [way.compose_on(pairs) if hasattr(way, "compose_on") else way.compose for way in ways]
        return lambda phi: self._composed(phi, found)

    def dropping(self, generator: torch.Generator) -> Compose:
        """`compose` for a query loss in training, with the units dropped that parts drop."""
        ways = [part.residual for part in self.parts]
        found = [way.dropping(generator) if getattr(way, "dropout", 0.0) else way.compose for way in ways]
        return lambda phi: self._composed(phi, found)

    def _composed(self, phi: Weights, ways: Sequence[Compose]) -> Weights:
        theta: dict[str, Weight] = dict(self.base)
        known = frozenset[str]().union(*(part.names for part in self.parts))
        theta |= {name: weight for name, weight in phi.items() if name not in known}
        for part, compose in zip(self.parts, ways, strict=True):
            own = compose({name: weight for name, weight in phi.items() if name in part.names})
            theta |= {name: weight for name, weight in own.items() if name in part.weights}
        return theta


@dataclass(frozen=True)
class Mixing(SeveralResidual):
    """One of the parts changes scores as well."""

    mixer: Any

    def mix(
        self, phi: Weights, scores: Tensor, pairs: PairBatch, states: Tensor, encode: Callable[[PairBatch], Tensor]
    ) -> Tensor:
        """scores [T, N, V], states [T + S, H] -> [T, N, V], as the part has it."""
        mixed: Tensor = self.mixer.mix(phi, scores, pairs, states, encode)
        return mixed
