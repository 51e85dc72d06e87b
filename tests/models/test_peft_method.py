"""Methods of the peft library by name: each installed one trains, saves and loads, or is refused with a reason."""

from __future__ import annotations

import hashlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.tiny import build
from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models.adapter import CONFIG, WEIGHTS
from tunesmith.models.forward import LanguageModel
from tunesmith.models.peft_method import attach_peft, load_peft, peft_types
from tunesmith.models.quantized import quantize_base
from tunesmith.ops.product import use_fast_linears
from tunesmith.recipe.schema import Method

IDS = torch.arange(3, 40)[None]

SMALL = {
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "MISS": {"r": 8},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [5, 7]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 50},
}
"""Options for types whose defaults are too large for 32 hidden units, or that cannot do without any."""

REFUSED = {
    **dict.fromkeys(
        ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
        "learnt tokens or states before each text",
    ),
    **dict.fromkeys(("ADALORA", "POLY", "SHADOW", "XLORA"), "something around each forward pass"),
    "ADAPTION_PROMPT": "attention of its own",
    "LILY": "logits of the packed computation differ",  # its router looks at the mean over a whole row
    "TRAINABLE_TOKENS": "logits of the packed computation differ",  # with a tied head, which changes as well
}


def base_of(model):
    return SimpleNamespace(model=model, name="org/base", revision="abc", folder=None)


def method(kind, options=None, **settings):
    return Method(type="peft", peft_type=kind, peft_options=SMALL.get(kind, {}) | (options or {}), **settings)


def train(model, tuning, steps=2):
    """A few steps; returns names whose weights did not move."""
    before = {name: p.detach().clone() for name, p in tuning.trained().items()}
    optimizer = torch.optim.Adam(tuning.trained().values(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    return [name for name, p in tuning.trained().items() if torch.equal(p, before[name])]


@pytest.mark.parametrize("kind", peft_types())
def test_every_type_trains_saves_and_loads_or_is_refused(kind, tmp_path):
    model = build("llama")
    before = model(IDS).logits.detach()
    if kind in REFUSED:
        with pytest.raises(
            RecipeError, match=rf"method\.peft_type: {kind} cannot be used here: [\s\S]*{REFUSED[kind]}"
        ):
            attach_peft(base_of(model), method(kind), seed=0)
        return
    tuning = attach_peft(base_of(model), method(kind), seed=0)
    assert tuning.kind == "peft" and tuning.wrapper.get_base_model() is model
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if n not in tuning.trained()}
    assert not train(model, tuning)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    expected = model(IDS).logits.detach()
    assert not torch.equal(expected, before)
    LanguageModel(model).verify()
    trained = set(tuning.trained())
    with tuning.enabled(False):
        torch.testing.assert_close(model(IDS).logits, before, rtol=1e-5, atol=1e-5)
        with tuning.enabled(True):
            torch.testing.assert_close(model(IDS).logits, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(IDS).logits, expected) and set(tuning.trained()) == trained

    digest = tuning.save(tmp_path, base_of(model))
    assert digest == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    plain = PeftModel.from_pretrained(build("llama"), tmp_path).eval()
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    fresh = build("llama")
    loaded = load_peft(base_of(fresh), tmp_path)
    torch.testing.assert_close(fresh(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert set(loaded.trained()) == trained
    assert loaded.save(tmp_path / "again", base_of(fresh)) == digest
    assert (tmp_path / "again" / CONFIG).read_bytes() == (tmp_path / CONFIG).read_bytes()


def test_tokens_are_trained_where_the_head_is_not_the_embeddings(tmp_path):
    model = build("qwen3")
    tuning = attach_peft(base_of(model), method("TRAINABLE_TOKENS"), seed=0)
    rows = tuning.trained().values()
    assert [tuple(p.shape) for p in rows] == [(2, 32)]
    assert not train(model, tuning)
    tuning.save(tmp_path, base_of(model))
    plain = PeftModel.from_pretrained(build("qwen3"), tmp_path).eval()
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_attaching_follows_the_seed_and_leaves_random_state_weights_and_mode():
    models = [build("llama").train() for _ in range(3)]
    state = torch.random.get_rng_state()
    first, again, other = (
        {n: p.detach().clone() for n, p in attach_peft(base_of(m), method("LORA"), seed=s).trained().items()}
        for m, s in zip(models, (1, 1, 2), strict=True)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(m.training for m in models)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)
    assert not any(p.any() for n, p in first.items() if "lora_B" in n)  # the noise of the check is gone


def test_the_config_is_what_was_asked_for(tmp_path):
    model = build("llama")
    tuning = attach_peft(base_of(model), method("lora", {"r": 3, "lora_alpha": 5, "use_rslora": True}), seed=0)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape[0] == 3 and layer.scaling["default"] == 5 / math.sqrt(3)
    tuning.save(tmp_path, base_of(model))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM" and config["inference_mode"] is True
    assert config["base_model_name_or_path"] == "org/base" and config["revision"] == "abc"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {"q_proj", "down_proj"} <= set(config["target_modules"])


def ends(tuning):
    return {name.split(".lora_")[0].removeprefix("model.") for name in tuning.trained() if ".lora_" in name}


def test_targets_layers_and_saved_modules_of_the_method_are_passed_on(tmp_path):
    def attach(**settings):
        return attach_peft(base_of(build("llama")), method("LORA", **settings), seed=0)

    assert len(ends(attach())) == 14
    assert ends(attach(target_modules=["q_proj"])) == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}
    assert ends(attach(target_modules=["q_proj"], last_layers=1)) == {"layers.1.self_attn.q_proj"}
    assert len(ends(attach(last_layers=1))) == 7
    assert ends(attach(options={"target_modules": ["k_proj"]}, target_modules=["q_proj"])) == {
        "layers.0.self_attn.k_proj",
        "layers.1.self_attn.k_proj",
    }
    model = build("llama")
    tuning = attach_peft(base_of(model), method("LORA", modules_to_save=["norm", "lm_head"]), seed=0)
    assert sum("modules_to_save" in name for name in tuning.trained()) == 2
    assert not train(model, tuning)
    tuning.save(tmp_path, base_of(model))
    plain = PeftModel.from_pretrained(build("llama"), tmp_path).eval()
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    own = attach_peft(base_of(build("llama")), method("LN_TUNING"), seed=0)
    assert len(own.trained()) == 5 and all("norm" in name for name in own.trained())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "VERRA"}, r"method\.peft_type: the peft library has no method 'VERRA'[\s\S]*VERA"),
        ({"kind": "prompt-tunning"}, r"no method 'prompt-tunning'[\s\S]*PROMPT_TUNING"),
        ({"kind": None}, r"method\.peft_type: method\.type: peft needs the method's name[\s\S]*LORA"),
        (
            {"kind": "LORA", "options": {"lora_alfa": 3, "rank_paterns": 2, "revision": "x", "megatron_core": "os"}},
            r"lora_alfa \(nearest: lora_alpha[\s\S]*rank_paterns \(nearest: rank_pattern[\s\S]*"
            r"revision \(is set by the run\)[\s\S]*megatron_core \(is set by the run\)",
        ),
        ({"kind": "LORA", "options": {"r": 0}}, r"method\.peft_options: peft refuses LORA with these options: `r`"),
        ({"kind": "C3A", "options": {"block_size": 7}}, r"peft refuses C3A with these options: [\s\S]*block size"),
        ({"kind": "LORA", "options": {"target_modules": ["q_prj"]}}, r"peft refuses LORA[\s\S]*q_prj"),
        ({"kind": "LORA", "target_modules": ["q_prj"]}, r"method\.target_modules: [\s\S]*'q_prj'[\s\S]*q_proj"),
        ({"kind": "LORA", "modules_to_save": ["nrm"]}, r"method\.modules_to_save: [\s\S]*'nrm'[\s\S]*norm"),
        ({"kind": "IA3", "last_layers": 1}, r"method\.last_layers: IA3 with these options does not take last_layers"),
        ({"kind": "LORA", "last_layers": 3}, r"method\.last_layers: the base has 2 layers, not 3"),
        ({"kind": "TRAINABLE_TOKENS", "modules_to_save": ["norm"]}, r"method\.modules_to_save: TRAINABLE_TOKENS"),
        (
            {"kind": "LORA", "options": {"init_lora_weights": "pissa"}},
            r"changes the base's weights: switched off[\s\S]*method\.init",
        ),
        ({"kind": "ADAMSS", "options": {"use_asa": True, "asa_total_steps": 9}}, r"method\.peft_options"),
    ],
)
def test_what_cannot_be_used_is_told(settings, words):
    settings = dict(settings)
    wanted = method(settings.pop("kind"), settings.pop("options", None), **settings)
    with pytest.raises(RecipeError, match=words):
        attach_peft(base_of(build("llama")), wanted, seed=0)


