"""Teachers on disk: what an inner loop has found for each of many users, with all that it follows from and fits.

    DIR/manifest.json              what they were made from and how, the shards with their SHA-256, and whether all are there
    DIR/start.safetensors          the numbers that every user starts from, name -> [*S]
    DIR/shard-00000.safetensors    name -> [U, *S] of U users; user, pairs int64 [U]; loss_before, loss_after [U]

The manifest is sealed (`runs.manifest`) and written anew behind each shard, so what it lists is whole. It says nothing of
when or how long: teachers that were interrupted end with the bytes of those that were not. What a run takes them for is held
against it (`Teachers.check`) before any shard is read, and a shard against its SHA-256 when it is.

Numbers that are the factors of a product s B A (`Terms.products`) are known up to (R A, B R^-1), so what is said of them is
said of the product (`core.gram`). Shapes: U users of a shard or of all, T users asked for; a number is [*S].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from metarec.contained import refuse_links
from metarec.core.gram import Product, squared_norm
from metarec.core.weights import Params
from metarec.errors import CheckpointError, DivergedError, EnvironmentFault
from metarec.runs.atomic import is_temporary, write_bytes
from metarec.runs.environment import metarec_version
from metarec.runs.lock import HOLDER, LOCK
from metarec.runs.manifest import damaged, digest, read_sealed, read_verified, sealed_bytes
from metarec.runs.teachers_terms import Terms, check_terms, different

KIND, FORMAT = "metarec-teachers", 1
MANIFEST, START = "manifest.json", "start.safetensors"
OF_USERS = ("user", "pairs", "loss_before", "loss_after")  # of a shard, beside the numbers
ANEW = "make teachers anew (metarec teachers to=ANOTHER), or copy the file again from where it is intact"
AGAIN = "run `metarec teachers` with the same words and to={} again: it goes on where it stopped"
Users = NDArray[np.int64] | Tensor
BLOCK = 1024  # users whose products are compared at once, in float64


@dataclass(frozen=True)
class Teachers:
    """A finished directory; shards are read, and verified, when first asked for."""

    path: Path
    terms: Terms
    manifest: Mapping[str, Any]

    @staticmethod
    def open(path: Path) -> Teachers:
        """The teachers in `path`; CheckpointError, exit code 4, for what is none, damaged or not finished."""
        content = read_manifest(path)
        if content is None:
            what, fix = "no directory of teachers", "make it by `metarec teachers to=DIR`, or leave the key out"
            raise CheckpointError(path, "no manifest.json" if path.is_dir() else "missing", what, fix)
        refuse_links(path)
        found = Teachers(path, terms_of(path, content), content)
        made = sum(shard["users"] for shard in found.shards)
        if content["complete"] is not True or made != found.terms.n_users:
            what = "its making was interrupted"
            raise CheckpointError(path, f"{made} of {found.terms.n_users} users", what, AGAIN.format(path))
        for shard in found.shards:
            if not (path / shard["file"]).exists():
                raise CheckpointError(path / shard["file"], "missing", "a shard of the teachers is not there", ANEW)
        return found

    @property
    def shards(self) -> list[dict[str, Any]]:
        """What the manifest says of each: file, size, sha256, users, and sums over them."""
        return list(self.manifest["shards"])

    def __len__(self) -> int:
        return self.terms.n_users

    @property
    def names(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape [*S] of every number that a user has."""
        return {name: tuple(shape) for name, shape in self.terms.names.items()}

    @property
    def scales(self) -> dict[str, float]:
        """Weight -> s of s B A, where two numbers are its factors."""
        return {weight: scale for weight, (_, _, scale) in self.terms.products.items()}

    @cached_property
    def start(self) -> Params:
        """What every user starts from, name -> [*S]."""
        with _way_out():
            found = _tensors(self.path / START, read_verified(self.path / START, self.manifest["start"]))
        _check_shapes(self.path / START, found, self.names)
        return found

    @cached_property
    def _held(self) -> Params:
        parts = [read_shard(self.path, shard, self.names) for shard in self.shards]
        held = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = held["user"].argsort(stable=True)
        held = {name: value[order] for name, value in held.items()}
        if bool((held["user"].diff() == 0).any()):
            twice = int(held["user"][1:][held["user"].diff() == 0][0])
            raise CheckpointError(self.path, f"user row {twice}", "has two teachers", ANEW)
        return held

    @property
    def users(self) -> Tensor:
        """Rows of the users in the prepared data, int64 [U], rising; `pairs`, `loss_before`, `loss_after` are of these."""
        return self._held["user"]

    @property
    def pairs(self) -> Tensor:
        """How many support pairs each user's teacher has learned from, int64 [U]."""
        return self._held["pairs"]

    @property
    def losses(self) -> tuple[Tensor, Tensor]:
        """Loss of each user's query pairs at the start and under his teacher, [U] each."""
        return self._held["loss_before"], self._held["loss_after"]

    def has(self, users: Users) -> NDArray[np.bool_]:
        """int64 [T] -> bool [T], which of them have a teacher."""
        asked = torch.as_tensor(users, device="cpu")
        return np.asarray(self.users[self._place(asked)] == asked)

    def of(self, users: Users) -> Params:
        """The teachers of users int64 [T], name -> [T, *S] on the CPU; CheckpointError for a user who has none."""
        asked = torch.as_tensor(users, device="cpu")
        if not (there := self.has(asked)).all():
            what = f"has no teacher: there are {len(self):,}, of other users"
            fix = "make teachers of all users (algorithm.teacher.users=null)"
            raise CheckpointError(self.path, f"user row {int(asked[~torch.from_numpy(there)][0])}", what, fix)
        place = self._place(asked)
        return {name: self._held[name][place] for name in self.names}

    def _place(self, users: Tensor) -> Tensor:
        return torch.searchsorted(self.users, users).clamp(max=len(self.users) - 1)

    @cached_property
    def sizes(self) -> dict[str, float]:
        """Mean over users of |s B A|^2 of each product, by its weight, and of |number - start|^2 of every number."""
        found: dict[str, float] = {}
        for weight, (a, b, scale) in self.terms.products.items():
            total = sum(
                float(squared_norm(Product(own[a], own[b], scale)).sum()) for own in self._blocks((a, b))
            )  # fmt: skip
            found[weight] = total / len(self)
        for name in self.terms.names:
            begin = self.start[name].double()
            total = sum(float((own[name] - begin).square().sum()) for own in self._blocks((name,)))
            found[name] = total / len(self)
        return found

    def mean(self, module: str) -> Tensor:
        """What the teachers do to a module on average: mean over users of s B A [out, in], or of number - start [*S]."""
        if module not in self.terms.products:
            if module not in self._alone:
                raise KeyError(f"{module}: the modules are {', '.join(self.modules)}")
            begin = self.start[module]
            total = torch.zeros_like(begin, dtype=torch.float64)
            for own in self._blocks((module,)):
                total += own[module].sum(0)
            return (total / len(self) - begin).to(begin.dtype)
        a, b, scale = self.terms.products[module]
        product = torch.zeros((), dtype=torch.float64)
        for own in self._blocks((a, b)):  # a sum over users of products is one product of wide factors
            product = product + own[b].permute(1, 0, 2).flatten(1) @ own[a].flatten(0, 1)
        return product.mul(scale / len(self)).to(self.start[a].dtype)

    @property
    def modules(self) -> tuple[str, ...]:
        """The weights that are given a product, then the names of all other numbers."""
        return (*self.terms.products, *self._alone)

    @property
    def _alone(self) -> tuple[str, ...]:
        factors = {name for a, b, _ in self.terms.products.values() for name in (a, b)}
        return tuple(name for name in self.terms.names if name not in factors)

    def _blocks(self, names: tuple[str, ...]) -> Iterator[Params]:
        for begin in range(0, len(self), BLOCK):
            yield {name: self._held[name][begin : begin + BLOCK].double() for name in names}

    def check(self, wanted: Terms) -> str:
        """A line that says how many modules they cover, all; CheckpointError where they are not what a run asks for.

        Compared is what they must fit (`teachers_terms.check_terms`), not how they were made.
        """
        check_terms(self.path / MANIFEST, self.terms, wanted)
        n, count = len(self.modules), len(self)
        return f"teachers of {count:,} users in {self.path}: {n} of {n} modules (100 %), {self.terms.steps} steps"


