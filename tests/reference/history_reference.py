"""A user's history in front of a prefix, as plain lists: one pair, one event at a time."""

from __future__ import annotations

import numpy as np

from metarec.data.batches import Batcher

Tokens = list[int]  # items in the order read; 0 = a break between sessions


def prefix_behind(batcher: Batcher, support: list[int], pair: int, *, breaks: bool, is_support: bool) -> Tokens:
    """What a model reads before the target of `pair`: known items, the latest `max_len` tokens, breaks where they are."""
    begin, event = int(batcher.pair_begin[pair]), int(batcher.pair_event[pair])
    held: dict[int, set[int]] = {}  # session -> its events that the support holds
    for other in support:
        if is_support and other >= pair:
            continue
        own, target = int(batcher.pair_begin[other]), int(batcher.pair_event[other])
        held.setdefault(own, set()).update(range(own, target + 1))
    events: list[int | None] = []
    for own in sorted(held):
        if own < begin:
            events += sorted(held[own])
            if breaks:
                events.append(None)
    events += list(range(begin, event))
    tokens = [0 if e is None else int(batcher.item[e]) for e in events][-batcher.max_len :]
    return [item for item in tokens if item >= 0]


def whole_history(batcher: Batcher, sessions: list[tuple[int, int]], user_begin: int, pair: int) -> Tokens:
    """All of the user's earlier events, session behind session."""
    event = int(batcher.pair_event[pair])
    tokens: Tokens = []
    for begin, end in sessions:
        if begin < user_begin or begin > event:
            continue
        if tokens:
            tokens.append(0)
        tokens += [int(batcher.item[e]) for e in range(begin, min(end, event))]
    return [item for item in tokens[-batcher.max_len :] if item >= 0]


def read_back(batch: object) -> list[list[tuple[Tokens, int]]]:
    """Every pair of a packed batch as (tokens before its target, target), found by walking its sequences."""
    sequences, at, target = batch.sequences, np.asarray(batch.at), np.asarray(batch.target)  # type: ignore[attr-defined]
    lengths, starts, places = (np.asarray(x) for x in (sequences.lengths, sequences.starts, sequences.places))
    out = []
    for task in range(len(at)):
        rows = []
        for state, wanted in zip(at[task], target[task], strict=True):
            tokens: Tokens = []
            for row in range(lengths.shape[1]):
                place = int(state) - 1 - int(places[task, row])
                if state > 0 and 0 <= place < lengths[task, row]:
                    first = int(starts[task, row])
                    tokens = [int(i) for i in sequences.items[task, first : first + place + 1]]
            rows.append((tokens, int(wanted)))
        out.append(rows)
    return out
