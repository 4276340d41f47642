"""Perplexity of the held-out text under the weights that no support has moved: `perplexity` of metrics.json.

Every character of the split is a target once, in blocks (`data.characters`). Rows: `zeroshot`, the meta-learned start or the
supervised model, and `pretrained` where the two differ. What adaptation to a document gains is told on its episodes by
`evaluation.divergence`. Intervals draw blocks, and documents, whose blocks are alike: the latter are
the honest ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metarec.algorithms.inner import start
from metarec.benches import AnyBench
from metarec.evaluate import costs_of_targets
from metarec.metrics.perplexity import perplexity
from metarec.text_bench import TextBench
from metarec.verbs.measure import Trained


def held_out(bench: AnyBench, trained: Trained, split: str, seed: int) -> dict[str, Any]:
    """{row: figures} under `perplexity`; empty where the data is no running text."""
    if not isinstance(bench, TextBench) or not bench.prepared.running:
        return {}
    rows = {"pretrained": (bench.tasks(), trained.base)}
    if trained.phi is None or trained.algorithm is None:
        rows = {"zeroshot": rows["pretrained"]}
    else:
        rows["zeroshot"] = bench.tasks(trained.residual), start(trained.phi, trained.algorithm.inner)
    prepared, blocks = bench.prepared, bench.blocks(split)
    counts = np.diff(prepared.example_pairs)[blocks]
    document = np.searchsorted(prepared.domain_examples, blocks, side="right") - 1
    units = {"blocks": np.repeat(blocks, counts), "documents": np.repeat(document, counts)}
    options = bench.evaluation
    figures = {
        name: perplexity(
            costs_of_targets(tasks, weights, bench.held_out(split), bench.hardware.device), units,
            n_resamples=options.bootstrap, confidence=options.confidence, seed=seed,
        )
        for name, (tasks, weights) in rows.items()
    }  # fmt: skip
    return {"perplexity": {"split": split, "rows": figures}}


def lines(document: dict[str, Any]) -> list[str]:
    """A line a row for the reader; none where `perplexity` was not measured."""
    found = []
    for name, row in document.get("perplexity", {}).get("rows", {}).items():
        ends = row["intervals"]["documents"] or row["intervals"]["blocks"]
        over = "documents" if row["intervals"]["documents"] else "blocks"
        span = "" if ends is None else f" [{ends['perplexity'][0]:.4f}, {ends['perplexity'][1]:.4f}] over {over}"
        found.append(
            f"{name}: perplexity {row['perplexity']:.4f}{span}, {row['bits']:.4f} bits a character, {row['n']:,} characters"
        )
    return found
