"""The funnel of a preparation: what is left after each step, what each filter dropped, and what the splits hold.

Each step is counted from its own table; ``dropped`` is the difference in rows to the step before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metarec.data.store import SPLITS, Prepared, blocks


@dataclass
class Step:
    """Rows, users and sessions add up over the parts of a log, since a part holds whole users; items are a union."""

    name: str
    why: str
    rows: int = 0
    users: int = 0
    sessions: int | None = None
    items: np.ndarray | int = 0  # bool [n_codes] while counting, or a number


@dataclass
class Funnel:
    steps: list[Step] = field(default_factory=list)

    def step(self, name: str, why: str, n_codes: int = 0) -> Step:
        """Begin (or, for the next part, go on with) the step ``name``; ``n_codes`` item codes to be ticked off."""
        for known in self.steps:
            if known.name == name:
                return known
        self.steps.append(Step(name, why, items=np.zeros(n_codes, dtype=bool) if n_codes else 0))
        return self.steps[-1]

    def last_drop(self) -> str:
        """What each filter dropped of the input, for the message when nothing or too little is left."""
        plain = self.plain()
        drops = [f"{step['step']} dropped {step['dropped']:,} ({step['why']})" for step in plain if step["dropped"]]
        return f"of {plain[0]['rows']:,} rows " + (", ".join(drops) or "none was dropped")

    def plain(self) -> list[dict[str, Any]]:
        """The steps as they are stored."""
        rows, found = None, []
        for step in self.steps:
            items = int(step.items.sum()) if isinstance(step.items, np.ndarray) else step.items
            dropped = 0 if rows is None else rows - step.rows
            found.append({"step": step.name, "rows": step.rows, "users": step.users, "items": items,
                          "sessions": step.sessions, "dropped": dropped, "why": step.why})  # fmt: skip
            rows = step.rows
        return found


def split_counts(prepared: Prepared) -> dict[str, dict[str, Any]]:
    """Per split {"users", "pairs", "episodes", "episode_users", "unknown_target_share"}, keyed by figure, then split.

    users: of the split with anything left; pairs: whose target belongs to it; unknown_target_share: of the query
    targets of its fixed episodes (each counts as a miss), of all pairs for training.
    """
    leave_one_out = prepared.split_by == "leave_one_out"
    counts: dict[str, dict[str, Any]] = {
        name: {} for name in ("users", "pairs", "episodes", "episode_users", "unknown_target_share")
    }
    n_pairs = np.diff(prepared.user_pairs)
    for code, name in enumerate(SPLITS):
        ranges = prepared.episodes(name)
        users = int((prepared.user_split == code).sum())
        pairs = int(n_pairs[prepared.user_split == code].sum())
        if name == "train":
            begin, end = prepared.train_pairs
            pairs, unknown = int((end - begin).sum()), 0.0  # the vocabulary is made of them
        else:
            if leave_one_out:
                users, pairs = len(ranges.user), len(ranges.user)
            query = ranges.first_pair[:, None] + np.arange(ranges.n_support, ranges.n_support + ranges.n_query)
            target = prepared.item[prepared.pair_event[query.ravel()]]
            unknown = float((target < 0).mean())
        counts["users"][name], counts["pairs"][name] = users, pairs
        counts["episodes"][name], counts["episode_users"][name] = ranges.n_episodes, len(ranges.user)
        counts["unknown_target_share"][name] = unknown
    return counts


def late_training_events(prepared: Prepared) -> int:
    """Training events later than the earliest test target: what a model could not have known at that time."""
    ranges = prepared.episodes("test")
    earliest = int(prepared.time[prepared.pair_event[ranges.first_pair + ranges.n_support]].min())
    user_events = prepared.session_offsets[prepared.user_sessions]
    late = 0
    for first, time in blocks(prepared.time):
        late += int(
            (training_mask(first, first + len(time), user_events, prepared.train_event_end) & (time > earliest)).sum()
        )
    return late


def training_mask(first: int, last: int, user_events: np.ndarray, train_event_end: np.ndarray) -> np.ndarray:
    """Which of the events [first, last) may be trained on, bool; ``user_events`` int64 [U+1]."""
    low = max(int(np.searchsorted(user_events, first, side="right")) - 1, 0)
    high = int(np.searchsorted(user_events, last, side="left"))
    begin = np.clip(user_events[low:high], first, last) - first
    end = np.clip(train_event_end[low:high], first, last) - first
    steps = np.bincount(begin, minlength=last - first + 1) - np.bincount(end, minlength=last - first + 1)
    return np.cumsum(steps[:-1]) > 0
