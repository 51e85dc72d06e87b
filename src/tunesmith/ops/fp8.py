"""Matrix products in 8-bit floats, every row of both operands with a scale of its own.

A row r of a matrix [N, K] is kept as `code = round8(r / s)`, `s = max|r| / M`, with M the largest number of the type:
e4m3 (4 bits of exponent, 3 of mantissa, M = 448) for activations and weights, e5m2 (M = 57,344) for gradients, whose
range is wider (arXiv 2209.05433). Scales are computed from the numbers at hand, never from those of earlier steps. A
product `a bᵀ` takes both scales out of its sums, so they cost nothing inside:

    (a bᵀ)_ij = s_i t_j Σ_k code(a)_ik code(b)_jk

Rows and not whole tensors: what one token becomes must not depend on the tokens beside it in the stream, or documents
would see each other through the largest of them. The forward pass sums over inputs and the backward pass over outputs,
so a weight is kept twice, by its rows and by its columns.

On a GPU with compute capability 8.9 or more the sums are those of its 8-bit units (`torch._scaled_mm`), rounded to bf16
once. `product_reference` is the plain form in fp32 on the same codes, for any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATION = torch.float8_e4m3fn
GRADIENT = torch.float8_e5m2
DIVISOR = 16
"""Both sizes of a weight must be multiples of this."""
_NEEDED = (8, 9)


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix of N rows: codes [N, K] in an 8-bit type, scales [N, 1] fp32."""

    codes: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """A weight [N, K] for the forward pass, by its rows, and its transpose [K, N] for the backward pass."""

    rows: Codes
    columns: Codes

    @classmethod
    def of(cls, weight: Tensor) -> WeightCodes:
        """Of a weight of any floating type."""
        weight = weight.detach()
        return cls(encode(weight, ACTIVATION), encode(weight.t(), ACTIVATION))


def why_not(device: torch.device) -> str | None:
    """Why this device cannot compute in 8-bit floats, or None where it can."""
    if device.type != "cuda":
        return f"the training is on {device.type}, and only GPUs have 8-bit floats"
    capability = torch.cuda.get_device_capability(device)
    if capability < _NEEDED:
        has, needs = (".".join(map(str, version)) for version in (capability, _NEEDED))
        return f"{torch.cuda.get_device_name(device)} has compute capability {has}, and 8-bit floats need {needs}"
    return None


def fits(weight: Tensor) -> bool:
    """Whether the sizes of a weight [N, K] are those that 8-bit units take."""
    return weight.shape[0] % DIVISOR == 0 and weight.shape[1] % DIVISOR == 0


def encode(x: Tensor, dtype: torch.dtype) -> Codes:
    """The rows of `x` [N, K] in an 8-bit type. A row with NaN or infinity becomes NaN throughout."""
    wide = x.detach().float()
    # 1e-30 stands for the largest magnitude of a row of zeros. It has no name: torch's compiler takes named numbers for
    # variables.
    scales = wide.abs().amax(1, keepdim=True).clamp_min(1e-30) / torch.finfo(dtype).max
    return Codes((wide / scales).to(dtype).contiguous(), scales)


def decode(codes: Codes) -> Tensor:
    """The numbers that codes stand for: fp32 [N, K]."""
    return codes.codes.float() * codes.scales


def product_reference(a: Codes, b: Codes, dtype: torch.dtype) -> Tensor:
    """The plain form of `product8`, summed in fp32."""
    return (decode(a) @ decode(b).t()).to(dtype)


def product8(a: Codes, b: Codes, dtype: torch.dtype) -> Tensor:
    """`a bᵀ` [T, N] in `dtype`, for `a` [T, K] and `b` [N, K]."""
    if not a.codes.is_cuda:
        return product_reference(a, b, dtype)
    out: Tensor = torch._scaled_mm(
        a.codes, b.codes.t(), scale_a=a.scales, scale_b=b.scales.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return out.to(dtype)


class _Linear8(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, row_scales: Tensor, *columns: Tensor
    ) -> Tensor:
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, *columns)
        y = product8(encode(x, ACTIVATION), Codes(rows, row_scales), x.dtype)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *columns = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        weight_dtype, bias_dtype = ctx.dtypes
        dx = product8(encode(grad, GRADIENT), Codes(*columns), grad.dtype) if needs_x else None
        dw = F.linear(grad.t(), x.t()).to(weight_dtype) if needs_weight else None
        return dx, dw, grad.sum(0).to(bias_dtype) if needs_bias else None, None, None, None, None


def linear8(x: Tensor, weight: Tensor, bias: Tensor | None, held: WeightCodes) -> Tensor:
    """`x Wᵀ + b` for `x` [T, K] in the type of `x`, the product and the input's gradient in 8 bits.

    `held`: the codes of `weight` [N, K], which itself is asked for its gradient only: `dyᵀ x`, in the type of `x`.
    """
    rows, columns = held.rows, held.columns  # tensors one by one: what a compiler can pass on
    return _Linear8.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, weight, bias, rows.codes, rows.scales, columns.codes, columns.scales
    )


def linear8_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The plain form: the result of `linear8` [T, N] in fp32, and the weight [N, K] its backward pass multiplies with.

    Written without autograd: `dx = round8(dy) W'`, with the second result as W' and rows of dy in e5m2.
    """
    rounded = decode(encode(x, ACTIVATION)) @ decode(encode(weight, ACTIVATION)).t()
    backward = decode(encode(weight.t(), ACTIVATION)).t()
    return rounded if bias is None else rounded + bias.float(), backward
