"""The lines under a table: sizes, what an interval is, what the test set could have shown, conditions and tuning.

Keys read beside those of ``metrics.summary.summarise``, each left out where absent:
    protocol  {split, split_by, leaky, split_note, n_support, n_query, ties, classification}
    control   {lr, steps}           of the fine-tune control, as tuned on validation
    tuning    {<method>: {chosen: {option: value}, value, metric, users, tried: [...]}}   the same of the panel
    beyond    {<method>: {<metric of `metrics.LISTS`>: value}}
    seeds     {<what>: int}, such as {"run": 1, "split": 20260107}
    divergence  {<method>: {cross_entropy, kl}}   of `evaluate.divergences`, nats a query target
    amortised   as `report.amortised` has it
    guard     {training: counts, pretraining: counts}   of `runs.guard.counted`; a line for each loop with events
"""

from __future__ import annotations

from collections.abc import Sequence

from metarec.metrics import heading
from metarec.metrics.differences import subject
from metarec.report import amortised
from metarec.report.labels import brief, short
from metarec.report.measured import accuracy, classification, drawn, lists_of, n_tested, tokens
from metarec.report.sheets import Json, headings_of, headline_of

FEW_USERS = 200  # below, a table says what difference it could have shown
_OURS = ("zeroshot", "control", "in_context", "fewshot")


def notes(document: Json, headline: Sequence[str] | None = None) -> list[str]:
    """One line each; a split that leaks through time has a line that starts with LEAKY."""
    shown = headline_of(document, headline)
    counts, bootstrap = document["counts"], document["bootstrap"]
    classes = classification(document)
    interval = (
        f"[low,high]: {100 * bootstrap['confidence']:g} % interval of the mean over targets, "
        f"{bootstrap['n_resamples']:,} bootstrap draws of {drawn(document)}"
    )
    if classes:
        sizes = f"{counts['episodes']:,} tasks, {counts['targets']:,} targets"
        own = [*_family(document), *_power(document, shown), *_divergence(document), *_conditions(document)]
        own += _guard(document)
        return [sizes, interval, *own]
    if tokens(document):
        sizes = f"{counts['users']:,} domains, {counts['episodes']:,} episodes, {counts['targets']:,} response tokens"
        tuned = [line.replace("validation users", "validation episodes") for line in _tuning(document)]
        own = [*_family(document), *_power(document, shown), *_macro(document, shown), *_conditions(document)]
        return [sizes, interval, *own, *tuned, *_seeds(document), *_guard(document)]
    sizes = (
        f"{counts['users']:,} users, {counts['episodes']:,} episodes, {counts['targets']:,} targets; "
        f"unknown targets {100 * counts['unknown_target_share']:.2f} % (misses)"
    )
    return [
        sizes,
        interval,
        *_family(document),
        *_power(document, shown),
        *[_part(name, document[name], shown) for name in ("repeat", "novel")],
        *_macro(document, shown),
        *_beyond(document),
        *_divergence(document),
        *amortised.lines(document),
        *_conditions(document),
        *_tuning(document),
        *_seeds(document),
        *_guard(document),
    ]


def _family(document: Json) -> list[str]:
    size = len(document["differences"])
    if not size:
        return []
    metrics = n_tested(document)
    return [
        f"Holm p: sign-flip test over {_people(document)}, corrected over all {size * metrics} differences "
        f"({size} at {metrics} metrics)"
    ]


def _people(document: Json) -> str:
    return "domains" if tokens(document) else "users"


def _power(document: Json, headline: Sequence[str]) -> list[str]:
    """What the users could have shown, where they are few or where nothing was shown."""
    own, there = subject(document["metrics"]), document["differences"]
    name = next((n for n, entry in there.items() if entry["of"] == own), None)
    if name is None:
        return []
    entry, headings = there[name], headings_of(document)
    few = document["counts"]["users"] < FEW_USERS
    silent = all(entry[metric]["verdict"] == "no difference shown" for metric in headline)
    known = [
        f"{headings[m]} {short(entry[m]['detectable'], 3)}" for m in headline if entry[m]["detectable"] is not None
    ]
    if not known or not (few or silent):
        return []
    who = _people(document)
    return [f"smallest gain over {brief(entry['against'])} shown with 80 % power by as many {who}: {', '.join(known)}"]


