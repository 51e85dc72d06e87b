"""Which modules get an adapter, what it adds, and what is said where it cannot be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.tiny import FAMILIES, build
from tunesmith.errors import RecipeError
from tunesmith.models.lora import LoraLinear, LoraSettings, attach_lora, trainable_parameters

FAMILY_TARGETS = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
}
IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_layer_but_the_head(family):
    model = build(family)
    attached = attach_lora(model, LoraSettings(4, 8), seed=0)
    ends = {name.rpartition(".")[2] for name in attached.layers}
    assert ends == FAMILY_TARGETS.get(family, FAMILY_TARGETS["llama"])
    assert len(attached.layers) == 2 * (4 if family == "gpt2" else 7)
    assert not isinstance(model.get_output_embeddings(), LoraLinear)
    trained = trainable_parameters(model)
    assert {name.rpartition(".")[2] for name in trained} == {"lora_A", "lora_B"}
    assert len(trained) == 2 * len(attached.layers)
    assert all(model.get_submodule(name) is layer for name, layer in attached.layers.items())


def test_short_names_stand_for_all_linear_only_where_they_mean_the_same():
    short = attach_lora(build("llama"), LoraSettings(4, 8), seed=0).settings.target_modules
    assert set(short) == FAMILY_TARGETS["llama"]
    model = build("llama")
    # A head whose path ends like an adapted module: the short name would mean it too.
    model.v_proj, model.lm_head = model.lm_head, None
    model.get_output_embeddings = lambda: model.v_proj
    explicit = attach_lora(model, LoraSettings(4, 8), seed=0).settings.target_modules
    assert "v_proj" not in explicit and "model.layers.0.self_attn.v_proj" in explicit


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_adapter_changes_nothing(family):
    model = build(family)
    expected = model(IDS).logits
    attach_lora(model, LoraSettings(4, 8), seed=0)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_initialisation_follows_the_seed_and_leaves_the_random_state():
    models = [build("llama") for _ in range(3)]
    state = torch.random.get_rng_state()
    first, again, other = (
        attach_lora(m, LoraSettings(4, 8), seed=s).layers for m, s in zip(models, (1, 1, 2), strict=True)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    name = next(iter(first))
    assert torch.equal(first[name].lora_A, again[name].lora_A)
    assert not torch.equal(first[name].lora_A, other[name].lora_A)
    assert not first[name].lora_B.any()
    bound = 1 / math.sqrt(first[name].lora_A.shape[1])  # Kaiming uniform with a = √5
    assert 0.8 * bound < float(first[name].lora_A.detach().abs().max()) <= bound


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forward_is_that_of_the_merged_weight(family):
    model = build(family)
    for layer in attach_lora(model, LoraSettings(4, 6, use_rslora=True), seed=0).layers.values():
        assert layer.scaling == 6 / math.sqrt(4)
        nn.init.normal_(layer.lora_B, std=0.1)
        for tokens in (1, 3, 64):  # few tokens take the plain form, many the merged one
            x = torch.randn(tokens, layer.weight.shape[1])
            expected = nn.functional.linear(x, layer.merged_weight, layer.base.bias)
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_switched_off_it_is_the_base():
    model = build("llama")
    expected = model(IDS).logits
    for layer in attach_lora(model, LoraSettings(4, 8), seed=0).layers.values():
        nn.init.normal_(layer.lora_B)
        layer.enabled = False
    assert torch.equal(model(IDS).logits, expected)


def test_dropout_is_on_in_training_only():
    model = build("llama")
    (layer, *_) = attach_lora(model, LoraSettings(4, 8, dropout=0.5), seed=0).layers.values()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(9, 32)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)  # the update is unbiased
    layer.eval()
    torch.testing.assert_close(mean, layer(x), rtol=0.2, atol=0.4)


def test_an_adapter_of_a_bf16_base_is_fp32_and_its_output_bf16():
    model = build("llama").to(torch.bfloat16)
    (layer, *_) = attach_lora(model, LoraSettings(4, 8), seed=0).layers.values()
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    assert layer(torch.randn(9, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.merged_weight.dtype == torch.bfloat16


def test_modules_to_save_train_weights_of_their_own():
    model = build("llama")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    settings = LoraSettings(4, 8, target_modules=("q_proj",), modules_to_save=("lm_head",))
    attached = attach_lora(model, settings, seed=0)
    assert list(attached.saved) == ["lm_head"]
    assert model.lm_head.weight.requires_grad and not model.model.embed_tokens.weight.requires_grad
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LoraSettings(4, 8, target_modules=("q_prj",)), r"method\.target_modules: .*'q_prj'[\s\S]*q_proj"),
        (LoraSettings(4, 8, target_modules=("embed_tokens",)), "no module 'embed_tokens' that can be adapted"),
        (LoraSettings(4, 8, modules_to_save=("lm_hed",)), r"method\.modules_to_save: [\s\S]*'lm_hed'[\s\S]*lm_head"),
        (LoraSettings(17, 8), r"method\.rank: rank 17 is larger [\s\S]*at most 16"),
        (LoraSettings(4, 8, target_modules=()), "no module of the base can be adapted"),
    ],
)
def test_what_cannot_be_adapted_is_told(settings, words):
    with pytest.raises(RecipeError, match=words):
        attach_lora(build("llama"), settings, seed=0)
