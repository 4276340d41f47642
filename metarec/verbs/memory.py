"""The memory that a run's meta-training will take, before any weight is there (`metarec.runs.memory_need`).

What is asked of a model are shapes; of data, the sizes of the first training batch. Shapes: those of weights, as tuples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metarec import build
from metarec.algorithms import Algorithm
from metarec.benches import AnyBench, SequenceBench
from metarec.config.schema import NoGuardConfig, TrainConfig
from metarec.core.batch import EpisodeBatch, Sequences
from metarec.errors import EnvironmentFault
from metarec.runs import disk
from metarec.runs.memory_need import Batch, Loop, Need, available, estimate, refuse, state_numbers
from metarec.tasks import Model

DRAWN = {"sampled_softmax": ("n_samples", 1024), "bce": ("n_negatives", 256), "gbce": ("n_negatives", 256),
         "bpr_max": ("n_samples", 2048)}  # fmt: skip  # objective -> key of how many items it draws, and its most by default

OF_CG = 2  # inner steps of second order that the vectors of a conjugate gradient weigh as much as (iMAML, measured)


def learned_shapes(config: TrainConfig, model: Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that the residual learns; a part that learns other things says so by `learned_shapes`."""
    known = model.shapes() | model.context_shapes() | getattr(model, "scale_shapes", dict)()
    found: dict[str, tuple[int, ...]] = {}
    for on, file in build.residual_files(config.residual):
        own = getattr(file, "learned_shapes", None)
        named = {name: known[name] for name in file.learnable(on, model) if name in known}
        found |= named if own is None else own(on, model)
    return found


def need_of(config: TrainConfig, bench: AnyBench, made: Algorithm) -> Need:
    """Of the meta-training of `config` with this algorithm; no weight is allocated."""
    model, loop = bench.model, made.inner
    with torch.device("meta"):  # shapes without numbers
        phi = {name: torch.empty(shape) for name, shape in learned_shapes(config, model).items()}
        learned = {name: tuple(value.shape) for name, value in made.learned(phi).items()}
    statistics = build.statistics(made, model)
    weight_of = build.weight_of(config.residual)
    batch = _batch(config, bench)
    optimizer, guard = config.optimizer, config.guard
    multi = getattr(made, "step_weights", None)
    begins = getattr(config.algorithm, "learns_start", True)  # else what adapts has no gradient (CAVIA's contexts)
    implicit = getattr(made, "cg_steps", 0) > 0 and loop.steps > 0
    judged = sum(weight > 0 for weight in multi(0)) if multi is not None else 1
    reckon = partial(
        estimate,
        model.shapes(),
        learned | {name: (loop.steps + 1, *shape) for name, shape in statistics.items()},
        {name: shape for name, shape in learned_shapes(config, model).items() if loop.moves(name)},
        frozenset(name for name in learned if weight_of(name) in model.head),
        per_state=_per_state(model, batch),
        itemsize=torch.empty((), dtype=bench.hardware.dtype).element_size(),
        slots=optimizer.slots,
        keeps=not isinstance(guard, NoGuardConfig) and "rollback" in (guard.on_nonfinite, guard.on_spike),
        trained=sum(math.prod(shape) for name, shape in learned.items() if begins or not loop.moves(name)),
        on_cpu=bench.hardware.device.type == "cpu",
    )
    steps = getattr(made, "refine_steps", loop.steps) + (
        OF_CG if implicit else 0
    )  # a generator's own inner loop is a row
    forgets = loop.forget is not None
    need = reckon(batch, Loop(steps, implicit or _second_order(made), loop.recompute, judged, forgets))
    at_test = reckon(_of_validation(config, bench, batch), Loop(loop.steps, False, forgets=forgets))
    if at_test.tasks + at_test.activations > need.tasks + need.activations:  # more tasks at once there
        need = replace(need, tasks=at_test.tasks, activations=at_test.activations)
    return replace(need, teachers=_of_teachers(config, bench, made))


