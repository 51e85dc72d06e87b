"""Muon: momentum whose matrices are orthogonalised (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon).

Each update of a matrix has singular values near one, so all directions are learnt at about the same speed. It is
scaled by `0.2 sqrt(max(out, in))`, which makes its root mean square that of AdamW's updates; learning rate and weight
decay of AdamW can be kept (arXiv 2502.16982, section 2.2). For matrices inside layers only; embeddings, head and
vectors get AdamW.

`torch.optim.Muon` computes the iteration in bfloat16 always, which is several times slower than float32 on CPUs
without matrix units for it, and it cannot be compared with a float64 reference. This one does so on CUDA only, and
takes part in the common division, clipping and learning-rate ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.ops.product import product
from tunesmith.training.optimizers.cells import Cell, Scaling, State

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5: the steepest at zero that keeps singular values within about 0.7 to 1.2."""
STEPS = 5


@dataclass(frozen=True, slots=True)
class Muon:
    """The rule: Nesterov momentum, then `orthogonalised`."""

    momentum: float = 0.95

    def new_state(self, value: Tensor) -> State:
        return {"momentum": torch.zeros_like(value)}

    @torch.no_grad()
    def update(self, cells: Sequence[Cell], gradients: Sequence[Tensor], rate: float, scaling: Scaling) -> None:
        for cell, raw in zip(cells, gradients, strict=True):
            value, momentum = cell.value, cell.state["momentum"]
            kept = scaling.kept(value.device).to(value.dtype)
            gradient = scaling.applied(raw)
            momentum.lerp_(gradient, (1 - self.momentum) * kept)
            direction = orthogonalised(gradient.lerp(momentum, self.momentum))
            lr = rate * cell.ratio
            value.mul_(1 - lr * cell.decay * kept)
            value.sub_(direction * (lr * adamw_scale(value) * kept))


def adamw_scale(value: Tensor) -> float:
    """What an orthogonal matrix [out, in] is multiplied by to be as large as an update of AdamW."""
    return 0.2 * math.sqrt(max(value.shape))


def orthogonalised(matrix: Tensor, steps: int = STEPS) -> Tensor:
    """About the nearest (semi-)orthogonal matrix to `matrix` [m, n]: U S' V^T of U S V^T, with S' near one.

    Newton-Schulz iteration on the smaller side: 15 products, of which ten are of the small square. A matrix of zeros
    stays zero.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda and matrix.dtype == torch.float32 else matrix
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    x = x / x.norm().clamp_min(1e-7)  # no singular value is above one
    for _ in range(steps):
        square = product(x, x)  # symmetric, like its own square
        inner = product(square, square).mul_(c).add_(square, alpha=b)
        x = product(inner, x.t()).add_(x, alpha=a)
    return (x.t() if tall else x).to(matrix.dtype)
