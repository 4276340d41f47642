"""Rules of `algorithm.inner.rule`: what could not forget, and options that would do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen

KEY = "algorithm.inner.rule"
HEAD = "use residual=head, or algorithm=anil with residual=off"


def _forgets(seen: Seen) -> bool:
    return seen.get(KEY) == "delta" and bool(seen.get("algorithm.inner.decay"))


def forgetting_unused(seen: Seen) -> Iterator[Refusal]:
    """How to forget where nothing is forgotten, where no step is taken, and what never grows."""
    rule, decay = seen.get(KEY), seen.get("algorithm.inner.decay")
    if rule is None:
        return
    if rule == "sgd":
        for name in ("decay", "form", "unstable"):
            for key in seen.asked(f"algorithm.inner.{name}"):
                yield key, f"does nothing: {KEY}=sgd forgets nothing", f"drop it, or set {KEY}=delta"
        return
    if seen.get("algorithm.inner.steps") == 0:
        yield KEY, "does nothing: algorithm.inner.steps=0 adapts nothing", "drop it, or give steps"
    if decay == 0:
        for name in ("form", "unstable"):
            for key in seen.asked(f"algorithm.inner.{name}"):
                what = "does nothing: with algorithm.inner.decay=0 nothing forgets"
                yield key, what, "drop it, or raise algorithm.inner.decay"
    elif seen.get("algorithm.inner.form") == "proximal":
        for key in seen.asked("algorithm.inner.unstable"):
            yield key, "does nothing: the proximal form is stable for every decay", "drop it, or use form=explicit"


def forgetting_without_matrix(seen: Seen) -> Iterator[Refusal]:
    """Residuals under which no matrix of a linear layer adapts, so that there are no inputs to forget along."""
    if not _forgets(seen):
        return
    on, names = seen.get("residual.name"), str(seen.get("residual.name", "")).split("+")
    vectors = [part for part in names if part == "bias"]
    if seen.get("residual.of_support"):
        what = f"residual={on} adapts single rows of tables, which are looked up: no layer's inputs say what they read"
        yield KEY, what, HEAD
    elif seen.get("residual.beside"):
        what = f"residual={on} adapts numbers beside the weights, and no layer multiplies an input by them"
        yield KEY, what, HEAD
    elif vectors and len(vectors) == len(names):
        yield KEY, f"residual={on} adapts vectors, and only a matrix has inputs to forget along", HEAD


RULES = (forgetting_unused, forgetting_without_matrix)
