"""Conv4: the small convolutional network that few-shot classifiers are compared with.

    four times: convolution 3x3 -> batch norm -> ReLU -> pooling 2x2;  then a linear layer on the flattened features

Source: Vinyals et al. 2016, arXiv:1606.04080, sec. 4.1.1 (64 filters, max-pooling); Finn et al. 2017, arXiv:1703.03400, app.
A.1 (for Omniglot strides instead of pooling: `pool="stride"`). The classes of an episode are its "items" 1..n_way.

Batch norm takes the statistics of each task's images at hand (transductive), or those that `params` holds as norm{i}.mean
and norm{i}.var [C]; they are made by `statistics` and never change on their own.

Shapes: T tasks, N images a task, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core.ops import linear
from metarec.core.weights import Params, Weights, own
from metarec.models.personal import personal
from metarec.options import ranged

BLOCKS = (1, 2, 3, 4)


@dataclass
class Config:
    """conf/model/conv4.yaml"""

    name: str = "conv4"
    filters: int = ranged(64, min=1)
    pool: str = ranged("max", choices=["max", "stride"])
    max_len: int = ranged(1, min=1, max=1)  # images have no prefix

    has: ClassVar[tuple[str, ...]] = ("norm", "batch norm")
    reads: ClassVar[str] = "images"


def build(config: Config, n_items: int) -> Conv4:
    """`n_items` is n_way; images are 28 x 28 with one channel, as Omniglot's."""
    return Conv4(n_items, filters=config.filters, pool=config.pool)


@dataclass(frozen=True)
class Conv4:
    n_way: int
    n_channels: int = 1
    filters: int = 64
    image_size: int = 28
    pool: str = "max"  # max | stride

    @property
    def n_items(self) -> int:
        """The classes of an episode, one output each."""
        return self.n_way

    @property
    def features(self) -> int:
        """F, of the flattened last block; ValueError where the image is too small for four blocks."""
        size = self.image_size
        for _ in BLOCKS:
            size = size // 2 if self.pool == "max" else -(-size // 2)
        if size == 0:
            raise ValueError(f"Conv4: images of {self.image_size} pixels vanish in four poolings, give 16 or more")
        return self.filters * size * size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name; the order is the order of the checkpoint."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i in BLOCKS:
            shapes[f"conv{i}.weight"] = (self.filters, self.n_channels if i == 1 else self.filters, 3, 3)
            shapes[f"conv{i}.bias"] = (self.filters,)
            shapes[f"norm{i}.weight"] = (self.filters,)
            shapes[f"norm{i}.bias"] = (self.filters,)
        return shapes | {"fc.weight": (self.n_way, self.features), "fc.bias": (self.n_way,)}

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=context` adapts: a shift of the channels behind the first norm, and one of the features."""
        return {"context.channels": (self.filters,), "context.shift": (self.features,)}

    def scale_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=ia3` adapts: scales of the channels behind each norm, and of the features."""
        channels: dict[str, tuple[int, ...]] = {f"scale.channels{i}": (self.filters,) for i in BLOCKS}
        return channels | {"scale.state": (self.features,)}

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices that nothing but a linear layer reads, which can forget in an inner step."""
        return ("fc.weight",)

    @property
    def head(self) -> tuple[str, ...]:
        """What `score` reads; features are what the body leaves."""
        return ("fc.weight", "fc.bias", "context.shift", "scale.state")

    @property
    def norms(self) -> tuple[str, ...]:
        """Weights and biases of the norms."""
        return tuple(f"norm{i}.{part}" for i in BLOCKS for part in ("weight", "bias"))

    @property
    def statistics_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names of the statistics that `params` may hold."""
        return {f"norm{i}.{part}": (self.filters,) for i in BLOCKS for part in ("mean", "var")}

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """torch's own defaults: uniform +-1/sqrt(fan in) for convolutions and the head; norms 1 and 0."""
        shapes = self.shapes()
        params: Params = {}
        for name, shape in shapes.items():
            layer, part = name.split(".")
            if layer.startswith("norm"):
                params[name] = torch.ones(shape, dtype=dtype) if part == "weight" else torch.zeros(shape, dtype=dtype)
            else:
                bound = torch.Size(shapes[f"{layer}.weight"][1:]).numel() ** -0.5
                params[name] = torch.rand(shape, generator=generator, dtype=dtype).mul_(2 * bound).sub_(bound)
        return params

    def encode(self, params: Weights, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """images [T, N, C, H, W] -> features [T, N, F]. There is no dropout for a generator to switch on."""
        return torch.stack([self._features(weights, x) for weights, x in self._by_task(params, images)])

    def statistics(self, params: Weights, images: Tensor) -> Params:
        """The mean over tasks of each norm's mean and variance over the images, each norm taking those at hand."""
        without = {name: value for name, value in params.items() if name not in self.statistics_shapes}
        found: list[Params] = []
        for weights, x in self._by_task(without, images):
            found.append({})
            self._features(weights, x, found[-1])
        return {name: torch.stack([one[name] for one in found]).mean(0) for name in self.statistics_shapes}

    def _by_task(self, params: Weights, images: Tensor) -> Iterator[tuple[Params, Tensor]]:
        """Each task's own weights and images: one library call a task and layer, and nothing copied between layers.

        On a CPU that is as fast as one grouped convolution forward and back, and twice as fast differentiated twice.
        """
        body = {name: own(value, len(images)).unbind() for name, value in params.items() if name not in self.head}
        for task, x in enumerate(images.unbind()):
            yield {name: values[task] for name, values in body.items()}, x

    def _features(self, weights: Params, x: Tensor, note: Params | None = None) -> Tensor:
        """x [N, C, H, W] -> [N, F] under the weights of one task; `note` takes the statistics of every norm."""
        for i in BLOCKS:
            x = F.conv2d(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], 2 if self.pool == "stride" else 1, 1)
            x = x.to(weights[f"norm{i}.weight"].dtype)  # what was multiplied in bfloat16
            if note is not None:
                by_channel = x.transpose(0, 1).flatten(1)
                note[f"norm{i}.mean"], note[f"norm{i}.var"] = by_channel.mean(1), by_channel.var(1)
            mean, var = weights.get(f"norm{i}.mean"), weights.get(f"norm{i}.var")
            x = F.batch_norm(x, mean, var, weights[f"norm{i}.weight"], weights[f"norm{i}.bias"], training=mean is None)
            if i == 1 and "context.channels" in weights:
                x = x + weights["context.channels"][:, None, None]
            if f"scale.channels{i}" in weights:
                x = x * (1 + weights[f"scale.channels{i}"])[:, None, None]
            x = F.relu(x)
            if self.pool == "max":
                x = F.max_pool2d(x, 2)
        return x.flatten(1)

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """features [T, N, F] -> logits [T, N, n_way], column i - 1 for class i; `items` as in the sequence models."""
        states = personal(states, params)
        logits = linear(states, params["fc.weight"], params["fc.bias"])
        if items is None:
            return logits
        return logits[..., items - 1] if items.dim() == 1 else logits.gather(2, items[..., None] - 1)[..., 0]
