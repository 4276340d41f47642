"""How near generated adapters come to teachers, as rows of text for every kind of table, and what is said beneath.

Read from ``amortised`` of metrics.json (`metarec.verbs.amortised`), left out where absent:
    recovered  {metric, value, low, high, why}      teacher    {lr, steps, pairs, tuning}
    closeness  {users, without_teacher, all, modules: {name: {generated: {relative_error, cosine}, mean_teacher: ...}}, kl}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarec.metrics import heading
from metarec.report.labels import short

Json = Mapping[str, Any]
TITLE = "adapters beside the teachers of these users"


def columns(document: Json) -> tuple[str, ...]:
    """Headings: error and cosine of what is generated, and of the mean of teachers; none where there is no closeness."""
    found = document.get("amortised", {}).get("closeness")
    if not found:
        return ()
    return ("error", "cosine", *(("error of mean", "cosine of mean") if "mean_teacher" in found["all"] else ()))


def rows(document: Json) -> list[tuple[str, tuple[str, ...]]]:
    """(module, its cells under `columns`), and of all modules together where there are several."""
    found = document["amortised"]["closeness"]
    every = {**found["modules"], **({"all modules": found["all"]} if len(found["modules"]) > 1 else {})}
    return [
        (name, tuple(short(one[key], 3) for one in said.values() for key in ("relative_error", "cosine")))
        for name, said in every.items()
    ]


def lines(document: Json) -> list[str]:
    """What was recovered, how the teachers were found, what the numbers are, and the divergences of scores."""
    found = document.get("amortised")
    if not found:
        return []
    return [*_recovered(found["recovered"]), *_teacher(found["teacher"]), *_closeness(found["closeness"])]


def _recovered(found: Json) -> list[str]:
    name = heading(found["metric"])
    if found["value"] is None:
        return [f"share of the teachers' gain in {name} that is generated: none, {found['why']}"]
    both = f" [{100 * found['low']:.0f},{100 * found['high']:.0f}]" if found["low"] is not None else ""
    why = f" ({found['why']})" if "why" in found else ""
    return [f"share of the teachers' gain in {name} that is generated: {100 * found['value']:.0f} %{both}{why}"]


def _teacher(found: Json) -> list[str]:
    pairs = f" on at most {found['pairs']:,} pairs" if found["pairs"] is not None else ""
    tuned = ", tuned on validation" if found.get("tuning") else ""
    return [f"teachers of the users under test: {found['steps']} steps of {found['lr']:g}{pairs}{tuned}"]


def _closeness(found: Json) -> list[str]:
    kl = found["kl"]
    idle = f"; {found['without_teacher']:,} whose teacher did nothing are left out" if found["without_teacher"] else ""
    return [
        f"error of an adapter: |dW - dW of the teacher|^2 / |dW of the teacher|^2, cosine of the two; means over "
        f"{found['users']:,} episodes{idle}; generating nothing has error 1 and cosine 0"
        + (
            "; of mean: everybody with the mean of the training users' teachers"
            if "mean_teacher" in found["all"]
            else ""
        ),
        f"KL in nats a query pair: pretrained || generated {kl['generated_from_pretrained']:.4f}, pretrained || teacher "
        f"{kl['teacher_from_pretrained']:.4f}, teacher || generated {kl['generated_from_teacher']:.4f}",
    ]
