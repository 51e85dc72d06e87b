"""DoRA: its operation against autograd, and its layers against PEFT's, outputs and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.models.peft_side import shake
from tests.tiny import build
from tunesmith.models.lora import LoraLinear, LoraSettings, attach_lora
from tunesmith.ops.dora_linear import dora_linear, dora_reference, row_norms


def inputs(dtype: torch.dtype, shape: tuple[int, ...], bias: bool) -> dict[str, Tensor | None]:
    """Random ones, adapters and magnitudes far from their start."""
    generator = torch.Generator().manual_seed(3)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": random(*shape, 24).requires_grad_(),
        "weight": random(40, 24),
        "bias": random(40) if bias else None,
        "a": random(5, 24).requires_grad_(),
        "b": random(40, 5).requires_grad_(),
        "magnitude": random(40).requires_grad_(),
    }


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(33,), (1,), (2, 17)])
def test_the_fast_form_has_value_and_gradients_of_the_plain_one(dtype, allowed, bias, shape):
    fast, plain = inputs(dtype, shape, bias), inputs(torch.float64, shape, bias)
    mine, reference = dora_linear(scaling=0.7, **fast), dora_reference(scaling=0.7, **plain)  # type: ignore[arg-type]
    assert mine.dtype == dtype and error(mine.double(), reference) <= allowed
    toward = torch.randn(reference.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (mine * toward.to(dtype)).sum().backward()
    (reference * toward).sum().backward()
    for name in ("x", "a", "b", "magnitude"):
        ours, theirs = fast[name].grad, plain[name].grad  # type: ignore[union-attr]
        assert theirs.norm() > 0
        assert error(ours.double(), theirs) <= allowed, name


def test_the_norm_is_a_constant_in_the_backward_pass():
    given = inputs(torch.float64, (9,), True)
    norms = row_norms(given["weight"], given["a"], given["b"], 0.7)  # type: ignore[arg-type]
    assert not norms.requires_grad
    out = dora_linear(scaling=0.7, **given)  # type: ignore[arg-type]
    out.sum().backward()
    with_constant = torch.autograd.grad(
        nn.functional.linear(
            given["x"],
            (given["magnitude"] / norms)[:, None] * (given["weight"] + 0.7 * given["b"] @ given["a"]),
            given["bias"],
        ).sum(),
        [given["a"], given["b"], given["magnitude"]],
    )
    for name, theirs in zip(("a", "b", "magnitude"), with_constant, strict=True):
        assert error(given[name].grad, theirs) <= 1e-12


def test_a_row_of_zeros_stays_zero_and_poisons_nothing():
    given = inputs(torch.float64, (9,), False)
    with torch.no_grad():
        for name in ("weight", "b", "magnitude"):
            given[name][3] = 0
    for form in (dora_linear, dora_reference):
        out = form(scaling=0.7, **given)
        assert not out[:, 3].any() and torch.isfinite(out).all()
        grads = torch.autograd.grad(out.square().sum(), [given["a"], given["b"], given["magnitude"]])
        assert all(torch.isfinite(g).all() for g in grads)


def test_half_precision_keeps_small_updates():
    given = inputs(torch.float32, (64,), True)
    half = {
        k: None if v is None else v.detach().bfloat16() if k in ("x", "weight", "bias") else v for k, v in given.items()
    }
    out = dora_linear(scaling=0.7, **half)
    assert out.dtype == torch.bfloat16
    wide = {k: None if v is None else v.detach().double() for k, v in half.items()}
    reference = dora_reference(scaling=0.7, **wide)
    assert error(out.double(), reference) <= 1e-2


def pair(kind: str, dropout: float) -> tuple[LoraLinear, Any]:
    """The same DoRA layer by us and by PEFT, fp64, away from its start."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    make = (lambda: nn.Linear(24, 40)) if kind == "linear" else (lambda: Conv1D(40, 24))
    base = make().double()
    nn.init.normal_(base.weight)
    twin = make().double()
    twin.load_state_dict(base.state_dict())
    ours = LoraLinear(base, LoraSettings(4, 6.0, dropout=dropout, use_dora=True))
    config = LoraConfig(
        r=4, lora_alpha=6, lora_dropout=dropout, use_dora=True, target_modules=["0"], fan_in_fan_out=kind == "conv1d"
    )
    theirs = get_peft_model(nn.Sequential(twin), config).base_model.model[0]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(ours.lora_A)
    assert torch.allclose(theirs.lora_magnitude_vector["default"].weight, ours.magnitude, rtol=1e-12)
    with torch.no_grad():
        for mine, other in parameters(ours, theirs):
            mine.add_(torch.randn_like(mine), alpha=0.3)
            other.copy_(mine)
    return ours, theirs


