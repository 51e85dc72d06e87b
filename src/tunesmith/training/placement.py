"""A base larger than one device, in one process: its decoder layers lie on several (`train.sharding: layers`).

Each layer has its tensors brought to it, the last one brings its result back to the first device, where embeddings,
last norm and head are. So everything else computes on the first device as if there were no other. One device works at
a time: this is for memory, not for speed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ResourceError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.trunk import decoder_layers


def plan_layers(layers: Sequence[int], rest: int, budgets: Sequence[int]) -> tuple[int, ...]:
    """On which device each layer lies, so that the fullest device is as empty as possible; neighbours stay together.

    layers: bytes of each. rest: bytes of everything else, on device 0. budgets: bytes of each device.

    Raises `ResourceError` where it does not fit.
    """
    low, high = 0.0, 1.0
    best = _filled(layers, rest, budgets, high)
    if best is None:
        raise ResourceError(
            f"the base needs {(sum(layers) + rest) / 2**30:.1f} GiB, the devices have "
            + " + ".join(f"{b / 2**30:.1f}" for b in budgets),
            where="train.sharding",
            fix="set method.quantize: nf4, use more devices, or another base",
        )
    for _ in range(40):
        middle = (low + high) / 2
        plan = _filled(layers, rest, budgets, middle)
        if plan is None:
            low = middle
        else:
            high, best = middle, plan
    return best


def spread(model: LanguageModel, devices: Sequence[torch.device | str], budgets: Sequence[int]) -> tuple[int, ...]:
    """Move the model's parts to devices; returns the device number of each layer.

    Load the base on the CPU, spread it, then attach adapters and make the optimiser. budgets: bytes of each device that
    weights may take, what training needs beside them already taken off. Raises `ResourceError` where it does not fit.
    """
    layers = decoder_layers(model.trunk)
    sizes = [_bytes(layer) for layer in layers]
    plan = plan_layers(sizes, _bytes(model.model) - sum(sizes), budgets)
    inside = {id(m) for layer in layers for m in layer.modules()}
    for module in model.model.modules():
        if id(module) not in inside:
            _move_own(module, devices[0])
    movers = [_Mover(torch.device(d)) for d in devices]
    for index, (layer, number) in enumerate(zip(layers, plan, strict=True)):
        layer.to(devices[number])
        mover = movers[number]
        if index == 0 or plan[index - 1] != number:
            layer.register_forward_pre_hook(mover.begin, with_kwargs=True)
        layer.register_forward_pre_hook(mover.bring, with_kwargs=True)
    layers[-1].register_forward_hook(movers[0].bring_back)
    return plan


class _Mover:
    """Brings tensors to one device; what several layers get, such as rotary angles, once per forward pass."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._brought: list[tuple[object, object]] = []

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass comes to this device."""
        self._brought.clear()

    def bring(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a layer on its device."""
        return tuple(self._shared(a) for a in args), {k: self._shared(v) for k, v in kwargs.items()}

    def bring_back(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The result of the last layer on the first device."""
        return moved(output, self.device)

    def _shared(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.requires_grad:
            return moved(value, self.device)  # hidden states: each layer has its own
        for source, there in self._brought:
            if source is value:
                return there
        there = moved(value, self.device)
        if there is not value:
            self._brought.append((value, there))
        return there


def moved(value: Any, device: torch.device) -> Any:
    """`value` with all tensors in it on `device`, in collections and dataclasses too; itself where they are there."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple | list):
        items = [moved(v, device) for v in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        there = {k: moved(v, device) for k, v in value.items()}
        return value if all(there[k] is v for k, v in value.items()) else there
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        there = moved(fields, device)
        return value if there is fields else dataclasses.replace(value, **there)
    return value


def _filled(layers: Sequence[int], rest: int, budgets: Sequence[int], share: float) -> tuple[int, ...] | None:
    """Layers put on devices in order, each filled to at most `share` of its budget; None where some are left."""
    plan: list[int] = []
    for number, budget in enumerate(budgets):
        free = share * budget - (rest if number == 0 else 0)
        if free < 0:
            return None
        while len(plan) < len(layers) and layers[len(plan)] <= free:
            free -= layers[len(plan)]
            plan.append(number)
    return tuple(plan) if len(plan) == len(layers) else None


def _bytes(module: nn.Module) -> int:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@torch.no_grad()
def _move_own(module: nn.Module, device: torch.device | str) -> None:
    """Move a module's own tensors, not those of modules within it; tied parameters stay tied."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))
