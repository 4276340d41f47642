"""The Bayes optimum by enumeration: plain products of probabilities in loops, one query at a time. Slow, obvious.

Events are world items in nested lists, sessions[s][j]; a pair is (s, j): the prefix sessions[s][:j], the label
sessions[s][j]. Nothing here is shared with metarec.data.bayes.
"""

from __future__ import annotations


def next_item_probabilities(
    start: list[list[float]],
    transition: list[list[list[float]]],
    sessions: list[list[int]],
    support: list[tuple[int, int]],
    query: tuple[int, int],
    fault: str | None = None,
) -> list[float]:
    """P(next item | support pairs, query prefix), uniform prior over types; `support` is empty for zero-shot.

    `fault` plants a mistake that a test must notice: "double" counts an event once a pair that shows it, "leak" reads
    the query's label, "labels" forgets the support's prefixes, "start" ignores the opening items of sessions.
    """
    seen = [(s, k) for s, j in support for k in range(j + 1) if fault != "labels" or k == j]
    seen += [(query[0], k) for k in range(query[1] + (fault == "leak"))]
    if fault != "double":
        seen = list(set(seen))
    weights = []
    for of_start, of_next in zip(start, transition, strict=True):
        product = 1.0
        for s, k in seen:
            if k > 0:
                product *= of_next[sessions[s][k - 1]][sessions[s][k]]
            elif fault != "start":
                product *= of_start[sessions[s][0]]
        weights.append(product)
    last = sessions[query[0]][query[1] - 1]
    n_items = len(start[0])
    return [
        sum(w * of_next[last][item] for w, of_next in zip(weights, transition, strict=True)) / sum(weights)
        for item in range(n_items)
    ]
