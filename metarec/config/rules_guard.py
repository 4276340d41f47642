"""Rules of the guard and of early stopping: options that were asked for and would do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen


def guard_unused(seen: Seen) -> Iterator[Refusal]:
    """Options of an action that nothing asks for."""
    actions = (seen.get("guard.on_nonfinite"), seen.get("guard.on_spike"))
    if seen.get("guard.on_spike") == "off":
        for name in ("window", "sigma", "warmup_steps"):
            for key in seen.asked(f"guard.{name}"):
                yield key, "does nothing: guard.on_spike=off judges no loss", "drop it, or set guard.on_spike=warn"
    if None not in actions and "rollback" not in actions:
        for name in ("keep_every", "max_rollbacks"):
            for key in seen.asked(f"guard.{name}"):
                yield key, "does nothing: nothing is rolled back", "drop it, or set guard.on_spike=rollback"
    if None not in actions and "skip" not in actions:
        for key in seen.asked("guard.max_skips"):
            yield key, "does nothing: no step is skipped", "drop it, or set guard.on_nonfinite=skip"


def guard_never_judges(seen: Seen) -> Iterator[Refusal]:
    """A warm-up of all steps: no loss would ever be judged. Only where it was asked for: short runs are no fault."""
    steps, warmup = seen.get("train.steps"), seen.get("guard.warmup_steps")
    if seen.asked("guard.warmup_steps") and not seen.supervised and None not in (steps, warmup) and warmup >= steps:
        fix = f"give less than {steps}, or raise train.steps"
        yield "guard.warmup_steps", f"reaches to the end of train.steps={steps}, so no loss would be judged", fix


def min_gain_unused(seen: Seen) -> Iterator[Refusal]:
    """A least gain without patience: nothing counts the validations that gain too little."""
    if seen.get("train.patience") == 0 and seen.get("train.min_gain"):
        for key in seen.asked("train.min_gain"):
            yield key, "does nothing: train.patience=0 never stops early", "drop it, or give patience"
