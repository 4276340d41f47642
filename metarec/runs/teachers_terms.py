"""What teachers were made from and how, and whether that is what a run asks for (`runs.teachers`).

What they must fit: the vocabulary and the data that their users stand in, the frozen weights that they change, the residual
that says which numbers a user has, and the start that they were found from. How they were made (steps, step size, pairs,
objective, ...) is a choice that a run may leave to them; in going on with a directory every bit of it counts.

Shapes: a number is [*S].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarec.errors import CheckpointError
from metarec.metrics.finite import plain_json

ANEW = "make teachers anew, `metarec teachers to=ANOTHER`"


@dataclass(frozen=True)
class Terms:
    """All that teachers follow from. A hash tells weights and data; `others` is whatever else changes a bit of them."""

    vocabulary_sha256: str
    data_fingerprint: str
    base_sha256: str  # of the frozen weights
    start_sha256: str  # of what every user starts from
    residual: dict[str, Any]  # its options
    names: dict[str, list[int]]  # what a user has -> its shape
    products: dict[str, list[Any]]  # weight -> [name of A [r, in], name of B [out, r], s], where it is given s B A
    steps: int
    lr: float
    pairs: int  # the latest of a user's history, at most
    n_query: int
    n_users: int
    shard_users: int
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def n_shards(self) -> int:
        """Files that the users are divided among."""
        return -(-self.n_users // self.shard_users)

    def tidy(self) -> Terms:
        """The same in the types that JSON gives back. TypeError or ValueError where something is of another kind."""
        plain = plain_json(asdict(self), "terms")
        for key in ("steps", "pairs", "n_query", "n_users", "shard_users"):
            if type(plain[key]) is not int or plain[key] < 1:
                raise ValueError(f"{key} {plain[key]!r}")
        for key in ("vocabulary_sha256", "data_fingerprint", "base_sha256", "start_sha256"):
            if not isinstance(plain[key], str):
                raise TypeError(f"{key} {plain[key]!r}")
        for key in ("residual", "names", "products", "others"):
            if not isinstance(plain[key], dict):
                raise TypeError(f"{key} {plain[key]!r}")
        plain["lr"] = float(plain["lr"])
        plain["names"] = {name: [int(n) for n in shape] for name, shape in plain["names"].items()}
        plain["products"] = {w: [str(a), str(b), float(s)] for w, (a, b, s) in plain["products"].items()}
        if unknown := {name for a, b, _ in plain["products"].values() for name in (a, b)} - plain["names"].keys():
            raise ValueError(f"products of {min(unknown)}")
        return replace(self, **plain)

    def key(self) -> str:
        """32 letters that name these teachers in a cache."""
        return hashlib.sha256(json.dumps(asdict(self.tidy()), sort_keys=True).encode()).hexdigest()[:32]


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes of weights of any shape, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().to("cpu").contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def different(one: Terms, other: Terms) -> tuple[str, str, str] | None:
    """The first thing in which they differ, as (key, what the one says, what the other says)."""
    a, b = (_flat(asdict(terms.tidy())) for terms in (one, other))
    for key in [*b, *(key for key in a if key not in b)]:
        if a.get(key) != b.get(key):
            return key, _short(a.get(key)), _short(b.get(key))
    return None


def check_terms(where: Path, found: Terms, wanted: Terms) -> None:
    """CheckpointError for the first thing by which teachers do not fit a run; what is general comes first."""

    def refuse(key: str, value: object, what: str, fix: str) -> None:
        raise CheckpointError(where, f"{key} {value}", what, fix)

    if found.vocabulary_sha256 != wanted.vocabulary_sha256:
        what = f"the dataset has another vocabulary, {wanted.vocabulary_sha256[:12]}"
        refuse("vocabulary", found.vocabulary_sha256[:12], what, f"use the dataset they were made on, or {ANEW}")
    if found.data_fingerprint != wanted.data_fingerprint:
        what = f"rows of users mean others: the prepared data is {wanted.data_fingerprint[:12]}"
        fix = f"use the dataset, split and episodes they were made on, or {ANEW}"
        refuse("data_fingerprint", found.data_fingerprint[:12], what, fix)
    if found.base_sha256 != wanted.base_sha256:
        what = f"the run's frozen weights are {wanted.base_sha256[:12]}: another model, or another seed of pretraining"
        refuse("base", found.base_sha256[:12], what, f"use the model, seed and pretraining of the teachers, or {ANEW}")
    _check_residual(where, found, wanted)
    for weight, (_, _, scale) in wanted.products.items():
        theirs = found.products.get(weight)
        if theirs is None or theirs[2] != scale:
            value = "missing" if theirs is None else f"s {theirs[2]:g}"
            refuse(weight, value, f"the run adds {scale:g} B A to it", ANEW)
    if found.start_sha256 != wanted.start_sha256:
        seeds = f"seed {found.others.get('seed')}" if "seed" in found.others else found.start_sha256[:12]
        refuse("start", seeds, "users start from other numbers (A is drawn by the seed)", f"give that seed, or {ANEW}")
    if found.n_query != wanted.n_query:
        fix = f"give dataset.episodes.n_query={found.n_query}, or {ANEW}"
        refuse("n_query", found.n_query, f"the run has {wanted.n_query} query pairs a user", fix)


def _check_residual(where: Path, found: Terms, wanted: Terms) -> None:
    name, theirs = wanted.residual.get("name"), found.residual.get("name")
    if name != theirs:
        fix = f"use residual={theirs}, or {ANEW}"
        raise CheckpointError(where, f"residual {theirs}", f"the run has residual={name}", fix)
    for key in ("rank", "alpha", "scaling"):
        mine, own = wanted.residual.get(key), found.residual.get(key)
        if mine != own:
            own = f"{own:g}" if isinstance(own, float) else own
            mine = f"{mine:g}" if isinstance(mine, float) else mine
            what, fix = f"teachers have {key} {own}, residual.{key} is {mine}", f"give residual.{key}={own}, or {ANEW}"
            raise CheckpointError(where, f"{key} {own}", what, fix)
    missing, unexpected = (sorted(a.names.keys() - b.names.keys()) for a, b in ((wanted, found), (found, wanted)))
    covered = (
        f"teachers cover {len(wanted.names) - len(missing)} of the {len(wanted.names)} numbers that adapt in the run"
    )
    fix = f"give the residual.targets that they were made with, or {ANEW}"
    if missing:
        raise CheckpointError(where, f"{missing[0]} missing", covered, fix)
    if unexpected:
        raise CheckpointError(where, f"{unexpected[0]} unexpected", "nothing of that name adapts in the run", fix)
    for key, shape in wanted.names.items():
        if found.names[key] != list(shape):
            raise CheckpointError(where, f"{key} {found.names[key]}", f"the run has {list(shape)}", fix)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            k: v for key, below in value.items() for k, v in _flat(below, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
