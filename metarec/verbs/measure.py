"""The final measurement that `train` ends with and `eval` repeats: all methods, one table, one document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType

from metarec import build
from metarec.algorithms import Algorithm
from metarec.algorithms.inner import InnerLoop, TaskLoss, start
from metarec.algorithms.maml import MAML
from metarec.benches import AnyBench, AnyEpisodes, ImageBench
from metarec.config.schema import MetaConfig, SupervisedConfig, TrainConfig
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import Params, Weights
from metarec.evaluate import Control, Method, Scorer, divergences, ranks, records, scored, tune_control
from metarec.metrics.summary import per_user, summarise
from metarec.options import KLAnchor
from metarec.panel import Panel
from metarec.report.progress import progress
from metarec.report.tables import results_table
from metarec.residual import Residual
from metarec.residual.off import NoResidual
from metarec.runs import atomic
from metarec.verbs import amortised
from metarec.verbs.anchoring import Anchoring
from metarec.verbs.naming import named
from metarec.verbs.showing import Showing
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
    anchor: KLAnchor = field(default_factory=KLAnchor)
    row_steps: Mapping[str, Control] = field(default_factory=dict)  # row -> its tuned steps (`verbs.row_steps`)


def adapted(
    bench: AnyBench, trained: Trained, *, lr: float | None = None, steps: int | None = None, generated: bool = True
) -> Method:
    """Few-shot: the meta-learned start, adapted on the support as in training unless told otherwise.

    Not `generated`: by the inner loop alone, of an algorithm that generates.
    """
    algorithm, phi, losses = trained.algorithm, trained.phi, support_losses(bench, trained)
    assert algorithm is not None
    assert phi is not None
    adapt = algorithm.adapt if generated else algorithm.by_inner_loop  # type: ignore[attr-defined]

    def weights(batch: EpisodeBatch) -> Weights:
        found: Weights = adapt(phi, losses(batch), batch.n_tasks, lr=lr, steps=steps)
        return found

    return weights


def support_losses(bench: AnyBench, trained: Trained) -> Callable[[EpisodeBatch], TaskLoss]:
    """What a batch is adapted on: the loss of its support [T], weighted, anchored and shown as in training."""
    tasks, algorithm, phi = bench.tasks(trained.residual), trained.algorithm, trained.phi
    assert algorithm is not None
    assert phi is not None
    anchoring = Anchoring.of(trained.anchor, bench, trained.residual, algorithm.inner)
    showing = Showing.of(bench, trained.residual, algorithm)

    def loss(batch: EpisodeBatch) -> TaskLoss:
        anchor = anchoring.support(phi, batch.support)
        return showing.support(batch, tasks.loss(batch.support, None, trained.weighting.weights(batch), anchor=anchor))

    return loss


def fine_tuned(bench: AnyBench, base: Params, lr: float, steps: int) -> Method:
    """The control: the same inner loop from the base weights, nothing meta-learned."""
    tasks, plain = bench.tasks(), MAML(InnerLoop(lr, steps, adapted=build.fine_tunable(bench.model)))
    return lambda batch: plain.adapt(base, tasks.loss(batch.support), batch.n_tasks)


def control_of(bench: AnyBench, base: Params, mode: str) -> Control:
    """Tune the control on the validation episodes (a fixed, evenly spaced subset of at most `control.users`)."""
    grid = bench.evaluation.control
    episodes = bench.episodes("val", rows=bench.tuning_rows())
    with progress(len(set(grid.lrs)), "tune control", mode) as bar:
        return tune_control(
            bench.tasks(), base, episodes, grid.lrs, grid.steps, bench.evaluation.monitor, bench.evaluation.ties,
            lambda lr: bar.advance(1, lr=lr), adapted=build.fine_tunable(bench.model), seen=bench.seen(),
        )  # fmt: skip


def control_tuning(control: Control, bench: AnyBench) -> dict[str, Any]:
    """How a fine-tuned row was chosen, in the form of every tuned row."""
    chosen, users = {"lr": control.lr, "steps": control.steps}, len(bench.tuning_rows())
    return {"chosen": chosen, "value": control.value, "metric": bench.evaluation.monitor, "users": users,
            "tried": control.tried}  # fmt: skip


def scorers(
    bench: AnyBench, trained: Trained, control: Control, *, lr: float | None = None, steps: int | None = None
) -> dict[str, Scorer]:
    """The model's own rows: before and after adaptation, with and without meta-training."""
    plain = bench.tasks()
    out = {"pretrained": scored(plain, _fixed(trained.base))}
    out["control"] = scored(plain, fine_tuned(bench, trained.base, control.lr, control.steps))
    if trained.algorithm is None or trained.phi is None:  # supervised: its zero-shot is the pretrained model itself
        return {"zeroshot": out["pretrained"], "control": out["control"]}
    over = bench.tasks(trained.residual)
    out["zeroshot"] = scored(over, _fixed(start(trained.phi, trained.algorithm.inner)), support=False)
    out["fewshot"] = scored(over, adapted(bench, trained, lr=lr, steps=steps))
    if amortised.generates(trained.algorithm, bench.evaluation):
        chosen = {row: (one.lr, one.steps) for row, one in trained.row_steps.items()}
        own_lr, own_steps = chosen.get("inner_loop", (None, None))
        out["inner_loop"] = scored(over, adapted(bench, trained, lr=own_lr, steps=own_steps, generated=False))
        if trained.algorithm.refine_steps if steps is None else steps:  # type: ignore[attr-defined]
            out["generated"] = scored(over, adapted(bench, trained, steps=0))
        else:
            own_lr, own_steps = chosen.get("refined", (None, amortised.REFINED))
            out["refined"] = scored(over, adapted(bench, trained, lr=own_lr if lr is None else lr, steps=own_steps))
    return out


