"""The guard of the outer loop: what is no good step, what is done about it, and a line in events.jsonl that says so.

    threshold = mean + sigma * max(deviation, mean / 1000)     of the last `window` losses that were let through
    spike     = loss > threshold, once `warmup_steps` losses were let through

The deviation divides by n - 1; the floor keeps a loss that hardly moves from being judged by its rounding. A loss that is
skipped or rolled back never enters the window, one that is only warned of does: what lasts becomes usual. What is not
finite is never let through. Numbers only: weights and optimizer of the last good state are `metarec.runs.kept`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metarec.runs.history import History

FLOOR = 1e-3  # of the mean: the least deviation that a threshold reckons with
HALVED = 0.5  # factor of the rate at each rollback
NONFINITE = ("nonfinite_loss", "nonfinite_gradient", "nonfinite_weights")
KINDS = (*NONFINITE, "spike")
RARE = ("nonfinite_state", "nonfinite_validation")  # of the optimizer, of what is measured: counted where there are any
ACTIONS = ("warn", "skip", "rollback", "stop")
FILE, PRETRAIN_FILE = "events.jsonl", "pretrain_events.jsonl"


@dataclass(frozen=True)
class Rules:
    """What is asked of a guard; see conf/guard/standard.yaml."""

    on_nonfinite: str = "stop"  # stop | skip | rollback
    on_spike: str = "warn"  # off | warn | stop | skip | rollback
    window: int = 50
    sigma: float = 6.0
    warmup_steps: int = 50
    keep_every: int = 20
    max_rollbacks: int = 3
    max_skips: int = 10

    @property
    def rolls_back(self) -> bool:
        """Whether a good state has to be kept at all."""
        return "rollback" in (self.on_nonfinite, self.on_spike)


@dataclass(frozen=True)
class Event:
    """One step that was no good: `value` was found, where `threshold` (None: finite) was allowed."""

    step: int  # as in history.jsonl: outer steps done, this one counted
    kind: str
    value: float
    threshold: float | None
    action: str
    why: str = ""  # of a stop that was not asked for: what ran out
    where: str = ""  # the tensor, or the inner step and the user; "" = nobody knows

    def record(self, **more: Any) -> dict[str, Any]:
        """A line of events.jsonl; JSON has no NaN, so what is not finite stands as text."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        line = {
            "step": self.step,
            "kind": self.kind,
            "value": value,
            "threshold": self.threshold,
            "action": self.action,
        }
        told = {"why": self.why, "where": self.where}
        return {**line, **{key: text for key, text in told.items() if text}, **more}


@dataclass
class Detector:
    """The losses that were let through, and whether the next one is a spike."""

    window: int
    sigma: float
    warmup_steps: int
    losses: list[float] = field(default_factory=list)
    seen: int = 0  # let through, those that have left the window included

    def threshold(self) -> float | None:
        """What the next loss may be at most; None while there are too few to say."""
        count = len(self.losses)
        if count < 2 or self.seen < self.warmup_steps:
            return None
        try:
            mean = math.fsum(self.losses) / count
            deviation = math.sqrt(math.fsum((loss - mean) * (loss - mean) for loss in self.losses) / (count - 1))
        except OverflowError:
            return None
        found = mean + self.sigma * max(deviation, FLOOR * abs(mean))
        return found if math.isfinite(found) else None

    def add(self, loss: float) -> None:
        """Let a finite loss through."""
        self.losses = [*self.losses, loss][-self.window :]
        self.seen += 1

    def state(self) -> dict[str, Any]:
        """What it has seen, for a checkpoint."""
        return {"losses": list(self.losses), "seen": self.seen}

    def load(self, state: Mapping[str, Any]) -> None:
        """Back to a `state`."""
        self.losses, self.seen = [float(loss) for loss in state["losses"]], int(state["seen"])


