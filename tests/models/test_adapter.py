"""Adapters on disk: the file contract, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.peft_side import answers, difference, load_plain, plain_adapter, shake
from tests.tiny import build, save_base
from tunesmith.errors import EngineError, VerificationError
from tunesmith.models.adapter import CONFIG, WEIGHTS, load_adapter, save_adapter
from tunesmith.models.lora import Attached, LoraSettings, attach_lora

SETTINGS = LoraSettings(
    4, 8.0, dropout=0.1, use_rslora=True, target_modules=("q_proj", "v_proj"), modules_to_save=("norm",)
)


@pytest.fixture
def saved(tmp_path) -> tuple[Attached, Path, str]:
    attached = attach_lora(build("llama"), SETTINGS, seed=3)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.lora_B.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    digest = save_adapter(tmp_path / "adapter", attached, base="org/base", revision="abc", conv1d=False)
    return attached, tmp_path / "adapter", digest


def test_the_files_are_those_of_peft(saved):
    attached, folder, digest = saved
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    config = json.loads((folder / CONFIG).read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["use_rslora"]) == (4, 8.0, 0.1, True)
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["modules_to_save"] == ["model.norm"]
    assert config["base_model_name_or_path"] == "org/base" and config["revision"] == "abc"
    tensors = load_file(folder / WEIGHTS)
    layers = [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")]
    matrices = {f"base_model.model.{layer}.lora_{ab}.weight" for layer in layers for ab in "AB"}
    assert set(tensors) == matrices | {"base_model.model.model.norm.weight"}
    layer = attached.layers["model.layers.1.self_attn.v_proj"]
    assert torch.equal(tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"], layer.lora_B)
    assert digest == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    attached, folder, digest = saved
    assert save_adapter(tmp_path / "again", attached, base="org/base", revision="abc", conv1d=False) == digest
    assert (tmp_path / "again" / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()


def test_loaded_it_answers_as_before(saved):
    attached, folder, _ = saved
    model = build("llama")
    loaded = load_adapter(model, folder)
    assert loaded.settings == attached.settings
    for name, layer in attached.layers.items():
        assert torch.equal(loaded.layers[name].lora_A, layer.lora_A)
        assert torch.equal(loaded.layers[name].lora_B, layer.lora_B)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "rank"])
def test_an_adapter_that_does_not_fit_is_refused(saved, damage):
    _, folder, _ = saved
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["base_model.model.model.other.weight"] = torch.zeros(1)
    elif damage == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    else:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, "r": 2}))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(VerificationError, match="does not fit this base"):
        load_adapter(build("llama"), folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_a_damaged_file_is_named(saved, name, damage):
    _, folder, _ = saved
    if damage == "gone":
        (folder / name).unlink()
    else:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(EngineError, match=r"adapter: the adapter cannot be read"):
        load_adapter(build("llama"), folder)


OPTIONS = {
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.1\..*(q|up)_proj"},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "one layer by pattern": {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    "exclusions": {"target_modules": "all-linear", "exclude_modules": ["layers.0.mlp.up_proj", "o_proj"]},
    "excluded by regex": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.0.*"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 3}, "use_rslora": True},
    "dora": {"use_dora": True, "lora_dropout": 0.1},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "saved": {"modules_to_save": ["norm", "lm_head"]},
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "rank above the layer": {"r": 40},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_plain_peft_wrote_is_read_and_written_again(family, name, tmp_path):
    if family == "qwen3" and name == "tied":
        pytest.skip("its head is not its embeddings")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **OPTIONS[name]}
    expected = answers(plain_adapter(build(family), tmp_path / "theirs", **options))
    assert difference(answers(build(family)), expected) > 1e-2
    model = build(family)
    attached = load_adapter(model, tmp_path / "theirs")
    assert difference(answers(model), expected) < 1e-5
    save_adapter(tmp_path / "ours", attached, base="", revision=None, conv1d=False)
    theirs, ours = (load_file(tmp_path / side / WEIGHTS) for side in ("theirs", "ours"))
    theirs.pop("base_model.model.lm_head.base_layer.weight", None)  # frozen; of use only where the base was resized
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in theirs)
    assert difference(answers(load_plain(build(family), tmp_path / "ours")), expected) < 1e-5


def test_embeddings_that_peft_saved_because_they_grew_are_read(tmp_path):
    save_base(tmp_path / "base")
    grown = build("llama")
    grown.resize_token_embeddings(310, mean_resizing=False)
    shake(grown.model.embed_tokens)
    grown.name_or_path = str(tmp_path / "base")
    tuned = plain_adapter(grown, tmp_path / "a", r=4, target_modules=["q_proj"])
    assert "base_model.model.model.embed_tokens.weight" in load_file(tmp_path / "a" / WEIGHTS)
    model = build("llama")
    model.resize_token_embeddings(310, mean_resizing=False)
    load_adapter(model, tmp_path / "a")
    assert difference(answers(model), answers(tuned)) < 1e-5


def test_an_adapter_on_embeddings_is_told(tmp_path):
    plain_adapter(build("qwen3"), tmp_path, r=4, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(EngineError, match="not supported: an adapter on embeddings"):
        load_adapter(build("qwen3"), tmp_path)


def test_gpt2_s_transposed_layers_too(tmp_path):
    expected = answers(
        plain_adapter(
            build("gpt2"), tmp_path / "a", r=4, target_modules="all-linear", fan_in_fan_out=True, use_dora=True
        )
    )
    model = build("gpt2")
    assert len(load_adapter(model, tmp_path / "a").layers) == 8
    assert difference(answers(model), expected) < 1e-5


SAVED = {
    "plain": {},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 3.0}, "use_rslora": True},
    "last layers": {"last_layers": 1},
    "head": {"target_modules": ("lm_head",)},
    "norm": {"modules_to_save": ("model.norm",)},
    "own head": {"modules_to_save": ("lm_head",)},
    "own embeddings": {"modules_to_save": ("embed_tokens",)},
    "both as one": {"modules_to_save": ("embed_tokens", "lm_head"), "tie_saved": True},
    "both apart": {"modules_to_save": ("embed_tokens", "lm_head")},
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_plain_peft_answers_as_the_live_model(family, name, tmp_path):
    model = build(family)
    original = answers(model)
    attached = attach_lora(model, LoraSettings(4, 8.0, **SAVED[name]), seed=3)
    shake(model)
    tuned = answers(model)
    assert difference(tuned, original) > 1e-2
    with attached.switched_off():
        assert difference(answers(model), original) < 1e-6
    save_adapter(tmp_path / "a", attached, base="", revision=None, conv1d=False)
    assert difference(answers(load_plain(build(family), tmp_path / "a")), tuned) < 1e-5
    fresh = build(family)
    load_adapter(fresh, tmp_path / "a")
    assert difference(answers(fresh), tuned) < 1e-5


def test_tied_weights_are_trained_apart_as_peft_does_unless_they_are_to_stay_one():
    both = ("embed_tokens", "lm_head")
    model = build("llama")
    attached = attach_lora(model, LoraSettings(4, 8, modules_to_save=both), seed=0)
    assert model.lm_head.weight is not model.model.embed_tokens.weight and not attached.own.tied
    assert not model.config.tie_word_embeddings
    model = build("llama")
    attached = attach_lora(model, LoraSettings(4, 8, modules_to_save=both, tie_saved=True), seed=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight and attached.own.tied
    assert model.config.tie_word_embeddings
    with attached.switched_off():
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "VERA"}, "peft_type: VERA"),
        ({"bias": "all"}, "bias: all"),
        ({"init_lora_weights": "corda"}, "init_lora_weights: corda"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices: \[3\]"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"r": None}, "lacks 'r'"),
    ],
)
def test_what_is_not_supported_is_said(saved, change, words):
    _, folder, _ = saved
    config = {**json.loads((folder / CONFIG).read_text()), **change}
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(EngineError, match=words):
        load_adapter(build("llama"), folder)


def test_a_vocabulary_of_another_size_is_told(tmp_path):
    attached = attach_lora(build("llama"), LoraSettings(4, 8, modules_to_save=("lm_head",)), seed=0)
    save_adapter(tmp_path, attached, base="", revision=None, conv1d=False)
    with pytest.raises(
        VerificationError, match=r"lm_head\.weight has the shape \[300, 32\], the base needs \[310, 32\]"
    ):
        load_adapter(build("llama", vocabulary=310), tmp_path)
