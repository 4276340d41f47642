"""Laws of tasks, for every algorithm and model: support weights of ones are none, evaluating changes nothing, and a task
adapts as if it were alone."""

from __future__ import annotations

import pytest
import torch
from reference.small_cases import Case, dense, every_model, outer
from reference.small_models import MODEL, furthest, leaves
from reference.small_tensors import LR, T, close
from torch import Tensor

from metarec.algorithms import Algorithm, inner
from metarec.algorithms.anil import anil
from metarec.algorithms.fomaml import fomaml
from metarec.algorithms.imaml import IMAML
from metarec.algorithms.inner import InnerLoop
from metarec.algorithms.maml import MAML
from metarec.algorithms.maml_pp import maml_pp
from metarec.algorithms.meta_sgd import meta_sgd
from metarec.algorithms.reptile import Reptile
from metarec.core.weights import Params
from metarec.tasks import Model


@every_model
def test_weights_of_ones_are_none(case: Case) -> None:
    """Bit for bit, and other weights are not."""
    batch, loop = case.all(), InnerLoop(LR, 2)
    n = batch.support.target.shape[1]

    def adapted(weights: Tensor | None) -> Params:
        return dense(inner.adapt(case.tasks.loss(batch.support, None, weights), case.phi, T, loop))

    ones = torch.ones(n, dtype=torch.float64)
    assert furthest(adapted(ones), adapted(None)) == 0
    assert furthest(adapted(3 * ones), adapted(None)) < 1e-12  # only their proportion counts
    assert furthest(adapted(torch.arange(n, dtype=torch.float64)), adapted(None)) > 1e-3


def algorithms(model: Model) -> dict[str, Algorithm]:
    loop = InnerLoop(LR, 2)
    return {
        "maml": MAML(loop), "fomaml": fomaml(loop), "maml_pp": maml_pp(loop, norms=getattr(model, "norms", ())),
        "anil": anil(loop, model.head), "meta_sgd": meta_sgd(loop), "reptile": Reptile(loop), "imaml": IMAML(loop),
    }  # fmt: skip


@pytest.mark.parametrize("name", algorithms(MODEL))
@every_model
def test_evaluating_twice_and_changing_nothing(case: Case, name: str) -> None:
    """The scores have the same bits again, though training went on in between; nobody writes to what was learned."""
    algorithm, batch = algorithms(case.model)[name], case.all()
    phi = algorithm.learned(case.phi)
    versions = {key: value._version for key, value in phi.items()}

    def scores() -> Tensor:
        with torch.no_grad():
            return case.tasks.logits(algorithm.adapt(phi, case.tasks.loss(batch.support), T), batch.query)

    once = scores()
    outer(algorithm, case, phi)
    assert torch.equal(scores(), once)
    assert {key: value._version for key, value in phi.items()} == versions


@pytest.mark.parametrize("name", algorithms(MODEL))
@every_model
def test_a_task_adapts_as_if_it_were_alone(case: Case, name: str) -> None:
    """Adapted weights and meta-loss of each task; and tasks in another order give the results in that order."""
    algorithm = algorithms(case.model)[name]
    phi = algorithm.learned(case.phi)

    def of(users: list[int]) -> tuple[Params, Tensor]:
        support, query = case.losses(users)
        weights = algorithm.adapt(phi, support, len(users))
        return dense(weights, len(users)), algorithm.meta_losses(phi_with_gradients, support, query, len(users))

    phi_with_gradients = leaves(phi)
    together, losses = of([0, 1, 2])
    for user in range(T):
        alone, loss = of([user])
        assert furthest({n: v[user : user + 1] for n, v in together.items()}, alone) < 1e-12
        close(loss[0], losses[user])
    order = [2, 0, 1]
    mixed, mixed_losses = of(order)
    assert furthest(mixed, {n: v[order] for n, v in together.items()}) < 1e-12
    close(mixed_losses, losses[order])
