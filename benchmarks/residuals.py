"""What each residual of a survey reached and cost, as one Markdown table a data set.

    python benchmarks/residuals.py outputs/compare/RUN [outputs/compare/OTHER ...]

Reads finished surveys (`metarec compare experiment=rank_sweep`) whose runs have the same test episodes; nothing is trained.
HR@10 and NDCG@10 of few-shot with the intervals over users, the gain over the fine-tune control of the same run, numbers a
user, milliseconds a user alone and in a batch, and of a meta-step. Times are of one thread, beside whatever else ran.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def runs(survey: Path) -> list[tuple[str, str, Json, float | None]]:
    """(data set, cell, metrics.json, inner step size chosen) of every measured run."""
    document = json.loads((survey / "survey.json").read_text())
    found = []
    for block in document["blocks"]:
        dataset, model = block["block"]
        for row in block["adapted"]:
            name = f"{dataset}_{model}_{row['residual']}_{row['algorithm']}"
            chosen = document["tuned"].get(name, {}).get("chosen", {}).get("inner_lr")
            for path in sorted((survey / "jobs").glob(f"{name}_seed*/metrics.json")):
                found.append((dataset, row["residual"], json.loads(path.read_text()), chosen))
    return found


def with_ends(document: Json, method: str, metric: str) -> str:
    """A figure with its interval."""
    low, high = document["intervals"][method][metric]
    return f"{document['metrics'][method][metric]:.4f} [{low:.4f},{high:.4f}]"


def gain(document: Json, metric: str) -> str:
    """Few-shot minus control."""
    for entry in document["differences"].values():
        if (entry["of"], entry["against"]) == ("fewshot", "control"):
            one = entry[metric]
            return f"{one['mean']:+.4f} [{one['low']:+.4f},{one['high']:+.4f}]"
    return "-"


def cost(document: Json, key: str, scale: float = 1.0) -> str:
    """A figure of cost or latency, or a dash."""
    value = (document.get("cost") or {}).get(key, (document.get("latency") or {}).get(key))
    return "-" if value is None else f"{scale * value:,.3g}" if scale != 1.0 else f"{value:,}"


def main() -> None:
    """Print the tables."""
    every = [run for word in sys.argv[1:] for run in runs(Path(word))]
    for dataset in dict.fromkeys(run[0] for run in every):
        own = [run for run in every if run[0] == dataset]
        first = own[0][2]
        shas = {run[2]["protocol"]["episodes_sha256"] for run in own}
        print(f"\n**{dataset}**: {first['counts']['users']:,} test users; "
              f"{'the same' if len(shas) == 1 else 'OTHER'} test episodes in all runs\n")  # fmt: skip
        print("| | HR@10 | NDCG@10 | HR@10 over control | NDCG@10 over control | inner step | numbers a user | "
              "ms a user alone / in a batch | ms a meta-step |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|")
        shown: set[str] = set()
        for _, _, document, _ in own:
            for method in document["metrics"]:
                if method not in ("fewshot", "zeroshot") and method not in shown:
                    shown.add(method)
                    print(f"| {method} | {with_ends(document, method, 'hr@10')} | "
                          f"{with_ends(document, method, 'ndcg@10')} | | | | | | |")  # fmt: skip
        for _, name, document, chosen in own:
            ms = [cost(document, f"{kind}_seconds_per_user", 1000) for kind in ("single", "batched")]
            cells = [
                name, *(with_ends(document, "fewshot", metric) for metric in ("hr@10", "ndcg@10")),
                *(gain(document, metric) for metric in ("hr@10", "ndcg@10")), "-" if chosen is None else f"{chosen:g}",
                cost(document, "adapted_numbers"), " / ".join(ms), cost(document, "seconds_per_step", 1000),
            ]  # fmt: skip
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