def measure(
    bench: AnyBench, trained: Trained, control: Control, panel: Panel, episodes: AnyEpisodes, split: str, *, seed: int,
    lr: float | None = None, steps: int | None = None, reference: amortised.Reference | str = amortised.NOT_ASKED,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The document of metrics.json (without run, config and times) and the columns of per_user.parquet.

    `reference`: how the teachers of the users under test are found, where adapters are generated; or why they are not.
    """
    rows_of = {name: row.scorer for name, row in panel.rows.items()}
    found, tops = {}, {}
    own = scorers(bench, trained, control, lr=lr, steps=steps)
    for name, scorer in {**rows_of, **own}.items():
        with named(bench, before=f"{name} on {split}"):
            found[name], tops[name] = ranks(episodes, scorer, bench.evaluation.ties, bench.seen())
    more = amortised.Found()
    if amortised.generates(trained.algorithm, bench.evaluation):
        assert trained.phi is not None
        adapting: Any = adapted(bench, trained, lr=lr, steps=steps)
        more = amortised.rows(
            bench, trained.base, trained.phi, trained.residual, trained.algorithm, adapting, episodes, reference
        )
        found, tops = found | more.ranks, tops | more.tops
    found |= bench.optimum(episodes, split)
    rows = records(episodes, found, bench.n_items, bench.repeats(episodes), bench.about(episodes))
    with named(bench, before=split):
        document = summarise(
            rows, n_resamples=bench.evaluation.bootstrap, confidence=bench.evaluation.confidence, seed=seed
        )
    document["beyond"] = bench.beyond(episodes, tops)
    document["control"] = {k: v for k, v in asdict(control).items() if k != "tried"}
    document["tuning"] = {name: row.tuning for name, row in panel.rows.items() if row.tuning is not None}
    for name, one in {"control": control, **trained.row_steps}.items():
        if name in own and (name == "control" or one.tried):
            document["tuning"][name] = control_tuning(one, bench)
    if bench.evaluation.divergence:
        document["divergence"] = divergences(episodes, scored(bench.tasks(), _fixed(trained.base)), own)
    document["left_out"] = panel.left_out | more.left_out
    if more.document:
        evaluation = bench.evaluation
        share = amortised.recovered(
            rows, evaluation.monitor, n_resamples=evaluation.bootstrap, confidence=evaluation.confidence, seed=seed
        )
        document["amortised"] = {"recovered": share, **more.document}
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
    shown = ("pretrained", "control", "zeroshot", "fewshot")
    return {name: row[monitor] for name, row in document["metrics"].items() if name in shown}


def write_per_user(path: Path, columns: dict[str, Any]) -> None:
    """One Parquet file, a column for each method and metric, written whole or not at all."""
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
    return Trained(base, phi, over, algorithm, weighting_of(config.algorithm), build.anchor(config))


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
        context_lr=float(getattr(config.model, "context_lr", build.CONTEXT_LR)),
        seed=config.seed,
    )
