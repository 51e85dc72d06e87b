"""What can be served is told before training, with the reason and the remedy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.models.peft_side import shake
from tests.tiny import build
from tunesmith.errors import RecipeError
from tunesmith.models.lora import LoraSettings, attach_lora
from tunesmith.models.servable import VLLM_MAX_RANKS, require, servable, servable_file, served_rank
from tunesmith.recipe.schema import Method

LLAMA = SimpleNamespace(model_type="llama", tie_word_embeddings=True)
QWEN = SimpleNamespace(model_type="qwen3", tie_word_embeddings=False)


def verdicts(method: Method, config: object = LLAMA, added: bool = False) -> dict[str, bool]:
    return {verdict.server: verdict.ok for verdict in servable(method, config, added)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 512, "dropout": 0.1, "last_layers": 2},
        {"init": "pissa", "rank": 256},
        {"init": "gaussian", "lora_plus_ratio": 16, "quantize": "nf4"},
        {"target_modules": ["q_proj"]},
        {"use_rslora": True},
        {"type": "full", "last_layers": 2, "modules_to_save": ["lm_head"]},
    ],
)
def test_plain_lora_and_whole_models_go_everywhere(options):
    assert verdicts(Method(**options)) == {"peft": True, "vllm": True, "gguf": True}


@pytest.mark.parametrize(
    ("options", "vllm", "gguf", "words"),
    [
        ({"use_dora": True}, False, False, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, False, False, "lm_head"),
        ({"rank": 513}, False, True, "513"),
        ({"init": "pissa", "rank": 300}, False, True, r"rank 600 \(twice"),
        ({"rank_pattern": {"q_proj": 2}}, False, True, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2.0}}, False, True, "alpha_pattern"),
        ({"target_modules": ["lm_head", "q_proj"]}, False, False, "head is its embeddings"),
        ({"type": "bottleneck"}, False, False, "bottleneck"),
        ({"type": "peft", "peft_type": "VERA"}, False, False, "VERA"),
    ],
)
def test_each_obstacle_is_told(options, vllm, gguf, words):
    import re

    method = Method(**options)
    found = {verdict.server: verdict for verdict in servable(method, LLAMA)}
    assert (found["vllm"].ok, found["gguf"].ok) == (vllm, gguf)
    assert found["peft"].ok == (method.type != "bottleneck")
    for server in ("vllm", "gguf"):
        if not found[server].ok:
            assert any(re.search(words, reason) for reason in found[server].reasons)
            assert all(obstacle.fix for obstacle in found[server].obstacles)


def test_what_depends_on_the_base():
    head = Method(target_modules=["lm_head", "q_proj"])
    assert verdicts(head, QWEN)["vllm"] and verdicts(head, QWEN)["gguf"]
    gpt2 = SimpleNamespace(model_type="gpt2", tie_word_embeddings=True)
    assert verdicts(Method(), gpt2) == {"peft": True, "vllm": False, "gguf": True}
    assert verdicts(Method(), added=True) == {"peft": True, "vllm": False, "gguf": False}


def test_what_must_be_served_stops_before_training():
    require(Method(must_serve=["vllm", "gguf"]), LLAMA)
    require(Method(use_dora=True), LLAMA)
    with pytest.raises(RecipeError) as error:
        require(Method(must_serve=["gguf"], use_dora=True, modules_to_save=["norm"]), LLAMA)
    assert error.value.where == "method.use_dora, method.modules_to_save"
    assert "llama.cpp (GGUF) could not load the adapter" in error.value.what
    assert "use_dora: false" in str(error.value.fix) and "merge the adapter" in str(error.value.fix)
    with pytest.raises(RecipeError, match="vLLM refuses adapters that bring embeddings"):
        require(Method(must_serve=["vllm"]), LLAMA, added_tokens=True)


@pytest.mark.parametrize("rank", [1, 6, 16, 100, 321])
def test_the_note_names_a_rank_that_vllm_takes(rank):
    note = next(v.note for v in servable(Method(rank=rank), LLAMA) if v.server == "vllm")
    limit = int(note.rpartition(" ")[2])
    assert limit in VLLM_MAX_RANKS and limit >= rank
    assert all(other < rank or other >= limit for other in VLLM_MAX_RANKS)


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_the_served_rank_is_that_of_the_file(init):
    from tunesmith.models.adapter import adapter_config, adapter_tensors

    model = build("llama")
    attached = attach_lora(model, LoraSettings(4, 8.0, init=init), seed=0)
    shake(model)
    rank = served_rank(Method(rank=4, init=init))
    assert adapter_config(attached, "base", None, False)["r"] == rank
    assert {t.shape[0] for n, t in adapter_tensors(attached).items() if "lora_A" in n} == {rank}


def test_scales_that_llama_cpp_s_script_gets_wrong_are_noted():
    notes = {
        name: next(v.note for v in servable(Method(**options), LLAMA) if v.server == "gguf")
        for name, options in {
            "plain": {},
            "rslora": {"use_rslora": True},
            "alphas": {"alpha_pattern": {"q_proj": 2.0}},
        }.items()
    }
    assert "llama.cpp's own script" not in notes["plain"]
    assert "llama.cpp's own script" in notes["rslora"] and "llama.cpp's own script" in notes["alphas"]


A_AND_B = (
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
)
SAVED = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("config", "names", "ok", "words"),
    [
        ({}, (), "peft vllm gguf onnx", ""),
        ({"use_rslora": True}, (), "peft vllm gguf onnx", ""),
        ({"rank_pattern": {"q_proj": 4}}, (), "peft gguf onnx", "convert --to lora"),
        ({"r": 600}, (), "peft gguf onnx", "--rank 512"),
        ({"alpha_pattern": {"q_proj": 2}}, (), "peft gguf onnx", "convert --to lora"),
        ({"use_dora": True}, (), "peft", "--rank N"),
        ({"modules_to_save": ["norm"]}, ("base_model.model.model.norm.weight",), "peft", "export --to merged"),
        ({}, ("base_model.model.lm_head.weight",), "peft", "export --to merged"),  # frozen, saved as the base grew
        ({"init_lora_weights": "pissa"}, (), "peft", "convert --to lora"),
        ({"lora_bias": True}, (), "peft", "export --to merged"),
        ({"peft_type": "LOHA"}, (), "peft", "--rank N"),
        ({"peft_type": "TUNESMITH_BOTTLENECK"}, (), "", "neither be merged nor converted"),
    ],
    ids=str,
)
def test_a_saved_adapter_is_judged_by_its_file(config, names, ok, words):
    found = {one.server: one for one in servable_file({**SAVED, **config}, [*A_AND_B, *names], LLAMA)}
    assert {server for server, one in found.items() if one.ok} == set(ok.split())
    for one in found.values():
        assert all(obstacle.reason and words in obstacle.fix for obstacle in one.obstacles if one.server != "peft")
        assert not any(obstacle.where.startswith(("method.", "base.")) for obstacle in one.obstacles)


def test_a_saved_head_is_for_servers_that_have_one_apart():
    names = [name.replace("model.model.layers.0.self_attn.q_proj", "model.lm_head") for name in A_AND_B]
    tied = {one.server: one.ok for one in servable_file(SAVED, names, LLAMA)}
    apart = {one.server: one.ok for one in servable_file(SAVED, names, QWEN)}
    assert tied == {"peft": True, "vllm": False, "gguf": False, "onnx": False}
    assert apart == {"peft": True, "vllm": True, "gguf": True, "onnx": False}
