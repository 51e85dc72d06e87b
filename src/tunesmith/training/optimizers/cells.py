"""Cells and rules: what an optimiser updates in one go, and how.

A cell is one parameter, or a run of parameters that lie behind each other in a flat buffer and are updated alike. A
rule (AdamW, 8-bit AdamW, Muon) turns a cell's gradient into a change of its values and keeps its state in the cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunesmith.errors import ResourceError

State = dict[str, Tensor]


class Rule(Protocol):
    """How values move. Implementations keep everything they remember in `Cell.state`."""

    def new_state(self, value: Tensor) -> State:
        """The state of `value` before the first update."""
        ...

    def update(self, cells: Sequence[Cell], gradients: Sequence[Tensor], rate: float, scaling: Scaling) -> None:
        """Move the cells' values in place; gradients may be overwritten. `rate`: before the cells' ratio."""
        ...


@dataclass(frozen=True, slots=True)
class Scaling:
    """What gradients are divided by before use, and whether the update is left out; both stay on the device.

    divisor: 0-dim float64 tensor, or None for 1. skip: 0-dim float32, 1 where a gradient is not finite; or None.
    """

    divisor: Tensor | None = None
    skip: Tensor | None = None

    def applied(self, gradient: Tensor) -> Tensor:
        """The gradient divided, and zero where the update is left out."""
        if self.divisor is not None:
            gradient = gradient / self.divisor.to(gradient.device)
        if self.skip is not None:
            gradient = torch.where(self.skip.to(gradient.device).bool(), 0.0, gradient)
        return gradient

    def kept(self, device: torch.device) -> Tensor:
        """0-dim float32: 0 where the update is left out, else 1."""
        if self.skip is None:
            return torch.ones((), device=device)
        return 1 - self.skip.to(device)


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter within a cell: `start` is the element of the cell's flattened values at which it begins."""

    name: str
    parameter: nn.Parameter
    start: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """Values updated in one go.

    value: what the rule moves, at least float32; where the parameter is of half precision, its float32 master.
    gradient: the gradient's place in a flat buffer, or None where it is the parameter's own `.grad`.
    decay: weight decay. ratio: learning rate over that of the plan.
    """

    parts: tuple[Part, ...]
    value: Tensor
    gradient: Tensor | None
    rule: Rule
    decay: float
    ratio: float
    state: State = field(default_factory=dict)

    def present_gradient(self) -> Tensor | None:
        """The gradient, or None where there is none in this step. Of a sharded parameter: this process's shard."""
        if self.gradient is not None:
            return self.gradient
        gradient = self.parts[0].parameter.grad
        return None if gradient is None else local(gradient)

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the master to the parameter, where there is one. Flat cells do this for the whole buffer."""
        if self.gradient is None:
            target = local(self.parts[0].parameter)
            if target.data_ptr() != self.value.data_ptr():
                target.copy_(self.value)

    def state_by_name(self) -> dict[str, State]:
        """The state of each parameter in the cell; tensors are views where they can be."""
        return {
            part.name: {
                key: tensor if len(self.parts) == 1 else self._cut(tensor, part) for key, tensor in self._kept().items()
            }
            for part in self.parts
        }

    @torch.no_grad()
    def load_state(self, states: Mapping[str, State]) -> None:
        """Copy what `state_by_name` gave. Raises `ResourceError` where it belongs to other parameters."""
        for part in self.parts:
            if part.name not in states:
                raise _foreign(f"it has no optimiser state of {part.name}")
            for key, tensor in self._kept().items():
                target = tensor if len(self.parts) == 1 else self._cut(tensor, part)
                source = states[part.name].get(key)
                if source is None or source.shape != target.shape or source.dtype != target.dtype:
                    raise _foreign(f"the optimiser state {key!r} of {part.name} has another form")
                target.copy_(source)

    def _kept(self) -> State:
        """The rule's state, and the master where the parameter itself cannot restore it."""
        half = self.parts[0].parameter.dtype != self.value.dtype
        return {**self.state, "master": self.value} if half else self.state

    def _cut(self, tensor: Tensor, part: Part) -> Tensor:
        if tensor.ndim == 0:
            return tensor
        count = part.parameter.numel()
        return tensor[part.start : part.start + count].view(part.parameter.shape)


def local(tensor: Tensor) -> Tensor:
    """The data of a tensor in this process: its shard where it is sharded."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            return tensor.to_local()
    return tensor.detach()


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of `dtype` are updated and their gradients summed."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _foreign(what: str) -> ResourceError:
    return ResourceError(
        f"the checkpoint belongs to another training: {what}",
        expected="the method, optimiser and base it was written with",
        fix="go back to the recipe of this run, or begin a new one (--new)",
    )
