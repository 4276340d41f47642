"""Rules of `metarec compare` alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen
from metarec.errors import nearest


def variants_of_a_comparison(seen: Seen) -> Iterator[Refusal]:
    """Variants beside residuals, none at all, or a name that is no name of a directory."""
    variants = seen.get("variants")
    if variants is None:
        return
    if seen.get("residuals") is not None:
        yield "residuals", "variants say what is compared", "drop it, and give each residual as a variant"
    if not variants:
        yield "variants", "holds none", "give some, such as {r1: residual=lora residual.rank=1}"
    for name in variants:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            yield "variants", f"{name!r} is no name of a directory", "take letters, digits, ._+-"


def contrasts_of_a_comparison(seen: Seen) -> Iterator[Refusal]:
    """Pairs that are none, of variants that are not there; and what is read by contrasts alone."""
    pairs, variants = seen.get("contrasts"), seen.get("variants") or {}
    if pairs is None:
        if seen.get("metric") == "perplexity":
            yield "metric", "is of a table of contrasts", "add contrasts=[[A,B]], pairs of variants"
        if seen.verb == "compare":
            for key in seen.asked("reported"):
                yield key, "is shown beside a table of contrasts", "add contrasts=[[A,B]], pairs of variants"
        return
    if not variants:
        yield "contrasts", "are of variants, and there are none", "give variants={NAME: words of metarec train}"
        return
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            yield "contrasts", f"[{', '.join(pair)}] is no pair of two variants", "give [A,B], for A minus B"
            continue
        for name in pair:
            if name not in variants:
                near = nearest(name, list(variants))
                fix = f"did you mean {near}?" if near else f"variants are {', '.join(variants)}"
                yield "contrasts", f"{name} is no variant", fix
    for key in ("tune.outer_lrs", "tune.inner_lrs"):
        if seen.get(key):
            yield key, "contrasts are of the options that variants give", "put step sizes into variants"
    if seen.get("metric") == "perplexity" and seen.get("dataset.source") != "characters":
        what = f"dataset={seen.get('dataset.name')} is no running text"
        yield "metric", what, "use dataset=wikitext2, or metric=monitor"