class Writer:
    """Makes a directory of teachers shard by shard, or goes on with one; hold its lock (`runs.lock`) meanwhile."""

    def __init__(self, path: Path, terms: Terms, start: Params) -> None:
        """`path` exists. What is there of the same teachers and whole is kept, `start` [*S] is written.

        Raises CheckpointError where another run's teachers are there, EnvironmentFault where something else is.
        """
        self.path, self.terms = path, terms
        content = read_manifest(path)
        if content is None:
            refuse_filled(path)
            self.shards: dict[int, dict[str, Any]] = {}
        else:
            there = terms_of(path, content)
            if key := different(there, terms):
                what = f"another run's teachers: {key[0]} is {key[1]} there, and {key[2]} here"
                raise CheckpointError(path, key[0], what, "give another directory, to=DIR, or the words of that run")
            self.shards = {int(shard["file"][6:11]): shard for shard in content["shards"] if self._good(shard)}
            if content["complete"] is True and len(self.shards) == len(content["shards"]):
                self.was_finished = True
                return
        data = pack_tensors(_plain(start))
        self.start = digest(data)
        self._write_manifest()
        write_bytes(path / START, data)

    was_finished = False

    def _good(self, shard: Mapping[str, Any]) -> bool:
        try:
            read_shard(self.path, shard, {name: tuple(shape) for name, shape in self.terms.names.items()})
        except CheckpointError:
            return False
        return True

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards still to be made, rising; shard i is of users [i * shard_users, ...) in the order made."""
        return [number for number in range(self.terms.n_shards) if number not in self.shards]

    def add(self, number: int, tensors: Params) -> None:
        """A shard: the numbers [U, *S] by name, and OF_USERS [U]. DivergedError, naming a user, where one is not finite."""
        file = f"shard-{number:05d}.safetensors"
        for name, value in tensors.items():
            bad = ~torch.isfinite(value).reshape(len(value), -1).all(1)
            if bool(bad.any()):
                raise DivergedError(
                    f"{self.path / file}: {name}", f"user row {int(tensors['user'][bad][0])}",
                    "not finite, so the shard is not written", "lower algorithm.teacher.lr or algorithm.teacher.steps",
                )  # fmt: skip
        data = pack_tensors(_plain(tensors))
        before, after = tensors["loss_before"].double(), tensors["loss_after"].double()
        write_bytes(self.path / file, data)
        self.shards[number] = {
            "file": file, **digest(data), "users": len(before), "sum_before": float(before.sum()),
            "sum_after": float(after.sum()), "fell": int((after < before).sum()), "pairs": int(tensors["pairs"].sum()),
        }  # fmt: skip
        self._write_manifest()

    def finish(self) -> Teachers:
        """Say that all are there."""
        if not self.was_finished:
            self._write_manifest(complete=True)
        return Teachers.open(self.path)

    def _write_manifest(self, *, complete: bool = False) -> None:
        shards = [self.shards[number] for number in sorted(self.shards)]
        content = {
            "kind": KIND, "format": FORMAT, "metarec": metarec_version(), **asdict(self.terms), "start": self.start,
            "shards": shards, "complete": complete,
        }  # fmt: skip
        if complete:
            content |= {f"loss_{when}": sum(s[f"sum_{when}"] for s in shards) / self.terms.n_users
                        for when in ("before", "after")}  # fmt: skip
        path = self.path / MANIFEST
        write_bytes(path, sealed_bytes(content, str(path)))


def refuse_filled(path: Path) -> None:
    """EnvironmentFault where `path` is no directory, or one without teachers that holds something else."""
    if path.exists() and not path.is_dir():
        raise EnvironmentFault(path, "exists", "is no directory", "give another one, to=DIR")
    if not path.exists() or (path / MANIFEST).exists():
        return
    for name in sorted(entry.name for entry in path.iterdir()):
        if name not in (LOCK, HOLDER) and not is_temporary(name):
            raise EnvironmentFault(
                path, name, "the directory is not empty, and holds no teachers", "give another, to=DIR"
            )


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a directory, None where there is none; CheckpointError where it is damaged or of something else."""
    if not (path / MANIFEST).exists():
        return None
    with _way_out():
        return read_sealed(path / MANIFEST, kind=KIND, version=FORMAT)


