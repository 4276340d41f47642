"""What surprise has seen, against plain means over one pair at a time, and what is dropped, kept and told when."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.surprise_reference import PLAIN, QUERY, SUPPORT, T, aims, engine, lambdas, leaves, shown, weights

from metarec.objectives import seen
from metarec.objectives.seen import PREFIX, Seen
from metarec.objectives.surprise import Surprise

CPU = torch.device("cpu")
TERMS = [{}, {"target": "grad"}, {"scale": "raw"}, {"scale": "normalised"}, {"clip": 0.3}, {"second_order": True}]


def plain(name: str, term: Surprise) -> dict[str, dict[str, float]]:
    """Means over all pairs of all tasks, each pair from its own prefix through torch's own layers."""
    params, rows = weights(name), dict[str, list[tuple[float, float, float]]]()
    for task in range(T):
        known = [prefix for prefix, target in PLAIN[task] if target > 0]
        for prefix, own in zip(known, aims(name, params, term, task), strict=True):
            for level, y in shown(name, params, prefix)[0].items():
                if level in term.weights:
                    u = own[level]
                    cosine = float(F.cosine_similarity(y, u, dim=0, eps=0.0)) if u.norm() > 0 and y.norm() > 0 else None
                    rows.setdefault(level, []).append(
                        (float(u.norm()), float(term.weights[level] * ((y - u) ** 2).sum()), cosine)  # type: ignore[arg-type]
                    )
    out: dict[str, dict[str, float]] = {}
    for level, found in rows.items():
        u_, terms, cosines = zip(*found, strict=True)
        turned = [one for one in cosines if one is not None]
        out[level] = {"pairs": len(found), "u": sum(u_) / len(u_), "term": sum(terms) / len(terms)}
        if turned:
            out[level]["cosine"] = sum(turned) / len(turned)
    return out


def seen_by(name: str, options: dict[str, Any]) -> Seen:
    found = Seen()
    with found.step():
        engine(name, Surprise(lambdas(name), **options))(leaves(weights(name)))
    found.stand()
    return found


@pytest.mark.parametrize("options", TERMS, ids=str)
@pytest.mark.parametrize("name", ["gru4rec", "nested", "lstm"])
def test_means_are_those_of_one_pair_at_a_time(name: str, options: dict[str, Any]) -> None:
    found, wanted = seen_by(name, options).total(), plain(name, Surprise(lambdas(name), **options))
    assert found.keys() == wanted.keys() == lambdas(name).keys()
    for level, own in wanted.items():
        assert found[level] == pytest.approx(own, rel=1e-10, abs=1e-12)


def test_of_a_zero_target_there_is_the_term_alone() -> None:
    found, wanted = seen_by("nested", {"target": "zero"}).total(), plain("nested", Surprise(lambdas("nested"), "zero"))
    for level, own in found.items():
        assert own == pytest.approx(wanted[level], rel=1e-10)
        assert "cosine" not in own
        assert own["u"] == 0


def test_looking_changes_no_bit_of_loss_or_gradient() -> None:
    found = []
    for looks in (None, Seen()):
        params = leaves(weights("nested"))
        with nullcontext() if looks is None else looks.step():
            losses = engine("nested", Surprise(lambdas("nested")))(params)
        found.append([losses.detach(), *torch.autograd.grad(losses.sum(), list(params.values()))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_passes_and_steps_add_up_and_a_dropped_step_does_not_count() -> None:
    """A line has what was seen since the one before, the total has all; the sums go through a checkpoint bit for bit."""
    into, params, weight = Seen(), leaves(weights("gru4rec")), lambdas("gru4rec")

    def step(*batches: Any, stands: bool = True) -> None:
        with into.step():
            for batch in batches:
                engine("gru4rec", Surprise(weight), batch)(params)
        if stands:
            into.stand()

    step(QUERY)
    one = into.told()["fast"]
    assert "pairs" not in one
    step(SUPPORT, stands=False)
    assert into.told() == {}  # nothing since
    step(SUPPORT)
    step(QUERY)
    other = Seen()
    other.load({name: value.clone() for name, value in into.tensors().items()} | {"phi/x": torch.ones(1)}, CPU)
    assert list(other.tensors()) == [f"{PREFIX}fast"]
    line = into.told()["fast"]
    assert other.told()["fast"] == line
    assert other.total() == into.total()
    n_query, n_support = (int((batch.target > 0).sum()) for batch in (QUERY, SUPPORT))
    assert into.total()["fast"]["pairs"] == 2 * n_query + n_support
    both = (line["u"] * (n_query + n_support) + one["u"] * n_query) / (2 * n_query + n_support)
    assert into.total()["fast"]["u"] == pytest.approx(both, rel=1e-12)


def test_nobody_looks_outside_of_a_step_or_behind_a_failure() -> None:
    found = Seen()
    with pytest.raises(ValueError, match="no level slow"), found.step():
        engine("gru4rec", Surprise({"slow": 0.1}))(leaves(weights("gru4rec")))
    assert seen.active is None
    engine("gru4rec", Surprise({"fast": 0.1}))(leaves(weights("gru4rec")))
    found.stand()
    assert found.total() == {}
