"""What methods are called in a table, in which order and in which groups they stand, and how figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metarec.baselines import BASELINES

LABELS: Mapping[str, str] = {  # of methods that are no baseline; these say themselves what they are called
    "pretrained": "pretrained, zero-shot",
    "in_context": "in-context",
    "in_context_user": "in-context, histories",
    "control": "fine-tune control",
    "head_only": "fine-tune, head only",
    "scratch": "from scratch",
    "zeroshot": "zero-shot (meta)",
    "fewshot": "few-shot (meta)",
    "other_support": "of another's support",
    "mean_teacher": "mean teacher",
    "inner_loop": "inner loop alone",
    "generated": "generated alone",
    "refined": "generated + steps",
    "teacher": "teacher, more history",
    "bayes_zeroshot": "Bayes zero-shot",
    "bayes_fewshot": "Bayes few-shot",
}
# one set of weights for all | adapted without meta-learning | meta-learned | told more | the optimum; baselines above
_GROUPS = (
    ("pretrained", "mean_teacher", "in_context", "in_context_user"),
    ("control", "head_only", "scratch"),
    ("zeroshot", "other_support", "inner_loop", "generated", "fewshot", "refined"),
    ("teacher",),
    ("bayes_zeroshot", "bayes_fewshot"),
)
_BRIEF = {
    "control": "control",
    "pretrained": "pretrained",
    "head_only": "head only",
    "in_context_user": "in-context, hist.",
    "other_support": "another's support",
    "teacher": "teacher",
}


def label(method: str) -> str:
    """A method as a reader knows it; one that is not known here is called by its name."""
    return BASELINES[method].label if method in BASELINES else LABELS.get(method, method.replace("_", " "))


def labels_of(methods: Iterable[str], classification: bool = False) -> dict[str, str]:
    """method -> label, as it is beside the others."""
    there = list(methods)
    labels = {method: label(method) for method in there}
    if "zeroshot" in labels and "fewshot" not in labels:
        labels["zeroshot"] = "zero-shot"  # nothing was meta-learned
    if classification and "pretrained" in labels:
        labels["pretrained"] = "random weights"
    return labels


def brief(method: str) -> str:
    """The label for a running line or the side of a difference: "control", "few-shot"."""
    return _BRIEF.get(method) or label(method).split(" (")[0]


def groups(methods: Iterable[str]) -> list[list[str]]:
    """The methods in the order of a table; without a panel they are one group, since four lines need no rules."""
    there = list(methods)
    ordered = (tuple(BASELINES), *_GROUPS)
    found = [[method for method in group if method in there] for group in ordered]
    known = {method for group in ordered for method in group}
    found.insert(0, [method for method in there if method not in known])
    found = [group for group in found if group]
    if len(there) > 8:
        return found
    return [[method for group in found for method in group]] if found else []


def short(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """.4053 for 0.4053, 1.000 for 1 and - for none: the leading zero of a share is dropped, so that columns stay narrow."""
    if value is None:
        return "-"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def ends(low: float | None, high: float | None, sign: bool = False) -> str:
    """[.401,.410], or [none] where there is no interval."""
    return "[none]" if low is None or high is None else f"[{short(low, 3, sign)},{short(high, 3, sign)}]"


def p_text(value: float) -> str:
    """Three digits, "<.001" below that."""
    return "<.001" if value < 0.001 else short(value, 3)