def parameters(ours: LoraLinear, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    return [
        (ours.lora_A, theirs.lora_A["default"].weight),
        (ours.lora_B, theirs.lora_B["default"].weight),
        (ours.magnitude, theirs.lora_magnitude_vector["default"].weight),
    ]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("tokens", [2, 50])
def test_a_layer_is_peft_s(kind, dropout, tokens):
    ours, theirs = pair(kind, dropout)
    given = torch.randn(tokens, 24, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        layer.train()
        x = given.clone().requires_grad_()
        torch.manual_seed(11)  # the same draw of dropout
        out = layer(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    (out, dx), (expected, expected_dx) = results
    assert error(out, expected) <= 1e-12 and error(dx, expected_dx) <= 1e-9
    for mine, other in parameters(ours, theirs):
        assert other.grad.norm() > 0 and error(mine.grad, other.grad) <= 1e-9


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_untrained_it_changes_nothing_and_switched_off_it_is_the_base(family):
    model = build(family)
    ids = torch.arange(3, 40)[None]
    expected = model(ids).logits
    attached = attach_lora(model, LoraSettings(4, 8, use_dora=True), seed=0)
    assert all(layer.magnitude is not None for layer in attached.layers.values())
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    shake(model)
    assert not torch.allclose(model(ids).logits, expected, atol=1e-2)
    with attached.switched_off():
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_forward_is_that_of_the_merged_weight_also_while_answering():
    layer, _ = pair("linear", 0.0)
    for tokens in (1, 3, 64):
        for training in (True, False):
            layer.train(training)
            x = torch.randn(tokens, 24, dtype=torch.float64)
            expected = nn.functional.linear(x, layer.merged_weight, layer.base.bias)
            torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_kept_norms_are_made_again_when_the_adapter_changes():
    layer, _ = pair("linear", 0.0)
    layer.eval()
    x = torch.randn(1, 24, dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(layer(x), before)
        layer.lora_B.mul_(3)  # as loading other weights does
        after = layer(x)
    expected = nn.functional.linear(x, layer.merged_weight, layer.base.bias)
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(after, before)
    assert error(after, before) > 1e-3


def test_the_merged_weight_has_the_gradients_of_the_layer():
    """A head with an adapter is used through its merged weight."""
    layer, _ = pair("linear", 0.0)
    x = torch.randn(30, 24, dtype=torch.float64)
    trained = [layer.lora_A, layer.lora_B, layer.magnitude]
    direct = torch.autograd.grad(layer(x).square().sum(), trained)
    merged = torch.autograd.grad(nn.functional.linear(x, layer.merged_weight, layer.base.bias).square().sum(), trained)
    for mine, other in zip(direct, merged, strict=True):
        assert error(mine, other) <= 1e-9


@pytest.mark.parametrize(("family", "allowed"), [("gpt2", 1e-9), ("llama", 1e-5), ("gemma3", 1e-5)])
@pytest.mark.parametrize("saved", [[], ["lm_head"]])
def test_every_gradient_of_a_model_is_peft_s(family, allowed, saved, tmp_path):
    """fp64, but norms of Llama and Gemma compute in fp32 whatever they are given."""
    from tests.models.peft_side import IDS, plain_adapter
    from tunesmith.models.adapter import adapter_tensors, load_adapter

    options = {"use_dora": True, "target_modules": "all-linear", "fan_in_fan_out": family == "gpt2"}
    theirs = plain_adapter(build(family).double(), tmp_path, r=4, modules_to_save=saved or None, **options)
    ours = build(family).double()
    attached = load_adapter(ours, tmp_path)
    for model in (ours, theirs):
        logits = model(IDS).logits
        nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:]).backward()
    expected = {
        name.replace(".default", "").replace(".modules_to_save", "").removesuffix(".weight"): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    live = {name.removesuffix(".weight"): t for name, t in tensors_with_gradients(attached).items()}
    assert live.keys() == expected.keys() and len(adapter_tensors(attached)) == len(live)
    for name, grad in live.items():
        assert expected[name].norm() > 0 and error(grad, expected[name]) <= allowed, name


def tensors_with_gradients(attached: Any) -> dict[str, Tensor]:
    """Gradients under PEFT's names."""
    found = {f"base_model.model.{name}": p.grad for name, p in attached.own.tensors().items()}
    for path, layer in attached.layers.items():
        for name, p in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B), ("lora_magnitude_vector", layer.magnitude)):
            found[f"base_model.model.{path}.{name}"] = p.grad
    return found
