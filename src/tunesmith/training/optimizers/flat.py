"""Parameters as views into one buffer, their gradients into another.

Then zeroing, summing over processes, the norm and the update are one pass each over contiguous memory instead of a few
small operations per tensor. Measured with one CPU thread: for a LoRA of rank 16 on 56 layers (112 tensors, 0.6 M
values) clip, AdamW and zeroing take 0.4 ms against 1.1 ms of `torch`; for full tuning of 8 M values there is no
difference, as few tensors are large.

The gradient buffer is there all the time. Gradients of their own exist from the backward pass to the update only, and
the first of a step is taken over instead of added; so large sets of values are better off with those (`worth_it`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tunesmith.training.optimizers.cells import working_dtype

LARGEST = 1 << 25
"""Values in all, up to which flat buffers are used: 128 MiB of float32 gradients."""
_ALIGNMENT = 64
"""Bytes. Matrix products read aligned operands faster."""


def worth_it(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether flat buffers are the better form: decided by shapes only, so that a repetition decides alike."""
    return sum(p.numel() for p in parameters) <= LARGEST and not any(isinstance(p, DTensor) for p in parameters)


class FlatBuffer:
    """Parameters of one device and dtype, laid end to end.

    Attributes
    ----------
    values: [N] at least float32, what is updated: the parameters' own memory, or their float32 master.
    gradients: [N] of the same type; every parameter's `.grad` is a view of it.
    starts: element at which each parameter begins. Gaps between parameters are zero and stay zero.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        first = parameters[0]
        step = _ALIGNMENT // first.element_size()
        self.starts: list[int] = []
        at = 0
        for parameter in parameters:
            self.starts.append(at)
            at += -(-parameter.numel() // step) * step
        self._parameters = tuple(parameters)
        self._held = torch.zeros(at, dtype=first.dtype, device=first.device)
        dtype = working_dtype(first.dtype)
        for parameter, start in zip(parameters, self.starts, strict=True):
            place = self._view(self._held, parameter, start)
            place.copy_(parameter.detach())
            parameter.data = place  # what it held before is freed here, one parameter at a time
        self.values = self._held if dtype == first.dtype else self._held.to(dtype)
        self.gradients = torch.zeros(at, dtype=dtype, device=first.device)
        self._views = [self._view(self.gradients, p, s) for p, s in zip(parameters, self.starts, strict=True)]
        for parameter in parameters:
            if parameter.dtype != dtype:
                parameter.grad_dtype = dtype
        self.zero()

    def zero(self) -> None:
        """Gradients to zero, and every `.grad` a view of the buffer again."""
        self.gradients.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view

    def check(self) -> None:
        """Raise where something else has replaced a gradient or a parameter's memory: its update would be lost."""
        held = self._held.data_ptr()
        for parameter, view, start in zip(self._parameters, self._views, self.starts, strict=True):
            if parameter.grad is None or parameter.grad.data_ptr() != view.data_ptr():
                raise RuntimeError("a gradient left the optimiser's buffer: zero them with `optimizer.zero_grad()`")
            if parameter.data_ptr() != held + start * parameter.element_size():
                raise RuntimeError("a parameter left the optimiser's buffer: move the model before making it")

    def write_back(self) -> None:
        """Round the master to the parameters, where there is one."""
        if self.values is not self._held:
            self._held.copy_(self.values)

    @staticmethod
    def _view(buffer: Tensor, parameter: nn.Parameter, start: int) -> Tensor:
        return buffer[start : start + parameter.numel()].view(parameter.shape)
