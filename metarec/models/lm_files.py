"""A local Hugging Face directory: config.json and safetensors, and nothing that could run code.

    config.json              the architecture, one of transformers' own; auto_map (code in the directory) is refused
    model.safetensors        or its shards, under model.safetensors.index.json: {"weight_map": {tensor: file}}
    tokenizer.json           read by the tokenizers library, where titles are read (`lm_titles`)

Pickles (pytorch_model.bin) are refused: reading one can run anything. Every tensor of the model must be there, of its shape,
and no other; but for those that transformers itself passes over, such as GPT-2's masks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarec import plain_files, strict_json
from metarec.contained import plain_file
from metarec.errors import CheckpointError, ConfigError, nearest

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
KEY = "model.path"
WAY = "give a directory with config.json and model.safetensors, as save_pretrained writes it"


def read_config(directory: Path) -> Any:
    """transformers' config of a directory. ConfigError naming what is missing or would run code."""
    from transformers import AutoConfig

    content = _json(directory / CONFIG, directory)
    if content.get("auto_map"):
        what = "its config.json has auto_map, which runs code of the directory"
        raise ConfigError(KEY, directory, what, "give a model of an architecture that transformers has itself")
    if content.get("quantization_config"):
        raise ConfigError(KEY, directory, "its weights are quantised", "give a model in float32, float16 or bfloat16")
    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as reason:
        raise ConfigError(KEY, directory, f"config.json is not understood: {reason}", WAY) from reason
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(KEY, directory, "an encoder with a decoder, not a causal model", "give a causal model")
    return config


def weight_files(directory: Path) -> dict[str, Path] | list[Path]:
    """Tensor -> file as the index says, or the one file. ConfigError where there is neither."""
    if (directory / INDEX).is_file():
        listed = _json(directory / INDEX, directory).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(directory / INDEX, "weight_map", "the index lists no tensors", WAY)
        found: dict[str, Path] = {}
        for name, file in listed.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(directory / INDEX, file, "no name of a safetensors file beside the index", WAY)
            found[str(name)] = directory / file
        for path in sorted(set(found.values())):
            if not path.is_file():
                raise CheckpointError(path, "missing", "a file that the index names is not there", WAY)
        return found
    files = sorted(directory.glob("*.safetensors"))
    if (directory / SINGLE).is_file() or len(files) == 1:
        return [directory / SINGLE if (directory / SINGLE).is_file() else files[0]]
    if files:
        raise ConfigError(KEY, directory, f"{len(files)} safetensors files and no {INDEX}", "add the index")
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickles:
        what = f"it has {pickles[0]} and no safetensors; only safetensors are read: no file can run code"
        raise ConfigError(KEY, directory, what, "save it again with save_pretrained")
    raise ConfigError(KEY, directory, "it has no safetensors", WAY)


def read_tensors(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], whole: Any, tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors of `shapes` (names and shapes as in transformers), [*S] each: copies in the file's dtype.

    `whole`: transformers' model, which says how its body is called and which tensors of a file it passes over; `tied`: a
    tensor -> that whose storage it shares, which a file may hold as well if it is equal. CheckpointError names a tensor that
    is missing, too many, of another shape, or unlike its other half.
    """
    from safetensors import SafetensorError, safe_open

    files = weight_files(directory)
    paths = files if isinstance(files, list) else sorted(set(files.values()))
    found: dict[str, Tensor] = {}
    where: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(str(plain_file(path)), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 -- no mapping
                    if isinstance(files, dict) and files.get(name) != path:
                        raise CheckpointError(path, name, f"{INDEX} does not say that it is here", WAY)
                    found[name], where[name] = file.get_tensor(name).clone(), path
        except (SafetensorError, OSError) as reason:
            raise CheckpointError(path, reason, "no safetensors, or damaged", WAY) from reason
    if isinstance(files, dict):
        for name in files.keys() - found.keys():
            raise CheckpointError(files[name], name, f"{INDEX} says that it is here, and it is not", WAY)
    prefix = f"{whole.base_model_prefix}."
    if not any(name.startswith(prefix) for name in found):  # written by the body alone, as the first GPT-2 was
        body = {name.removeprefix(prefix) for name in shapes if name.startswith(prefix)}
        passed = [name for name in found if name not in body]
        found = {(name if name in passed else prefix + name): value for name, value in found.items()}
    where = {name: where.get(name, where.get(name.removeprefix(prefix), paths[0])) for name in found}
    missing = [name for name in shapes if name not in found]
    if missing:
        near = nearest(missing[0], set(found) - set(shapes))
        what = "the directory has no such tensor" + (f" (it has {near})" if near else "")
        raise CheckpointError(directory, missing[0], what, WAY)
    over = getattr(whole, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in sorted(set(found) - set(shapes)):
        twin = tied.get(name)
        if twin is not None:
            if not torch.equal(found[name], found[twin]):
                what = f"the config ties it to {twin}, and the file has another"
                raise CheckpointError(
                    where[name], name, what, "set tie_word_embeddings in config.json as it was trained"
                )
        elif not any(re.search(pattern, name) for pattern in over) and not name.endswith("rotary_emb.inv_freq"):
            raise CheckpointError(where[name], name, "a tensor that the model has no place for", WAY)
    for name, shape in shapes.items():
        if tuple(found[name].shape) != tuple(shape):
            what = f"config.json says {list(shape)}"
            raise CheckpointError(where[name], f"{name} {list(found[name].shape)}", what, WAY)
    return {name: found[name] for name in shapes}


def fingerprint(paths: list[Path]) -> str:
    """SHA-256 over the contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _json(path: Path, directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        near = (
            nearest(directory.name, [p.name for p in directory.parent.iterdir()]) if directory.parent.is_dir() else None
        )
        fix = f"did you mean {directory.parent / near}?" if near else WAY
        raise ConfigError(KEY, directory, "no such directory (models are read from the disk, none is fetched)", fix)
    try:
        content = strict_json.lenient(plain_files.read_text(plain_file(path) if path.is_symlink() else path))
    except FileNotFoundError:
        raise ConfigError(KEY, directory, f"it has no {path.name}", WAY) from None
    except (ValueError, OSError) as reason:
        raise ConfigError(KEY, path, f"not JSON ({reason})", WAY) from reason
    if not isinstance(content, dict):
        raise ConfigError(KEY, path, "no JSON object", WAY)
    return content
