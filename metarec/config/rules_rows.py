"""Rules of residuals that depend on the support (`residual.rows`)."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen


def rows_learn_nothing(seen: Seen) -> Iterator[Refusal]:
    """Rows that start at the base and take fixed steps: the outer loop would have nothing to train."""
    asked = seen.get("residual.learn_start") is False and seen.get("algorithm") is not None and not seen.supervised
    if asked and (not seen.learns_rates or seen.get("algorithm.inner.steps") == 0):
        on, name = seen.get("residual.name"), seen.get("algorithm.name")
        what = f"residual={on} starts at the base, and algorithm={name} learns no step size: nothing would be learned"
        fix = "set residual.learn_start=true, or use algorithm=meta_sgd or algorithm.inner.rates=tensor"
        yield "residual.learn_start", what, fix


def rows_of_the_query(seen: Seen) -> Iterator[Refusal]:
    """A residual of what the support touches, where the query adapts as well."""
    if seen.get("residual.of_support") and seen.get("algorithm.taps_query"):
        name, on = seen.get("algorithm.name"), seen.get("residual.name")
        what = (
            f"algorithm={name} takes each user's gradient of his query too, and residual={on} is of the support's items"
        )
        yield "residual", what, "use algorithm=meta_sgd, maml, fomaml or maml_pp"


RULES = (rows_learn_nothing, rows_of_the_query)
