"""The matrix product of either library is the same product."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tiny import build
from tunesmith.ops.product import FastLinear, product, use_fast_linears


@pytest.mark.parametrize("rows", [1, 15, 16, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_product_is_that_of_torch(rows, bias, dtype):
    x, weight = torch.randn(rows, 24).to(dtype), torch.randn(10, 24).to(dtype)
    b = torch.randn(10).to(dtype) if bias else None
    torch.testing.assert_close(product(x, weight, b), F.linear(x, weight, b))


def test_transposed_views():
    x, weight = torch.randn(24, 40).t(), torch.randn(24, 10).t()
    torch.testing.assert_close(product(x, weight), x @ weight.t())


def linears(bias: bool = True) -> tuple[nn.Linear, FastLinear]:
    """A linear layer and a fast one with the same weights."""
    plain = nn.Linear(24, 10, bias=bias)
    holder = nn.Sequential(copy.deepcopy(plain))
    use_fast_linears(holder)
    fast = holder[0]
    if not isinstance(fast, FastLinear):
        pytest.skip("this build of torch has no oneDNN")
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 24), (2, 9, 24), (1, 24)])
def test_a_fast_layer_has_the_values_and_gradients_of_a_plain_one(shape, bias):
    plain, fast = linears(bias)
    x, y = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 10)
    mine = x.detach().clone().requires_grad_()
    out, expected = fast(mine), plain(x)
    torch.testing.assert_close(out, expected)
    (out * y).sum().backward()
    (expected * y).sum().backward()
    torch.testing.assert_close(mine.grad, x.grad)
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_gets_no_gradient():
    _, fast = linears()
    fast.requires_grad_(False)
    x = torch.randn(40, 24, requires_grad=True)
    fast(x).sum().backward()
    assert x.grad is not None and fast.weight.grad is None and fast.bias.grad is None


def test_autocast_reaches_a_fast_layer():
    plain, fast = linears()
    x = torch.randn(40, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
        torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0)


def test_a_model_keeps_its_parameters_its_ties_and_its_answers():
    model = build("llama")
    ids = torch.arange(3, 60)[None]
    expected, names = model(ids).logits, [n for n, _ in model.named_parameters()]
    parameters = {n: id(p) for n, p in model.named_parameters()}
    use_fast_linears(model)
    assert [n for n, _ in model.named_parameters()] == names
    assert {n: id(p) for n, p in model.named_parameters()} == parameters
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not any(m.training for m in model.modules())
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_other_layers_are_left_alone():
    for model in (build("gpt2"), build("llama").double(), build("llama").to(torch.bfloat16)):
        before = {n: type(m) for n, m in model.named_modules() if n != "lm_head"}
        use_fast_linears(model)
        assert {n: type(m) for n, m in model.named_modules() if n != "lm_head"} == before
