"""A finished run of a generator, opened as an evaluation opens it, with heads that generate something for each user."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metarec.config.overrides import check_words
from metarec.evaluate import Control, ranks
from metarec.verbs import amortised
from metarec.verbs import measure as m
from metarec.verbs.amortised import Reference
from metarec.verbs.eval import Opened, opened, trained_of

WORDS = ("algorithm=generator", "residual=lora", "residual.rank=2",
         "schedule.warmup_steps=2", "algorithm.width=8", "algorithm.hidden=8",
         "optimizer.lr=0.05", "evaluation.panel=[popularity]")  # fmt: skip


@dataclass(frozen=True)
class At:
    run: Opened
    trained: m.Trained
    control: Control
    episodes: Any

    @property
    def bench(self) -> Any:
        return self.run.bench

    def rows(self, reference: Reference | str) -> amortised.Found:
        trained = self.trained
        assert trained.phi is not None
        adapting: Any = m.adapted(self.bench, trained)
        return amortised.rows(
            self.bench,
            trained.base,
            trained.phi,
            trained.residual,
            trained.algorithm,
            adapting,
            self.episodes,
            reference,
        )

    def ranks(self, scorer: Any) -> Any:
        return ranks(self.episodes, scorer, self.bench.evaluation.ties, self.bench.seen())[0]

    def reference(self, **changed: Any) -> Reference:
        """The teachers of these users, on nothing but their support."""
        assert self.trained.algorithm is not None
        loop = self.trained.algorithm.inner
        return replace(Reference(loop.lr, loop.steps, self.episodes), **changed)


def open_at(run: Path, cache: Path) -> At:
    words = [f"ckpt={run}", f"cache_dir={cache}"]
    (job,) = check_words("eval", words).jobs
    config: Any = job.config
    found = opened(config, set())
    control, trained = found.state["control"], trained_of(config, found)
    assert trained.phi is not None
    drawn = torch.Generator().manual_seed(1)  # six steps teach nothing: heads that generate something for each user
    phi = {n: v + 0.5 * torch.randn(v.shape, generator=drawn) if "/head/" in n else v for n, v in trained.phi.items()}
    return At(found, replace(trained, phi=phi), Control(**control), found.bench.episodes("test"))
