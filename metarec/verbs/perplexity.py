"""Perplexity of the held-out text under the weights that no support has moved: `perplexity` of metrics.json.

Every character of the split is a target once, in blocks (`data.characters`). Rows: `zeroshot`, the meta-learned start or the
supervised model, and `pretrained` where the two differ. What adaptation to a document gains is told on its episodes by
`evaluation.divergence`. Intervals draw blocks, and documents, whose blocks are alike: the latter are
the honest ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metarec.algorithms.inner import start
from metarec.benches import AnyBench
from metarec.data.prompts import Prompts
from metarec.evaluate import costs_of_targets
from metarec.metrics.perplexity import Floats, Ints, perplexity
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
    costs = {
        name: costs_of_targets(tasks, weights, bench.held_out(split), bench.hardware.device)
        for name, (tasks, weights) in rows.items()
    }
    figures = {
        name: perplexity(
            cost, units, n_resamples=options.bootstrap, confidence=options.confidence, seed=seed
        )
        for name, cost in costs.items()
    }  # fmt: skip
    return {
        "perplexity": {"split": split, "rows": figures, "by_document": by_document(prepared, units["documents"], costs)}
    }


def by_document(prepared: Prompts, document: Ints, costs: Mapping[str, Floats]) -> dict[str, Any]:
    """Names of the documents, how many targets each has, and of each row its mean cross-entropy in nats: runs are paired
    by these. document [n]: whose each target is; costs: of each row [n]."""
    own, of, n = np.unique(document, return_inverse=True, return_counts=True)
    means = {name: (np.bincount(of, cost) / n).tolist() for name, cost in costs.items()}
    return {"names": [prepared.domains[int(number)] for number in own], "n": n.tolist(), "cross_entropy": means}


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
