"""Step size and steps of the rows that stand beside what is generated, tuned on validation like the fine-tune control's.

    inner_loop   from the start that all share: step size and number of steps
    refined      from what is generated: step size of its `amortised.REFINED` steps

What `algorithm.inner` gives is taken as it is. The grid is `evaluation.control`'s with two step sizes above it, since
factors and contexts that start at zero bear more than whole weights do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from metarec import teach
from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop, TaskLoss
from metarec.benches import AnyBench
from metarec.config.schema import MetaConfig, SupervisedConfig
from metarec.core.batch import EpisodeBatch
from metarec.core.weights import FastWeight, Weights
from metarec.evaluate import Control, tune_control
from metarec.report.progress import progress
from metarec.verbs import amortised
from metarec.verbs.measure import Trained, support_losses


def with_row_steps(options: MetaConfig | SupervisedConfig, bench: AnyBench, trained: Trained, mode: str) -> Trained:
    """`trained` with the steps of such rows, where there are any; DivergedError where every step size diverges."""
    if isinstance(options, SupervisedConfig) or not amortised.generates(trained.algorithm, bench.evaluation):
        return trained
    asked, grid, judge = options.inner, bench.evaluation.control, bench.evaluation
    lrs = sorted({*grid.lrs, *teach.MORE_LRS}) if asked.lr is None else [asked.lr]
    steps = {"inner_loop": list(grid.steps) if asked.steps is None else [asked.steps], "refined": [amortised.REFINED]}
    episodes, found = bench.episodes("val", rows=bench.tuning_rows()), dict[str, Control]()
    with progress(len(lrs) * len(steps), "tune rows", mode) as bar:
        for row, counts in steps.items():
            if len(lrs) == len(counts) == 1:
                found[row] = Control(lrs[0], counts[0], 0.0, [])
                continue
            found[row] = tune_control(
                bench.tasks(trained.residual), trained.phi or {}, episodes, lrs, counts, judge.monitor, judge.ties,
                lambda lr: bar.advance(1, lr=lr), seen=bench.seen(), paths=_Paths(bench, trained, row == "refined"),
            )  # fmt: skip
    return replace(trained, row_steps=found)


class _Paths:
    """The weights of a batch after 0, 1, ... steps, from the shared start or from what is generated."""

    def __init__(self, bench: AnyBench, trained: Trained, generated: bool) -> None:
        self.trained, self.generated = trained, generated
        self.losses = support_losses(bench, trained)

    def __call__(self, batch: EpisodeBatch, loop: InnerLoop) -> Iterator[Weights]:
        algorithm, phi, loss = self.trained.algorithm, self.trained.phi, self.losses(batch)
        assert algorithm is not None
        assert phi is not None
        began = self._made(loss) if self.generated else None
        own = replace(algorithm.inner, lr=loop.lr, steps=loop.steps, rates="fixed")
        yield from inner.path(loss, phi, batch.n_tasks, own, began=began)

    def _made(self, loss: TaskLoss) -> dict[str, FastWeight]:
        made: dict[str, FastWeight] = self.trained.algorithm.generate(self.trained.phi, loss)  # type: ignore[union-attr]
        return made
