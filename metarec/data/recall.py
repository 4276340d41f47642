"""What a user is known to have had before each pair's target: the entries of a memory, and the state ahead of each.

    support pair   the events of the support before its target: prefixes and targets of earlier pairs, and its own prefix
    query pair     the events of the support in earlier sessions, and all events of its own session before its target

Each event stands once; whole prefixes count, also what `max_len` cuts off. Nothing of a later pair or of another query's
session is known, so a memory is causal. Items outside the vocabulary are no entries, and have no age.

The key of an event is the hidden state just before it, from which it would have been predicted. An event of the own prefix
takes it from the pair's own sequence, any other from that of the first support pair that holds it: for a target of
the support, the state that it was scored from. The first event of a session has the state before any event; what `max_len`
cuts off has none, nor has the first event behind the cut.

Shapes: T tasks, K support and Q query pairs, M entries of all pairs, C entries of the pair with the most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.core.batch import PairBatch, Recall
from metarec.data.history import shown
from metarec.ragged import Ints, ranges, running

Ends = tuple[Ints, Ints]  # of pairs: first event of the session, event of the target
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Log:
    """What a recall reads of the log: `item` [E]; a model sees the latest `max_len` events, items up to `n_read` of them."""

    item: NDArray[np.int32]
    max_len: int
    n_read: int | None = None

    def read(self, event: Ints) -> Flags:
        """Whether a model reads each of the events [n]."""
        found = self.item[event]
        return (found >= 0) if self.n_read is None else (found >= 0) & (found <= self.n_read)


@dataclass(frozen=True)
class _Keys:
    """Of events [n], how far the state ahead of each stands before the last one of a pair's sequence."""

    pair: Ints  # the pair, counted through all tasks
    back: Ints  # events that a model reads from this one on, up to the pair's target
    lost: Flags  # whether `max_len` has cut off what would be ahead of it

    def of(self, chosen: Ints) -> _Keys:
        return _Keys(self.pair[chosen], self.back[chosen], self.lost[chosen])


def remembered(support: PairBatch, query: PairBatch, known: Ends, asked: Ends, log: Log) -> tuple[PairBatch, PairBatch]:
    """Both batches with what is known ahead of their pairs, given by the ends `known` [T, K] and `asked` [T, Q]."""
    held, upto = shown(*known, breaks=False)
    upto = np.pad(upto, ((0, 0), (1, 0)))  # how many events the first k pairs hold
    counts = np.diff(upto, axis=1).ravel()
    by = np.repeat(np.arange(len(counts)), counts)  # the first pair that holds each event
    keys = _keys(held, by, known, log)
    recall = _Support(held, upto, keys, known, support)
    own = replace(support, recall=recall.of(support, known, log, None))
    return own, replace(query, recall=recall.of(query, asked, log, support))


def _keys(event: Ints, pair: Ints, ends: Ends, log: Log) -> _Keys:
    """Events [n] in the sequences of pairs [n]; events of a pair stand together, rising, up to its target or just before."""
    begin, target = (part.ravel()[pair] for part in ends)
    read = log.read(event) & (event < target)
    ahead: Ints = np.cumsum(read) - read
    last = np.searchsorted(pair, pair, side="right") - 1
    start = np.maximum(begin, target - log.max_len)
    return _Keys(pair, ahead[last] + read[last] - ahead, (event < start) | ((event == start) & (start > begin)))


@dataclass(frozen=True)
class _Support:
    event: Ints  # [n], what the support holds, task behind task, rising within one
    upto: Ints  # [T, K + 1], how many of them the first k pairs of a task hold
    keys: _Keys  # [n]
    ends: Ends  # [T, K]
    batch: PairBatch

    def of(self, batch: PairBatch, ends: Ends, log: Log, apart: PairBatch | None) -> Recall:
        """The recall of pairs [T, N]; `apart`: the support's batch where it is another than theirs."""
        (n_tasks, n_pairs), (begin, target) = ends[0].shape, (part.ravel() for part in ends)
        earlier = (self.ends[0][:, None, :] < ends[0][:, :, None]).sum(-1)
        known = np.take_along_axis(self.upto, earlier, axis=1).ravel()
        offset = np.cumsum(self.upto[:, -1]) - self.upto[:, -1]
        before = ranges(np.repeat(offset, n_pairs), known)
        pairs = np.arange(len(begin))
        prefix = ranges(begin, target - begin)
        of_prefix = _keys(prefix, np.repeat(pairs, target - begin), ends, log)
        of_before = self.keys.of(before)

        pair = np.concatenate([np.repeat(pairs, known), of_prefix.pair])
        item = np.asarray(log.item[np.concatenate([self.event[before], prefix])], dtype=np.int64)
        own = np.arange(len(pair)) >= len(before)
        order = np.argsort(pair, kind="stable")  # of a pair first what the support holds, then its own prefix
        order = order[item[order] > 0]
        pair = pair[order]
        count = np.bincount(pair, minlength=len(pairs))
        place = np.arange(len(pair)) - running(count)[pair]
        width = max(int(count.max(initial=0)), 1)

        def laid(values: Ints | Flags, empty: int | bool = 0) -> Tensor:
            out = np.full((len(pairs), width), empty, dtype=values.dtype)
            out[pair, place] = values
            return torch.from_numpy(out.reshape(n_tasks, n_pairs, width)).to(batch.at.device)

        def both(name: str, empty: int | bool = 0) -> Tensor:
            return laid(np.concatenate([getattr(of_before, name), getattr(of_prefix, name)])[order], empty)

        key = _placed(both("pair"), both("back"), both("lost", True), laid(own[order]), batch, apart, self.batch)
        age = laid(count[pair] - 1 - place)
        return Recall(laid(item[order]), age, laid(own[order]), key, apart)


def _placed(
    pair: Tensor, back: Tensor, lost: Tensor, own: Tensor, batch: PairBatch, apart: PairBatch | None, held: PairBatch
) -> Tensor:
    """The keys int64 [T, N, C] of `core.batch.Recall`; all [T, N, C]: the pair, `back` and `lost` as in `_Keys`."""
    number, depth = (part.flatten() for part in _last_states(batch))
    of_held, depth_held = (part.flatten() for part in _last_states(held))
    if not len(of_held):  # no support at all: then every entry is of an own prefix
        of_held, depth_held = number, depth
    mine, other = pair.where(own, 0), pair.where(~own, 0)
    ahead = torch.where(own, depth[mine], depth_held[other]) - back
    shift = 0 if apart is None else batch.sequences.lengths.sum(1).max()
    state = torch.where(own, number[mine], of_held[other] + shift) - back
    return torch.where(lost, -1, torch.where(ahead > 0, state, 0))


def _last_states(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Of every pair the last state of its sequence, counted through its task from 1, and its depth; 0 where it has none."""
    sequences, at = batch.sequences, batch.at
    if not len(sequences.step):
        return at, at
    return (at - sequences.places[:, :1]).where(at > 0, 0), (sequences.step[(at - 1).clamp(min=0)] + 1).where(at > 0, 0)
