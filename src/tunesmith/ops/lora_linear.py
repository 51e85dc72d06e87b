"""A linear layer with a low-rank update, and its gradient.

`y = x Wᵀ + b + s (x Aᵀ) Bᵀ`, with W [out, in] frozen, A [r, in], B [out, r] (Hu et al. 2021, arXiv 2106.09685).

`lora_reference` is the plain form. `lora_linear` gives the same numbers in one large matrix product forward and one
backward: in fp32 (and fp64) the update is added to the weight first, `W + s B A`, which costs `r/T` of the product
and saves writing and re-reading every output. Only the input is kept for the backward pass; the summed weight is made
again. In half precision the sum would round the update away, so the plain form is used there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ops.product import product


def lora_reference(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The plain form, for any dtype: `x` [..., in] to [..., out]; adapters compute in their own dtype."""
    update = F.linear(F.linear(x.to(a.dtype), a), b) * scaling
    return F.linear(x, weight, bias) + update.to(x.dtype)


class _MergedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        merged = torch.addmm(weight, b, a, alpha=scaling)
        return product(x.reshape(-1, x.shape[-1]), merged, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, a, b = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = product(dy, torch.addmm(weight, b, a, alpha=ctx.scaling).t()).view(x.shape)
        da = product(product(dy, b.t()).t(), flat.t()).mul_(ctx.scaling)
        db = product(dy.t(), product(flat, a).t()).mul_(ctx.scaling)
        return dx, None, None, da, db, None


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """As `lora_reference`, by the fast form where it is exact. `weight` and `bias` get no gradient."""
    if x.dtype == weight.dtype == a.dtype and x.dtype in (torch.float32, torch.float64) and not _autocast(x):
        return _MergedLora.apply(x, weight, bias, a, b, scaling)  # type: ignore[no-any-return, no-untyped-call]
    return lora_reference(x, weight, bias, a, b, scaling)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
