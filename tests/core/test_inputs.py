"""What weights read, against plain loops over prefixes, and by the law that a batch's sums are those of its tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.small_episodes import small_log
from torch import Tensor, nn

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.algorithms.reptile import Reptile
from metarec.core import inputs
from metarec.core.batch import PairBatch
from metarec.core.weights import Params
from metarec.models import causal_lm
from metarec.models.gru4rec import GRU4Rec
from metarec.models.narm import NARM
from metarec.models.nested import Nested
from metarec.models.sasrec import SASRec
from metarec.objectives import Items
from metarec.objectives.chunked_cross_entropy import Config as Chunked
from metarec.objectives.chunked_cross_entropy import build as chunked
from metarec.objectives.cross_entropy import cross_entropy
from metarec.residual.lora import LowRankResidual
from metarec.residual.on import FullResidual
from metarec.tasks import Tasks

LOG = small_log(5, max_len=4)
MODELS: dict[str, Any] = {
    "gru4rec": GRU4Rec(11, 3, 4),
    "gru4rec two layers": GRU4Rec(11, 3, 4, n_layers=2),
    "gru4rec tied": GRU4Rec(11, 4, 4, tie=True),
    "narm": NARM(11, 3, 4),
    "nested": Nested(11, 4, "gru", 5, 6),
    "nested lstm": Nested(11, 4, "lstm", 5, 6, tie=True),
    "sasrec": SASRec(11, 4, 2, 2, max_len=4),
    "sasrec untied": SASRec(11, 4, 1, 2, max_len=4, tie=False),
    "causal_lm": causal_lm.build(causal_lm.Config(hidden_size=8, n_layers=1, n_heads=2, n_kv_heads=1, max_len=8), 11),
}


def start(model: Any, contexts: bool = False) -> Params:
    params = model.init(torch.Generator().manual_seed(1), torch.float64)
    if contexts:
        drawn = torch.Generator().manual_seed(2)
        more = {n: torch.randn(s, generator=drawn, dtype=torch.float64) for n, s in model.context_shapes().items()}
        params = {**params, **more}
    # biases of norms are zero at first, and padding would read as nothing
    return {name: value + 0.1 if "norm" in name else value for name, value in params.items()}


def matrices(params: Params) -> list[str]:
    return [name for name, value in params.items() if value.dim() == 2]


def moments(model: Any, params: Params, pairs: PairBatch, objective: Any = cross_entropy) -> inputs.Moments:
    found = inputs.Moments(matrices(params))
    with inputs.recorded(found):
        Tasks(model, objective, lambda phi: phi).loss(pairs, recorded=True)(params).sum()
    return found


def test_gru4rec_by_plain_loops() -> None:
    model = MODELS["gru4rec"]
    params, pairs = start(model), LOG.episodes(4, 4).query
    found = moments(model, params, pairs).take()
    cell = nn.GRU(3, 4, dtype=torch.float64)
    cell.load_state_dict({name.removeprefix("gru."): v for name, v in params.items() if name.startswith("gru.")})
    events, before, last = dict[tuple[int, int], int](), list[Tensor](), list[Tensor]()
    at = pairs.sequences
    with torch.no_grad():
        states = list[Tensor]()
        for task in range(4):
            for first, length in zip(at.starts[task].tolist(), at.lengths[task].tolist(), strict=True):
                h = torch.zeros(4, dtype=torch.float64)
                for event in range(first, first + length):
                    item = int(at.items[task, event])
                    events[task, event] = item
                    before.append(h)
                    h = cell(params["embedding.weight"][item][None], h[None])[0][0]
                    states.append(h)
        for task in range(4):
            for place, target in zip(pairs.at[task].tolist(), pairs.target[task].tolist(), strict=True):
                if target > 0:
                    last.append(states[place - 1] if place else torch.zeros(4, dtype=torch.float64))
    read = torch.tensor(list(events.values()))
    expected = {"gru.weight_ih_l0": params["embedding.weight"][read], "gru.weight_hh_l0": torch.stack(before)}
    expected["fc.weight"] = torch.stack(last)
    for name, x in expected.items():
        moment, shares = found[name]
        assert shares is None
        torch.testing.assert_close(moment, sum(torch.outer(one, one) for one in x) / len(x), rtol=0, atol=1e-14)
    moment, shares = found["embedding.weight"]
    assert moment is None
    torch.testing.assert_close(shares, torch.bincount(read, minlength=12).double() / len(read), rtol=0, atol=1e-14)
    assert set(found) == {*expected, "embedding.weight"}
    assert 0 < len(last) < pairs.target.numel()  # some pairs count, some do not


@pytest.mark.parametrize("contexts", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_sums_of_a_batch_are_those_of_its_tasks(name: str, contexts: bool) -> None:
    """Tasks of unlike lengths are padded to each other: what is padding counts for nothing."""
    model = MODELS[name]
    params = start(model, contexts)
    whole = moments(model, params, LOG.episodes(3, 5).query)
    alone = [moments(model, params, LOG.episodes(3, 5, users=[user]).query) for user in range(4)]
    read = {*whole.inputs, *whole.rows}
    idle = {"context.prefix"} | ({"lm_head.weight"} if name == "causal_lm" else set())
    assert read >= set(matrices(params)) - idle, sorted(set(matrices(params)) - read)
    for weight, (total, count) in whole.inputs.items():
        assert float(count) == sum(float(one.inputs[weight][1]) for one in alone), weight
        parts = torch.stack([one.inputs[weight][0] for one in alone]).sum(0)
        torch.testing.assert_close(total, parts, rtol=1e-11, atol=1e-11, msg=weight)
    for weight, counts in whole.rows.items():
        assert torch.equal(counts, torch.stack([one.rows[weight] for one in alone]).sum(0)), weight


def test_positions_are_counted_by_tokens_and_a_tied_table_is_read_both_ways() -> None:
    model = MODELS["sasrec"]
    pairs = LOG.episodes(3, 5).query
    found = moments(model, start(model), pairs).take()
    steps = pairs.sequences.step
    shares = torch.bincount(steps, minlength=4).double() / len(steps)
    assert torch.equal(found["position.weight"][1], shares)  # type: ignore[arg-type]
    assert found["embedding.weight"][0] is not None
    assert found["embedding.weight"][1] is not None


def test_some_outputs_at_a_time_have_the_same_inputs() -> None:
    """Scores of a chunk of items, or of one item a pair, multiply the same states; rows to multiply by are no look-up."""
    model, pairs = MODELS["gru4rec tied"], LOG.episodes(3, 5).query
    params = start(model)
    objective = chunked(Chunked(chunk=4), Items(11, lambda: torch.zeros(11).numpy(), 1, torch.device("cpu")))
    found, usual = moments(model, params, pairs, objective).take(), moments(model, params, pairs).take()
    for name in usual:
        for one, other in zip(found[name], usual[name], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def composed(name: str) -> tuple[Any, Params]:
    model = MODELS["gru4rec"]
    base = start(model)
    if name == "off":
        return (lambda phi: phi), base
    if name == "on":
        over = FullResidual(base, 0.7)
        return over.compose, over.init(torch.Generator())
    low = LowRankResidual(base, {"gru.weight_ih_l0": (12, 3), "fc.weight": (11, 4)}, 2, 0.5)
    drawn = low.init(torch.Generator().manual_seed(4))
    return low.compose, {n: value + 0.1 for n, value in drawn.items()}


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("residual", ["off", "on", "lora"])
def test_the_outer_loop_counts_the_query_under_adapted_weights(residual: str, second: bool) -> None:
    compose, phi = composed(residual)
    tasks, batch = Tasks(MODELS["gru4rec"], cross_entropy, compose), LOG.episodes(4, 4)
    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    made, found = MAML(InnerLoop(0.3, 2, pull=0.01), "second" if second else "first"), inputs.Moments(matrices(phi))
    support = tasks.loss(batch.support)
    with inputs.recorded(found):
        query = tasks.loss(batch.query, recorded=True)
        torch.autograd.backward(made.meta_losses(leaves, support, query, 4).mean())
    direct = inputs.Moments(matrices(phi))
    weights = inner.adapt(support, leaves, 4, made.inner)
    with inputs.recorded(direct):
        tasks.loss(batch.query, recorded=True)(weights)
    got, wanted = found.take(), direct.take()
    assert set(got) == set(wanted) == set(matrices(phi))
    for name in got:
        for one, other in zip(got[name], wanted[name], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    still = inputs.Moments(matrices(phi))
    with inputs.recorded(still):
        tasks.loss(batch.query, recorded=True)(inner.adapt(support, leaves, 4, InnerLoop(0.3, 0)))
    last = next(reversed(got))
    assert not torch.allclose(got[last][0], still.take()[last][0])  # type: ignore[arg-type]


def test_reptile_reads_the_query_inside_as_well() -> None:
    tasks, batch = Tasks(MODELS["gru4rec"], cross_entropy, lambda phi: phi), LOG.episodes(4, 4)
    leaves = {name: value.requires_grad_() for name, value in start(MODELS["gru4rec"]).items()}
    found, once = inputs.Moments(matrices(leaves)), moments(MODELS["gru4rec"], leaves, batch.query)
    with inputs.recorded(found):
        Reptile(InnerLoop(0.1, 3), 0.5).meta_losses(
            leaves, tasks.loss(batch.support), tasks.loss(batch.query, recorded=True), 4
        )
    assert float(found.inputs["fc.weight"][1]) == 4 * float(once.inputs["fc.weight"][1])  # three steps and the judging


def test_who_looks_changes_nothing_and_nobody_looks_unasked() -> None:
    model, pairs = MODELS["sasrec"], LOG.episodes(3, 5).query
    tasks = Tasks(model, cross_entropy, lambda phi: phi)

    def run(recorded: bool, inside: bool) -> tuple[inputs.Moments, list[Tensor]]:
        leaves, found = {n: v.clone().requires_grad_() for n, v in start(model).items()}, inputs.Moments(model.shapes())
        loss = tasks.loss(pairs, torch.Generator().manual_seed(1), recorded=recorded)
        if inside:
            with inputs.recorded(found):
                total = loss(leaves).sum()
        else:
            total = loss(leaves).sum()
        return found, [total.detach(), *torch.autograd.grad(total, list(leaves.values()))]

    (seen, ours), (unseen, theirs), (outside, plain) = run(True, True), run(False, True), run(True, False)
    assert seen.inputs
    assert not (unseen.inputs or outside.inputs)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(ours, theirs, plain, strict=True))


@pytest.mark.parametrize("name", ["gru4rec", "sasrec"])
def test_products_in_bfloat16_leave_moments_in_the_weights_own_precision(name: str) -> None:
    model, pairs = MODELS[name], LOG.episodes(3, 5).query
    params = {weight: value.float() for weight, value in start(model).items()}
    found = {mixed: inputs.Moments(matrices(params)) for mixed in (False, True)}
    for mixed, into in found.items():
        with inputs.recorded(into):
            Tasks(model, cross_entropy, lambda phi: phi, mixed=mixed).loss(pairs, recorded=True)(params)
    for weight, (total, count) in found[True].inputs.items():
        assert (total.dtype, count) == (torch.float32, found[False].inputs[weight][1])
        torch.testing.assert_close(total, found[False].inputs[weight][0], rtol=0.03, atol=0.03)


def test_a_failure_inside_leaves_nobody_looking() -> None:
    found = inputs.Moments(["w"])
    with pytest.raises(ZeroDivisionError), inputs.recorded(found), inputs.reading(True, {"w": torch.ones(2, 2)}):
        raise ZeroDivisionError
    assert inputs.active is None
    with inputs.recorded(found):
        pass


def test_a_mask_of_another_shape_is_no_mask() -> None:
    weights = {"w": torch.ones(2, 3)}
    with (
        inputs.recorded(inputs.Moments(["w"])),
        inputs.reading(True, weights),
        inputs.only(lambda: torch.ones(2, 5) > 0),
    ):
        assert inputs.active is not None
        with pytest.raises(ValueError, match=r"positions \[2, 4\] are read, and which are real is said of \[2, 5\]"):
            inputs.active.seen(weights["w"], torch.zeros(2, 4, 3))


@pytest.mark.parametrize("width", [1, 5, 127, 128, 130, 255, 256])
def test_the_moment_of_wide_inputs_is_made_in_strips(width: int) -> None:
    x = torch.randn(37, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    torch.testing.assert_close(inputs._squares(x), torch.einsum("ni,nj->ij", x, x), rtol=0, atol=1e-12)
