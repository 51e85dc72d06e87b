"""Layers that train in 8 bits: which they are, what they change, and that they leave no trace."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import build, ragged_samples
from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fp8 import Fp8Linear, fp8_linears
from tunesmith.models.lora import LoraSettings, attach_lora, trainable_parameters
from tunesmith.training.plan import TrainingPlan
from tunesmith.training.step import accumulate_gradients, mean_loss

PLAN = TrainingPlan(steps=1, batch_size=8, learning_rate=1e-3, seed=0)
ROWS = ragged_samples()


def tuned(method: str = "lora", **settings: object) -> LanguageModel:
    model = build("qwen3")
    torch.manual_seed(1)
    if method == "lora":
        for layer in attach_lora(model, LoraSettings(4, 8, **settings), seed=0).layers.values():  # type: ignore[arg-type]
            torch.nn.init.normal_(layer.lora_B, std=0.1)
    return LanguageModel(model.train())


def gradients(model: LanguageModel) -> tuple[float, dict[str, torch.Tensor]]:
    model.model.train().zero_grad()
    loss = accumulate_gradients(model, ROWS, PLAN).read().mean
    return loss, {n: p.grad.clone() for n, p in trainable_parameters(model.model).items() if p.grad is not None}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_rounds_to_eight_bits_and_nothing_else_changes(method):
    model = tuned(method)
    loss, plain = gradients(model)
    validated = mean_loss(model, ROWS)
    state = list(model.model.state_dict())
    with fp8_linears(model.model) as layers:
        assert len(layers.replaced) == 14 and layers.kept == ("lm_head",)
        assert all(isinstance(model.model.get_submodule(name), Fp8Linear) for name in layers.replaced)
        rounded_loss, rounded = gradients(model)
        assert mean_loss(model, ROWS) == pytest.approx(validated, rel=1e-6), "what is validated is the model itself"
        assert list(model.model.state_dict()) == state
    assert not any(isinstance(module, Fp8Linear) for module in model.model.modules())
    assert rounded_loss != loss and rounded_loss == pytest.approx(loss, rel=0.05)
    assert rounded.keys() == plain.keys()
    for name, gradient in plain.items():
        assert float((rounded[name] - gradient).norm()) < 0.5 * float(gradient.norm()), name
    after, again = gradients(model)
    assert after == pytest.approx(loss, rel=1e-6)
    assert all(torch.allclose(again[n], plain[n], rtol=1e-4, atol=1e-6) for n in plain)


def test_a_trained_weight_is_encoded_as_it_is_now():
    layer = Fp8Linear(32, 32, bias=False).train()
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.allclose(layer(x), 2 * before, rtol=1e-5)


def test_a_frozen_weight_is_encoded_once(monkeypatch):
    layer = Fp8Linear(32, 32, bias=False).train()
    layer.weight.requires_grad_(False)
    layer.hold_codes()
    x = torch.randn(20, 32)
    first = layer(x)
    assert list(layer.state_dict()) == ["weight"]
    monkeypatch.setattr("tunesmith.models.fp8.WeightCodes.of", lambda weight: pytest.fail("encoded again"))
    assert torch.equal(layer(x), first)


def test_dora_and_layers_of_other_sizes_stay_as_they_are():
    model = tuned(use_dora=True)
    with pytest.raises(EngineError, match="8-bit") as caught, fp8_linears(model.model):
        pass
    assert "bf16" in str(caught.value)
    other = build("llama")
    other.model.layers[0].mlp.up_proj = torch.nn.Linear(32, 40, bias=False)
    with fp8_linears(other) as layers:
        assert "model.layers.0.mlp.up_proj" in layers.kept and "model.layers.1.mlp.up_proj" in layers.replaced


def test_an_error_inside_leaves_the_plain_layers():
    model = tuned()
    with pytest.raises(KeyError), fp8_linears(model.model):
        raise KeyError
    assert not any(isinstance(module, Fp8Linear) for module in model.model.modules())
