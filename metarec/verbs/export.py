"""`metarec export`: what a run learned as files that need no metarec: an adapter in peft's layout, or merged weights.

    DIR/adapter_model.safetensors, adapter_config.json       the meta-learned start; of residual=lora
    DIR/model.safetensors                                    with merge=true: all weights, the update in them
    DIR/users/<id>/...                                       the same of each chosen user, adapted on his support
    DIR/config.yaml, overrides.json, environment.json, manifest.json      as of every command

All of it is written beside DIR and renamed: it is there in full or not at all.
Shapes: T users; weights are of any shape.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors.torch import save as pack_tensors

from metarec import durable
from metarec.algorithms.inner import start
from metarec.config.compose import config_to_yaml
from metarec.config.overrides import given_keys
from metarec.config.schema import ExportConfig
from metarec.core.weights import Params, Weights, fast
from metarec.durable import sync, temporary
from metarec.errors import ConfigError, DataError, DivergedError, EnvironmentFault
from metarec.residual import lora
from metarec.runs import adapters, atomic, rundir
from metarec.verbs import measure as m
from metarec.verbs.adapter import turned
from metarec.verbs.eval import Opened, episodes_of, opened, trained_of

MERGED = "model.safetensors"
LONGEST = 255  # bytes of a name in most file systems


def run_export(config: ExportConfig, run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Write what `config.ckpt` holds to `config.to`, or to `run_dir`. Raises MetarecError, leaving nothing."""
    target = run_dir if config.to is None else Path(config.to).expanduser()
    _refuse_filled(target)
    run = opened(config, given_keys(overrides))
    trained = trained_of(config, run)
    _refuse(config, run, trained)
    scratch = temporary(target, "new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        rundir.write_run_card(scratch, config_yaml=config_to_yaml(config), overrides=overrides)
        _write(scratch, _files(config, run, trained, _begun(trained), None))
        count = 0
        for user, weights, task in _users(config, run, trained) if config.users is not None else ():
            _write(scratch / "users" / _folder(user), _files(config, run, trained, weights, task))
            count += 1
        if count:
            sync(scratch / "users")
        rundir.seal(scratch)
        sync(scratch)
        _put(scratch, target)
    except OSError as error:
        raise atomic.fault(Path(error.filename or target), error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    what = "weights" if config.merge else "an adapter"
    print(f"{what} of {run.found} in {target}" + (f", and of {count:,} users" if count else ""), flush=True)
    return {"run_dir": str(target), "headline": {}}


def _refuse_filled(target: Path) -> None:
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        what = "exists and is not empty" if target.is_dir() else "is no directory"
        raise EnvironmentFault(target, "exists", what, "give another directory, to=DIR")


def _put(scratch: Path, target: Path) -> None:
    """Rename; where `target` has been filled since, the system refuses."""
    try:
        os.rename(scratch, target)  # onto nothing, or onto an empty directory
    except OSError:
        _refuse_filled(target)
        raise
    sync(target.parent)


def _refuse(config: ExportConfig, run: Opened, trained: m.Trained) -> None:
    """ConfigError for what the run does not have, or what no file of weights can hold."""
    on, algorithm = run.trained_as.residual.name, run.trained_as.algorithm.name
    if trained.algorithm is None and config.users is not None:
        raise ConfigError("users", algorithm, "the run has no inner loop that adapts to a user", "leave it out")
    if not config.merge and on != "lora":
        what = f"the run learned no low-rank factors, but residual={on}"
        raise ConfigError("merge", "false", what, "add merge=true, or train with residual=lora")
    if trained.algorithm is not None and trained.algorithm.inner.kept:
        what = f"algorithm={algorithm} keeps statistics of batch norms for every inner step, which are no weights"
        raise ConfigError("ckpt", run.found, what, "train with algorithm.bnrs=false")
    beside = sorted(set(trained.residual.compose(_begun(trained))) - set(run.bench.model.shapes()))
    if beside:
        what = f"residual={on} keeps {beside[0]} beside the weights: no ordinary model has a place for it"
        raise ConfigError("merge", "true", what, "train with residual=lora, on, head, bias or off")


def _begun(trained: m.Trained) -> Params:
    """What every user starts from; of any shape."""
    if trained.phi is None or trained.algorithm is None:
        return trained.base
    return start(trained.phi, trained.algorithm.inner)


def _users(config: ExportConfig, run: Opened, trained: m.Trained) -> Iterator[tuple[str, Weights, int]]:
    """(id, adapted weights of his batch, his place in it) of every chosen user, adapted as `metarec eval` does."""
    episodes = episodes_of(config, run)
    steps = config.evaluation.test_steps if config.steps is None else config.steps
    method = m.adapted(run.bench, trained, lr=config.lr, steps=steps)
    ids, done = run.bench.user_ids(episodes.user).tolist(), 0
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError("users", twice, "has several episodes, and a directory holds one", "choose another user")
    with torch.no_grad():
        for batch in episodes.batches():
            weights = method(batch)
            for task in range(batch.n_tasks):
                yield str(ids[done + task]), weights, task
            done += batch.n_tasks


def _files(
    config: ExportConfig, run: Opened, trained: m.Trained, weights: Weights, task: int | None
) -> dict[str, bytes]:
    """File name -> bytes, of what a run starts from (task None) or of one user."""
    if config.merge:
        with torch.no_grad():
            found = lora.merged(trained.residual.compose(weights), task)
        shapes = run.bench.model.shapes()
        whole = {name: _finite(name, found[name]) for name in shapes}
        if hasattr(run.bench.model, "as_transformers"):  # matrices as they stand in a directory of transformers
            whole |= run.bench.model.as_transformers(whole)
        whole = {name: value.to("cpu", copy=True).contiguous() for name, value in whole.items()}
        return {MERGED: pack_tensors(whole, {"format": "pt"})}
    on: Any = run.trained_as.residual
    own: Params = {}
    for name, weight in weights.items():
        held = fast(weight)
        value = held.shared if task is None or held.offset is None else held.dense()[task]
        own[name] = _finite(name, value)
    names = lora.targets(on, run.bench.model)
    factors = {name: (own[name + lora.A], own[name + lora.B]) for name in names}
    says = adapters.Adapter(on.rank, on.alpha, on.scaling != "alpha/r")
    return adapters.contents(
        factors, says, base=_base(run), task_type=getattr(run.trained_as.model, "task_type", None),
        turned=turned(run.bench.model),
    )  # fmt: skip


def _base(run: Opened) -> str:
    """Where the frozen weights are: the model's own directory where it has one, else the checkpoint (base/...)."""
    return str(getattr(run.trained_as.model, "path", None) or run.found.absolute())


def _finite(name: str, value: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(value).all()):
        raise DivergedError(name, "not finite", "nothing is written", "lower the step size or the number of steps")
    return value.detach()


def _folder(user: str) -> str:
    """A user's id as the name of one directory: what could lead elsewhere is written %XX. DataError for a long one."""
    name = quote(user, safe="")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if not name or len(name) > LONGEST:
        raise DataError("users", user[:40], f"no name for a directory ({len(name)} bytes)", "leave this user out")
    return name


def _write(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        durable.write_new(directory / name, data)
    sync(directory)
