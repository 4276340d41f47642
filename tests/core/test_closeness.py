"""Closeness to teachers: against dense matrices, task by task, in float64; what nothing and the same come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference.small_tensors import normal
from torch import Tensor

from metarec.core.closeness import Closeness
from metarec.core.offsets import Dense
from metarec.core.weights import FastWeight, Params

T, R, IN, OUT = 5, 2, 4, 3
PRODUCTS = {"w": ("w.a", "w.b", 1.7), "v": ("v.a", "v.b", 0.4)}
SHAPES = {"w.a": (R, IN), "w.b": (OUT, R), "v.a": (R, 6), "v.b": (4, R), "shift": (5,)}
BEGIN = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())} | {
    "w.b": torch.zeros(OUT, R, dtype=torch.float64),
    "v.b": torch.zeros(4, R, dtype=torch.float64),
}
MEAN = {"w": normal(OUT, IN, seed=70), "v": normal(4, 6, seed=71), "shift": normal(5, seed=72)}


def numbers(seed: int) -> Params:
    return {name: normal(T, *shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


def fast(own: Params) -> dict[str, FastWeight]:
    return {name: FastWeight(BEGIN[name], Dense(value - BEGIN[name])) for name, value in own.items()}


def dense(own: Params, t: int) -> dict[str, np.ndarray[Any, Any]]:
    """What each module is changed by, in one task, written out."""
    out = {w: (s * own[b][t] @ own[a][t]).numpy() for w, (a, b, s) in PRODUCTS.items()}
    return out | {"shift": (own["shift"][t] - BEGIN["shift"]).numpy()}


def by_hand(made: list[dict[str, Any]], told: list[dict[str, Any]], modules: tuple[str, ...]) -> tuple[float, float]:
    errors, cosines = [], []
    for g, t in zip(made, told, strict=True):
        one, other = (np.concatenate([own[m].ravel() for m in modules]) for own in (g, t))
        errors.append(((one - other) ** 2).sum() / (other**2).sum())
        cosines.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    return float(np.mean(errors)), float(np.mean(cosines))


def test_it_is_what_dense_matrices_say_task_by_task() -> None:
    made, told = numbers(10), numbers(40)
    close = Closeness(PRODUCTS, BEGIN, MEAN)
    for rows in (slice(0, 3), slice(3, T)):  # in two batches
        cut = [fast({name: value[rows] for name, value in own.items()}) for own in (made, told)]
        close.add(cut[0], cut[1], len(range(T)[rows]))
    found = close.document()
    assert (found["users"], found["without_teacher"], close.modules) == (T, 0, ("w", "v", "shift"))
    own, theirs = ([dense(one, t) for t in range(T)] for one in (made, told))
    shared = [{name: value.numpy() for name, value in MEAN.items()}] * T
    for modules, said in [(close.modules, found["all"]), *(((m,), found["modules"][m]) for m in close.modules)]:
        for name, rows_ in (("generated", own), ("mean_teacher", shared)):
            error, cosine = by_hand(rows_, theirs, modules)
            assert said[name]["relative_error"] == pytest.approx(error, rel=1e-10)
            assert said[name]["cosine"] == pytest.approx(cosine, rel=1e-10)


def same(error: float, cosine: float) -> Any:
    return {"generated": {"relative_error": pytest.approx(error), "cosine": pytest.approx(cosine)}}


def test_nothing_has_error_one_and_cosine_zero_and_the_same_zero_and_one() -> None:
    told = fast(numbers(40))
    start = {name: FastWeight(value) for name, value in BEGIN.items()}  # no offset at all, and B = 0
    nothing, equal = Closeness(PRODUCTS, BEGIN), Closeness(PRODUCTS, BEGIN)
    nothing.add(start, told, T)
    equal.add(told, told, T)
    for found, error, cosine in ((nothing.document(), 1.0, 0.0), (equal.document(), 0.0, 1.0)):
        for said in (found["all"], *found["modules"].values()):
            assert said == same(error, cosine)


def test_it_does_not_know_how_factors_are_written() -> None:
    """(R A, B R^-1) is the same update."""
    made, told = numbers(10), numbers(40)
    turn = normal(R, R, seed=5) + 2 * torch.eye(R, dtype=torch.float64)
    other = told | {name: turn @ told[name] for name in ("w.a", "v.a")}
    other |= {name: told[name] @ torch.linalg.inv(turn) for name in ("w.b", "v.b")}
    found = []
    for one in (told, other):
        close = Closeness(PRODUCTS, BEGIN, MEAN)
        close.add(fast(made), fast(one), T)
        found.append(close.document()["all"])
    for key in ("relative_error", "cosine"):
        assert found[0]["generated"][key] == pytest.approx(found[1]["generated"][key], rel=1e-10)
        assert found[0]["mean_teacher"][key] == pytest.approx(found[1]["mean_teacher"][key], rel=1e-10)


def test_a_task_whose_teacher_did_nothing_is_left_out_and_counted() -> None:
    made, told = numbers(10), numbers(40)
    idle: dict[str, Tensor] = {name: value.clone() for name, value in told.items()}
    for name in ("w.b", "v.b"):
        idle[name][1] = 0
    idle["shift"][1] = BEGIN["shift"]
    close, rest = Closeness(PRODUCTS, BEGIN), Closeness(PRODUCTS, BEGIN)
    close.add(fast(made), fast(idle), T)
    kept = [0, 2, 3, 4]
    rest.add(*(fast({n: v[kept] for n, v in own.items()}) for own in (made, told)), T - 1)
    found = close.document()
    assert (found["users"], found["without_teacher"]) == (T, 1)
    assert found["all"] == rest.document()["all"]
    none = Closeness(PRODUCTS, BEGIN)
    none.add(fast(made), {name: FastWeight(value) for name, value in BEGIN.items()}, T)
    assert none.document()["all"] == {"generated": {"relative_error": None, "cosine": None}}