def _part(name: str, part: Json, headline: Sequence[str]) -> str:
    what = f"{name} targets: {part['targets']:,} ({part['users']:,} users)"
    shown = _line({m: {k: row[k] for k in headline} for m, row in part["metrics"].items()}, headline)
    return f"{what}; {shown}" if shown else what


def _macro(document: Json, headline: Sequence[str]) -> list[str]:
    means = {m: {k: row[k]["mean"] for k in headline} for m, row in document["macro"].items()}
    shown = _line(means, headline)
    who = "domain" if tokens(document) else "user"
    if (name := accuracy(document)) is not None:
        shown = shown.replace(heading("hr@1"), name, 1)
    return [f"{who}-level means; {shown}"] if shown else []


def _line(rows: Json, headline: Sequence[str]) -> str:
    """HR@10/NDCG@10: zero-shot .1234/.0567, control ..."""
    shown = [f"{brief(m)} " + "/".join(short(rows[m][k]) for k in headline) for m in _OURS if m in rows]
    return f"{'/'.join(map(heading, headline))}: {', '.join(shown)}" if shown else ""


def _beyond(document: Json) -> list[str]:
    lines = []
    for key, what in lists_of(document).items():
        shown = [f"{brief(method)} {short(row[key], 3)}" for method, row in document["beyond"].items() if key in row]
        lines.append(f"{what}: {', '.join(shown)}")
    return lines


def _divergence(document: Json) -> list[str]:
    """Cross-entropy and divergence of the rows that the model scores itself, where they were asked for."""
    found = document.get("divergence")
    if not found:
        return []
    shown = [f"{brief(name)} {short(row['cross_entropy'])}/{short(row['kl'])}" for name, row in found.items()]
    what = "nats a query target of the vocabulary, cross-entropy/KL from the pretrained model"
    return [f"{what}: {', '.join(shown)}"]


def _conditions(document: Json) -> list[str]:
    protocol = document.get("protocol")
    if not protocol:
        return []
    lines = [
        f"split {protocol['split']} of {protocol['split_by']}; K={protocol['n_support']}, Q={protocol['n_query']}; "
        f"ties {protocol['ties']}" + (f"; {protocol['split_note']}" if protocol.get("split_note") else "")
    ]
    if protocol["leaky"]:
        lines.append("LEAKY: this split lets training see events later than some targets")
    return lines


def _tuning(document: Json) -> list[str]:
    """A line for each tuned method: what was chosen, out of how many; the budget must be the same for all."""
    tuning, control = document.get("tuning", {}), document.get("control")
    lines = []
    if control and "control" not in tuning:
        lines.append(f"fine-tune control tuned on validation: step size {control['lr']:g}, {control['steps']} steps")
    for method, entry in tuning.items():
        chosen = ", ".join(f"{option} {_value(value)}" for option, value in entry["chosen"].items())
        lines.append(
            f"{brief(method)} tuned on {entry['users']:,} validation users: {chosen} "
            f"({heading(entry['metric'])} {short(entry['value'])}, best of {len(entry['tried'])})"
        )
    sizes = {len(entry["tried"]) for entry in tuning.values()}
    if len(tuning) > 1 and len(sizes) == 1:
        lines.append(f"an equal budget for every tuned method: {sizes.pop()} settings")
    return lines


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seeds(document: Json) -> list[str]:
    seeds = document.get("seeds", {})
    return ["seeds: " + ", ".join(f"{what} {seed}" for what, seed in seeds.items())] if seeds else []


def _guard(document: Json) -> list[str]:
    """What the guard saw in each loop, and did; nothing where it saw nothing."""
    lines = []
    for loop, found in document.get("guard", {}).items():
        if found["events"]:
            kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in found["kinds"].items() if count)
            acted = ", ".join(f"{count} {action}" for action, count in found["actions"].items() if count)
            rate = f"; rate x {found['rate']:g} at the end" if found["rate"] != 1 else ""
            lines.append(f"guard of {loop}: {kinds} ({acted}){rate}")
    return lines
