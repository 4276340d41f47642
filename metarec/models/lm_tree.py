"""A transformers model as a tree of modules that own no weights: every call is given them, for many tasks at once.

    Linear, Conv1D, Embedding    looked up by name and multiplied by `core.ops`, so a weight may be of each task's own
    everything else              a plain tensor for all tasks, put where the module keeps its parameter (`fixed`)

The tree is built from a config alone, its parameters on the meta device, where they take no memory. During a call
(`Net.bound`) it reads the weights of that call, and nothing before or after. Rows stand task behind task: [T * R, L, H] is
[T, R * L, H] for an operator and back. Padding stands behind the last token, where causality hides it, so no mask is needed
beyond the causal one; positions are given.

**Orientation.** A matrix is [out, in] here. GPT-2's Conv1D keeps its transpose; `Net.transposed` names those.

**float64.** Llama's norms, rotary angles and eager softmax work in float32 whatever they are given. In float64 they do not
here (`_Whole`): a central difference of a loss that is rounded to seven digits shows nothing.

**Checkpointing** (Chen et al. 2016, arXiv:1604.06174): a decoder layer keeps its input and runs again on the way back. It
runs with the same weights, and what operators then note at taps is thrown away: the first run's notes hold.

Source: the modules are those of transformers (Wolf et al. 2020, arXiv:1910.03771), unchanged.
Shapes: T tasks, R sequences a task, L tokens of the longest, H width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from metarec.core.ops import embed, linear
from metarec.core.weights import Factored, FastWeight, Tap, Weight, Weights
from metarec.errors import EnvironmentFault


def require(*packages: str) -> None:
    """EnvironmentFault naming the extra unless the packages are installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            what = f"the package {package} is not installed"
            raise EnvironmentFault("model", "causal_lm", what, "pip install 'metarec[lm]'")


@dataclass(frozen=True)
class Bound:
    """The weights of one call, and how it runs."""

    params: Weights
    n_tasks: int
    eager: bool  # attention of plain products: the pass may be differentiated twice
    whole: bool = False  # float64, with nothing rounded to float32

    def again(self) -> Bound:
        """For a second run of the same pass: the same numbers, with taps that nobody reads."""
        return replace(self, params={name: _unheard(weight) for name, weight in self.params.items()})


def _unheard(weight: Weight) -> Weight:
    if isinstance(weight, Factored):
        return replace(weight, a=_untapped(weight.a), b=_untapped(weight.b))
    return _untapped(weight) if isinstance(weight, FastWeight) else weight


def _untapped(weight: FastWeight) -> FastWeight:
    tap = weight.tap
    return weight if tap is None else replace(weight, tap=Tap(tap.second_order, dtype=tap.dtype))


