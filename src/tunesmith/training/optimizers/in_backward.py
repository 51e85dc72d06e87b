"""The optimiser within the backward pass: a parameter is updated as soon as its gradient is complete, which is freed
then. Gradients of all parameters never exist at the same time.

What needs all gradients at once cannot be had: clipping by norm, several streams per step, several processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor, nn

from tunesmith.training.optimizers.cells import Cell, Scaling
from tunesmith.training.optimizers.optimizer import Optimizer, square_sums


class BackwardPlan(Protocol):
    """What of a training plan decides whether parameters can be updated within the backward pass."""

    @property
    def max_grad_norm(self) -> float: ...
    @property
    def precision(self) -> str: ...


def why_not_in_backward(
    plan: BackwardPlan, *, streams: int = 1, processes: int = 1, sharding: str = "none"
) -> str | None:
    """The reason why `train.optimizer_in_backward` cannot be used, with what to change; None where it can.

    streams: of an optimiser step, the most there will be. sharding: `train.sharding`.
    """
    if plan.max_grad_norm:
        return "clipping by norm needs all gradients at once: set train.max_grad_norm to 0"
    if streams > 1:
        return (
            f"a step has {streams} streams, and gradients are complete after the last: raise train.micro_batch_tokens "
            "or lower train.batch_size so that a step is one stream"
        )
    if processes > 1 or sharding == "fsdp":
        return "gradients are complete only when they are summed over the processes: train in one process"
    if plan.precision == "fp16":
        return "an overflow of fp16 is seen after the backward pass only: use train.precision bf16 or fp32"
    return None


class InBackward:
    """Within this context a backward pass updates parameters. `optimizer` must not have flat buffers.

    The learning rate is set before the pass (`set_learning_rate`), and so is what loss sums are divided by:

        with InBackward(optimizer) as updates:
            updates.prepare(1 / weight)
            loss_sum.backward()
            norm = updates.grad_norm()
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if optimizer.buffers:
            raise ValueError("gradients in a flat buffer cannot be freed: make_optimizer(..., flat=False)")
        self.optimizer = optimizer
        self._cells: Mapping[nn.Parameter, Cell] = {cell.parts[0].parameter: cell for cell in optimizer.cells}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._scale: float | None = None
        self._squares: list[Tensor] = []

    def __enter__(self) -> InBackward:
        self._handles = [
            p.register_post_accumulate_grad_hook(self._update)  # type: ignore[no-untyped-call]
            for p in self._cells
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def prepare(self, scale: float) -> None:
        """Before each backward pass: what gradients are multiplied by. A second pass without it is refused."""
        self._scale, self._squares = scale, []

    def grad_norm(self) -> float:
        """Norm of the pass's gradients times `scale`; what was not finite was not used for updates."""
        self._scale, scale = None, self._scale or 0.0
        device = self.optimizer.cells[0].value.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        for squares in self._squares:
            total += squares.to(device)
        return float(total.sqrt()) * scale

    @torch.no_grad()
    def _update(self, parameter: Tensor) -> None:
        if self._scale is None:
            raise RuntimeError("a backward pass without `prepare`: each optimiser step has exactly one")
        cell = self._cells[parameter]  # type: ignore[index]
        gradient = cell.present_gradient()
        if gradient is None:
            return
        (squares,) = square_sums([gradient])
        self._squares.append(squares)
        divisor = torch.full_like(squares, 1 / self._scale)
        cell.rule.update(
            [cell], [gradient], self.optimizer.learning_rate, Scaling(divisor, (~torch.isfinite(squares)).float())
        )
        cell.write_back()
        parameter.grad = None
