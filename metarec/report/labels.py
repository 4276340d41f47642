"""What methods are called in a table, in which order and in which groups they stand, and how figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LABELS: Mapping[str, str] = {
    "random": "random",
    "popularity": "popularity",
    "recent_popularity": "recent popularity",
    "repeat_last": "repeat last",
    "frequent_prefix": "frequent in prefix",
    "frequent_support": "frequent in support",
    "markov": "Markov, first order",
    "session_knn": "Session-KNN",
    "v_sknn": "V-SKNN",
    "pair_knn": "pair KNN",
    "leaky_popularity": "leaky popularity",
    "pretrained": "pretrained, zero-shot",
    "in_context": "in-context",
    "in_context_user": "in-context, histories",
    "control": "fine-tune control",
    "head_only": "fine-tune, head only",
    "scratch": "from scratch",
    "zeroshot": "zero-shot (meta)",
    "fewshot": "few-shot (meta)",
    "bayes_zeroshot": "Bayes zero-shot",
    "bayes_fewshot": "Bayes few-shot",
}
# known without a gradient | one set of weights for all | adapted without meta-learning | meta-learned | the optimum
_GROUPS = (
    ("random", "popularity", "recent_popularity", "repeat_last", "frequent_prefix", "frequent_support", "markov",
     "session_knn", "v_sknn", "pair_knn", "leaky_popularity"),
    ("pretrained", "in_context", "in_context_user"),
    ("control", "head_only", "scratch"),
    ("zeroshot", "fewshot"),
    ("bayes_zeroshot", "bayes_fewshot"),
)  # fmt: skip
_BRIEF = {
    "control": "control",
    "pretrained": "pretrained",
    "head_only": "head only",
    "in_context_user": "in-context, hist.",
}


def labels_of(methods: Iterable[str], classification: bool = False) -> dict[str, str]:
    """method -> label; a method that is not known here is called by its name."""
    there = list(methods)
    labels = {method: LABELS.get(method, method.replace("_", " ")) for method in there}
    if "zeroshot" in labels and "fewshot" not in labels:
        labels["zeroshot"] = "zero-shot"  # nothing was meta-learned
    if classification and "pretrained" in labels:
        labels["pretrained"] = "random weights"
    return labels


def brief(method: str) -> str:
    """The label for a running line or the side of a difference: "control", "few-shot"."""
    return _BRIEF.get(method, LABELS.get(method, method.replace("_", " ")).split(" (")[0])


def groups(methods: Iterable[str]) -> list[list[str]]:
    """The methods in the order of a table; without a panel they are one group, since four lines need no rules."""
    there = list(methods)
    found = [[method for method in group if method in there] for group in _GROUPS]
    known = {method for group in _GROUPS for method in group}
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
    return "<.001" if value < 0.001 else short(value, 3)
