"""Rules of hardware, of the logger and of `metarec eval`."""

from __future__ import annotations

from collections.abc import Iterator

from metarec.config.seen import Refusal, Seen


def mps_precision(seen: Seen) -> Iterator[Refusal]:
    """Precisions that Apple's GPUs do not have, or have not been seen to work there."""
    why = {"float64": "float64 does not exist on mps", "bfloat16": "mixed precision has not been seen to work on mps"}
    precision = seen.get("hardware.precision")
    if seen.get("hardware.device") == "mps" and precision in why:
        yield "hardware.precision", why[precision], "use float32, or hardware=cpu"


def compile_unused(seen: Seen) -> Iterator[Refusal]:
    """Compilation for a model without a recurrence, the one thing that is compiled."""
    if seen.get("hardware.compile") and "recurrence" not in seen.get("model.has", ("recurrence",)):
        what = f"does nothing: what is compiled is the recurrence, and model={seen.get('model.name')} has none"
        yield "hardware.compile", what, "drop it, or use model=gru4rec"
    if seen.get("hardware.compile") and seen.get("model.cell") == "lstm":
        yield "hardware.compile", "does nothing: only the GRU is compiled", "drop it, or use model.cell=gru"


def store_is_a_file(seen: Seen) -> Iterator[Refusal]:
    """An address would carry a password into config.yaml, and a server may go away in the middle of a run."""
    if "://" in (seen.get("logger.store") or ""):
        yield "logger.store", "an address, and the store is one SQLite file", "give a path, such as outputs/mlflow.db"


def checkpoint_missing(seen: Seen) -> Iterator[Refusal]:
    """metarec eval or export without a checkpoint: there is nothing to evaluate, or to write."""
    if seen.verb in ("eval", "export") and seen.get("ckpt") is None:
        yield "ckpt", f"nothing to {seen.verb.replace('eval', 'evaluate')}", "add ckpt=RUN_DIR or ckpt=CHECKPOINT"


def split_of_a_run(seen: Seen) -> Iterator[Refusal]:
    """metarec train's key of the split in metarec eval, which has its own: the two could disagree."""
    if seen.verb == "eval":
        for key in seen.asked("evaluation.split"):
            yield key, "is for metarec train", f"write split={seen.get('evaluation.split')}"


def step_size_unused(seen: Seen) -> Iterator[Refusal]:
    """A step size at test together with no steps: nothing would take it."""
    if seen.verb in ("eval", "export") and seen.get("steps") == 0 and seen.get("lr") is not None:
        yield "lr", "does nothing: steps=0 adapts nothing", "drop it, or give steps=1 or more"
