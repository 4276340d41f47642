"""Whether a checkpoint's tensors are those that the model and the algorithm of its own configuration have.

They come from a file: without this a tensor of another width is told by whatever operator meets it first.
"""

from __future__ import annotations

from pathlib import Path

from metarec import build
from metarec.benches import AnyBench
from metarec.config.schema import SupervisedConfig, TrainConfig
from metarec.core.seeding import generator
from metarec.core.weights import Params
from metarec.runs.stored import check_tensors
from metarec.verbs.measure import Trained


def check_start(path: Path, tensors: Params, bench: AnyBench, config: TrainConfig) -> None:
    """CheckpointError unless the weights that everything sits on, [*S] each, are the model's."""
    prefix = "phi/" if isinstance(config.algorithm, SupervisedConfig) else "base/"
    found = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    check_tensors(path, found, bench.model.shapes(), f"the weights of model={config.model.name}")


def check_learned(path: Path, trained: Trained, bench: AnyBench, config: TrainConfig) -> None:
    """CheckpointError unless what was learned is what algorithm and residual learn; `trained` as the checkpoint has it."""
    if trained.phi is None or trained.algorithm is None:
        return
    begun = trained.residual.init(generator(config.seed, "residual"))
    like = next(iter(trained.base.values()))
    moments = {name: like.new_zeros(shape) for name, shape in build.statistics(trained.algorithm, bench.model).items()}
    wanted = {name: tuple(value.shape) for name, value in trained.algorithm.learned(begun | moments).items()}
    what = f"what algorithm={config.algorithm.name} learns over residual={config.residual.name}"
    check_tensors(path, trained.phi, wanted, what)
