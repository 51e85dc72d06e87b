"""A quantised base: which layers, exact gradients through it, and how much memory it takes."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.tiny import FAMILIES, build, ragged_samples
from tunesmith.errors import EngineError
from tunesmith.models.forward import LanguageModel
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.models.quantized import QuantizedLinear, dequantize_base, quantize_base, set_compute_dtype
from tunesmith.ops.product import use_fast_linears

IDS = torch.arange(3, 40)[None]
KINDS = [("nf4", True), ("nf4", False), ("int8", False)]


class LowRank(nn.Module):
    """A layer plus a low-rank update in the plain form."""

    def __init__(self, base: nn.Module, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        ins, outs = (base.nx, base.nf) if isinstance(base, Conv1D) else (base.in_features, base.out_features)
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(3, ins, generator=generator).to(dtype) * 0.3)
        self.b = nn.Parameter(torch.randn(outs, 3, generator=generator).to(dtype) * 0.3)

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def adapted(model, dtype):
    """The model with a low-rank update on every inner linear layer; also its embeddings are trained."""
    model = copy.deepcopy(model).to(dtype)
    head = model.get_output_embeddings()
    inner = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D | QuantizedLinear) and m is not head
    ]
    for seed, name in enumerate(inner):
        model.set_submodule(name, LowRank(model.get_submodule(name), seed, dtype))
    model.get_input_embeddings().requires_grad_(True)
    return model


def loss_and_gradients(model, dtype):
    """Weighted cross-entropy of ragged documents, each on its own, by the model as it is."""
    loss = torch.zeros((), dtype=dtype)
    for sample in ragged_samples():
        ids, weights = torch.as_tensor(sample.ids), torch.as_tensor(sample.weights).to(dtype)
        scores = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        loss = loss - (weights[1:] * scores.gather(1, ids[1:, None])[:, 0]).sum()
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_but_the_head_is_quantised(family):
    model = build(family)
    inner = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n != "lm_head"}
    before = model(IDS).logits.detach()
    facts = quantize_base(model, "int8")
    replaced = {n for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert replaced == inner and facts.layers == len(inner) and facts.kept == ("lm_head",)
    assert not any(p.requires_grad for p in model.parameters())
    after = model(IDS).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.05
    LanguageModel(model).verify()


@pytest.mark.parametrize(("kind", "double"), KINDS)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_gradients_are_those_on_the_dequantised_weights(family, dtype, allowed, kind, double):
    quantized = build(family)
    quantize_base(quantized, kind, double)
    plain = copy.deepcopy(quantized)
    dequantize_base(plain)
    assert not any(isinstance(m, QuantizedLinear) for m in plain.modules())
    ours = loss_and_gradients(adapted(quantized, dtype), dtype)
    reference = loss_and_gradients(adapted(plain, dtype), dtype)
    assert ours.keys() == reference.keys() and len(ours) > 10
    for name, expected in reference.items():
        assert expected.norm() > 0
        assert float((ours[name] - expected).norm() / expected.norm()) <= allowed, name


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_as_recipes_attach_it_trains_as_on_the_dequantised_weights(family, dtype, allowed, use_dora):
    results, merged = [], []
    for plain in (False, True):
        model = build(family).to(dtype)
        quantize_base(model, "nf4")
        if plain:
            dequantize_base(model)
        attached = attach_lora(model, LoraSettings(3, 6, use_dora=use_dora), seed=0)
        generator = torch.Generator().manual_seed(1)
        for layer in attached.layers.values():
            layer.lora_B.data = (torch.randn(layer.lora_B.shape, generator=generator) * 0.3).to(dtype)
        results.append(loss_and_gradients(model, dtype))
        merged.append({path: layer.merged_weight.detach() for path, layer in attached.layers.items()})
    ours, reference = results
    assert ours.keys() == reference.keys() and len(ours) > 10
    for name, expected in reference.items():
        assert expected.norm() > 0
        assert float((ours[name] - expected).norm() / expected.norm()) <= allowed, name
    assert all(torch.equal(merged[0][path], weight) for path, weight in merged[1].items())


def test_a_gradient_that_is_zero_is_exactly_zero():
    model = build("llama")
    quantize_base(model, "nf4")
    model = adapted(model, torch.float32)
    for module in model.modules():
        if isinstance(module, LowRank):
            nn.init.zeros_(module.b)
    gradients = loss_and_gradients(model, torch.float32)
    of_a = [g for n, g in gradients.items() if n.endswith(".a")]
    assert len(of_a) == 14 and not any(g.any() for g in of_a)


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_no_weight_is_kept_from_forward_to_backward(kind, double):
    layer = QuantizedLinear(nn.Linear(64, 96), kind, double)
    x = torch.randn(5, 64, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x).sum().backward()
    assert 64 * 96 not in saved
    torch.testing.assert_close(x.grad, layer.dequantized().sum(0).expand(5, 64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 64), (40, 64)])
@pytest.mark.parametrize("layer", [nn.Linear(64, 48), nn.Linear(64, 48, bias=False), Conv1D(48, 64)])
def test_it_computes_as_the_layer_it_stands_for(layer, shape):
    quantized = QuantizedLinear(layer, "nf4")
    assert (quantized.in_features, quantized.out_features) == (64, 48)
    assert quantized.dequantized().shape == (48, 64)
    again = quantized.linear()
    assert type(again) is type(layer) and again.weight.shape == layer.weight.shape
    x = torch.randn(shape)
    torch.testing.assert_close(quantized(x), again(x), rtol=1e-5, atol=1e-5)
    assert quantized.conv1d == isinstance(layer, Conv1D)


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_changing_the_type_of_the_model_leaves_codes_and_scales(kind, double):
    layer = QuantizedLinear(nn.Linear(64, 48), kind, double)
    exact = layer.dequantized(torch.float64)
    model = nn.Sequential(layer).to(torch.bfloat16)
    assert layer.dtype == layer.bias.dtype == layer.dequantized().dtype == torch.bfloat16
    assert model(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(model.double()[0].dequantized(), exact)


def test_autocast_computes_in_its_type_and_gives_gradients_in_that_of_the_input():
    layer = QuantizedLinear(nn.Linear(64, 48), "nf4")
    x = torch.randn(7, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, layer.dequantized().sum(0).expand(7, 64), rtol=0.02, atol=0.02)


def test_sizes_are_measured_on_the_buffers():
    layer = nn.Linear(512, 1024, bias=False)
    count = layer.weight.numel()
    bits = {key: 8 * QuantizedLinear(layer, *key).weight_bytes / count for key in KINDS}
    assert bits["nf4", True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)  # 4.127, and the mean
    assert bits["nf4", False] == 4.5 and bits["int8", False] == 8 + 32 / 512
    model = build("llama")
    whole = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    facts = quantize_base(model, "nf4")
    linear = 4 * facts.weights
    assert facts.other_bytes == whole - linear
    assert facts.bytes + facts.other_bytes == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert facts.bits_per_weight == pytest.approx(4.2, abs=0.1)
    assert "14 linear layers" in facts.note and "lm_head" in facts.note and "double" in facts.note


def test_every_full_weight_is_freed():
    model = build("llama")
    use_fast_linears(model)
    weights = [weakref.ref(m.weight) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert len(weights) == 14
    gc.disable()  # freed by the last reference, not some time later
    try:
        quantize_base(model, "nf4")
        assert not [w for w in weights if w() is not None]
    finally:
        gc.enable()


def test_each_weight_is_freed_before_the_next_layer_is_begun(monkeypatch):
    model = build("llama")
    weights = [weakref.ref(m.weight) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    alive = []
    before = QuantizedLinear.__init__

    def counting(self, *arguments):
        alive.append(sum(w() is not None for w in weights))
        before(self, *arguments)

    monkeypatch.setattr(QuantizedLinear, "__init__", counting)
    quantize_base(model, "nf4")
    assert alive == list(range(14, 0, -1))


def test_what_is_to_be_kept_stays():
    model = build("llama")
    facts = quantize_base(model, "nf4", keep=("1.mlp", "0.self_attn.q_proj", "mlp.down_proj", "attn", "proj"))
    assert facts.kept == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
        "lm_head",
    )
    assert facts.layers == 9


def test_quantising_again_changes_nothing_and_in_another_way_is_refused():
    model = build("llama")
    facts = quantize_base(model, "nf4")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert quantize_base(model, "nf4") == facts
    assert {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)} == layers
    for other in (("int8", True), ("nf4", False)):
        with pytest.raises(EngineError, match="held in nf4 already"):
            quantize_base(model, *other)


def test_a_layer_with_a_forward_of_its_own_is_left():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = build("llama")
    model.model.layers[0].mlp.up_proj = Doubled(32, 48, bias=False)
    assert "model.layers.0.mlp.up_proj" in quantize_base(model, "nf4").kept


def test_nothing_to_quantise_and_damaged_weights_are_told():
    model = build("llama")
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    with pytest.raises(EngineError, match="no linear layer that can be quantised"):
        quantize_base(build("llama"), "nf4", keep=tuple(names))
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(EngineError, match=r"layers\.1\.mlp\.up_proj: the weight holds NaN"):
        quantize_base(model, "nf4")


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_in_the_type_of_its_files_it_is_the_same_model(family, tmp_path):
    build(family).to(torch.bfloat16).save_pretrained(tmp_path)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    wide_facts = quantize_base(wide, "nf4")
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    facts = quantize_base(narrow, "nf4", dtype=torch.float32)
    assert facts == wide_facts
    assert torch.equal(narrow(IDS).logits, wide(IDS).logits)
    expected = wide.state_dict() | dict(wide.named_buffers())
    found = narrow.state_dict() | dict(narrow.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items())


def test_changing_the_type_alone_rounds_what_the_model_computes(tmp_path):
    build("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    weights = {n: p.float() for n, p in model.named_parameters()}
    assert float(model.float().model.embed_tokens.embed_scale) != pytest.approx(32**0.5, rel=1e-5)
    set_compute_dtype(model, torch.float32)
    assert float(model.model.embed_tokens.embed_scale) == pytest.approx(32**0.5, rel=1e-7)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
