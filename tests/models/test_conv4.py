"""Conv4 against torch's own layers, one task at a time; gradients of both orders; contexts; kept statistics; refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarec.algorithms import inner
from metarec.algorithms.inner import InnerLoop
from metarec.core.batch import ImageBatch
from metarec.core.offsets import Dense
from metarec.core.weights import FastWeight, Params, Weights
from metarec.models import conv4
from metarec.models.conv4 import Conv4
from metarec.objectives.cross_entropy import cross_entropy
from metarec.tasks import Tasks

T, N, WAY = 3, 6, 3
MODEL = Conv4(WAY, n_channels=2, filters=4, image_size=17)
MODELS = {
    "max": MODEL, "stride": replace(MODEL, pool="stride"), "max 28": replace(MODEL, image_size=28),
    "stride 28": replace(MODEL, pool="stride", image_size=28), "stride 5": replace(MODEL, pool="stride", image_size=5),
}  # fmt: skip
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
every_pool = pytest.mark.parametrize("model", [MODEL, MODELS["stride"]], ids=["max", "stride"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(model: Conv4, n: int = N, seed: int = 1) -> Tensor:
    return normal(T, n, model.n_channels, model.image_size, model.image_size, seed=seed)


def weights(model: Conv4 = MODEL, seed: int = 10) -> Params:
    """Norms and biases as far from 1 and 0 as after training."""
    params = model.init(torch.Generator().manual_seed(seed), torch.float64)
    return {name: value + 0.2 * normal(*value.shape, seed=seed + n) for n, (name, value) in enumerate(params.items())}


def contexts(model: Conv4, scale: float) -> Params:
    return {name: scale * normal(*shape, seed=len(name)) for name, shape in model.context_shapes().items()}


def kept(model: Conv4) -> Params:
    return {name: 0.5 + normal(*shape, seed=len(name)).square() for name, shape in model.statistics_shapes.items()}


def logits(model: Conv4, params: Weights, x: Tensor) -> Tensor:
    return model.score(params, model.encode(params, x))


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


# -- torch's own layers ---------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """The network as anyone would write it, for one task; it keeps running statistics as torch does."""

    def __init__(self, model: Conv4) -> None:
        super().__init__()
        stride = 2 if model.pool == "stride" else 1
        for i in range(1, 5):
            before = model.n_channels if i == 1 else model.filters
            self.add_module(f"conv{i}", nn.Conv2d(before, model.filters, 3, stride, padding=1))
            self.add_module(f"norm{i}", nn.BatchNorm2d(model.filters, momentum=1.0))
        self.pool = nn.MaxPool2d(2) if model.pool == "max" else nn.Identity()
        self.fc = nn.Linear(model.features, model.n_way)
        self.double()

    def forward(self, x: Tensor, channels: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        for i in range(1, 5):
            x = self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(x))
            if i == 1 and channels is not None:
                x = x + channels.view(-1, 1, 1)
            x = self.pool(x.relu())
        return self.fc(x.flatten(1) if shift is None else x.flatten(1) + shift)


def layers_of(model: Conv4, params: Params, statistics: Params | None = None) -> Layers:
    """The module with a copy of the weights; with `statistics` it normalises by them."""
    module, state = Layers(model), {name: v.detach() for name, v in params.items() if not name.startswith("context.")}
    for name, value in (statistics or {}).items():
        state[name.replace(".", ".running_")] = value
    found = module.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert all("running" in name or "batches" in name for name in found.missing_keys)
    return module.train(statistics is None)


def own_copies(model: Conv4, params: Params, size: float = 0.3) -> tuple[dict[str, FastWeight], list[Params]]:
    """Weights with an offset of each task's own, and beside them the copies one task at a time."""
    offsets = {name: size * normal(T, *value.shape, seed=50 + n) for n, (name, value) in enumerate(params.items())}
    fast = {name: FastWeight(value, Dense(offsets[name])) for name, value in params.items()}
    return fast, [{name: params[name] + offsets[name][task] for name in params} for task in range(T)]


@pytest.mark.parametrize("with_contexts", [False, True])
@pytest.mark.parametrize("with_statistics", [False, True])
@every_model
def test_equals_the_layers_of_torch(model: Conv4, with_statistics: bool, with_contexts: bool) -> None:
    """Shared weights and each task's own; statistics of the images at hand or kept ones; contexts or none."""
    x, params = images(model), weights(model) | (contexts(model, 0.7) if with_contexts else {})
    statistics = kept(model) if with_statistics else {}
    fast, copies = own_copies(model, params)
    for given, each in ((params, [params] * T), (fast, copies)):
        wanted = []
        for task, mine in enumerate(each):
            module = layers_of(model, mine, statistics or None)
            wanted.append(module(x[task], mine.get("context.channels"), mine.get("context.shift")))
        close(logits(model, given | statistics, x), torch.stack(wanted))


