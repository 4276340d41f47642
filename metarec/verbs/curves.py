"""What else a measurement can show: figures by number of support pairs, by step size and steps, and seconds a user."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from metarec.baselines import BASELINES
from metarec.benches import AnyBench, ImageBench
from metarec.config.schema import EvaluationConfig
from metarec.errors import ConfigError, DivergedError
from metarec.evaluate import Control, Scorer, monitored, ranks, records, scored
from metarec.metrics.curve import curve
from metarec.panel import Panel
from metarec.report.progress import progress
from metarec.text_bench import TextBench
from metarec.verbs import measure as m
from metarec.verbs.perplexity import held_out

TIMED_USERS = 64


def check_curves(evaluation: EvaluationConfig, bench: AnyBench, split: str) -> None:
    """ConfigError where no user has as many pairs as `evaluation.ks` asks for, before anything is trained."""
    if evaluation.ks is None:
        return
    if isinstance(bench, ImageBench):
        raise ConfigError("evaluation.ks", evaluation.ks, "an episode of images has its shots fixed", "leave it out")
    most = max(evaluation.ks)
    if isinstance(bench, TextBench):
        _check_domains(bench, split, most)
        return
    ranges = bench.prepared.episodes(split, most)
    if not len(ranges.user):
        begin, end = bench.prepared.user_pairs[:-1], bench.prepared.user_pairs[1:]
        longest = int((end - begin)[bench.prepared.episodes(split).user].max())
        raise ConfigError(
            "evaluation.ks", most,
            f"no {split} user has {most} support and {ranges.n_query} query pairs; the longest has {longest} in all",
            f"give K up to {longest - ranges.n_query}",
        )  # fmt: skip


def _check_domains(bench: TextBench, split: str, most: int) -> None:
    prepared = bench.prepared
    if not len(prepared.episodes(split, most)):
        own, n_query = prepared.of(split), prepared.spec.n_query
        largest = int(np.diff(prepared.domain_examples)[own].max())
        raise ConfigError(
            "evaluation.ks", most,
            f"no {split} domain has {most} support and {n_query} query examples; the largest has {largest} in all",
            f"give K up to {largest - n_query}",
        )  # fmt: skip


def k_curve(
    bench: AnyBench, trained: m.Trained, control: Control, panel: Panel, split: str, *, seed: int, steps: int | None
) -> dict[str, Any]:
    """Every method that reads the support, with the latest K support pairs of the same users and queries.

    Options tuned for the run's own K are kept. `pretrained` (or `zeroshot`) reads no support and is flat.
    """
    ks = sorted(set(bench.evaluation.ks or []))
    assert not isinstance(bench, ImageBench)
    own = m.scorers(bench, trained, control, steps=steps)
    of_panel = {name: row.scorer for name, row in panel.rows.items() if reads_support(name)}
    found = {}
    for k in ks:
        episodes = bench.episodes(split, n_support=k, stored=ks[-1])
        by_method = {
            name: ranks(episodes, scorer, bench.evaluation.ties, bench.seen())[0]
            for name, scorer in {**of_panel, **own}.items()
        }
        found[k] = records(episodes, by_method, bench.n_items, bench.repeats(episodes))
    return curve(
        found, split=split, n_resamples=bench.evaluation.bootstrap, confidence=bench.evaluation.confidence, seed=seed
    )


def reads_support(name: str) -> bool:
    """Whether a row of the panel depends on the support."""
    return name not in BASELINES or BASELINES[name].uses_support


def grid(bench: AnyBench, trained: m.Trained, control: Control, mode: str) -> dict[str, Any]:
    """The monitored figure on the validation users that are tuned on, by step size and number of inner steps.

    null where fine-tuning diverges. A run with learned step sizes has one row, `learned`, over the numbers of steps.
    """
    options, metric = bench.evaluation.control, bench.evaluation.monitor
    lrs, steps = sorted(set(options.lrs)), sorted(set(options.steps))
    tried = {(row["lr"], row["steps"]): row[metric] for row in control.tried}
    out: dict[str, Any] = {
        "metric": metric, "split": "val", "users": len(bench.tuning_rows()), "lrs": lrs, "steps": steps,
        "methods": {"control": [[tried.get((lr, count)) for count in steps] for lr in lrs]},
    }  # fmt: skip
    if trained.algorithm is None:
        return out
    episodes, over = bench.episodes("val", rows=bench.tuning_rows()), bench.tasks(trained.residual)
    learned = trained.algorithm.inner.rates != "fixed"
    with progress(len(steps) * (1 if learned else len(lrs)), "grid", mode) as bar:

        def value(lr: float | None, count: int) -> float | None:
            bar.advance(1)
            try:
                method = scored(over, m.adapted(bench, trained, lr=lr, steps=count))
                found, _ = ranks(episodes, method, bench.evaluation.ties, bench.seen())
            except DivergedError:
                return None
            return monitored(found, bench.n_items)[metric]

        if learned:
            out["learned"] = {"fewshot": [value(None, count) for count in steps]}
        else:
            out["methods"]["fewshot"] = [[value(lr, count) for count in steps] for lr in lrs]
    return out


def latency(bench: AnyBench, scorer: Scorer, split: str) -> dict[str, Any]:
    """Seconds to adapt to a user and score his queries: one user at a time, and in batches of `evaluation.task_chunk`."""
    rows = bench.episodes(split).rows[:TIMED_USERS]
    device = bench.hardware.device

    def clock(run: Callable[[], object]) -> float:
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        return time.perf_counter() - began

    with torch.no_grad():
        alone = [next(iter(bench.episodes(split, rows=rows[i : i + 1]).batches())) for i in range(len(rows))]
        together = list(bench.episodes(split, rows=rows).batches())
        scorer(together[0])  # the first call warms up
        batched = sum(clock(lambda batch=batch: scorer(batch)) for batch in together)  # type: ignore[misc]
        scorer(alone[0])
        single = [clock(lambda batch=batch: scorer(batch)) for batch in alone]  # type: ignore[misc]
    return {
        "device": str(device), "threads": torch.get_num_threads(), "users": len(rows),
        "batched_seconds_per_user": batched / len(rows), "single_seconds_per_user": float(np.mean(single)),
        "single_median": float(np.median(single)), "single_p95": float(np.quantile(single, 0.95)),
    }  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extras(
    bench: AnyBench, trained: m.Trained, control: Control, panel: Panel, split: str, *, seed: int, steps: int | None,
    mode: str,
) -> Mapping[str, Any]:  # fmt: skip
    """What `evaluation.ks`, `grid` and `latency` ask for, and of running text its perplexity, by its key in metrics.json."""
    asked, out = bench.evaluation, dict[str, Any]()
    if asked.ks is not None:
        out["k_curve"] = k_curve(bench, trained, control, panel, split, seed=seed, steps=steps)
    if asked.grid:
        out["grid"] = grid(bench, trained, control, mode)
    if asked.latency:
        own = m.scorers(bench, trained, control, steps=steps)
        out["latency"] = latency(bench, own.get("fewshot", own["control"]), split)
    return out | held_out(bench, trained, split, seed)
