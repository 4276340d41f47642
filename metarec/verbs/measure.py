"""The final measurement that `train` ends with and `eval` repeats: all methods, one table, one document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType

from metarec import build
from metarec.algorithms import Algorithm
from metarec.algorithms.inner import InnerLoop, start
from metarec.algorithms.maml import MAML
from metarec.benches import AnyBench, AnyEpisodes, ImageBench
from metarec.config.schema import MetaConfig, SupervisedConfig, TrainConfig
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params, Weights
from metarec.evaluate import Control, Method, ranks, records, tune_control
from metarec.metrics.summary import per_user, summarise
from metarec.report.progress import progress
from metarec.report.tables import results_table
from metarec.residual import Residual
from metarec.residual.off import NoResidual
from metarec.runs import atomic
from metarec.verbs.weighting import UNIFORM, Weighting, weighting_of

IMAGE_INNER = Control(lr=0.01, steps=5, value=0.0, tried=[])  # Antoniou et al. 2019


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds: base weights, and what was meta-learned over them (None: supervised training only)."""

    base: Params
    phi: Params | None
    residual: Residual
    algorithm: Algorithm | None
    weighting: Weighting = UNIFORM  # of the support pairs


def adapted(bench: AnyBench, trained: Trained, *, lr: float | None = None, steps: int | None = None) -> Method:
    """Few-shot: the meta-learned start, adapted on the support as in training unless told otherwise."""
    tasks = bench.tasks(trained.residual)
    algorithm, phi = trained.algorithm, trained.phi
    assert algorithm is not None
    assert phi is not None

    def weights(batch: EpisodeBatch) -> Weights:
        support = tasks.loss(batch.support, None, trained.weighting.weights(batch))
        return algorithm.adapt(phi, support, batch.n_tasks, lr=lr, steps=steps)

    return weights


def fine_tuned(bench: AnyBench, base: Params, lr: float, steps: int) -> Method:
    """The control: the same inner loop from the base weights, nothing meta-learned."""
    tasks, plain = bench.tasks(), MAML(InnerLoop(lr, steps))
    return lambda batch: plain.adapt(base, tasks.loss(batch.support), batch.n_tasks)


def control_of(bench: AnyBench, base: Params, mode: str) -> Control:
    """Tune the control on the validation episodes (a fixed, evenly spaced subset of at most `control.users`)."""
    grid = bench.evaluation.control
    every = bench.episodes("val")
    rows = every.rows
    if len(rows) > grid.users:
        rows = np.linspace(0, len(rows) - 1, grid.users).astype(np.int64)
    with progress(len(set(grid.lrs)), "tune control", mode) as bar:
        return tune_control(
            bench.tasks(), base, bench.episodes("val", rows=rows), grid.lrs, grid.steps,
            bench.evaluation.monitor, bench.evaluation.ties, lambda lr: bar.advance(1, lr=lr),
        )  # fmt: skip


def measure(
    bench: AnyBench, trained: Trained, control: Control, episodes: AnyEpisodes, split: str, *, seed: int,
    lr: float | None = None, steps: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The document of metrics.json (without run, config and times) and the columns of per_user.parquet."""
    plain = bench.tasks()
    methods: dict[str, tuple[Any, Method]] = {"pretrained": (plain, _fixed(trained.base))}
    methods["control"] = (plain, fine_tuned(bench, trained.base, control.lr, control.steps))
    if trained.algorithm is not None and trained.phi is not None:
        over = bench.tasks(trained.residual)
        methods["zeroshot"] = (over, _fixed(start(trained.phi, trained.algorithm.inner)))
        methods["fewshot"] = (over, adapted(bench, trained, lr=lr, steps=steps))
    else:  # plain supervised training: its zero-shot is the pretrained model itself
        methods = {"zeroshot": methods["pretrained"], "control": methods["control"]}
    found, tops = {}, {}
    for name, (tasks, method) in methods.items():
        found[name], tops[name] = ranks(tasks, episodes, method, bench.evaluation.ties)
    found |= bench.optimum(episodes, split)
    rows = records(episodes, found, bench.n_items, bench.repeats(episodes))
    document = summarise(
        rows, n_resamples=bench.evaluation.bootstrap, confidence=bench.evaluation.confidence, seed=seed
    )
    document["beyond"] = bench.beyond(tops)
    document["control"] = {k: v for k, v in asdict(control).items() if k != "tried"}
    document["control_grid"] = control.tried
    document["protocol"] = {
        "split": split,
        "n_support": episodes.n_support,
        "n_query": episodes.n_query,
        "ties": bench.evaluation.ties,
        "episodes_sha256": episodes.sha256,
        "longest_prefix": bench.longest_prefix(episodes),
        **bench.conditions(),
    }
    columns = per_user(rows)
    columns = {"user_id": bench.user_ids(columns.pop("user")), **columns}
    return document, columns


def table(document: dict[str, Any], title: str) -> RenderableType:
    """The closing table; in the embedded worlds the columns that their figures are known by carry the intervals."""
    columns = ("hr@1", "hr@5") if "bayes_fewshot" in document["metrics"] else ("hr@10", "ndcg@10")
    return results_table(document, title=title, headline=columns)


def headline(document: dict[str, Any], monitor: str) -> dict[str, float]:
    """What a sweep's table shows of a run."""
    return {name: row[monitor] for name, row in document["metrics"].items() if not name.startswith("bayes")}


def write_per_user(path: Path, columns: dict[str, Any]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    atomic.write_bytes(path, sink.getvalue().to_pybytes())


def _fixed(params: Weights) -> Callable[[EpisodeBatch], Weights]:
    return lambda batch: params


def trained_from(bench: AnyBench, config: TrainConfig, tensors: Params, control: Control | None) -> Trained:
    """The tensors of a checkpoint as weights on the device."""

    def part(prefix: str) -> Params:
        return {
            name[len(prefix) :]: value.to(bench.hardware.device, bench.hardware.dtype)
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    phi, base = part("phi/"), part("base/")
    if isinstance(config.algorithm, SupervisedConfig):
        return Trained(phi, None, NoResidual(phi), None)
    assert control is not None  # every meta-trained checkpoint holds it
    over = build.residual(config.residual, bench.model, base)
    algorithm = algorithm_of(bench, config, config.algorithm, control)
    return Trained(base, phi, over, algorithm, weighting_of(config.algorithm))


def algorithm_of(
    bench: AnyBench, config: TrainConfig, options: MetaConfig, control: Control, outer_steps: int | None = None
) -> Algorithm:
    """The configured algorithm; `outer_steps` where a time budget has set their number (adaptation does not need it).

    What the inner loop leaves open follows the control, which says what fine-tuning the pretrained weights bears; on
    images, where nothing is pretrained, the published inner loop.
    """
    return build.algorithm(
        options,
        config.residual,
        bench.model,
        IMAGE_INNER if isinstance(bench, ImageBench) else control,
        outer_steps=config.train.steps if outer_steps is None else outer_steps,
        support_share=bench.support_share,
    )
