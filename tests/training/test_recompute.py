"""Layers computed again give the same bits, and keep less."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import build, ragged_samples
from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import use_fused_layers
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.training.batching import collate
from tunesmith.training.objectives import cross_entropy
from tunesmith.training.recompute import recompute_layers


def tunable(family: str, dropout: float = 0.0, fused: bool = False) -> LanguageModel:
    model = build(family)
    attached = attach_lora(model, LoraSettings(4, 8, dropout=dropout), seed=0)
    torch.manual_seed(1)
    for layer in attached.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    if fused:
        assert use_fused_layers(model)
    return LanguageModel(model)


def gradients(model: LanguageModel, layers: tuple[int, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients, and how many numbers autograd kept."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    model.model.train()
    torch.manual_seed(5)
    batch = collate(ragged_samples())
    with model.packed(), recompute_layers(model.model, layers):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = cross_entropy(model, batch).loss
        loss.backward()
    found = {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}
    for parameter in model.model.parameters():
        parameter.grad = None
    return loss.detach(), found, kept


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("family", "dropout"), [("llama", 0.3), ("gemma3", 0.0), ("gpt2", 0.3), ("qwen3", 0.0)])
def test_gradients_are_the_same_bits(family: str, dropout: float, layers: tuple[int, ...]) -> None:
    model = tunable(family, dropout)
    loss, plain, kept = gradients(model, ())
    again, recomputed, less = gradients(model, layers)
    assert torch.equal(loss, again)
    assert plain.keys() == recomputed.keys() and len(plain) > 10
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert any(bool(g.any()) for g in plain.values())
    assert less < kept


def test_dropout_is_drawn() -> None:
    model = tunable("llama", 0.3)
    _, first, _ = gradients(model, (0, 1))
    torch.manual_seed(6)
    batch = collate(ragged_samples())
    with model.packed(), recompute_layers(model.model, (0, 1)):
        cross_entropy(model, batch).loss.backward()
    assert any(not torch.equal(p.grad, first[n]) for n, p in model.model.named_parameters() if p.grad is not None)


class Shaking(torch.nn.Module):
    """As the routers of some experts do: no dropout, and still other numbers each time."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.input_jitter_noise = inner, 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = 1 - self.input_jitter_noise, 1 + self.input_jitter_noise
        return self.inner(x * torch.empty_like(x).uniform_(low, high) if self.training else x)


def test_noise_that_is_no_dropout_is_the_same_again() -> None:
    model = tunable("llama")
    layer = model.model.model.layers[1]
    assert not model.draws_chance
    layer.mlp = Shaking(layer.mlp)
    assert model.draws_chance
    loss, plain, _ = gradients(model, ())
    again, recomputed, _ = gradients(model, (0, 1))
    assert torch.equal(loss, again) and all(torch.equal(plain[name], recomputed[name]) for name in plain)
    layer.mlp.input_jitter_noise = 0.0
    assert not model.draws_chance


def test_fused_layers_can_be_computed_again() -> None:
    model = tunable("llama", fused=True)
    loss, plain, kept = gradients(model, ())
    again, recomputed, less = gradients(model, (0, 1))
    assert torch.equal(loss, again) and less < kept
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_afterwards_the_model_is_as_it_was() -> None:
    model = tunable("llama")
    layer = model.model.model.layers[0]
    with recompute_layers(model.model, [0]):
        assert layer.gradient_checkpointing and not model.model.model.layers[1].gradient_checkpointing
    assert not layer.gradient_checkpointing
    with pytest.raises(ZeroDivisionError), recompute_layers(model.model, [0]):
        raise ZeroDivisionError
    assert not layer.gradient_checkpointing


def test_a_layer_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(EngineError, match="no layer 2"),
        recompute_layers(tunable("llama").model, [0, 2]),
    ):
        pass


def test_layers_without_the_door_are_refused() -> None:
    model = build("llama")
    model.model.layers[1] = torch.nn.Identity()
    with pytest.raises(EngineError, match="cannot be computed again"), recompute_layers(model, [1]):
        pass
