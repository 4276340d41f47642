"""What meta-training will take of memory, from shapes alone: told before the run, refused where it is not there.

    need = weights + learned + gradients + optimizer + guard + teachers + max(tasks + activations, saving) + libraries

The first five are exact: the frozen or pretrained weights, what is learned over them, its gradient, the optimizer's slots
(Adam 2, SGD with momentum 1), the state that a guard keeps for a rollback. `saving` is what a checkpoint holds, copied and
packed; `libraries`, on a CPU, what torch takes for itself in its first steps, 14 MiB. The rest is estimated, in numbers of
the run's precision; T tasks of a chunk, S inner steps, K support and Q query pairs a task, C scores a pair (all items V, or
what the objective draws), n_s and n_q states of all support and query sequences, p numbers that a model keeps for a state
(`activation_numbers` where it has such a method, else input and output of every layer):

    first order    activations = max of support and query of   2 n p + 3 T N C
                   tasks       = 6 T d + (S + 1) l
    second order   activations = S (4 n_s p + 5 T K C) + 2 n_q p + 3 T Q C
                   tasks       = (4 S + 3) T d + 2 S l

d: numbers that a task has of what adapts as it is (vectors, recurrent matrices); l: of what adapts as rows and columns,
which is input and output of the layer for every position, twice where inner steps forget. Constants are of what the
operators keep and of measured runs (docs/memory_estimate.md), where the estimate is within a factor of 2. Shapes: those of
weights, as tuples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from metarec.errors import EnvironmentFault

MIB = 2**20
NO_MEMORY = ("out of memory", "allocate memory")  # in what torch says
LIBRARIES = 14 * MIB  # growth of runs whose own arrays take a few MiB, less these
Shapes = Mapping[str, tuple[int, ...]]
FREE, SELF, GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Need:
    """Bytes, by what takes them."""

    weights: int
    learned: int
    gradients: int
    optimizer: int
    guard: int
    tasks: int
    activations: int
    saving: int
    libraries: int = 0
    teachers: int = 0  # numbers of all teachers, where a loss learns from them

    @property
    def total(self) -> int:
        """At the peak: a step and a checkpoint do not happen at once."""
        lasting = self.weights + self.learned + self.gradients + self.optimizer + self.guard + self.teachers
        return lasting + max(self.tasks + self.activations, self.saving) + self.libraries

    @property
    def beyond_weights(self) -> int:
        """What is left of it once the weights are there: to be compared with the growth that is measured."""
        return self.total - self.weights

    def document(self) -> dict[str, int]:
        """As `cost.estimated_bytes` of metrics.json."""
        return {"total": self.total, **asdict(self)}

    def line(self) -> str:
        """For the reader, in MiB, what takes nothing left out."""
        parts = ", ".join(f"{name} {_mib(value)}" for name, value in asdict(self).items() if value)
        return f"memory: about {_mib(self.total)} MiB: {parts}"


@dataclass(frozen=True)
class Batch:
    """The sizes of a chunk of tasks, as one forward pass has it."""

    tasks: int  # T
    support: int  # K, pairs a task
    query: int  # Q
    support_states: int  # n_s, of all tasks
    query_states: int  # n_q
    longest: int  # events of the longest sequence
    columns: int  # C, scores a pair


@dataclass(frozen=True)
class Loop:
    """What of the algorithm takes memory."""

    steps: int  # S
    second_order: bool
    recompute: bool = False  # a step's graph is made again, so only one is there
    judged: int = 1  # query losses of one outer step: more with a multi-step loss
    forgets: bool = False  # what is forgotten has the form of a gradient, and comes beside it


def numbers(shapes: Shapes) -> int:
    """Of all these weights together."""
    return sum(math.prod(shape) for shape in shapes.values())


def state_numbers(shapes: Shapes, head: Collection[str]) -> int:
    """What a model keeps for one state where it does not say so itself: input and output of every layer but the head.

    Of a table that is looked up a state keeps its row; vectors are no layer of their own.
    """
    found = 0
    for name, shape in shapes.items():
        if len(shape) == 2:
            if looked_up(name):
                found += shape[1]
            elif name not in head:
                found += sum(shape)
    return found


def looked_up(name: str) -> bool:
    """Whether a weight is a table of embeddings or positions, by its name."""
    return "embedding" in name or name.startswith("position")


def of_tasks(adapted: Shapes, of_head: Collection[str], batch: Batch) -> tuple[int, int]:
    """(d, l): numbers of one task that adapt as they are, and of all tasks those of rows and columns."""
    dense = low = 0
    for name, shape in adapted.items():
        if len(shape) != 2 or "weight_hh" in name:
            dense += math.prod(shape)
        elif looked_up(name):
            low += batch.support_states * shape[1]
            if name in of_head:  # tied: scored by as well
                low += batch.tasks * batch.support * (batch.columns + shape[1])
        elif name in of_head:
            low += batch.tasks * batch.support * (min(shape[0], batch.columns) + shape[1])
        else:
            low += batch.support_states * sum(shape)
    return dense, low


def estimate(
    base: Shapes, learned: Shapes, moving: Shapes, of_head: Collection[str], batch: Batch, loop: Loop, *,
    per_state: int, itemsize: int, slots: int, keeps: bool, trained: int | None = None, on_cpu: bool = True,
) -> Need:  # fmt: skip
    """The formula above.

    learned: all that the outer loop holds, `trained` numbers of it with a gradient (None: all); moving: what of it the inner
    loop adapts; of_head: names of it that the output layer reads; slots: of the optimizer, numbers a trained number; keeps:
    a guard keeps the last good state.
    """
    whole = numbers(learned)
    with_gradient = whole if trained is None else trained
    dense, low = of_tasks(moving, of_head, batch)
    low *= 2 if loop.forgets else 1
    scores = batch.tasks * batch.columns
    support, query = (batch.support_states, batch.support), (batch.query_states, batch.query)

    def graph(part: tuple[int, int], of_states: int, of_scores: int) -> int:
        return of_states * part[0] * per_state + of_scores * part[1] * scores

    if loop.second_order:
        kept = 1 if loop.recompute else loop.steps
        activations = kept * graph(support, 4, 5) + loop.judged * graph(query, 2, 3)
        tasks = (4 * loop.steps + 3) * batch.tasks * dense + 2 * loop.steps * low
    else:
        activations = max(graph(support, 2, 3), loop.judged * graph(query, 2, 3))
        tasks = 6 * batch.tasks * dense + (loop.steps + 1) * low
    saved = numbers(base) + whole + slots * with_gradient
    guard = whole + slots * with_gradient if keeps else 0
    saved = 2 * (saved + guard) if on_cpu else 0
    parts = (numbers(base), whole, with_gradient, slots * with_gradient, guard, tasks, activations, saved)
    return replace(Need(*(part * itemsize for part in parts)), libraries=LIBRARIES if on_cpu else 0)


def available() -> int | None:
    """Bytes that this process may still take of the machine, or of its control group; None where nobody says."""
    found = []
    if FREE.exists():
        (line,) = [line for line in FREE.read_text().splitlines() if line.startswith("MemAvailable:")]
        found.append(int(line.split()[1]) * 1024)
    for most, used in _group_files():
        try:
            limit, now = most.read_text().strip(), int(used.read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < 2**60:  # an unlimited group of the old kind has a number near 2^63
            found.append(max(int(limit) - now, 0))
    return min(found) if found else None


def _group_files() -> list[tuple[Path, Path]]:
    """(limit, use) of the control groups that this process is in, of both versions."""
    files = [(GROUPS / "memory.max", GROUPS / "memory.current")]
    files.append((GROUPS / "memory/memory.limit_in_bytes", GROUPS / "memory/memory.usage_in_bytes"))
    if SELF.exists():
        for line in SELF.read_text().splitlines():
            if line.startswith("0::/"):
                own = GROUPS / line[4:]
                files.append((own / "memory.max", own / "memory.current"))
    return files


def refuse(need: Need, there: int | None, where: str, *, weights_are_there: bool = False) -> None:
    """EnvironmentFault where `need` is more than the bytes that are `there` (None: unknown, and nothing is refused)."""
    if there is None or (need.beyond_weights if weights_are_there else need.total) <= there:
        return
    ways = "set train.task_chunk and evaluation.task_chunk to fewer tasks, model.gradient_checkpointing where the model has "
    ways += "it, or another hardware.precision; or take a smaller model"
    largest = max(asdict(need).items(), key=lambda part: part[1])[0]
    raise EnvironmentFault(
        where, f"{_mib(need.total)} MiB needed", f"{_mib(there)} MiB are available; the largest part is {largest}", ways
    )


def _mib(value: int | float) -> str:
    found = value / MIB
    return f"{found:,.0f}" if found >= 10 else f"{found:.1f}"


def compared(need: Need, growth: int | None, peak: int) -> str:
    """The estimate beside the bytes that were measured, in one line."""
    beside = "" if growth is None else f"grew by {_mib(growth)} MiB where {_mib(need.beyond_weights)} were expected, "
    return f"memory: {beside}peak {_mib(peak)} MiB"


@contextmanager
def enough_memory() -> Iterator[None]:
    """Memory that is not there is no bug, wherever in a run it is asked for: EnvironmentFault in place of what NumPy, Arrow
    (MemoryError) or torch (RuntimeError) raises. What can be told before a run, `refuse` tells."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, MemoryError) and not any(words in said for words in NO_MEMORY):
            raise
        fix = "take smaller batches (train.meta_batch_size, pretrain.batch_size), a smaller model or world, or more memory"
        raise EnvironmentFault("memory", said[:200], "there is not so much", fix) from error
