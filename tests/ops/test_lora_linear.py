"""The fast LoRA product against its plain form, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tunesmith.ops.lora_linear import lora_linear, lora_reference

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


def inputs(
    shape: tuple[int, ...] = (5, 6), out: int = 7, rank: int = 3, bias: bool = True, dtype=torch.float64
) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    width = shape[-1]
    x, a, b = draw(*shape).requires_grad_(), draw(rank, width).requires_grad_(), draw(out, rank).requires_grad_()
    return x, draw(out, width), draw(out) if bias else None, a, b


@pytest.mark.parametrize("shape", [(5, 6), (1, 6), (2, 3, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_plain_form(shape, bias, dtype):
    x, weight, b0, a, b = inputs(shape, bias=bias, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    gradients, values = [], []
    for form in (lora_linear, lora_reference):
        y = form(x, weight, b0, a, b, 0.7)
        direction = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        gradients.append(torch.autograd.grad((y * direction).sum(), (x, a, b)))
        values.append(y)
    assert values[0].shape == (*shape[:-1], 7)
    torch.testing.assert_close(values[0], values[1], rtol=tolerance, atol=tolerance)
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_finite_differences():
    x, weight, bias, a, b = inputs((2, 3, 6))
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, bias, a, b, 1.3), (x, a, b))


def test_an_input_without_gradient_costs_none():
    x, weight, bias, a, b = inputs()
    lora_linear(x.detach(), weight, bias, a, b, 1.0).sum().backward()
    assert a.grad is not None and b.grad is not None and x.grad is None


def test_a_column_major_weight_as_gpt2_has_it():
    x, weight, bias, a, b = inputs()
    expected = lora_reference(x, weight, bias, a, b, 2.0)
    torch.testing.assert_close(lora_linear(x, weight.t().contiguous().t(), bias, a, b, 2.0), expected)


def test_half_precision_keeps_the_update_that_a_merged_weight_would_round_away():
    weight = torch.full((1, 1), 256.0, dtype=torch.bfloat16)
    x = torch.ones(8, 1, dtype=torch.bfloat16)
    a, b = torch.full((1, 1), 0.5), torch.full((1, 1), 0.5)
    assert torch.equal(weight + (b @ a).to(torch.bfloat16), weight)  # 256.25 is not a bf16 number
    a.requires_grad_()
    y = lora_linear(x, weight, None, a, b, 8.0)  # a sum of 258 is
    torch.testing.assert_close(y, lora_reference(x, weight, None, a, b, 8.0), rtol=0, atol=0)
    assert y.dtype == torch.bfloat16 and y[0].item() == 258.0
    y.sum().backward()
    assert a.grad is not None and a.grad.dtype == torch.float32


def test_under_autocast_it_is_the_plain_form():
    x, weight, bias, a, b = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            lora_linear(x, weight, bias, a, b, 0.5), lora_reference(x, weight, bias, a, b, 0.5), rtol=0, atol=0
        )