class Guard:
    """Judges each step of one loop. It decides, counts and writes; `metarec.train.fit` does what it decided."""

    def __init__(self, rules: Rules, path: Path | None = None, tell: Callable[[str], None] = lambda line: None) -> None:
        """path: where events go, None = nowhere; tell: a line for whoever looks on."""
        self.rules, self.path, self.tell = rules, path, tell
        self.detector = Detector(rules.window, rules.sigma, rules.warmup_steps)
        self.rollbacks = 0
        self.skips_in_a_row = 0

    @property
    def rate(self) -> float:
        """Factor of the scheduled step size."""
        return HALVED**self.rollbacks

    def judge(self, step: int, loss: float, norm: float) -> Event | None:
        """What is wrong with `loss` and the gradient's `norm` of this step; None, and the loss is let through."""
        rules, allowed = self.rules, None
        if not math.isfinite(loss):
            return self.decide(step, "nonfinite_loss", loss, None, rules.on_nonfinite)
        if not math.isfinite(norm):
            return self.decide(step, "nonfinite_gradient", norm, None, rules.on_nonfinite)
        if rules.on_spike != "off":
            allowed = self.detector.threshold()
        if allowed is not None and loss > allowed:
            event = self.decide(step, "spike", loss, allowed, rules.on_spike)
            if event.action == "warn":
                self.detector.add(loss)
                self.skips_in_a_row = 0
            return event
        self.detector.add(loss)
        self.skips_in_a_row = 0
        return None

    def judge_weights(self, step: int, largest: float, kind: str = "nonfinite_weights") -> Event | None:
        """The same of the weights after the step, by their largest size; skipping would come too late for them.

        Also of the optimizer's state before it (`kind` nonfinite_state), which every later step would find as it is.
        """
        if math.isfinite(largest):
            return None
        action = "rollback" if self.rules.on_nonfinite == "rollback" else "stop"
        return self.decide(step, kind, largest, None, action)

    def decide(self, step: int, kind: str, value: float, threshold: float | None, wanted: str) -> Event:
        """The event with the action that is left: a rollback or a skip too many is a stop. Counts it."""
        action, why = wanted, ""
        if wanted == "rollback":
            if self.rollbacks >= self.rules.max_rollbacks:
                action, why = "stop", f"guard.max_rollbacks={self.rules.max_rollbacks} are used up"
            else:
                self.rollbacks += 1
        elif wanted == "skip":
            if self.skips_in_a_row >= self.rules.max_skips:
                action, why = "stop", f"guard.max_skips={self.rules.max_skips} steps in a row were skipped"
            else:
                self.skips_in_a_row += 1
        return Event(step, kind, value, threshold, action, why)

    def write(self, event: Event, **more: Any) -> None:
        """A line of events.jsonl, on the disk at once, and one for whoever looks on."""
        record = event.record(**more)
        if self.path is not None:
            with History(self.path) as events:
                events.append(record)
        self.tell(f"guard: {said(record)}")

    def state(self) -> dict[str, Any]:
        """All that the rest of a run depends on, for a checkpoint."""
        return {
            "rules": asdict(self.rules),
            "rollbacks": self.rollbacks,
            "skips_in_a_row": self.skips_in_a_row,
            "detector": self.detector.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Back to a `state`."""
        self.rollbacks, self.skips_in_a_row = int(state["rollbacks"]), int(state["skips_in_a_row"])
        self.detector.load(state["detector"])


def counted(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Events by kind and by action, and the factor of the rate that is left: `guard` of metrics.json."""
    found = list(events)
    actions = {name: sum(event["action"] == name for event in found) for name in ACTIONS}
    kinds = {name: sum(event["kind"] == name for event in found) for name in (*KINDS, *RARE)}
    kinds = {name: count for name, count in kinds.items() if count or name in KINDS}
    return {
        "events": len(found),
        "kinds": kinds,
        "actions": actions,
        "rate": HALVED ** actions["rollback"],
    }


def said(event: Mapping[str, Any]) -> str:
    """An event in words: step 31, spike: 8.2 above 5.1, rollback to step 20, rate x 0.5."""
    value, allowed = event["value"], event["threshold"]
    found = f"{value:.4g}" if isinstance(value, float | int) else str(value)
    above = f" above {allowed:.4g}" if allowed is not None else ""
    back = (
        f" to step {event['to']}, rate x {event['rate']:g}" if event["action"] == "rollback" and "to" in event else ""
    )
    why = f" ({event['why']})" if event.get("why") else ""
    what = str(event["kind"]).replace("_", " ") + (f" ({event['where']})" if event.get("where") else "")
    return f"step {event['step']}, {what}: {found}{above}, {event['action']}{back}{why}"