def terms_of(path: Path, content: Mapping[str, Any]) -> Terms:
    """What a manifest says that teachers were made from; CheckpointError where something is missing or no number."""
    try:
        made = Terms(**{spec.name: content[spec.name] for spec in fields(Terms)}).tidy()
        if not isinstance(content["start"], dict) or not all(_says(shard) for shard in content["shards"]):
            raise TypeError("shards or start are not described")
        content["complete"]
    except (KeyError, TypeError, ValueError) as error:
        with _way_out():
            raise damaged(path / MANIFEST, f"it does not say what teachers are ({error})") from error
    return made


def _says(shard: Any) -> bool:
    whole = isinstance(shard, dict) and type(shard.get("users")) is int and shard["users"] > 0
    return whole and re.fullmatch(r"shard-\d{5}\.safetensors", str(shard.get("file"))) is not None


def read_shard(path: Path, shard: Mapping[str, Any], names: Mapping[str, tuple[int, ...]]) -> Params:
    """Name -> [U, *S] and OF_USERS [U] of a shard, its SHA-256 verified first; CheckpointError for what is wrong."""
    file = path / shard["file"]
    with _way_out():
        found = _tensors(file, read_verified(file, dict(shard)))
    count = int(shard["users"])
    _check_shapes(
        file, found, {name: (count, *shape) for name, shape in names.items()} | dict.fromkeys(OF_USERS, (count,))
    )
    for name, value in found.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(file, name, "holds numbers that are not finite", ANEW)
    return found


def _check_shapes(file: Path, found: Params, wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(wanted.keys() - found.keys()):
        raise CheckpointError(file, name, "is not in the file, and the manifest names it", ANEW)
    for name in sorted(found.keys() - wanted.keys()):
        raise CheckpointError(file, name, "is in the file, and the manifest does not name it", ANEW)
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            what = f"the manifest says {list(shape)}"
            raise CheckpointError(file, f"{name} {list(found[name].shape)}", what, ANEW)


def _tensors(file: Path, data: bytes) -> Params:
    try:
        return {name: value.clone() for name, value in parse_tensors(data).items()}
    except (SafetensorError, ValueError, KeyError, AssertionError) as error:
        raise damaged(file, f"no safetensors ({error})") from error


def _plain(tensors: Params) -> Params:
    return {name: tensors[name].detach().to("cpu", copy=True).contiguous() for name in sorted(tensors)}


@contextmanager
def _way_out() -> Iterator[None]:
    """What is wrong with a file of teachers, with a way out that fits them."""
    try:
        yield
    except CheckpointError as error:
        fix = error.fix if error.what.startswith("this metarec reads") else ANEW
        raise CheckpointError(error.where, error.value, error.what, fix) from error
