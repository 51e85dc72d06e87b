"""Products in 8-bit floats: the codes, their sums, the gradient, and that a token decides for itself alone."""

from __future__ import annotations

import pytest
import torch

from tunesmith.ops.fp8 import (
    ACTIVATION,
    GRADIENT,
    WeightCodes,
    decode,
    encode,
    fits,
    linear8,
    linear8_reference,
    product8,
    product_reference,
    why_not,
)


def matrix(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("kind", "digits"), [(ACTIVATION, 3), (GRADIENT, 2)])
def test_a_code_is_the_nearest_number_with_so_many_digits(kind, digits):
    x = matrix(40, 64) * torch.logspace(-20, 20, 40)[:, None]
    back = decode(encode(x, kind))
    large = x.abs() > x.abs().amax(1, keepdim=True) / 64  # smaller ones may have fewer digits
    assert large.float().mean() > 0.8
    assert ((back - x).abs() <= x.abs() * 2.0 ** -(digits + 1) * 1.0001)[large].all()
    assert torch.allclose(back.abs().amax(1), x.abs().amax(1), rtol=1e-6)


def test_zeros_stay_zeros_and_what_is_not_finite_stays_so():
    x = matrix(4, 16)
    x[1] = 0
    x[2, 3] = float("inf")
    x[3, 5] = float("nan")
    back = decode(encode(x, ACTIVATION))
    assert back[1].eq(0).all() and torch.isfinite(back[0]).all()
    assert not torch.isfinite(back[2]).all() and back[3].isnan().any()


def test_no_row_depends_on_another():
    x, held = matrix(6, 32), WeightCodes.of(matrix(48, 32, seed=1))
    other = x.clone()
    other[3:] *= 1e6
    ours = [product8(encode(t, ACTIVATION), held.rows, torch.float32)[:3] for t in (x, other)]
    assert torch.equal(*ours)


def test_result_and_gradients_are_the_plain_form():
    x, weight, bias = matrix(10, 32).requires_grad_(), matrix(48, 32, seed=1).requires_grad_(), matrix(48, seed=2)
    bias.requires_grad_()
    grad = matrix(10, 48, seed=3)
    y = linear8(x, weight, bias, WeightCodes.of(weight))
    y.backward(grad)
    plain, backward = linear8_reference(x.detach(), weight.detach(), bias.detach())
    assert torch.allclose(y, plain, rtol=1e-5, atol=1e-5)
    assert x.grad is not None and weight.grad is not None and bias.grad is not None
    assert torch.allclose(x.grad, decode(encode(grad, GRADIENT)) @ backward, rtol=1e-5, atol=1e-5)
    assert torch.allclose(weight.grad, grad.t() @ x.detach(), rtol=1e-5, atol=1e-5)
    assert torch.allclose(bias.grad, grad.sum(0), rtol=1e-6)
    exact = x.detach() @ weight.detach().t() + bias.detach()
    error = float((plain - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.05, "8 bits round, and not by more than they should"
    wanted = grad @ weight.detach()
    assert 1e-3 < float((x.grad - wanted).norm() / wanted.norm()) < 0.1


def test_a_frozen_weight_costs_no_kept_input():
    x, weight = matrix(10, 32).requires_grad_(), matrix(48, 32, seed=1)
    held = WeightCodes.of(weight)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear8(x, weight, None, held).sum().backward()
    assert saved and all(any(t is kept for kept in (held.columns.codes, held.columns.scales)) for t in saved)
    assert x.grad is not None and x.grad.norm() > 0


def test_which_sizes_and_devices_it_takes():
    assert fits(torch.empty(48, 32)) and not fits(torch.empty(48, 24)) and not fits(torch.empty(40, 32))
    assert "cpu" in (why_not(torch.device("cpu")) or "")


def test_a_gpu_that_is_too_old_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    assert why_not(torch.device("cuda", 0)) == "A100 has compute capability 8.0, and 8-bit floats need 8.9"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert why_not(torch.device("cuda", 0)) is None


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or why_not(torch.device("cuda")) is not None, reason="needs a GPU with 8-bit floats"
)
@pytest.mark.parametrize("kind", [ACTIVATION, GRADIENT])
@pytest.mark.parametrize("tokens", [1, 64, 333])
def test_a_gpu_sums_as_the_plain_form(tokens, kind):
    a = encode(matrix(tokens, 256).cuda(), kind)
    b = encode(matrix(128, 256, seed=1).cuda(), ACTIVATION)
    ours, plain = product8(a, b, torch.bfloat16), product_reference(a, b, torch.float32)
    assert ours.dtype == torch.bfloat16
    assert float((ours.float() - plain).norm() / plain.norm()) < 1e-2