def _of_teachers(config: TrainConfig, bench: AnyBench, made: Algorithm) -> int:
    """Bytes of the numbers of all teachers, which stay in memory; 0 where no loss learns from any."""
    asked: Any = config.algorithm
    if not getattr(getattr(asked, "loss", None), "taught", False) or not isinstance(bench, SequenceBench):
        return 0
    users = len(bench.prepared.episodes("train").user)
    users = users if asked.teacher.users is None else min(users, asked.teacher.users)
    moving = (math.prod(s) for name, s in learned_shapes(config, bench.model).items() if made.inner.moves(name))
    return users * sum(moving) * torch.empty((), dtype=bench.hardware.dtype).element_size()


def _of_validation(config: TrainConfig, bench: AnyBench, batch: Batch) -> Batch:
    """The batch of a validation, whose users are taken for like those of training."""
    tasks = min(config.evaluation.task_chunk, len(bench.episodes("val")))
    states = (-(-count * tasks // batch.tasks) for count in (batch.support_states, batch.query_states))
    support, query = states
    return replace(batch, tasks=tasks, support_states=support, query_states=query)


def _second_order(made: Algorithm) -> bool:
    """Whether the graph of inner steps is kept."""
    return getattr(made, "order", "first") in ("second", "annealed") and made.inner.steps > 0


def _batch(config: TrainConfig, bench: AnyBench) -> Batch:
    """The sizes of the first chunk of the first outer step."""
    first: EpisodeBatch = next(iter(bench.training_batches(config.train, config.seed, 0)))
    support, query = first.support, first.query
    objective: Any = config.objective
    columns = bench.n_items
    if objective.name in DRAWN:
        key, most = DRAWN[objective.name]
        asked = getattr(objective, key)
        columns = min((min(most, max(columns // 4, 1)) if asked is None else asked) + 1, columns)
    elif objective.name == "chunked_cross_entropy":
        columns = min(objective.chunk, columns)
    (n_s, long_s), (n_q, long_q) = _states(support.inputs), _states(query.inputs)
    return Batch(first.n_tasks, support.target.shape[1], query.target.shape[1], n_s, n_q, max(long_s, long_q), columns)


def _states(inputs: Sequences | torch.Tensor) -> tuple[int, int]:
    """(states, events of the longest sequence); of images [T, N, ...] pixels take the place of states."""
    if isinstance(inputs, Sequences):
        return int(inputs.lengths.sum()), int(inputs.lengths.max())
    return inputs.numel(), 1


def _per_state(model: Model, batch: Batch) -> int:
    own = getattr(model, "activation_numbers", None)
    if own is not None:
        states = max(batch.support_states, 1)
        return -(-int(own(states, batch.longest)) // states)
    shapes = model.shapes()
    # each convolution, its norm and what follows keep as many maps as it has channels, on a quarter of the pixels
    kernels = [shape[0] for shape in shapes.values() if len(shape) == 4]
    of_maps = sum(3 * channels >> 2 * depth for depth, channels in enumerate(kernels))
    return state_numbers(shapes, model.head) + of_maps


def room_on_disk(config: TrainConfig, run_dir: Path, need: Need, steps: int, done: int, *, pretrains: bool) -> None:
    """EnvironmentFault where the disk of `run_dir`, or of the cache, has no room for what steps `done` to `steps` write."""
    tensors = need.weights + need.learned + need.optimizer + need.guard
    every = config.train.checkpoint_every
    needed = disk.checkpoints_bytes(tensors, steps, done, every)
    disk.refuse(run_dir, needed, f"set output_dir to another disk, or train.checkpoint_every to more than {every}")
    if pretrains and config.warm_start == "auto":
        cache = build.cache_dir(config)
        cache.mkdir(parents=True, exist_ok=True)
        disk.refuse(cache, need.weights, "or set cache_dir to another disk")


def there(bench: AnyBench) -> tuple[int | None, str]:
    """(bytes that can be had, where) of the device that the run is on; None where nobody says."""
    device = bench.hardware.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused), str(device)
    return (available() if device.type == "cpu" else None), "memory"


def expected(
    config: TrainConfig, bench: AnyBench, made: Algorithm, say: Callable[[str], None], *, weights_are_there: bool
) -> Need:
    """The estimate; raises EnvironmentFault, having told it, where so much cannot be had.

    weights_are_there: the base is in memory already, so that only the rest must find room.
    """
    need = need_of(config, bench, made)
    found, where = there(bench)
    try:
        refuse(need, found, where, weights_are_there=weights_are_there)
    except EnvironmentFault:
        say(need.line())
        raise
    return need
