"""The Bayes optimum of an embedded world: no scorer can expect a higher hit rate at any cutoff.

    p(item | evidence) = sum over types t of  p(t | evidence) * next_item[t, last item of the prefix, item]
    p(t | evidence)  ~  product over the evidence's events of  start[t, event]  or  next_item[t, event before, event]

Evidence of a query pair: its own prefix (zero-shot), and besides the prefixes and labels of the support pairs
(few-shot). Every event counts once; another query pair's events count only where they lie in this one's prefix. Types
are a priori equally likely. Exact up to float64 rounding: the world's law is known, and nothing else is seen. (A model
that reads more of a user's history than these K pairs may do better than the few-shot optimum.)

Shapes: N episodes, K support pairs, Q query pairs, T types, V items of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from metarec.data.synthetic import World
from metarec.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from metarec.data.store import Prepared

Mode = Literal["zeroshot", "fewshot"]
MODES: tuple[Mode, ...] = ("zeroshot", "fewshot")
CHUNK_NUMBERS = 2**22  # float64 scores made at once (32 MiB)


def bayes_scores(
    world: World,
    prepared: Prepared,
    split: str,
    rows: Sequence[int] | np.ndarray,
    mode: Mode = "fewshot",
    n_support: int | None = None,
) -> np.ndarray:
    """Exact next-item probabilities for the query pairs of the episodes `rows` of `split` (each row's first window).

    Returns float64 [N, Q, V]; column i-1 belongs to item index i, and a row sums to 1 where the vocabulary holds every
    item of the world. `n_support` takes the last, newest support pairs only (None: all K).
    Raises ConfigError on an unknown mode or n_support outside 0..K, DataError where the events are not the world's.
    """
    rows = np.asarray(rows, np.int64)
    to_world = _world_items(world, prepared)
    table = world.next_item[:, :, to_world[1:-1]]  # [T, I, V]
    scores = np.empty((len(rows), prepared.episodes(split).n_query, prepared.n_items))
    step = max(1, CHUNK_NUMBERS // (scores.shape[1] * scores.shape[2]))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        posterior = type_posterior(world, prepared, split, rows[part], mode, n_support)  # [n, Q, T]
        _, query = _pairs(prepared, split, rows[part], 0)
        last = to_world[prepared.item[prepared.pair_event[query] - 1]]  # [n, Q], known: it was evidence
        mixture = np.zeros((*query.shape, prepared.n_items))
        for one_type in range(world.spec.n_types):
            mixture += posterior[..., one_type, None] * table[one_type, last]
        scores[part] = mixture
    return scores


def type_posterior(
    world: World,
    prepared: Prepared,
    split: str,
    rows: Sequence[int] | np.ndarray,
    mode: Mode = "fewshot",
    n_support: int | None = None,
) -> np.ndarray:
    """Probability of each type given a query pair's evidence, float64 [N, Q, T]; arguments as in `bayes_scores`."""
    n_support = _check(prepared, split, mode, n_support)
    rows = np.asarray(rows, np.int64)
    to_world = _world_items(world, prepared)
    support, query = _pairs(prepared, split, rows, n_support)
    begin, label = prepared.pair_begin[query], prepared.pair_event[query]
    longest = int((label - begin).max(initial=0)) + 1
    if longest > world.spec.max_events:
        raise _foreign(prepared, f"a session of {longest} events", f"is longer than {world.spec.max_events}")
    counted_to = np.full((len(rows), 1), -1)  # the last event that the support has counted
    total = np.zeros((world.spec.n_types, *query.shape))
    if mode == "fewshot" and n_support > 0:
        s_begin, s_label = prepared.pair_begin[support], prepared.pair_event[support]
        before = np.concatenate([counted_to, s_label[:, :-1]], axis=1)
        per_pair = _log_likelihood(world, prepared, to_world, s_begin, _uncounted(s_begin, before), s_label + 1)
        total += per_pair.sum(axis=2)[..., None]
        counted_to = s_label[:, -1:]
    total += _log_likelihood(world, prepared, to_world, begin, _uncounted(begin, counted_to), label)
    best = total.max(axis=0)
    if np.isneginf(best).any():
        raise _foreign(prepared, f"{int(np.isneginf(best).sum())} query pairs", "have probability 0 under every type")
    weight = np.exp(total - best)
    return np.moveaxis(weight / weight.sum(axis=0), 0, -1)


def _uncounted(begin: np.ndarray, counted_to: np.ndarray) -> np.ndarray:
    """First event of a session prefix that no earlier pair has counted (pairs stand in the order of their labels)."""
    first: np.ndarray = np.maximum(begin, counted_to + 1)
    return first


def _log_likelihood(
    world: World, prepared: Prepared, to_world: np.ndarray, session: np.ndarray, first: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Log-probability under each type of the events [first, end) of the sessions that begin at `session`.

    All three are event indices of shapes that broadcast to one; returns float64 [T, *shape], -inf for the impossible.
    """
    session, first, end = np.broadcast_arrays(session, first, end)
    total = np.zeros((world.spec.n_types, *first.shape))
    for offset in range((end - first).max(initial=0)):
        live = first + offset < end
        event = first[live] + offset
        opens = event == session[live]
        item = to_world[prepared.item[event]]
        previous = np.where(opens, item, to_world[prepared.item[event - 1]])
        unknown = (item < 0) | (previous < 0)
        if unknown.any():
            raise DataError(
                f"dataset {prepared.name}",
                f"{int(unknown.sum())} events",
                "in an episode show an item that no training user has, so the exact optimum cannot read them",
                "raise dataset.world.n_users until every item occurs in training",
            )
        probability = np.where(opens, world.start[:, item], world.next_item[:, previous, item])  # [T, live]
        with np.errstate(divide="ignore"):
            total[:, live] += np.log(probability)
    return total


def _pairs(prepared: Prepared, split: str, rows: np.ndarray, n_support: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair indices of the newest `n_support` support pairs [N, n_support] and of the query pairs [N, Q]."""
    episodes = prepared.episodes(split)
    query = episodes.first_pair[rows][:, None] + episodes.n_support
    return query + np.arange(-n_support, 0), query + np.arange(episodes.n_query)


def _world_items(world: World, prepared: Prepared) -> np.ndarray:
    """World item of each item index, int64 [V + 2]; none (-1) for padding (0) and for the unknown (-1, the last)."""
    if prepared.order != "real":
        raise _foreign(prepared, f"order={prepared.order}", "has sessions in another order than they were drawn in")
    number = {name: n for n, name in enumerate(world.item_ids.tolist())}
    items = [number.get(name, -1) for name in prepared.item_ids.tolist()]
    if -1 in items:
        raise _foreign(prepared, prepared.item_ids[items.index(-1)], "is no item of the world")
    return np.array([-1, *items, -1], np.int64)


def _check(prepared: Prepared, split: str, mode: str, n_support: int | None) -> int:
    """The number of support pairs to use, after the refusals."""
    if mode not in MODES:
        raise ConfigError("mode", mode, f"is not one of {', '.join(MODES)}", f"take {nearest(mode, MODES) or MODES[0]}")
    stored = prepared.episodes(split).n_support
    if n_support is None:
        return stored
    if not 0 <= n_support <= stored:
        raise ConfigError(
            "n_support", n_support, f"must lie in 0..{stored}, the support pairs stored", f"take {stored}"
        )
    return n_support


def _foreign(prepared: Prepared, value: object, what: str) -> DataError:
    return DataError(
        f"dataset {prepared.name}",
        value,
        f"{what}: these events are not drawn as the world draws them",
        "keep dataset.sessions.by=column, sessions.order=real, no k-core and the world's own log",
    )
