"""The embedded worlds: seeded logs of latent user types whose Bayes optimum is known exactly.

    preference   next item = .6 taste of the type + .3 shared transitions + .1 popularity
                 taste: Dirichlet weights over topics, popularity inside a topic; 3 successors an item
    transition   next item = .8 the successor that the type picks among the item's 4 candidates + .2 popularity

A session opens with an item drawn by popularity whatever the type, so a short prefix says little about the type and a
support set says much. The item just seen cannot follow itself (its probability is spread over the others), because the
preparation of a log removes immediate repeats: so the likelihood in `metarec.data.bayes` holds for the prepared events.
The share of popularity is `noise`; what is left of 1 keeps the ratio .6 : .3 (preference).

Randomness: numpy's Philox, keyed by (seed, purpose) and, for users, by block: neither the world nor the first users
change with `n_users`. Shapes: T types, I items.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from metarec import strict_json
from metarec.data.spec import WorldSpec
from metarec.errors import ConfigError, DataError, nearest

KINDS = ("preference", "transition")
DEFAULT_NOISE = {"preference": 0.1, "transition": 0.2}
N_SUCCESSORS = 3  # shared transitions of an item, equally likely (preference)
N_CANDIDATES = 4  # successors a type may pick from (transition)
TASTE, SHARED = 2 / 3, 1 / 3  # of what popularity leaves (preference)
MAX_TABLE = 2**27  # probabilities in the dense next-item table: 1 GiB of float64
USERS_PER_BLOCK = 2**15  # drawn at once; what a seed means depends on it, as on the numbers below
PURPOSES = {
    name: number for number, name in enumerate(("popularity", "topics", "taste", "successors", "types", "histories"))
}


@dataclass(frozen=True, eq=False)
class World:
    """The law behind a log.

    next_item float64 [T, I, I]: probability of the next item given type and item; start float64 [T, I]: of a session's
    first item; user_types int64 [n_users]: the latent type of user number n, known to no model. Types are a priori
    equally likely. Items and users are numbered from 0; `item_ids` and `user_ids` give their names in the log.
    """

    spec: WorldSpec
    next_item: np.ndarray
    start: np.ndarray
    user_types: np.ndarray

    @property
    def item_ids(self) -> np.ndarray:
        """Names of the items, str [I]; zero-padded, so their order as text is their order as numbers."""
        width = len(str(self.spec.n_items - 1))
        return np.array([f"i{number:0{width}d}" for number in range(self.spec.n_items)])

    @property
    def user_ids(self) -> np.ndarray:
        """Names of the users, str [n_users]."""
        return np.array([_user_id(number) for number in range(self.spec.n_users)])

    def save(self, path: Path) -> None:
        """Write the world as an .npz of plain arrays (`path` is taken as it is)."""
        with open(path, "wb") as file:
            np.savez(
                file,
                spec=np.array(json.dumps(asdict(self.spec))),
                next_item=self.next_item,
                start=self.start,
                user_types=self.user_types,
            )

    @staticmethod
    def load(path: Path) -> World:
        """Read what `save` wrote; DataError if it is missing, damaged or something else."""
        try:
            with np.load(path) as arrays:
                spec = WorldSpec(**strict_json.loads(str(arrays["spec"])))
                world = World(spec, arrays["next_item"], arrays["start"], arrays["user_types"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                path,
                type(error).__name__,
                f"is not a readable world: {error}",
                "delete it and prepare the dataset again",
            ) from error
        types, items = spec.n_types, spec.n_items
        shapes = (world.next_item.shape, world.start.shape, world.user_types.shape)
        if shapes != ((types, items, items), (types, items), (spec.n_users,)):
            raise DataError(
                path, shapes, "arrays do not fit the world's sizes", "delete it and prepare the dataset again"
            )
        return world


def spec_problems(spec: WorldSpec) -> list[ConfigError]:
    """Everything wrong with the options of a world, one error a key; an empty list if nothing is."""
    found: list[ConfigError] = []

    def need(holds: bool, key: str, what: str, fix: str) -> None:
        if not holds:
            found.append(ConfigError(f"dataset.world.{key}", getattr(spec, key), what, fix))

    near = nearest(spec.kind, KINDS)
    need(
        spec.kind in KINDS,
        "kind",
        f"is not one of {', '.join(KINDS)}",
        f"did you mean {near}?" if near else f"take {KINDS[0]}",
    )
    need(spec.n_users >= 1, "n_users", "must be at least 1", "take 6000 for the default world")
    least = N_CANDIDATES + 1  # an item, and its candidates besides
    need(spec.n_items >= least, "n_items", f"must be at least {least}", "take 200 for the default world")
    need(spec.n_types >= 1, "n_types", "must be at least 1", "take 8 for the default world")
    need(
        spec.n_types * spec.n_items**2 <= MAX_TABLE,
        "n_items",
        f"needs n_types * n_items^2 <= {MAX_TABLE} (the exact optimum keeps that table in memory)",
        f"with {spec.n_types} types take at most {math.isqrt(MAX_TABLE // max(spec.n_types, 1))} items",
    )
    if spec.kind == "preference":
        need(
            1 <= spec.n_topics <= spec.n_items,
            "n_topics",
            f"must lie in 1..n_items ({spec.n_items}): a topic needs an item",
            "lower n_topics or raise n_items",
        )
        need(
            0 < spec.concentration < math.inf,
            "concentration",
            "must be above 0 and finite",
            "take 0.12; smaller means fewer topics a type",
        )
    need(spec.min_sessions >= 1, "min_sessions", "must be at least 1", "take 8 for the default world")
    need(
        spec.max_sessions >= spec.min_sessions,
        "max_sessions",
        f"is below min_sessions ({spec.min_sessions})",
        "raise max_sessions or lower min_sessions",
    )
    need(spec.min_events >= 2, "min_events", "must be at least 2: one event has nothing to predict", "take 2")
    need(
        spec.max_events >= spec.min_events,
        "max_events",
        f"is below min_events ({spec.min_events})",
        "raise max_events or lower min_events",
    )
    need(
        spec.noise is None or 0 <= spec.noise <= 1,
        "noise",
        "must lie in [0, 1]: it is the share of popularity",
        "take null for the world's own default",
    )
    need(0 <= spec.seed < 2**63, "seed", "must lie in [0, 2^63)", "take 7 for the default world")
    return found


def build_world(spec: WorldSpec) -> World:
    """Draw a world's law and its users' types, without any event; ConfigError on the first bad option."""
    for problem in spec_problems(spec):
        raise problem
    noise = DEFAULT_NOISE[spec.kind] if spec.noise is None else spec.noise
    popularity = _popularity(spec)
    table = _preference_table(spec, popularity) if spec.kind == "preference" else _transition_table(spec)
    table *= 1 - noise
    table += noise * popularity
    items = np.arange(spec.n_items)
    table[:, items, items] = 0  # no immediate repeat
    table /= table.sum(axis=-1, keepdims=True)
    blocks = [
        (_stream(spec, "types", block).random(last - first) * spec.n_types).astype(np.int64)
        for block, first, last in _blocks(spec)
    ]
    return World(spec, table, np.tile(popularity, (spec.n_types, 1)), np.concatenate(blocks))


def generate(spec: WorldSpec) -> tuple[pa.Table, World]:
    """The whole log of a world, and the world.

    Columns: user_id string, item_id string, timestamp int64 (0, 1, 2... within the user: an order, no clock),
    session_id int64 (unique in the log). Rows: users in order, events in order.
    """
    world = build_world(spec)
    return pa.concat_tables(event_blocks(world)), world


def event_blocks(world: World) -> Iterator[pa.Table]:
    """The log in pieces of at most USERS_PER_BLOCK users: for sizes whose text does not fit in memory at once."""
    spec = world.spec
    start_cdf, next_cdf = _cdf(world.start), _cdf(world.next_item).reshape(-1, spec.n_items)
    item_names = pa.array(world.item_ids)
    for block, first, last in _blocks(spec):
        item, live = _histories(spec, world.user_types[first:last], start_cdf, next_cdf, block)
        user, session, _ = np.nonzero(live)  # row-major: by user, session, position
        per_user = live.sum(axis=(1, 2))
        opening = np.cumsum(per_user) - per_user
        names = pa.array([_user_id(number) for number in range(first, last)])
        yield pa.table(
            {
                "user_id": names.take(pa.array(user)),
                "item_id": item_names.take(pa.array(item[live])),
                "timestamp": np.arange(len(user)) - np.repeat(opening, per_user),
                "session_id": (first + user) * spec.max_sessions + session,
            }
        )


def _histories(
    spec: WorldSpec, types: np.ndarray, start_cdf: np.ndarray, next_cdf: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw U users: item int64 [U, sessions, events] and where it is an event at all, bool of the same shape.

    All numbers of a user are drawn in one row, used or not, so that a user does not depend on how many follow.
    """
    sessions, events = spec.max_sessions, spec.max_events
    draws = _stream(spec, "histories", block).random((len(types), 1 + sessions + sessions * events))
    n_sessions = spec.min_sessions + (draws[:, 0] * (sessions - spec.min_sessions + 1)).astype(np.int64)
    n_events = spec.min_events + (draws[:, 1 : 1 + sessions] * (events - spec.min_events + 1)).astype(np.int64)
    n_events[np.arange(sessions) >= n_sessions[:, None]] = 0
    live = np.arange(events) < n_events[..., None]
    uniform = draws[:, 1 + sessions :].reshape(live.shape)
    item = np.zeros(live.shape, np.int64)
    for position in range(events):
        user, session = np.nonzero(live[..., position])
        if position == 0:
            table, row = start_cdf, types[user]
        else:
            table, row = next_cdf, types[user] * spec.n_items + item[user, session, position - 1]
        item[user, session, position] = _draw(table, row, uniform[user, session, position])
    return item, live


