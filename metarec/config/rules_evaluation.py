"""Rules about what is measured and against what (`metarec.config.rules` collects them)."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.baselines import NAMES
from metarec.config.schema import OF_A_MODEL, PANELS
from metarec.config.seen import Refusal, Seen
from metarec.errors import nearest

ALWAYS = ("pretrained", "control", "zeroshot", "fewshot")  # in every table, asked for or not


def panel_names(seen: Seen) -> Iterator[Refusal]:
    """A row or panel that does not exist, one row given as a name, and rows that are always there."""
    asked = seen.get("evaluation.panel")
    if asked is None:
        return
    rows = (*NAMES, *OF_A_MODEL)
    known = PANELS if isinstance(asked, str) else rows
    for name in [asked] if isinstance(asked, str) else asked:
        if name in known:
            continue
        if name in ALWAYS:
            yield "evaluation.panel", f"{name} is in every table, whatever the panel", "leave it out"
        elif isinstance(asked, str) and name in rows:
            yield "evaluation.panel", "one row is a list of one", f"give [{name}]"
        else:
            near = nearest(name, known)
            what = f"no {'panel' if isinstance(asked, str) else 'row'} is called {name}"
            yield "evaluation.panel", what, f"did you mean {near}?" if near else f"choose of {', '.join(known)}"


def _images(seen: Seen) -> bool:
    return bool(seen.get("dataset.source") == "omniglot")


def candidates_of_images(seen: Seen) -> Iterator[Refusal]:
    """candidates=unseen on images: a query may be of any class of its episode."""
    if _images(seen) and seen.get("evaluation.candidates") == "unseen":
        yield "evaluation.candidates", "the classes of an image are always all of them", "drop it"


def images_have_no_curve(seen: Seen) -> Iterator[Refusal]:
    """Support sizes of a curve on images: shots are fixed when episodes are drawn."""
    if _images(seen) and seen.get("evaluation.ks") is not None:
        yield (
            "evaluation.ks",
            "an episode of images has its shots fixed",
            "drop it, or train with another n_shot",
        )


def ks_twice(seen: Seen) -> Iterator[Refusal]:
    """A support size twice: a curve has one point each."""
    ks = seen.get("evaluation.ks")
    if ks and len(set(ks)) < len(ks):
        yield "evaluation.ks", "a support size stands twice", "give each once"


def vocabulary_of_a_log(seen: Seen) -> Iterator[Refusal]:
    """vocabulary=all without a log: images bring their classes, and the world's optimum knows training items only."""
    source = seen.get("dataset.source")
    if seen.get("dataset.vocabulary") == "all" and source != "log":
        what = (
            "the items are given" if source != "synthetic" else "the optimum of the embedded world knows training items"
        )
        yield "dataset.vocabulary", what, "drop it"


def history_of_images(seen: Seen) -> Iterator[Refusal]:
    """In-context history on images: nothing came before."""
    if _images(seen) and seen.get("dataset.history") == "user":
        yield "dataset.history", "images have no history", "drop it"
