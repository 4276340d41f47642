"""Numbers are never silently wrong: NaN, +Inf and -Inf put into whole runs at eight places are stopped or skipped.

Each value goes into outer step 4 (counted from 0) of a run of six, just behind a checkpoint, or into a validation:

    embedding        what is looked up of one item, in one number, wherever the step reads it
    inner gradient   one number of one task's gradient in the last inner step, which no support loss sees any more
    inner weights    one number of one task's weights behind the last inner step
    query loss       that of one task
    outer gradient   one number of one weight's
    optimizer state  one number of a second moment (in full of a first one as well), between two steps
    scores           one item's score for one query, in a validation (in full also in the last measurement)
    metric           the value of one target, in a validation (in full also in the last measurement)

By default a run has to end with exit code 6 and one line that names the step, or the rows, and the user or the tensor; with
`guard.on_nonfinite=skip` the step has to be left out where a step can be. Weights in memory and the newest checkpoint are
compared bitwise with those of a run without fault and guard, whose optimizer is made to leave that step out.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from metrics.test_ranks import check_chance_oracle_constant
from reference.tiny_runs import Work, same_bits, tiny
from reliability.figures import figure, none_of, remembered
from torch import Tensor

from metarec import build
from metarec.algorithms import inner
from metarec.core.offsets import rebuilt, tensors
from metarec.errors import MetarecError
from metarec.metrics import METRICS, ndcg
from metarec.models import gru4rec
from metarec.runs.checkpoint import list_checkpoints, load_checkpoint
from metarec.runs.history import read_history
from metarec.tasks import Tasks
from metarec.verbs import measure, meta_train

NAME = "not_finite"
VALUES = {"nan": math.nan, "+inf": math.inf, "-inf": -math.inf}
STEP = 4  # the one with the fault, counted from 0
OF_LOSS = ("embedding", "inner gradient", "inner weights", "query loss")
OF_STEP = (*OF_LOSS, "outer gradient", "optimizer state")
PLACES = (*OF_STEP, "scores", "metric")
MORE = ("first moment", "scores at the end", "metric at the end")  # the same places at another time
SKIPPED = (*OF_LOSS, "outer gradient")  # of what a skip leaves nothing
SLOTS = {"optimizer state": "exp_avg_sq", "first moment": "exp_avg"}
BASIC = ("algorithm=fomaml", "residual=on")
PLUS = ("algorithm=maml_pp", "residual=on")
GENERATED = (
    "algorithm=generator", "residual=lora", "residual.rank=2", "algorithm.width=16", "algorithm.hidden=16",
    "algorithm.refine_steps=1", "schedule.warmup_steps=2",
)  # fmt: skip
OFTEN = ("train.checkpoint_every=2", "train.patience=0", "evaluation.panel=none")


@dataclass
class Fault:
    """One value for one place, and what was seen of the run that it is put into."""

    place: str
    value: float
    on: bool = False  # now: between the beginning and the end of what the fault belongs to
    last: bool = False  # in the last inner step
    done: bool = False  # it has been put in
    user: str = ""  # whose number it is
    tensor: str = ""  # of which weight
    bench: Any = None
    phi: dict[str, Tensor] = field(default_factory=dict)  # the weights that are trained, as they are moved
    optimizer: Any = None
    validations: int = 0

    def here(self, place: str) -> bool:
        """Whether `place` gets the value now."""
        found = self.on and self.place == place
        self.done |= found
        return found

    def into(self, value: Tensor, *at: int) -> Tensor:
        """value [...] with the fault at one place of it, its graph kept."""
        spike = torch.zeros_like(value)
        spike[at] = self.value
        return value + spike

    def into_offset(self, offsets: dict[str, Any]) -> dict[str, Any]:
        """What one task has learned, at one number: of the items' biases where they are learned, for they saturate."""
        self.tensor = next((name for name in offsets if name == "fc.bias"), next(iter(offsets)))
        parts = tensors(offsets[self.tensor])
        first = self.into(parts[0], *[0] * parts[0].dim())
        return {**offsets, self.tensor: rebuilt(offsets[self.tensor], [first, *parts[1:]])}

    def of_user(self, row: int) -> None:
        self.user = str(self.bench.user_ids([row])[0])


