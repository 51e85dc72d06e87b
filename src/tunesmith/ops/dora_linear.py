"""A linear layer with a low-rank update and learnt magnitudes (DoRA), and its gradient.

`y = (m / n) ∘ (x Vᵀ) + b`, `V = W + s B A`, with `n` the norms of V's rows and `m` [out] learnt (Liu et al. 2024, arXiv
2402.09353). As the paper's section 4.3 proposes, and PEFT does, `n` counts as a constant in the backward pass.

`dora_reference` is the plain form. `dora_linear` gives the same numbers in one large product forward and one backward.
Kept for the backward pass are the input and `x Vᵀ / n`: the gradient of m needs the latter, and making it again would
cost a third product. V itself is made again: autograd would keep two matrices of the weight's size for every layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops.product import product


@torch.no_grad()
def row_norms(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Norms [out] of the rows of `W + s B A`, in the adapter's dtype, as a constant; 1 for a row of zeros.

    A row of zeros has magnitude zero: dividing by 1 keeps its output zero, where 0/0 would poison the model.
    """
    return _norms(torch.addmm(weight.to(a.dtype), b, a, alpha=scaling))


def dora_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, magnitude: Tensor, scaling: float
) -> Tensor:
    """The plain form, for any dtype: `x` [..., in] to [..., out]; adapters compute in their own dtype."""
    norms = row_norms(weight, a, b, scaling)
    return dora_combine(F.linear(x, weight), x, bias, a, b, magnitude / norms, scaling)


def dora_combine(
    plain: Tensor, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: Tensor, scaling: float
) -> Tensor:
    """`scale ∘ (plain + s x Aᵀ Bᵀ) + bias`, where `plain` [..., out] is `x Wᵀ` and `scale` [out] is `m / n`."""
    update = F.linear(F.linear(x.to(a.dtype), a), b) * scaling
    out = ((plain.to(a.dtype) + update) * scale).to(plain.dtype)
    return out if bias is None else out + bias


class _MergedDora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        magnitude: Tensor,
        scaling: float,
    ) -> Tensor:
        merged = torch.addmm(weight, b, a, alpha=scaling)
        norms = _norms(merged)
        unit = product(x.reshape(-1, x.shape[-1]), merged).div_(norms)
        ctx.save_for_backward(x, weight, a, b, magnitude, norms, unit)
        ctx.scaling = scaling
        out = unit * magnitude if bias is None else torch.addcmul(bias, unit, magnitude)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, magnitude, norms, unit = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        dm = (dy * unit).sum(0)
        dy = dy * (magnitude / norms)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = product(dy, torch.addmm(weight, b, a, alpha=ctx.scaling).t()).view(x.shape)
        da = product(product(dy, b.t()).t(), flat.t()).mul_(ctx.scaling)
        db = product(dy.t(), product(flat, a).t()).mul_(ctx.scaling)
        return dx, None, None, da, db, dm, None


def dora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, magnitude: Tensor, scaling: float
) -> Tensor:
    """As `dora_reference`, by the fast form where it is exact. `weight` and `bias` get no gradient."""
    same = x.dtype == weight.dtype == a.dtype and x.dtype in (torch.float32, torch.float64)
    if same and not torch.is_autocast_enabled(x.device.type):
        return _MergedDora.apply(x, weight, bias, a, b, magnitude, scaling)  # type: ignore[no-any-return, no-untyped-call]
    return dora_reference(x, weight, bias, a, b, magnitude, scaling)


def _norms(merged: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(merged, dim=1)
    return torch.where(norms > 0, norms, torch.ones_like(norms))