class Net:
    """The tree of one config. `shapes`: every parameter by its name in transformers, [out, in] where it is a matrix."""

    def __init__(self, config: Any, *, checkpointing: bool = False) -> None:
        whole = skeleton(config)
        self.whole, self.config = whole, whole.config
        self.body = whole.base_model
        if self.body is whole:
            raise ValueError(f"{type(whole).__name__} has no body apart from its output layer")
        table, output = whole.get_input_embeddings(), whole.get_output_embeddings()
        if type(table) is not nn.Embedding or type(output) is not nn.Linear:
            kinds = f"{type(table).__name__} and {type(output).__name__}"
            raise ValueError(f"tokens go in and out by {kinds}; an Embedding and a Linear are needed")
        tied = table.weight is output.weight
        names = {id(value): name for name, value in whole.named_parameters()}
        self.table, self.output = names[id(table.weight)], names[id(output.weight)]
        self.output_bias = None if output.bias is None else names[id(output.bias)]
        named = next(name for name, module in whole.named_modules() if module is output)
        self.twins = {f"{named}.weight": self.table} if tied else {}  # what a file may hold beside its other half
        self.checkpointing = checkpointing
        self.fuses = bool(getattr(whole, "_supports_sdpa", False))  # else attention is always of plain products
        self.shapes = {name: tuple(value.shape) for name, value in whole.named_parameters()}
        self.width, self.vocab_size = table.weight.shape[1], table.weight.shape[0]
        self.transposed: set[str] = set()
        self.linear: list[str] = []  # matrices of linear layers, the output apart
        self.looked_up: list[str] = []  # tables beside that of the tokens, such as GPT-2's positions
        self.now: Bound | None = None
        self.tokens = (0, 0)  # rows and length of the call
        self._put_in_place(names, {id(table), id(output)})
        self._slots = [
            (module, key, names[id(value)])
            for module in self.body.modules()
            for key, value in module._parameters.items()
            if value is not None and module is not table
        ]
        self.fixed = tuple(name for _, _, name in self._slots)
        if checkpointing:
            for layer in self._layers():
                layer.forward = self._checkpointed(layer.forward)

    def _put_in_place(self, names: Mapping[int, str], left: set[int]) -> None:
        """Modules that look their weights up, in place of those that own them."""
        from transformers.pytorch_utils import Conv1D

        for parent in list(self.body.modules()):
            for key, module in list(parent.named_children()):
                if id(module) in left or type(module) not in (nn.Linear, Conv1D, nn.Embedding):
                    continue
                weight = names[id(module.weight)]
                if type(module) is nn.Embedding:
                    self.looked_up.append(weight)
                    setattr(parent, key, _Embedding(self, weight))
                    continue
                if type(module) is Conv1D:
                    self.transposed.add(weight)
                    self.shapes[weight] = self.shapes[weight][::-1]
                bias = getattr(module, "bias", None)
                self.linear.append(weight)
                setattr(parent, key, _Linear(self, weight, None if bias is None else names[id(bias)]))

    def _layers(self) -> list[nn.Module]:
        count = self.config.num_hidden_layers
        for module in self.body.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return list(module)
        raise ValueError(f"{type(self.whole).__name__} has no list of its {count} layers to be checkpointed")

    def __call__(self, x: Tensor, to: Bound) -> Tensor:
        """x [T * R, L, H], the tokens' embeddings -> the states behind them, [T * R, L, H]."""
        rows, length = x.shape[:2]
        positions = torch.arange(length, device=x.device).expand(rows, length)
        self.tokens = (rows, length)
        for module in self.body.modules():  # angles of rotary positions, say
            for key, buffer in module._buffers.items():
                if buffer is not None and buffer.device != x.device:
                    module._buffers[key] = buffer.to(x.device)
        with self.bound(to):
            found: Tensor = self.body(inputs_embeds=x, position_ids=positions, use_cache=False).last_hidden_state
        return found

    @contextmanager
    def bound(self, to: Bound) -> Iterator[None]:
        """The tree reads the weights `to`; afterwards what it read before."""
        before, way = self.now, self.config._attn_implementation
        kept = [module._parameters[key] for module, key, _ in self._slots]
        self.now, self.config._attn_implementation = to, "sdpa" if self.fuses and not to.eager else "eager"
        for module, key, name in self._slots:
            module._parameters[key] = _plain(to.params[name], name)
        try:
            with _Whole() if to.whole else nullcontext():
                yield
        finally:
            self.now, self.config._attn_implementation = before, way
            for (module, key, _), value in zip(self._slots, kept, strict=True):
                module._parameters[key] = value

    def _checkpointed(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            to, tokens = self.now, self.tokens
            assert to is not None
            if not torch.is_grad_enabled():
                return layer(*args, **kwargs)
            runs = [to]

            def run(*args: Any, **kwargs: Any) -> Any:
                here = runs.pop() if runs else to.again()
                before, self.tokens = self.tokens, tokens
                try:
                    with self.bound(here):
                        return layer(*args, **kwargs)
                finally:
                    self.tokens = before

            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return forward


def skeleton(config: Any) -> Any:
    """transformers' model of a config, its parameters on the meta device and its buffers real; no code but its own."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for name, buffer in whole.named_buffers():
        if buffer.is_meta:
            raise ValueError(f"{type(whole).__name__} makes its buffer {name} in a way that is not known here")
    return whole.eval()


def _plain(weight: Weight, name: str) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    if isinstance(weight, Factored) or weight.offset is not None or weight.tap is not None:
        raise TypeError(f"{name} is read by a module of transformers, for all tasks at once: it cannot adapt")
    return weight.shared


class _Bare(nn.Module):
    """Stands in the tree and reads its weights, by name, from what the tree is bound to."""

    def __init__(self, net: Net, weight: str, bias: str | None = None) -> None:
        super().__init__()
        self.net, self.name, self.bias_name = net, weight, bias

    def _bound(self, tokens: int) -> Bound:
        to = self.net.now
        assert to is not None
        rows, length = self.net.tokens
        if tokens != rows * length:  # a mixture of experts, say: whose tokens these are is not known
            raise ValueError(
                f"{self.name} is asked about {tokens} of {rows * length} tokens: tasks cannot be told apart"
            )
        return to


class _Linear(_Bare):
    def forward(self, x: Tensor) -> Tensor:
        """x [T * R, L, in], or [T * R * L, in] -> the same with out in place of in."""
        to = self._bound(x.numel() // x.shape[-1])
        bias = None if self.bias_name is None else to.params[self.bias_name]
        y = linear(x.reshape(to.n_tasks, -1, x.shape[-1]), to.params[self.name], bias)
        return y.view(*x.shape[:-1], y.shape[-1])


class _Embedding(_Bare):
    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [T * R, L] -> [T * R, L, d]."""
        to = self._bound(ids.numel())
        y = embed(ids.reshape(to.n_tasks, -1), to.params[self.name])
        return y.view(*ids.shape, y.shape[-1])


class _EmptyOnMeta(TorchFunctionMode):
    """What is made empty, as parameters are, takes no memory; buffers are made of numbers and stay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _Whole(TorchFunctionMode):
    """Nothing is rounded to float32: where a module asks for that, it gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.float:
            func = Tensor.double
        if func in (Tensor.to, Tensor.type):
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