class _Gradient(torch.autograd.Function):
    """A weight -> 0, with the fault as the gradient of its first number."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, fault: Fault) -> Tensor:
        ctx.fault = fault
        ctx.shape = weight.shape
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.fault.into(grad.new_zeros(ctx.shape), *[0] * len(ctx.shape)), None


@contextlib.contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Every run inside has the fault."""
    losses, embed, gradients, step = meta_train._losses, gru4rec.embed, inner.gradients, inner._Step.__call__
    loss, logits, optimizer, ranks = Tasks.loss, Tasks.logits, build.optimizer, meta_train.ranks
    metric, monitored, summarise, at_end = ndcg.ndcg, meta_train.monitored, measure.summarise, measure.ranks

    def of_step(config: Any, bench: Any, *args: Any) -> Iterator[Tensor]:
        fault.bench, fault.phi, at = bench, args[2], args[-1] == STEP
        moving = {name: value for name, value in fault.phi.items() if value.requires_grad}
        fault.on = at
        if at:
            fault.of_user(int(next(bench.training_batches(config.train, config.seed, STEP)).user[0]))
        if at and fault.place in SLOTS:
            slot, fault.user, fault.done = SLOTS[fault.place], "", True
            state = {name: fault.optimizer.state.get(value, {}) for name, value in moving.items()}
            fault.tensor = next(name for name, slots in state.items() if slot in slots)
            state[fault.tensor][slot].view(-1)[0] = fault.value
        for number, found in enumerate(losses(config, bench, *args)):
            if number == 0 and fault.here("outer gradient"):
                fault.tensor, fault.user = next(iter(moving)), ""
                found = found + _Gradient.apply(moving[fault.tensor], fault)
            yield found
        fault.on = False

    def of_item(ids: Tensor, table: Any) -> Tensor:
        found = embed(ids, table)
        if not fault.here("embedding"):
            return found
        spike = torch.zeros_like(found)
        spike[0, ids[0] == ids[0, 0], 0] = fault.value
        return found + spike

    def of_inner(self: Any, *args: Any) -> Any:
        fault.last = self.number + 1 == self.loop.steps
        moving, offsets = step(self, *args)
        if fault.last and fault.here("inner weights"):
            offsets = fault.into_offset(offsets)
        fault.last = False
        return moving, offsets

    def of_gradient(*args: Any) -> Any:
        found, grads = gradients(*args)
        return found, fault.into_offset(grads) if fault.last and fault.here("inner gradient") else grads

    def of_query(self: Tasks, *args: Any, **more: Any) -> Any:
        asked = loss(self, *args, **more)
        if not more.get("recorded"):  # a support loss, for which there is a place of its own
            return asked
        return lambda phi: fault.into(asked(phi), 0) if fault.here("query loss") else asked(phi)

    def of_scores(self: Tasks, *args: Any) -> Tensor:
        found = logits(self, *args)
        return fault.into(found, 0, 0, 3) if fault.here("scores") or fault.here("scores at the end") else found

    def of_metric(rank: Any, *args: Any, **more: Any) -> Any:
        values = metric(rank, *args, **more)
        if fault.here("metric") or fault.here("metric at the end"):
            values = values.copy()
            values[0] = fault.value
        return values

    def validated(episodes: Any, *args: Any) -> Any:
        fault.on = fault.place == "scores" and fault.validations == STEP // 2
        fault.validations += 1
        if fault.bench is not None:
            fault.of_user(int(episodes.user[0]))
        return ranks(episodes, *args)

    def judged(*args: Any) -> Any:
        fault.on = fault.place == "metric" and fault.validations - 1 == STEP // 2
        return monitored(*args)

    def measured(episodes: Any, *args: Any) -> Any:
        fault.on = fault.place == "scores at the end"
        fault.of_user(int(episodes.user[0]))
        return at_end(episodes, *args)

    def summed(*args: Any, **more: Any) -> Any:
        fault.on = fault.place == "metric at the end"
        return summarise(*args, **more)

    def made(*args: Any) -> Any:
        fault.optimizer = optimizer(*args)
        return fault.optimizer

    patches = [
        (meta_train, "_losses", of_step), (gru4rec, "embed", of_item), (inner._Step, "__call__", of_inner),
        (inner, "gradients", of_gradient), (Tasks, "loss", of_query), (Tasks, "logits", of_scores),
        (ndcg, "ndcg", of_metric), (meta_train, "ranks", validated), (meta_train, "monitored", judged),
        (measure, "ranks", measured), (measure, "summarise", summed), (build, "optimizer", made),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for where, name, by in patches:
            stack.enter_context(mock.patch.object(where, name, by))
        yield


@contextlib.contextmanager
def left_out(step: int | None) -> Iterator[None]:
    """In meta-training inside, the optimizer takes no step in outer step `step`; None: in all."""
    optimizer = build.optimizer

    def deaf(*args: Any) -> torch.optim.Optimizer:
        found, count = optimizer(*args), [0]
        real = found.step

        def moved() -> None:
            if count[0] != step:
                real()
            count[0] += 1

        found.step = moved  # type: ignore[method-assign, assignment]
        return found

    with mock.patch.object(build, "optimizer", deaf):
        yield


def words(own: tuple[str, ...], *more: str) -> list[str]:
    """Of a tiny run that keeps the checkpoint of every second step."""
    given = (*own, *OFTEN, *more)
    return [*(word for word in tiny(*given) if not word.startswith(("train.checkpoint_every",))), *given]


def started(work: Work, given: list[str], typed: bool) -> tuple[Path, int, list[str]]:
    """The directory of a run, its exit code, and the lines of what it said of errors; not `typed`: without the command
    line around it, which takes most of the time."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        if typed:
            code = work.main("train", *given)
        else:
            try:
                work._run("train", *given)
            except MetarecError as error:  # as `metarec.cli` has it
                code = error.exit_code
                print(f"error: {error}", file=said)
    return work.directories("train")[-1], code, said.getvalue().splitlines()


def moved(run: Path, step: int) -> dict[str, Tensor]:
    """What is learned and the optimizer's slots in the checkpoint of a step, tensors of any shape."""
    held, _ = load_checkpoint(run / "checkpoints" / f"step-{step:06d}")
    return {name: value for name, value in held.items() if name.startswith(("phi/", "optimizer/"))}


def clean(root: Path, own: tuple[str, ...], step: int | None) -> Path:
    """A run without fault and guard whose optimizer leaves out `step`; made once in `root`."""
    work = Work(root / f"clean-{own[0].partition('=')[2]}-{step}", root / "cache")
    if not any((run / "manifest.json").exists() for run in work.directories("train")):
        work.root.mkdir(parents=True, exist_ok=True)
        with left_out(step):
            _, code, said = started(work, words(own, "guard=off"), typed=False)
        assert code == 0, said
    return work.directories("train")[-1]


def not_json(run: Path) -> list[str]:
    """The files of a run with a number that JSON has not."""

    def refuse(text: str) -> float:
        raise ValueError(text)

    found = []
    for path in [*run.rglob("*.json"), *run.rglob("*.jsonl")]:
        try:
            for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                json.loads(text, parse_constant=refuse)
        except ValueError as error:
            found.append(f"{path.name}: {error}")
    return found


def expected_line(fault: Fault) -> str:
    """What the one line of an error has to hold, as a regular expression: the step or the rows, then user or tensor."""
    user, tensor = rf"user {re.escape(fault.user)}\b", re.escape(fault.tensor)
    wanted = {
        "inner gradient": rf"outer step {STEP}, .*{user}.* \({tensor}\)",
        "inner weights": rf"outer step {STEP}, .*{user}.* \({tensor}\)",
        "outer gradient": rf"outer step {STEP}: .*the gradient is not finite \({tensor}\)",
        "optimizer state": rf"outer step {STEP}: .*the optimizer's state is not finite \(exp_avg_sq of {tensor}\)",
        "first moment": rf"outer step {STEP}: .*the optimizer's state is not finite \(exp_avg of {tensor}\)",
        "scores": rf"validation at step {STEP}, scores, row 0, 0, item 4, {user}",
        "metric": rf"validation at step {STEP}, ndcg@10 of target 0, {user}",
        "scores at the end": rf"pretrained on test, scores, row 0, 0, item 4, {user}",
        "metric at the end": rf"test, pretrained, ndcg@10 of target 0, {user}",
    }
    return "error: " + wanted.get(fault.place, rf"outer step {STEP}, .*{user}")


def judged(fault: Fault, root: Path, own: tuple[str, ...], skip: bool, ended: tuple[Path, int, list[str]]) -> list[str]:
    """What of a run with the fault is not as promised."""
    run, code, said = ended
    wrong, at_end, of_step = not_json(run), fault.place.endswith("at the end"), fault.place in (*OF_STEP, *SLOTS)
    skipped = skip and fault.place in SKIPPED
    checkpoints = list_checkpoints(run / "checkpoints")
    newest = int(checkpoints[-1].name[-6:])
    due = 6 if skipped or at_end else STEP if of_step else STEP - 2  # a validation comes before its checkpoint
    by_hand = clean(root, own, STEP if skipped else None)
    if not fault.done:
        wrong.append("the fault was not put in")
    if code != (0 if skipped else 6):
        wrong.append(f"exit code {code}")
    if not skipped:
        errors = [line for line in said if line.startswith("error: ")]
        if len(errors) != 1 or not re.match(expected_line(fault), errors[0]) or any("Traceback" in s for s in said):
            wrong.append(f"it says {errors or said[-1:]}, asked: {expected_line(fault)}")
        if (run / "metrics.json").exists() or (run / "per_user.parquet").exists():
            wrong.append("figures were written")
        trained = moved(by_hand, due if at_end or of_step else STEP)
        ours = {f"phi/{name}": value.detach() for name, value in fault.phi.items()}
        if not same_bits(ours, {name: value for name, value in trained.items() if name in ours}):
            wrong.append("weights in memory have moved")
    path = run / "events.jsonl"
    events = [(e["step"], e["action"]) for e in read_history(path)] if path.exists() else []
    wanted = [(STEP + of_step, "skip" if skipped else "stop")] if not at_end else []
    if events != wanted:
        wrong.append(f"events {events}")
    if newest != due or not same_bits(moved(run, newest), moved(by_hand, due)):
        wrong.append(f"checkpoint of step {newest} is not that of a run without fault")
    for one in checkpoints:
        held, _ = load_checkpoint(one)
        bad = [n for n, value in held.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
        wrong += [f"{one.name}: {name} is not finite" for name in bad]
    return wrong


def case(
    root: Path, place: str, value: str, skip: bool, own: tuple[str, ...] = BASIC, *, typed: bool = False,
    label: str = "",
) -> list[str]:  # fmt: skip
    """One run with one fault, in a directory of `root` that begins with `label`: what of it is not as promised."""
    algorithm = own[0].partition("=")[2]
    label += f"{algorithm}-{place.replace(' ', '_')}-{value}-{'skip' if skip else 'stop'}"
    work, fault = Work(root / label, root / "cache"), Fault(place, VALUES[value])
    work.root.mkdir(parents=True, exist_ok=True)
    with injected(fault):
        ended = started(work, words(own, *(["guard.on_nonfinite=skip"] if skip else [])), typed)
    return [f"{label}: {line}" for line in judged(fault, root, own, skip, ended)]


def law() -> dict[str, Any]:
    """Random scores give chance, an oracle 1, constant scores at most chance, in every metric of the registry."""
    try:
        check_chance_oracle_constant()
        wrong = ""
    except AssertionError as error:
        wrong = str(error)
    asked = "random = chance within 3 sigma, oracle = 1, constant <= chance"
    told = f"{len(METRICS)} of {len(METRICS)} metrics" if not wrong else f"not {wrong}"
    return figure(
        f"scorers of which the figures are known, 20,000 targets: {', '.join(METRICS)}", asked, told, not wrong
    )


QUICK = tuple(zip(PLACES, ("+inf", "-inf", "+inf", "nan", "+inf", "+inf", "-inf", "nan"), strict=True))


def run(full: bool, out: Path) -> dict[str, Any]:
    """The figures; quick: one value for each place, the ones that are easiest to miss."""
    if not full:
        wrong = [line for place, value in QUICK for line in case(out, place, value, False)]
        wrong += case(out, "inner weights", "-inf", True)
        return {"figures": [none_of("not stopped or skipped", wrong, len(QUICK) + 1, "faults"), law()]}
    cells = [(own, place, value, skip) for own in (BASIC, PLUS, GENERATED) for skip in (False, True)
             for place in (*PLACES, *MORE) for value in VALUES]  # fmt: skip
    done = remembered(out / "cases.jsonl", cells, lambda one: case(out, *one[1:], one[0], typed=True))
    figures = []
    for own in (BASIC, PLUS, GENERATED):
        for skip in (False, True):
            for places, which in ((PLACES, "eight places"), (MORE, "three more")):
                found = [lines for cell, lines in zip(cells, done, strict=True)
                         if cell[0] == own and cell[3] == skip and cell[1] in places]  # fmt: skip
                guard = "guard.on_nonfinite=skip" if skip else "by default"
                what = f"{own[0]} {own[1]}, {guard}, {which}: not caught before the step, or not told as promised"
                bad = [" | ".join(lines) for lines in found if lines]
                figures.append(none_of(what, bad, len(found), "faults"))
    return {"figures": [*figures, law()]}