def test_lora_that_begins_in_the_middle_of_a_text_is_refused():
    """Activated LoRA finds out in the wrapper's forward pass where in each text it begins: ours would never begin."""
    with pytest.raises(RecipeError, match="logits differ from peft's own"):
        attach_peft(base_of(build("llama")), method("LORA", {"alora_invocation_tokens": [5, 6]}), seed=0)


def test_a_type_that_has_no_gradient_here_is_refused_before_training():
    """GraLoRA works in place on what the layer beneath it gives, which our products do not allow."""
    model = build("llama")
    use_fast_linears(model)
    with pytest.raises(RecipeError, match=r"peft refuses GRALORA with these options: .*modified inplace"):
        attach_peft(base_of(model), method("GRALORA"), seed=0)


def test_quantised_weights_are_refused():
    model = build("llama")
    quantize_base(model, "nf4")
    with pytest.raises(RecipeError, match=r"method\.quantize: methods of the peft library"):
        attach_peft(base_of(model), method("VERA"), seed=0)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_an_adapter_of_another_base_is_refused(damage, tmp_path):
    attach_peft(base_of(build("llama")), method("VERA"), seed=0).save(tmp_path, base_of(None))
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(n for n in tensors if n.endswith("q_proj.vera_lambda_b"))
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors[name + "_more"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(VerificationError, match="does not fit this base"):
        load_peft(base_of(build("llama")), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "VERRA"}, "no method 'VERRA'"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING cannot be used here"),
        ({"invented": 1}, "has no option invented for VERA"),
        ({"target_modules": ["nothing"]}, "cannot be used"),
        ({"r": "many"}, "cannot be used"),
    ],
)
def test_a_damaged_configuration_is_told(change, words, tmp_path):
    attach_peft(base_of(build("llama")), method("VERA"), seed=0).save(tmp_path, base_of(None))
    config = json.loads((tmp_path / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(EngineError, match=words):
        load_peft(base_of(build("llama")), tmp_path)