@pytest.mark.parametrize("with_statistics", [False, True])
@every_pool
def test_gradients_of_each_task_and_of_the_start(model: Conv4, with_statistics: bool) -> None:
    """With respect to every weight of every task, and to what is shared: the sum of them."""
    x, mix, statistics = images(model), normal(T, N, WAY, seed=3), kept(model) if with_statistics else {}
    params = {n: v.requires_grad_() for n, v in (weights(model) | contexts(model, 0.5)).items()}
    _, copies = own_copies(model, {n: v.detach() for n, v in params.items()})
    wanted: dict[str, list[Tensor]] = {name: [] for name in params}
    for task, mine in enumerate(copies):
        module = layers_of(model, mine, statistics or None)
        leaves = {n: v.requires_grad_() for n, v in mine.items() if n.startswith("context.")}
        out = module(x[task], leaves["context.channels"], leaves["context.shift"])
        (out.tanh() * mix[task]).sum().backward()
        for name in params:
            part = leaves[name] if name in leaves else module.get_parameter(name)
            assert part.grad is not None
            wanted[name].append(part.grad)

    offsets = {n: torch.stack([copy[n].detach() for copy in copies]) - v.detach() for n, v in params.items()}
    fast = {n: FastWeight(v, Dense(offsets[n])) for n, v in params.items()}
    found = torch.autograd.grad((logits(model, fast | statistics, x).tanh() * mix).sum(), list(params.values()))
    for name, grad in zip(params, found, strict=True):
        close(grad, torch.stack(wanted[name]).sum(0))

    def loss(given: Weights) -> Tensor:
        return (logits(model, given, x).tanh() * mix).flatten(1).sum(1)

    moving = {n: Dense(offset) for n, offset in offsets.items()}
    _, own_grads = inner.gradients(loss, params | statistics, moving, list(params), False)
    for name in params:
        close(own_grads[name].dense(), torch.stack(wanted[name]))
    assert not set(own_grads) & set(statistics)


