"""Adapter files in the layout of the peft package: factors of a low-rank update, out of a run and into one.

    adapter_model.safetensors   base_model.model.<module>.lora_A.weight [r, in], ....lora_B.weight [out, r]
    adapter_config.json         peft_type LORA, r, lora_alpha, use_rslora (alpha / sqrt(r), else alpha / r), target_modules

The module of a weight is its name without `.weight`; a weight whose name does not end so (gru.weight_ih_l0) is no
module's, and stands under its own name. A matrix that is stored [in, out] (`fan_in_fan_out`: GPT-2's) is updated by
(B A)^T, so its factors change places and are transposed. Factors here are plain dicts, weight -> (A [r, in], B [out, r])
with [out, in] the shape in which the weight is stored.

A file comes from anywhere: it is safetensors and JSON or it is refused, every tensor is accounted for, and where a manifest
of `metarec export` lies beside it, what it says is held against the bytes.

Source of the layout: Mangrulkar et al. 2022, PEFT, https://github.com/huggingface/peft (LoraConfig, save_pretrained); of the
method: Hu et al. 2022, arXiv:2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from metarec.contained import parse_json, plain_file, refuse_link
from metarec.errors import CheckpointError, nearest
from metarec.runs import atomic
from metarec.runs.manifest import read_regular, read_sealed, read_verified
from metarec.runs.rundir import FORMAT, KIND, MANIFEST

WEIGHTS, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
PREFIX, OF_A, OF_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
LARGEST = {WEIGHTS: 2**36, CONFIG: 2**20}  # bytes; what is larger is no adapter
Factors = dict[str, tuple[Tensor, Tensor]]  # name -> A [r, in], B [out, r]

# keys of a LoraConfig that change what the factors mean -> the values under which they mean s * B A
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_bdlora": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
    "megatron_config": (None,),
}
MOVES_BASE = ("pissa", "olora", "corda", "loftq")  # ways to begin that change the base weights under the factors


@dataclass(frozen=True)
class Adapter:
    """What adapter_config.json says of the factors."""

    rank: int
    alpha: float
    rslora: bool  # s = alpha / sqrt(rank), else alpha / rank
    fan_in_fan_out: bool = False
    targets: tuple[str, ...] | None = None  # modules, by whole names or their ends; None: a pattern of peft's own

    @property
    def scale(self) -> float:
        """s, what B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def module_of(weight: str) -> str:
    """The name under which a weight's factors stand in a file."""
    return weight.removesuffix(".weight")


def weight_of(module: str, names: Collection[str]) -> str | None:
    """The weight of `names` that a file calls `module`; None where there is none."""
    return next((name for name in (f"{module}.weight", module) if name in names), None)


def contents(
    factors: Mapping[str, tuple[Tensor, Tensor]], adapter: Adapter, *, base: str, task_type: str | None = None,
    turned: Collection[str] = (),
) -> dict[str, bytes]:  # fmt: skip
    """File name -> bytes, of factors weight -> (A [r, in], B [out, r]); `turned`: weights [out, in] that
    transformers stores [in, out].

    Raises ValueError for two weights that a file would call alike.
    """
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        module = PREFIX + module_of(name)
        if module + OF_A in tensors:
            raise ValueError(f"{name}: another weight has the module's name {module_of(name)}")
        # copies of their own: safetensors refuses memory that is shared
        tensors[module + OF_A] = a.detach().to("cpu", copy=True).contiguous()
        tensors[module + OF_B] = b.detach().to("cpu", copy=True).contiguous()
    whole = adapter.alpha == int(adapter.alpha)
    config = {
        "alpha_pattern": {},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": any(name in turned for name in factors),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(adapter.alpha) if whole else adapter.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "rank_pattern": {},
        "target_modules": sorted(module_of(name) for name in factors),
        "task_type": task_type,
        "use_dora": False,
        "use_rslora": adapter.rslora,
    }
    return {
        WEIGHTS: pack_tensors({name: tensors[name] for name in sorted(tensors)}, {"format": "pt"}),
        CONFIG: atomic.json_bytes(config, CONFIG),
    }


def read_config(directory: Path) -> Adapter:
    """What adapter_config.json of `directory` says; CheckpointError for what is no plain LoRA."""
    path = _directory(directory) / CONFIG
    try:
        found = parse_json(_bytes(path))
    except ValueError as error:
        raise _wrong(path, "no JSON", str(error)) from error
    if not isinstance(found, dict):
        raise _wrong(path, type(found).__name__, "no JSON object")
    if found.get("peft_type") != "LORA":
        raise _wrong(path, f"peft_type {found.get('peft_type')!r}", "only LORA is read", "give a LoRA adapter")
    for key, allowed in PLAIN.items():
        if key in found and found[key] not in allowed:
            what = "means more than s * B A, and only that is read"
            raise _wrong(path, f"{key} {found[key]!r}", what, f"save one with {key}={allowed[0]}")
    if str(found.get("init_lora_weights")).startswith(MOVES_BASE):
        what = "its base weights were moved as well, and the file does not hold them"
        raise _wrong(
            path, f"init_lora_weights {found['init_lora_weights']!r}", what, "convert it to a plain LoRA first"
        )
    rank, alpha = found.get("r"), found.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise _wrong(path, f"r {rank!r}", "the rank is a whole number of 1 or more")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise _wrong(path, f"lora_alpha {alpha!r}", "a number above 0 is needed")
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(found.get(key, False), bool):
            raise _wrong(path, f"{key} {found[key]!r}", "true or false is needed")
    names = found.get("target_modules")
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return Adapter(
        rank,
        float(alpha),
        bool(found.get("use_rslora", False)),
        bool(found.get("fan_in_fan_out", False)),
        tuple(names) if listed and isinstance(names, list) else None,
    )


