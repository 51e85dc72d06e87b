"""Bottleneck adapters: where they go, that they change nothing at first, exact gradients, and their folder."""

from __future__ import annotations

import copy
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM, PhiConfig, PhiForCausalLM

from tests.tiny import FAMILIES, build
from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models.adapter import CONFIG, WEIGHTS
from tunesmith.models.bottleneck import Bottleneck, attach_bottleneck, load_bottleneck, output_modules
from tunesmith.models.forward import LanguageModel
from tunesmith.models.quantized import dequantize_base, quantize_base
from tunesmith.recipe.schema import Method

IDS = torch.arange(3, 40)[None]


def base_of(model):
    return SimpleNamespace(model=model, name="org/base", revision="abc", folder=None)


def method(**settings):
    return Method(type="bottleneck", **{"bottleneck_size": 6, **settings})


def noisy(tuning, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuning.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return tuning


@pytest.mark.parametrize("family", FAMILIES)
def test_one_behind_attention_and_one_behind_the_mlp_of_every_layer(family):
    model = build(family)
    before = model(IDS).logits
    tuning = attach_bottleneck(base_of(model), method(), seed=0)
    ends = ("attn.c_proj", "mlp.c_proj") if family == "gpt2" else ("self_attn.o_proj", "mlp.down_proj")
    stem = "transformer.h" if family == "gpt2" else "model.layers"
    assert list(tuning.layers) == [f"{stem}.{i}.{end}" for i in (0, 1) for end in ends]
    assert torch.equal(model(IDS).logits, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(tuning.trained()) and len(trained) == 4 * 4
    noisy(tuning)
    LanguageModel(model).verify()
    after = model(IDS).logits
    assert not torch.allclose(after, before, atol=0.1)
    with tuning.enabled(False):
        assert torch.equal(model(IDS).logits, before)
        with tuning.enabled(True):
            assert torch.equal(model(IDS).logits, before)
    assert torch.equal(model(IDS).logits, after)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_are_those_of_the_formula(family):
    """Against a copy whose sub-blocks are changed by hooks, in fp64."""
    model = build(family).double()
    plain = copy.deepcopy(model).requires_grad_(False)
    tuning = noisy(attach_bottleneck(base_of(model), method(), seed=0))
    copies = {name: value.detach().clone().requires_grad_() for name, value in tuning.trained().items()}

    def change(path):
        down, down_bias, up, up_bias = (copies[f"{path}.{n}"] for n in ("down", "down_bias", "up", "up_bias"))
        return lambda module, args, h: h + F.gelu(h @ down.T + down_bias) @ up.T + up_bias

    for path in tuning.layers:
        plain.get_submodule(path).register_forward_hook(change(path))
    losses = [m(IDS, labels=IDS).loss for m in (model, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    for name, parameter in tuning.trained().items():
        expected = copies[name].grad
        assert expected.norm() > 0
        assert float((parameter.grad - expected).norm() / expected.norm()) <= 1e-9, name


def small(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "mixture":
        experts = {"num_local_experts": 3, "num_experts_per_tok": 1, "num_key_value_heads": 2}
        return MixtralForCausalLM(MixtralConfig(**sizes, **experts, intermediate_size=24)).eval()
    if kind == "bare layers":
        return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64)).eval()
    return PhiForCausalLM(PhiConfig(**sizes, intermediate_size=24)).eval()


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("mixture", ("self_attn.o_proj", "mlp")),  # no layer gives the result: experts are weighted and summed
        ("bare layers", ("self_attn.out_proj", "fc2")),  # the MLP is no module
        ("parallel", ("self_attn.dense", "mlp.fc2")),  # attention and MLP side by side
    ],
)
def test_places_are_found_by_what_is_returned(kind, ends):
    model = small(kind)
    model.train()
    with torch.no_grad():
        found = output_modules(model, ["model.decoder.layers.1" if kind == "bare layers" else "model.layers.1"])
    assert tuple(path.partition("layers.1.")[2] for path in found) == ends
    assert model.training and not any(m._forward_hooks for m in model.modules())
    model.eval()
    before = model(IDS).logits
    tuning = attach_bottleneck(base_of(model), method(), seed=0)
    assert len(tuning.layers) == 4 and torch.equal(model(IDS).logits, before)
    assert not torch.equal(noisy(tuning) and model(IDS).logits, before)


def test_only_the_last_layers():
    model = build("llama")
    tuning = attach_bottleneck(base_of(model), method(last_layers=1), seed=0)
    assert list(tuning.layers) == ["model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"]
    with pytest.raises(RecipeError, match=r"method\.last_layers: the base has 2 layers, not 3"):
        attach_bottleneck(base_of(build("llama")), method(last_layers=3), seed=0)


def test_wider_than_the_model_is_refused():
    with pytest.raises(RecipeError, match=r"method\.bottleneck_size: a bottleneck of 33 is wider[\s\S]*1 to 32"):
        attach_bottleneck(base_of(build("llama")), method(bottleneck_size=33), seed=0)


def test_initialisation_follows_the_seed_and_leaves_the_random_state():
    models = [build("llama") for _ in range(3)]
    state = torch.random.get_rng_state()
    first, again, other = (
        attach_bottleneck(base_of(m), method(), seed=s).trained() for m, s in zip(models, (1, 1, 2), strict=True)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "model.layers.0.mlp.down_proj.down"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert first[name].any() and not first["model.layers.0.mlp.down_proj.up"].any()


def test_dropout_is_on_in_training_only():
    model = build("llama")
    noisy(attach_bottleneck(base_of(model), method(dropout=0.5), seed=0))
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    assert LanguageModel(model).draws_chance
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


def test_adapters_of_a_half_precision_base_are_fp32():
    model = build("llama").to(torch.bfloat16)
    tuning = noisy(attach_bottleneck(base_of(model), method(), seed=0))
    assert {p.dtype for p in tuning.trained().values()} == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16


def test_on_a_quantised_base_they_train_as_on_the_dequantised_one():
    model = build("llama").double()
    quantize_base(model, "nf4")
    plain = copy.deepcopy(model)
    dequantize_base(plain)
    tunings = [noisy(attach_bottleneck(base_of(m), method(), seed=0)) for m in (model, plain)]
    for m in (model, plain):
        m(IDS, labels=IDS).loss.backward()
    for name, parameter in tunings[0].trained().items():
        expected = tunings[1].trained()[name].grad
        assert float((parameter.grad - expected).norm() / expected.norm()) <= 1e-9, name


@pytest.mark.parametrize("saved", [[], ["norm", "lm_head"], ["embed_tokens", "lm_head"]])
def test_loaded_it_answers_as_before(saved, tmp_path):
    model = build("llama")
    tuning = noisy(attach_bottleneck(base_of(model), method(last_layers=1, dropout=0.1, modules_to_save=saved), seed=0))
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == (saved != ["norm", "lm_head"])
    assert (
        len({id(p) for p in tuning.trained().values()})
        == len(tuning.trained())
        == 8 + len(saved) - (tied and len(saved) == 2)
    )
    expected = model(IDS).logits
    digest = tuning.save(tmp_path, base_of(model))
    assert digest == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    fresh = build("llama")
    before = fresh(IDS).logits
    loaded = load_bottleneck(base_of(fresh), tmp_path)
    assert torch.equal(fresh(IDS).logits, expected) and not torch.equal(before, expected)
    assert (loaded.size, loaded.dropout) == (6, 0.1)
    assert loaded.trained().keys() == tuning.trained().keys()
    with loaded.enabled(False):
        assert torch.equal(fresh(IDS).logits, before)
    assert loaded.save(tmp_path / "again", base_of(fresh)) == digest


def test_the_folder_says_that_it_is_of_a_kind_of_our_own(tmp_path):
    tuning = attach_bottleneck(base_of(build("llama")), method(), seed=0)
    assert tuning.kind == "bottleneck"
    tuning.save(tmp_path, base_of(None))
    assert json.loads((tmp_path / CONFIG).read_text())["peft_type"] == "TUNESMITH_BOTTLENECK"


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "path"])
def test_an_adapter_of_another_base_is_refused(damage, tmp_path):
    attach_bottleneck(base_of(build("llama")), method(), seed=0).save(tmp_path, base_of(None))
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.0.mlp.down_proj.up"
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["model.layers.0.mlp.up_proj.up"] = torch.zeros(1)
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    else:
        config = json.loads((tmp_path / CONFIG).read_text())
        config["modules"][0] = "model.layers.7.mlp"
        (tmp_path / CONFIG).write_text(json.dumps(config))
    save_file(tensors, tmp_path / WEIGHTS)
    model = build("llama")
    with pytest.raises(VerificationError, match="does not fit this base"):
        load_bottleneck(base_of(model), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "LORA"}, "of type LORA"),
        ({"activation": "tanh"}, "'tanh' is not known"),
        ({"bottleneck_size": "wide"}, "configuration is damaged"),
        ({"modules": None}, "configuration is damaged"),
    ],
)
def test_a_configuration_that_is_not_ours_is_told(change, words, tmp_path):
    attach_bottleneck(base_of(build("llama")), method(), seed=0).save(tmp_path, base_of(None))
    config = json.loads((tmp_path / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(EngineError, match=words):
        load_bottleneck(base_of(build("llama")), tmp_path)


def test_a_sub_block_that_returns_no_single_result_is_refused():
    class Odd(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            out, weights = self.inner(*args, **kwargs)
            return 2 * out, weights

    model = build("llama")
    model.model.layers[0].self_attn = Odd(model.model.layers[0].self_attn)
    with pytest.raises(EngineError, match="find no place"):
        attach_bottleneck(base_of(model), method(), seed=0)
    assert not any(isinstance(m, Bottleneck) for m in model.modules())
