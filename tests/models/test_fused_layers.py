"""Fused layers give what the layers they replace give, wherever they apply, and step aside wherever they do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.tiny import build
from tunesmith.models import fused_layers
from tunesmith.models.forward import LanguageModel
from tunesmith.models.fused_layers import FusedLayer, use_fused_layers
from tunesmith.models.lora import LoraLinear, LoraSettings, attach_lora
from tunesmith.ops import decoder_layer, pointwise_native
from tunesmith.ops.packed_attention import Packing

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
FUSABLE = ("llama", "qwen3", "mistral", "qwen2", "wide")
LENGTHS = (1, 23, 7, 40, 12)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make(family: str) -> Any:
    torch.manual_seed(0)
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)).eval()
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        return model
    if family == "wide":  # heads of a size that attention by document takes
        return MistralForCausalLM(MistralConfig(**SIZES, head_dim=16, sliding_window=5)).eval()
    return build(family)


def adapt(model: Any, method: str) -> Any:
    """The model with what `method` trains: full, lora, some layers only, or mixed ranks."""
    if method == "full":
        return model.requires_grad_(True)
    targets: Any = ("q_proj", "v_proj", "down_proj") if method == "some" else "all-linear"
    torch.manual_seed(1)
    for layer in attach_lora(model, LoraSettings(4, 8, target_modules=targets), seed=0).layers.values():
        nn.init.normal_(layer.lora_B, std=0.1)
    if method == "upper":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.1" in name and "lora" in name)
    return model


def loss_and_gradients(model: Any, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(3, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    language = LanguageModel(model)
    with language.packed():
        hidden = language.hidden(ids, Packing.of(LENGTHS))
        assert hidden.dtype == dtype
        loss = (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=dtype).view(hidden.shape)).sum()
        loss.backward()  # in the context, as a recomputed layer attends again
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), grads


@pytest.fixture
def counted(monkeypatch):
    """How often the fused steps ran."""
    calls = []

    def count(*args: Any) -> Tensor:
        calls.append(1)
        return decoder_layer.attention_output(*args)

    monkeypatch.setattr(fused_layers, "attention_output", count)
    return calls


def float_means_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of `transformers` round to fp32; where they do not, only our arithmetic remains to differ."""
    to = torch.Tensor.to

    def wide(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self if args == (torch.float32,) and self.dtype == torch.float64 else to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", wide)


@pytest.mark.parametrize("method", ["full", "lora", "some", "upper"])
@pytest.mark.parametrize("family", FUSABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_every_gradient_are_those_of_the_plain_layers(family, method, dtype, counted, monkeypatch):
    plain = adapt(make(family).to(dtype), method)
    fused = copy.deepcopy(plain)
    assert len(use_fused_layers(fused)) == 2
    del counted[:]
    exact = plain.double()
    float_means_double(monkeypatch)
    hidden, grads = loss_and_gradients(fused, dtype)
    assert len(counted) == 2
    expected, wanted = loss_and_gradients(exact, torch.float64)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    assert float((hidden - expected).norm() / expected.norm()) < tolerance
    assert grads.keys() == wanted.keys() and grads
    for name, grad in grads.items():
        if wanted[name].any():
            assert float((grad - wanted[name]).norm() / wanted[name].norm()) < tolerance, name
        else:
            assert not grad.any(), name


@pytest.mark.parametrize("family", FUSABLE)
def test_with_narrow_products_it_is_no_further_from_the_truth_than_the_plain_layers(family, counted, monkeypatch):
    plain = adapt(make(family), "full")
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    use_fused_layers(fused)
    del counted[:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, our_grads = loss_and_gradients(fused, torch.float32)
        assert len(counted) == 2
        theirs, their_grads = loss_and_gradients(plain, torch.float32)
    float_means_double(monkeypatch)
    truth, true_grads = loss_and_gradients(exact, torch.float64)
    assert 0 < float((ours - truth).norm()) < 1.5 * float((theirs - truth).norm())

    def off(grads: dict[str, Tensor]) -> float:
        return sum(float((grads[name] - true).norm() / true.norm()) for name, true in true_grads.items())

    assert off(our_grads) < 1.5 * off(their_grads)


def test_names_parameters_and_kinds_stay():
    model = adapt(make("qwen3"), "lora")
    names, ids = list(model.state_dict()), {n: id(p) for n, p in model.named_parameters()}
    paths, original = [n for n, _ in model.named_modules()], type(model.model.layers[0])
    assert use_fused_layers(model) == ("model.layers.0", "model.layers.1")
    assert list(model.state_dict()) == names and [n for n, _ in model.named_modules()] == paths
    assert {n: id(p) for n, p in model.named_parameters()} == ids
    assert all(isinstance(layer, original) and isinstance(layer, FusedLayer) for layer in model.model.layers)
    assert use_fused_layers(model) == ()


def test_adapters_attached_afterwards_are_seen(counted):
    before, after = adapt(make("llama"), "lora"), make("llama")
    use_fused_layers(before)
    use_fused_layers(after)
    adapt(after, "lora")
    del counted[:]
    results = [loss_and_gradients(m, torch.float32) for m in (before, after)]
    assert len(counted) == 4 and torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(g, results[1][1][n]) for n, g in results[0][1].items())


IDS = torch.arange(3, 43)[None]


def steps_aside(model: Any, counted: list[int], ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    del counted[:]
    out = model(ids, use_cache=False, **kwargs).logits
    assert not counted
    return out


def test_a_switched_off_adapter_is_the_base(counted):
    model = make("llama")
    expected = model(IDS).logits
    adapt(model, "lora")
    use_fused_layers(model)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.enabled = False
    assert torch.equal(steps_aside(model, counted), expected)


def test_it_steps_aside_for_dropout_hooks_precision_and_odd_modules(counted):
    def fresh() -> Any:
        model = adapt(make("llama"), "lora")
        use_fused_layers(model)
        return model

    model = fresh()
    del counted[:]
    model(IDS, use_cache=False)
    assert len(counted) == 2  # what follows is not vacuous
    steps_aside(model, counted, IDS[:, :5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps_aside(model, counted)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.dropout = 0.5
    model(IDS, use_cache=False)  # in evaluation dropout does nothing
    assert len(counted) == 2
    steps_aside(model.train(), counted)

    model, seen = fresh(), []
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda *_: seen.append(1))
    steps_aside(model, counted)
    assert len(seen) == 2

    model = fresh()
    for layer in model.model.layers:
        layer.mlp.up_proj = nn.Sequential(layer.mlp.up_proj)
    steps_aside(model, counted)
    steps_aside(fresh().to(torch.bfloat16), counted)


def test_other_models_are_left_alone():
    for family in ("gemma", "gemma2", "gemma3", "gpt2"):
        assert use_fused_layers(build(family)) == ()
    assert use_fused_layers(build("llama").to(torch.bfloat16)) == ()


def test_a_layer_that_computes_something_else_is_left_alone():
    model = make("llama")
    kind = type(model.model.layers[0])
    odd = type(kind.__name__, (kind,), {"forward": lambda self, x, **k: 2 * kind.forward(self, x, **k)})
    odd.__module__ = kind.__module__
    for layer in model.model.layers:
        layer.__class__ = odd
    assert use_fused_layers(model) == ()


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_plain_inference_batches_masks_and_caches(family, counted):
    model = make(family)
    fused = copy.deepcopy(model)
    use_fused_layers(fused)
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0  # padded on the left
    del counted[:]
    for m in (None, mask):
        ours, theirs = (x(ids, attention_mask=m, use_cache=False).logits for x in (fused, model))
        torch.testing.assert_close(ours[:, 6:], theirs[:, 6:], rtol=1e-4, atol=1e-4)
    assert len(counted) == 4
    del counted[:]
    ours, theirs = (
        x.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0) for x in (fused, model)
    )
    assert torch.equal(ours, theirs) and not counted


def test_hidden_states_can_still_be_asked_for():
    model = make("qwen3")
    fused = copy.deepcopy(model)
    use_fused_layers(fused)
    ours, theirs = (m(IDS, output_hidden_states=True, use_cache=False).hidden_states for m in (fused, model))
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_a_layer_gives_the_same_bits(reentrant, counted):
    model = adapt(make("wide"), "lora").train()
    use_fused_layers(model)
    model.enable_input_require_grads()
    expected = loss_and_gradients(model, torch.float32)
    kept = {n: g.clone() for n, g in expected[1].items()}
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    del counted[:]
    hidden, grads = loss_and_gradients(model, torch.float32)
    assert len(counted) == 4
    assert torch.equal(hidden, expected[0]) and all(torch.equal(grads[n], g) for n, g in kept.items())


def test_without_a_compiler_the_result_is_the_same(monkeypatch):
    model = adapt(make("wide"), "lora")
    use_fused_layers(model)
    hidden, grads = loss_and_gradients(model, torch.float32)
    kept = {n: g.clone() for n, g in grads.items()}
    model.zero_grad()
    monkeypatch.setattr(pointwise_native, "library", lambda: None)
    again, others = loss_and_gradients(model, torch.float32)
    torch.testing.assert_close(again, hidden, rtol=1e-4, atol=1e-4)
    for name, grad in kept.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-3, atol=1e-3)