def _draw(cdf: np.ndarray, row: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """For each n the first column c with uniform[n] < cdf[row[n], c], by bisection of all rows at once."""
    low, high = np.zeros_like(row), np.full_like(row, cdf.shape[1] - 1)
    for _ in range((cdf.shape[1] - 1).bit_length()):
        middle = (low + high) // 2
        below = uniform < cdf[row, middle]
        low, high = np.where(below, low, np.minimum(middle + 1, high)), np.where(below, middle, high)
    return low


def _cdf(probability: np.ndarray) -> np.ndarray:
    """Running sums over the last axis that end in exactly 1, so that no draw falls behind the last possible item."""
    total = np.cumsum(probability, axis=-1)
    shares: np.ndarray = total / total[..., -1:]
    return shares


def _popularity(spec: WorldSpec) -> np.ndarray:
    """Zipf's law, weight 1/rank, in an order unrelated to the items' numbers [I]."""
    weight = 1 / (1 + _stream(spec, "popularity").permutation(spec.n_items))
    shares: np.ndarray = weight / weight.sum()
    return shares


def _preference_table(spec: WorldSpec, popularity: np.ndarray) -> np.ndarray:
    """Taste of the type and shared transitions, before popularity is mixed in [T, I, I]."""
    topic = _stream(spec, "topics").permutation(spec.n_items) % spec.n_topics  # sizes differ by one at most
    inside = np.where(topic == np.arange(spec.n_topics)[:, None], popularity, 0)  # [topics, I]
    inside /= inside.sum(axis=1, keepdims=True)
    taste = _stream(spec, "taste").dirichlet(np.full(spec.n_topics, spec.concentration), spec.n_types) @ inside
    shared = np.zeros((spec.n_items, spec.n_items))
    np.put_along_axis(shared, _successors(spec, N_SUCCESSORS), 1 / N_SUCCESSORS, axis=1)
    return TASTE * taste[:, None, :] + SHARED * shared


def _transition_table(spec: WorldSpec) -> np.ndarray:
    """The one successor of each item under each type, before popularity is mixed in [T, I, I]."""
    candidates = _successors(spec, N_CANDIDATES)  # [I, 4]
    pick = (_stream(spec, "taste").random((spec.n_types, spec.n_items)) * N_CANDIDATES).astype(np.int64)
    chosen = candidates[np.arange(spec.n_items), pick]  # [T, I]
    table = np.zeros((spec.n_types, spec.n_items, spec.n_items))
    np.put_along_axis(table, chosen[..., None], 1.0, axis=2)
    return table


def _successors(spec: WorldSpec, n: int) -> np.ndarray:
    """For each item `n` different other items, all equally likely, int64 [I, n]."""
    order = _stream(spec, "successors").random((spec.n_items, spec.n_items))
    np.fill_diagonal(order, 2)  # last of all: never its own successor
    return np.argsort(order, axis=1)[:, :n]


def _stream(spec: WorldSpec, purpose: str, block: int = 0) -> np.random.Generator:
    key = np.array([spec.seed, PURPOSES[purpose]], np.uint64)
    counter = np.array([0, 0, 0, block], np.uint64)  # the highest word: blocks lie 2^192 draws apart
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _blocks(spec: WorldSpec) -> Iterator[tuple[int, int, int]]:
    """(block, first user, end) for all users."""
    for block, first in enumerate(range(0, spec.n_users, USERS_PER_BLOCK)):
        yield block, first, min(first + USERS_PER_BLOCK, spec.n_users)


def _user_id(number: int) -> str:
    return f"u{number:07d}"