@pytest.mark.parametrize("with_statistics", [False, True])
@every_pool
def test_two_inner_steps_differentiated_through(model: Conv4, with_statistics: bool) -> None:
    """Query loss and its exact gradient at the start, against plain autograd through torch's layers, task by task."""
    support, query = images(model, WAY), images(model, N, seed=2)
    target, lr = torch.arange(WAY), 0.4
    statistics = kept(model) if with_statistics else {}
    tasks = Tasks(model, cross_entropy, lambda phi: phi)
    phi = {name: value.requires_grad_() for name, value in weights(model).items()}
    one = tasks.loss(ImageBatch(support, (target + 1).expand(T, -1)))
    other = tasks.loss(ImageBatch(query, (target.repeat(2) + 1).expand(T, -1)))
    loop = InnerLoop(lr, 2, adapted=frozenset(phi))
    adapted = inner.adapt(one, phi | statistics, T, loop, second_order=True)
    got = torch.autograd.grad(other(adapted).mean(), list(phi.values()))

    losses = []
    for task in range(T):
        module, mine = layers_of(model, phi, statistics or None), dict(phi)
        for _ in range(2):
            loss = F.cross_entropy(torch.func.functional_call(module, mine, (support[task],)), target)
            found = torch.autograd.grad(loss, list(mine.values()), create_graph=True)
            mine = {name: mine[name] - lr * grad for name, grad in zip(mine, found, strict=True)}
        losses.append(F.cross_entropy(torch.func.functional_call(module, mine, (query[task],)), target.repeat(2)))
    close(other(adapted), torch.stack(losses), 1e-11)
    wanted = torch.autograd.grad(torch.stack(losses).mean(), list(phi.values()))
    for name, mine, theirs in zip(phi, got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    first = inner.adapt(one, phi | statistics, T, loop)
    cut = torch.autograd.grad(other(first).mean(), list(phi.values()))
    assert max(float((a - b).abs().max()) for a, b in zip(cut, wanted, strict=True)) > 1e-3


def test_second_derivatives_are_right() -> None:
    """By differences, of every weight, on the smallest model there is (it has no kink nearby)."""
    model = Conv4(2, filters=1, image_size=4, pool="stride")
    x, shapes = normal(1, 3, 1, 4, 4, seed=1), model.shapes()

    def outputs(*values: Tensor) -> Tensor:
        return logits(model, dict(zip(shapes, values, strict=True)), x).tanh()

    given = [value.requires_grad_() for value in weights(model, seed=3).values()]
    assert torch.autograd.gradgradcheck(outputs, given)


# -- contexts -------------------------------------------------------------------------------------------------------


@every_pool
def test_contexts_of_zero_change_nothing(model: Conv4) -> None:
    """Not a bit of the scores or of the weights' gradients; others change the scores."""
    x, plain, zero = images(model), weights(model), contexts(model, 0.0)
    assert torch.equal(logits(model, plain | zero, x), logits(model, plain, x))
    grads = []
    for extra in ({}, zero):
        leaves = {name: value.detach().requires_grad_() for name, value in plain.items()}
        out = logits(model, leaves | extra, x).tanh().sum()
        grads.append(torch.autograd.grad(out, list(leaves.values())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    for name, value in contexts(model, 0.5).items():
        assert not torch.equal(logits(model, plain | zero | {name: value}, x), logits(model, plain, x))


# -- statistics -----------------------------------------------------------------------------------------------------


@every_pool
def test_kept_statistics_are_used_and_never_changed(model: Conv4) -> None:
    """An image is then judged the same whatever stands beside it; without them the others matter."""
    x, params, statistics = images(model), weights(model), kept(model)
    before = {name: (value.clone(), value._version) for name, value in statistics.items()}
    together = logits(model, params | statistics, x)
    alone = torch.cat([logits(model, params | statistics, x[:, n : n + 1]) for n in range(N)], 1)
    close(alone, together)
    assert not torch.allclose(logits(model, params, x), together)
    assert not torch.allclose(logits(model, params, x[:, :2]), logits(model, params, x)[:, :2])
    assert torch.equal(logits(model, params | statistics, x), together)
    for name, (value, version) in before.items():
        assert torch.equal(statistics[name], value)
        assert statistics[name]._version == version


@pytest.mark.parametrize("own_weights", [False, True])
@every_pool
def test_statistics_are_what_batch_norm_would_keep(model: Conv4, own_weights: bool) -> None:
    """torch's running mean and unbiased variance after one batch, averaged over tasks; each norm takes those at hand."""
    x, params = images(model), weights(model)
    fast, copies = own_copies(model, params)
    modules = []
    for task, mine in enumerate(copies if own_weights else [params] * T):
        modules.append(layers_of(model, mine))
        modules[-1](x[task])
    given = fast if own_weights else params
    found = model.statistics(given, x)
    assert list(found) == list(model.statistics_shapes)
    for name, value in found.items():
        running = [module.get_buffer(name.replace(".", ".running_")) for module in modules]
        close(value, torch.stack(running).mean(0))
    again = model.statistics(given | kept(model), x)  # kept ones do not bend new ones
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_one_task_judged_by_its_own_statistics_is_as_at_hand_but_for_the_bias() -> None:
    """The variance kept is unbiased, the one at hand is not: n - 1 in place of n."""
    x, params = images(MODEL)[:1], weights()
    found = MODEL.statistics(params, x)
    for i in range(1, 5):
        size = MODEL.image_size
        for _ in range(1, i):
            size //= 2
        n = N * size * size
        found[f"norm{i}.var"] = found[f"norm{i}.var"] * (n - 1) / n
    close(logits(MODEL, params | found, x), logits(MODEL, params, x))


# -- names, sizes, refusals -----------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_torchs_modules() -> None:
    """So a state dict of Conv2d, BatchNorm2d and Linear loads as it is."""
    for model in MODELS.values():
        named = {name: tuple(value.shape) for name, value in Layers(model).named_parameters()}
        assert named == model.shapes()
        assert list(named) == list(model.shapes())
        params = model.init(torch.Generator().manual_seed(1))
        assert {name: tuple(value.shape) for name, value in params.items()} == named
        assert all(value.dtype == torch.float32 for value in params.values())
    assert MODEL.head == ("fc.weight", "fc.bias", "context.shift", "scale.state")
    assert set(MODEL.norms) == {name for name in MODEL.shapes() if name.startswith("norm")}
    assert set(MODEL.statistics_shapes) == {f"norm{i}.{part}" for i in range(1, 5) for part in ("mean", "var")}
    assert set(MODEL.head) & set(MODEL.context_shapes()) == {"context.shift"}
    assert MODEL.n_items == WAY


def test_the_published_size() -> None:
    """5-way, 64 filters on 28 x 28: 64 features, and 2 x 2 x 64 where strides stand for pooling."""
    model = Conv4(5)
    assert model.features == 64
    assert replace(model, pool="stride").features == 256
    convolutions = 64 * 9 + 3 * 64 * 64 * 9 + 4 * 64
    assert sum(torch.Size(shape).numel() for shape in model.shapes().values()) == convolutions + 8 * 64 + 5 * 64 + 5


def test_the_head_alone_reads_the_heads_weights() -> None:
    """What `score` does not read is the body: ANIL may leave it out."""
    x, params = images(MODEL), weights() | contexts(MODEL, 0.3)
    states = MODEL.encode(params, x)
    without = {name: value for name, value in params.items() if name in MODEL.head}
    assert torch.equal(MODEL.score(without, states), MODEL.score(params, states))
    body = {name: value for name, value in params.items() if name not in MODEL.head}
    assert torch.equal(MODEL.encode(body, x), states)


def test_init_is_a_function_of_the_seed_and_of_torchs_bounds() -> None:
    """Uniform within 1 / sqrt(fan in), weights and biases alike; norms 1 and 0."""
    model = Conv4(20, filters=48)
    params, again, other = (model.init(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(params[name], again[name]) for name in params)
    for name, value in params.items():
        layer, part = name.split(".")
        if layer.startswith("norm"):
            assert torch.equal(value, torch.full_like(value, float(part == "weight")))
            continue
        assert not torch.equal(value, other[name])
        fan_in = {"conv1": 9, "fc": model.features}.get(layer, 48 * 9)
        assert value.abs().max().item() <= fan_in**-0.5
        if value.numel() > 400:
            assert value.abs().max().item() > 0.99 * fan_in**-0.5
            assert value.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.06)
            assert abs(value.mean().item()) < 0.1 * fan_in**-0.5


@pytest.mark.parametrize("size", [1, 8, 15])
def test_an_image_that_vanishes_is_refused(size: int) -> None:
    """16 pixels are the least that four poolings leave one of; strides leave one of any size."""
    model = Conv4(5, image_size=size)
    with pytest.raises(ValueError, match=f"images of {size} pixels vanish in four poolings, give 16 or more"):
        model.shapes()
    with pytest.raises(ValueError, match="give 16 or more"):
        model.init(torch.Generator())
    assert Conv4(5, image_size=16).features == 64
    assert replace(model, pool="stride").features == 64


@pytest.mark.parametrize("own_weights", [False, True])
def test_scores_of_some_classes_are_columns_of_all(own_weights: bool) -> None:
    """The same for all tasks, or one for each image."""
    params = weights() | contexts(MODEL, 0.3)
    given = own_copies(MODEL, params)[0] if own_weights else params
    states = MODEL.encode(given, images(MODEL))
    every = MODEL.score(given, states)
    assert every.shape == (T, N, WAY)
    assert torch.equal(MODEL.score(given, states, None, torch.tensor([1, 3])), every[..., [0, 2]])
    each = torch.tensor([[1, 2, 3, 3, 2, 1], [2, 2, 2, 2, 2, 2], [3, 1, 3, 1, 3, 1]])
    got = MODEL.score(given, states, None, each)
    assert got.shape == (T, N)
    for task in range(T):
        for n in range(N):
            assert got[task, n] == every[task, n, each[task, n] - 1]


def test_no_generator_changes_anything() -> None:
    """There is no dropout to switch on."""
    x, params, draw = images(MODEL), weights(), torch.Generator().manual_seed(1)
    assert torch.equal(MODEL.encode(params, x, draw), MODEL.encode(params, x))
    states = MODEL.encode(params, x)
    assert torch.equal(MODEL.score(params, states, draw), MODEL.score(params, states))


# -- the checks above are seen to fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["statistics of all tasks", "offsets lost", "biased variance"])
def test_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "statistics of all tasks":
        true_encode = Conv4.encode

        def together(self: Conv4, params: Weights, x: Tensor, generator: object = None) -> Tensor:
            return true_encode(self, params, x.flatten(0, 1)[None]).view(T, -1, self.features)

        monkeypatch.setattr(Conv4, "encode", together)
        with pytest.raises(AssertionError):
            test_equals_the_layers_of_torch(MODEL, False, False)
    elif fault == "offsets lost":

        def lost(value: Tensor | FastWeight, n_tasks: int) -> Tensor:
            shared = value.shared if isinstance(value, FastWeight) else value
            return shared.expand(n_tasks, *shared.shape)

        monkeypatch.setattr(conv4, "own", lost)
        with pytest.raises(AssertionError):
            test_equals_the_layers_of_torch(MODEL, False, False)
    else:
        true_var = Tensor.var
        monkeypatch.setattr(Tensor, "var", lambda self, dim: true_var(self, dim, unbiased=False))
        with pytest.raises(AssertionError):
            test_statistics_are_what_batch_norm_would_keep(MODEL, False)