def read(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], *, turned: Collection[str] = ()
) -> tuple[Adapter, Factors]:
    """The adapter of `directory` for a model of these weights: weight -> (A [r, in], B [out, r]), in the model's order.

    `turned`: weights [out, in] that transformers stores [in, out]. Raises CheckpointError, naming file and tensor, for a
    pickle, a module that the model has not or the file lacks, a wrong shape, a tensor that is no factor, and what is not
    finite.
    """
    adapter, path = read_config(directory), directory / WEIGHTS
    found = _pairs(path)
    if adapter.targets is not None:
        _as_listed(path, adapter.targets, found)
    factors: Factors = {}
    for module, (a, b) in found.items():
        name = weight_of(module, shapes)
        if name is None:
            near = nearest(module, [module_of(weight) for weight in shapes])
            fix = f"did you mean {near}?" if near else "use the model that it was made for"
            raise _wrong(path, module, "the model has no such module", fix)
        if len(shapes[name]) != 2:
            raise _wrong(
                path, module, f"{name} {list(shapes[name])} is no matrix", "use the model that it was made for"
            )
        out, width = shapes[name]
        for kind, tensor, expected in (("A", a, (adapter.rank, width)), ("B", b, (out, adapter.rank))):
            if tuple(tensor.shape) != expected:
                what = f"{list(expected)} is needed, for {name} {list(shapes[name])} at r = {adapter.rank}"
                raise _wrong(path, f"{module}.lora_{kind} {list(tensor.shape)}", what, "use the model it was made for")
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise _wrong(path, f"{module}.lora_{kind}", "not finite numbers, all of them", "use another adapter")
        factors[name] = (a, b)
    if adapter.fan_in_fan_out and not any(name in turned for name in factors):
        what = "transformers stores none of these matrices of the model [in, out], so the adapter is of another model"
        raise _wrong(directory / CONFIG, "fan_in_fan_out true", what, "use the model that it was made for")
    return adapter, {name: factors[name] for name in shapes if name in factors}


def _pairs(path: Path) -> Factors:
    """Module -> its two factors [r, in] and [out, r], of the names that the layout allows and no others."""
    try:
        tensors = parse_tensors(_bytes(path))
    except (SafetensorError, ValueError, KeyError, AssertionError) as error:
        raise _wrong(path, "no safetensors", str(error)) from error
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind = next((end for end in (OF_A, OF_B) if name.endswith(end)), None)
        if kind is None or not name.startswith(PREFIX):
            what = f"an unexpected tensor: names are {PREFIX}MODULE{OF_A} and {OF_B}"
            raise _wrong(path, name, what, "save a plain LoRA adapter")
        parts.setdefault(name[len(PREFIX) : -len(kind)], {})[kind] = tensor.clone()  # see `checkpoint.load_checkpoint`
    if not parts:
        raise _wrong(path, "no tensor", "the file holds no factor")
    for module, both in parts.items():
        if len(both) < 2:
            missing = OF_B if OF_A in both else OF_A
            raise _wrong(path, f"{module}{missing}", "missing: a module has two factors")
    return {module: (both[OF_A], both[OF_B]) for module, both in parts.items()}


def _as_listed(path: Path, targets: Collection[str], found: Collection[str]) -> None:
    """CheckpointError unless the modules are those that the configuration lists, by whole names or by their ends."""

    def matches(module: str, target: str) -> bool:
        return module == target or module.endswith(f".{target}")

    for target in targets:
        if not any(matches(module, target) for module in found):
            raise _wrong(
                path, target, f"missing: target_modules of {CONFIG} lists it, and the file has no factors of it"
            )
    for module in found:
        if not any(matches(module, target) for target in targets):
            raise _wrong(path, module, f"target_modules of {CONFIG} does not list it")


def _directory(path: Path) -> Path:
    if path.name == PICKLE or (path.is_dir() and (path / PICKLE).exists() and not (path / WEIGHTS).exists()):
        what = "a pickle, which can run code, and is not read"
        raise _wrong(path, PICKLE, what, f"save it as {WEIGHTS} (safe_serialization=True)")
    if not path.is_dir():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, names)
        hint = f"did you mean {path.parent / near}?" if near else f"give a directory with {WEIGHTS} and {CONFIG}"
        raise _wrong(path, "not a directory" if path.exists() else "missing", "no such adapter", hint)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).exists():
            raise _wrong(path, name, "missing", f"an adapter is {WEIGHTS} and {CONFIG}")
    return path


def _bytes(path: Path) -> bytes:
    """The file, held against the manifest of an export that lists it (its own directory's, or that of its users)."""
    for root in (path.parent, path.parent.parent.parent):
        if (root / MANIFEST).is_file():
            refuse_link(root / MANIFEST)
            files = read_sealed(root / MANIFEST, kind=KIND, version=FORMAT).get("files")
            name = path.relative_to(root).as_posix()
            if isinstance(files, dict) and name in files:
                return read_verified(path, files[name])
    real = plain_file(path)  # a download cache is made of links
    return read_regular(real, limit=min(LARGEST[path.name], real.stat().st_size))


def _wrong(where: Path, value: str, what: str, fix: str = "save it again, or give another one") -> CheckpointError:
    return CheckpointError(where, value, what, fix)
