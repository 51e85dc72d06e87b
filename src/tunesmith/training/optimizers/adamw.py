"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) by `torch`'s fused kernel: one pass over values and state.

The kernel divides the gradient by the step's weight and the clipping factor on the way, and leaves everything as it is
where a gradient is not finite; neither needs to be known on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tunesmith.training.optimizers.cells import Cell, Scaling, State


@dataclass(frozen=True, slots=True)
class AdamW:
    """The rule; `betas` and `epsilon` as in the paper."""

    betas: tuple[float, float]
    epsilon: float

    def new_state(self, value: Tensor) -> State:
        return {
            "step": torch.zeros((), device=value.device),
            "exp_avg": torch.zeros_like(value),
            "exp_avg_sq": torch.zeros_like(value),
        }

    @torch.no_grad()
    def update(self, cells: Sequence[Cell], gradients: Sequence[Tensor], rate: float, scaling: Scaling) -> None:
        pairs = sorted(zip(cells, gradients, strict=True), key=lambda pair: _alike(pair[0]))
        for (decay, ratio, double), alike in groupby(pairs, key=lambda pair: _alike(pair[0])):
            members = list(alike)
            divisor = scaling.divisor
            if divisor is not None and double:
                for _, gradient in members:  # the kernel's own divisor is of single precision
                    gradient.div_(divisor.to(gradient.device))
                divisor = None
            adamw(
                [cell.value for cell, _ in members],
                [gradient for _, gradient in members],
                [cell.state["exp_avg"] for cell, _ in members],
                [cell.state["exp_avg_sq"] for cell, _ in members],
                [],
                [cell.state["step"] for cell, _ in members],
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=rate * ratio,
                weight_decay=decay,
                eps=self.epsilon,
                maximize=False,
                grad_scale=None if divisor is None else divisor.float(),
                found_inf=scaling.skip,
            )


def _alike(cell: Cell) -> tuple[float, float, bool]:
    return cell.decay, cell.ratio, cell.value.dtype == torch.float64
