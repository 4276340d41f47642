"""The last good state of a loop in memory: weights, optimizer slots, the global generators, the guard's window.

A state is good once the loss at it was let through, so it is kept one step late: the state that an explosion has left
behind is never kept, not even where it is the checkpoint's. Checkpoints carry it (`kept/...`), so that a resumed run rolls
back to the same one. Shapes: tensors are of any shape, those of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
PREFIX = "kept/"


@dataclass(frozen=True)
class Kept:
    """Copies, as they were after `step` steps; the generators' states are not stored: a run draws from (seed, step)."""

    step: int
    params: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]]  # parameter -> the optimizer's slots of it
    detector: dict[str, Any]
    random: dict[str, Tensor]  # device -> state of its global generator

    @staticmethod
    def of(
        step: int, params: Params, optimizer: torch.optim.Optimizer, detector: dict[str, Any], before: Params
    ) -> Kept:
        """A copy of the state now; `before`: parameters that this step's loss has moved already, as they were."""
        copies = {name: before.get(name, value).detach().clone() for name, value in params.items()}
        slots = {}
        for name, value in params.items():
            held = {k: v for k, v in optimizer.state.get(value, {}).items() if v is not None}
            slots[name] = {slot: torch.as_tensor(one).detach().clone() for slot, one in held.items()}
        return Kept(step, copies, slots, detector, _generators(params))

    def put_back(self, params: Params, optimizer: torch.optim.Optimizer) -> None:
        """Weights, optimizer and generators as they were, bit for bit; the copy stays for another time."""
        with torch.no_grad():
            for name, value in params.items():
                value.copy_(self.params[name])
                optimizer.state.pop(value, None)
                if self.slots[name]:
                    optimizer.state[value] = {slot: held.clone() for slot, held in self.slots[name].items()}
        for device, state in self.random.items():
            if device == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)

    def tensors(self) -> dict[str, Tensor]:
        """As stored: kept/phi/<parameter>, kept/optimizer/<parameter>/<slot>."""
        found = {f"{PREFIX}phi/{name}": value for name, value in self.params.items()}
        for name, slots in self.slots.items():
            found |= {f"{PREFIX}optimizer/{name}/{slot}": held for slot, held in slots.items()}
        return found

    def state(self) -> dict[str, Any]:
        """What stands beside the tensors in a checkpoint."""
        return {"step": self.step, "detector": self.detector}

    @staticmethod
    def stored(tensors: Params, state: Mapping[str, Any], params: Params) -> Kept:
        """The one of a checkpoint, on the devices of `params`; the generators as they are now."""
        copies, slots = {}, {}
        for name, value in params.items():
            copies[name] = tensors[f"{PREFIX}phi/{name}"].to(value.device)
            prefix = f"{PREFIX}optimizer/{name}/"
            found = {key[len(prefix) :]: held for key, held in tensors.items() if key.startswith(prefix)}
            # the step counter stays on the CPU, as torch keeps it
            slots[name] = {k: held if k == "step" else held.to(value.device) for k, held in found.items()}
        return Kept(int(state["step"]), copies, slots, dict(state["detector"]), _generators(params))


def _generators(params: Params) -> dict[str, Tensor]:
    devices = {str(value.device) for value in params.values() if value.device.type == "cuda"}
    return {"cpu": torch.get_rng_state(), **{device: torch.cuda.get_rng_state(device) for device in devices}}
