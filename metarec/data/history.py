"""What a user did before: the support, session behind session, in front of a prefix (in-context history).

    plain prefix    the events of the target's own session so far
    behind support  support pair: the events of the support so far; query pair: all events of the support in earlier
                    sessions, then the events of its own session so far

An event that several support pairs read stands once. Nothing else of the user is read: neither what came before the
support, nor other queries' sessions. Sessions are joined by a break (item 0) where the model has learned to read one
(`dataset.history=user`), or by nothing (a model that was trained on single sessions).

`Stream`: the whole log in that form, for pretraining on whole histories.

Shapes: T tasks, K support and Q query pairs, E events, n tokens, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metarec.data.store import Prepared
from metarec.ragged import Ints, ranges

BREAK = -1  # in place of an event: here one session ends and another begins


@dataclass(frozen=True)
class Laid:
    """Tokens laid out one behind the other: token i is event `source[i]`, or a break. The prefix of a pair is the tokens
    [begin, at), its target the token `at`; both int64 [T, N]."""

    source: Ints
    begin: Ints
    at: Ints


def shown(begin: Ints, event: Ints, breaks: bool) -> tuple[Ints, Ints]:
    """The events that pairs [T, K] hold, prefixes and targets, each event once: (events, ends).

    Pairs are given by the first event of their session and the event of their target, rising within a task. Tasks stand
    one behind the other; `ends` int64 [T, K]: how many tokens a task has up to a pair's target, that included.
    """
    opens = np.ones_like(begin, dtype=bool)
    opens[:, 1:] = begin[:, 1:] != begin[:, :-1]
    first = begin.copy()  # of what a pair adds to what stands already
    first[:, 1:] = np.where(opens[:, 1:], begin[:, 1:], event[:, :-1] + 1)
    lead = opens & breaks
    lead[:, :1] = False
    lengths = event + 1 - first + lead
    source = ranges((first - lead).ravel(), lengths.ravel())
    source[(np.cumsum(lengths.ravel()) - lengths.ravel())[lead.ravel()]] = BREAK
    return source, np.cumsum(lengths, axis=1)


def behind(support: tuple[Ints, Ints], query: tuple[Ints, Ints], max_len: int, breaks: bool) -> tuple[Laid, Laid]:
    """Support [T, K] and query [T, Q] pairs, each as for `shown` -> both laid out, prefixes cut to their latest
    `max_len` tokens."""
    (s_begin, s_event), (q_begin, q_event) = support, query
    source, ends = shown(s_begin, s_event, breaks)
    upto = np.pad(ends, ((0, 0), (1, 0)))
    offset = np.cumsum(upto[:, -1]) - upto[:, -1]
    at = offset[:, None] + ends - 1
    laid_support = Laid(source, np.maximum(offset[:, None], at - max_len), at)

    # the queries of one session: what the support holds of earlier sessions, then the session itself
    new = np.ones_like(q_begin, dtype=bool)
    new[:, 1:] = q_begin[:, 1:] != q_begin[:, :-1]
    last = np.ones_like(new)
    last[:, :-1] = new[:, 1:]
    task = np.broadcast_to(np.arange(len(new))[:, None], new.shape)[new]
    begin, end = q_begin[new], q_event[last] + 1
    earlier = (s_begin[task] < begin[:, None]).sum(1)
    known = upto[task, earlier]
    lead = ((known > 0) & breaks).astype(np.int64)
    sizes = known + lead + (end - begin)
    place = np.cumsum(sizes) - sizes
    tokens = np.empty(int(sizes.sum()), dtype=np.int64)
    tokens[ranges(place, known)] = source[ranges(offset[task], known)]
    tokens[(place + known)[lead > 0]] = BREAK
    tokens[ranges(place + known + lead, end - begin)] = ranges(begin, end - begin)
    group = (np.cumsum(new.ravel()) - 1).reshape(new.shape)
    at = (place + known + lead - begin)[group] + q_event
    return laid_support, Laid(tokens, np.maximum(place[group], at - max_len), at)


@dataclass(frozen=True)
class Stream:
    """All events in order, with a break between the sessions of a user: `item` int32 [E + breaks], 0 = a break."""

    item: NDArray[np.int32]
    session_offsets: Ints
    user_sessions: Ints

    @staticmethod
    def of(prepared: Prepared) -> Stream:
        """The whole log, in memory: a stream is as long as the events and the breaks between them."""
        offsets, users = np.asarray(prepared.session_offsets), np.asarray(prepared.user_sessions)
        out = Stream(np.zeros(0, dtype=np.int32), offsets, users)
        item = np.zeros(len(prepared.item) + int(out.breaks[-1]) if len(out.breaks) else 0, dtype=np.int32)
        item[np.arange(len(prepared.item)) + np.repeat(out.breaks, np.diff(offsets))] = prepared.item
        return Stream(item, offsets, users)

    @cached_property
    def breaks(self) -> Ints:
        """How many breaks stand ahead of each session, int64 [S]."""
        leads = np.ones(len(self.session_offsets) - 1, dtype=np.int64)
        leads[self.user_sessions[:-1][np.diff(self.user_sessions) > 0]] = 0
        return np.cumsum(leads)

    def at(self, event: Ints) -> Ints:
        """Where events stand in the stream."""
        return event + self.breaks[self._session(event)]

    def user_begin(self, event: Ints) -> Ints:
        """Where the user of each event begins in the stream."""
        user = np.searchsorted(self.user_sessions, self._session(event), side="right") - 1
        return self.at(self.session_offsets[self.user_sessions[user]])

    def _session(self, event: Ints) -> Ints:
        return np.searchsorted(self.session_offsets, event, side="right") - 1

    def users(self, event_end: Ints, chosen: Ints) -> tuple[Ints, Ints]:
        """Ranges [begin, end) of the histories of the users `chosen`, each up to event `event_end` (of all users)."""
        begin = self.session_offsets[self.user_sessions[:-1][chosen]]
        end = event_end[chosen]
        some = end - begin >= 2
        begin, end = begin[some], end[some]
        return self.at(begin), self.at(end - 1) + 1
