"""Tuned models on their way out of a run: each kind of tuning as an adapter and merged, opened by other tools.

Runs are made here without training: a base is tuned by hand, shaken, and saved as a run saves it.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models.peft_side import answers, difference, shake
from tests.tiny import build, byte_tokenizer, save_base
from tests.training.small import full_disk
from tunesmith.cli.main import invoke
from tunesmith.errors import EngineError, RecipeError, ResourceError, VerificationError
from tunesmith.export import export_run, run_export
from tunesmith.models.methods import attach
from tunesmith.models.quantized import quantize_base
from tunesmith.pipeline.opening import open_base
from tunesmith.recipe import dump_recipe, parse_recipe
from tunesmith.recipe.schema import Recipe
from tunesmith.runs import RunFolder, staged_folder, write_text

MERGED: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init": "pissa"},
    "olora, rslora, patterns": {"init": "olora", "use_rslora": True, "rank_pattern": {"q_proj|c_attn": 2}},
    "last layer": {"last_layers": 1},
    "nf4": {"quantize": "nf4"},
    "nf4, dora": {"quantize": "nf4", "double_quantize": False, "use_dora": True},
    "int8, some layers": {"quantize": "int8", "last_layers": 1},
    "vera": {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}},
    "ia3": {"type": "peft", "peft_type": "IA3"},
    "norms": {"type": "peft", "peft_type": "LN_TUNING"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    families = {family: save_base(folder / family, family) for family in ("llama", "qwen3", "gpt2", "gemma")}
    build("llama", vocabulary=len(byte_tokenizer())).save_pretrained(folder / "tight")
    byte_tokenizer().save_pretrained(folder / "tight")
    return {**families, "tight": folder / "tight"}


def recipe_of(base: Path, method: dict[str, Any], **of_base: Any) -> Recipe:
    base_of = {"model": str(base), "dtype": "float32", "chat_template": "plain", **of_base}
    return parse_recipe({"data": "rows.csv", "base": base_of, "method": {"rank": 4, **method}})


def made(path: Path, recipe: Recipe) -> tuple[RunFolder, Tensor]:
    """A run with a tuned model in it, and that model's answers."""
    folder = RunFolder.create_at(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base, added = open_base(recipe)
        tuning = attach(base, recipe.method, seed=1, added=added)
        shake(base.model)
        with staged_folder(folder.model if tuning.kind == "full" else folder.adapter) as target:
            tuning.save(target, base)
    return folder, answers(base.model)


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_it_answers_as_tuned_in_plain_transformers(family, name, bases, tmp_path):
    recipe = recipe_of(bases[family], MERGED[name])
    folder, tuned = made(tmp_path / "run", recipe)
    path = export_run(folder, recipe, "merged")
    assert path == folder.path / "export" / "merged"
    model = opened(path)
    assert difference(answers(model), tuned) < 1e-5
    assert difference(answers(opened(bases[family])), tuned) > 1e-3
    # Nothing but the base's own tensors, and the head still is the embeddings.
    assert load_file(path / "model.safetensors").keys() == load_file(bases[family] / "model.safetensors").keys()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    text = (path / "README.md").read_text()
    assert "merged into the base" in text and "PeftModel" not in text
    assert ("those stood for" in text) == (recipe.method.quantize != "none")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_of_a_quantised_base_the_numbers_trained_on_are_merged(kind, bases, tmp_path):
    """Layers without adapter hold the dequantised weights; the base's own are somewhere else."""
    recipe = recipe_of(bases["qwen3"], {"quantize": kind, "target_modules": ["q_proj"]})
    folder, _ = made(tmp_path / "run", recipe)
    merged = opened(export_run(folder, recipe, "merged"))
    quantised = build("qwen3")
    quantize_base(quantised, kind)
    for layer in (0, 1):
        down = quantised.get_submodule(f"model.layers.{layer}.mlp.down_proj").dequantized()
        assert torch.equal(merged.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight, down)
        assert difference(down, build("qwen3").get_submodule(f"model.layers.{layer}.mlp.down_proj").weight) > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "init": "pissa"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"type": "peft", "peft_type": "LORA", "peft_options": {"r": 4, "target_modules": ["embed_tokens"]}},
        {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}, "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_a_tuned_head_that_was_the_embeddings_gets_its_own_weight(method, bases, tmp_path):
    recipe = recipe_of(bases["llama"], method)
    folder, tuned = made(tmp_path / "run", recipe)
    path = export_run(folder, recipe, "merged")
    model = opened(path)
    assert model.config.tie_word_embeddings is False
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert difference(answers(model), tuned) < 1e-5
    before = load_file(bases["llama"] / "model.safetensors")["model.embed_tokens.weight"]
    embeddings_tuned = "embed_tokens" in str(method)
    assert torch.equal(model.model.embed_tokens.weight, before) != embeddings_tuned
    assert torch.equal(model.lm_head.weight, before) == embeddings_tuned


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "method",
    [
        {},
        {"init": "pissa", "modules_to_save": ["lm_head", "norm"]},
        {"quantize": "nf4"},
        {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 4}},
    ],
    ids=str,
)
def test_in_half_precision_sums_are_wide_and_files_are_as_the_base_s(method, dtype, bases, tmp_path):
    recipe = recipe_of(bases["gemma"], method, dtype=str(dtype).removeprefix("torch."))
    folder, tuned = made(tmp_path / "run", recipe)
    path = export_run(folder, recipe, "merged")
    assert {t.dtype for t in load_file(path / "model.safetensors").values()} == {dtype}
    assert difference(answers(opened(path)), tuned) < (0.03 if dtype is torch.bfloat16 else 0.01)
    if not method:  # the sum in 32 bits, rounded once
        from tunesmith.models.load import load_base
        from tunesmith.models.methods import load_tuned

        base = load_base(recipe.base)
        layer = load_tuned(base, folder.adapter).attached.layers["model.layers.0.mlp.up_proj"]  # type: ignore[attr-defined]
        expected = layer.weight.double() + layer.scaling * (layer.lora_B.double() @ layer.lora_A.double())
        merged = opened(path).model.layers[0].mlp.up_proj.weight
        assert (merged != expected.to(dtype)).float().mean() < 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [{}, {"quantize": "nf4"}, {"type": "full"}, {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}}],
    ids=str,
)
def test_others_ask_it_as_the_run_did(method, bases, tmp_path):
    """Added tokens, chat template, and the tokens that end an answer go along with a whole model."""
    recipe = recipe_of(bases["tight"], method, chat_template="chatml", add_tokens=["<sql>"])
    folder, tuned = made(tmp_path / "run", recipe)
    path = export_run(folder, recipe, "merged", tmp_path / "out")
    model, tokenizer = opened(path), AutoTokenizer.from_pretrained(path)
    assert difference(answers(model), tuned) < 1e-5
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(byte_tokenizer()) + 3
    assert model.generation_config.eos_token_id == sorted([tokenizer.eos_token_id, end])
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "<sql>?"}], add_generation_prompt=True)
    text = "<|im_start|>user\n<sql>?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(asked["input_ids"]) == text
    assert tokenizer.decode(asked["input_ids"], skip_special_tokens=True) == "user\n<sql>?\nassistant\n"


def test_a_template_of_the_run_s_goes_with_an_adapter_and_the_base_s_own_does_not(bases, tmp_path):
    recipe = recipe_of(bases["llama"], {})
    folder, tuned = made(tmp_path / "run", recipe)
    path = export_run(folder, recipe, "adapter")
    before = {p.name for p in folder.adapter.iterdir()}
    assert {p.name for p in path.iterdir()} == before | {"chat_template.jinja"}
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.S):
        exec(code.replace('"."', repr(str(path))), names)
    assert difference(answers(names["model"]), tuned) < 1e-5
    turns = [{"role": "user", "content": "hi"}]
    text = names["tokenizer"].apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "### User\nhi\n\n### Assistant\n"

    own = recipe_of(bases["llama"], {}, chat_template="tokenizer")
    assert {p.name for p in export_run(folder, own, "adapter", tmp_path / "own").iterdir()} == before
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    mine = recipe_of(bases["llama"], {}, chat_template=str(tmp_path / "mine.jinja"))
    path = export_run(folder, mine, "adapter", tmp_path / "mine")
    assert (path / "chat_template.jinja").read_text() == (tmp_path / "mine.jinja").read_text()


def test_a_run_on_pairs_has_no_template_to_take_along(bases, tmp_path):
    data = {"train": "pairs.csv", "columns": {"prompt": "a", "second": "b", "answer": "c"}}
    recipe = recipe_of(bases["llama"], {}).model_dump() | {"data": data}
    folder, tuned = made(tmp_path / "run", parse_recipe(recipe))
    path = export_run(folder, parse_recipe(recipe), "merged")
    assert not (path / "chat_template.jinja").exists() and difference(answers(opened(path)), tuned) < 1e-5


def test_the_command(bases, tmp_path, capsys):
    recipe = recipe_of(bases["llama"], {})
    folder, tuned = made(tmp_path / "run", recipe)
    write_text(folder.recipe_file, dump_recipe(recipe))
    assert invoke(["export", str(folder.path), "merged", "--out", str(tmp_path / "m"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"run": str(folder.path), "to": "merged", "path": str(tmp_path / "m")}
    assert difference(answers(opened(tmp_path / "m")), tuned) < 1e-5
    assert invoke(["export", str(folder.path), "adapter"]) == 0
    assert capsys.readouterr().out.strip() == str(folder.path / "export" / "adapter")
    assert invoke(["export", str(folder.path), "onnx"]) == 2
    assert "cannot export to 'onnx'" in capsys.readouterr().err


def test_full_copies_and_bottlenecks(bases, tmp_path):
    recipe = recipe_of(bases["qwen3"], {"type": "full"})
    folder, tuned = made(tmp_path / "full", recipe)
    path = export_run(folder, recipe, "merged")
    assert difference(answers(opened(path)), tuned) < 1e-6
    assert (path / "model.safetensors").read_bytes() == (folder.model / "model.safetensors").read_bytes()
    with pytest.raises(RecipeError, match="a fully tuned model is no adapter"):
        export_run(folder, recipe, "adapter")

    recipe = recipe_of(bases["qwen3"], {"type": "bottleneck", "bottleneck_size": 8})
    folder, _ = made(tmp_path / "bottleneck", recipe)
    with pytest.raises(EngineError, match=r"bottleneck adapters cannot be merged[\s\S]*method\.type: lora"):
        export_run(folder, recipe, "merged")
    assert not (folder.path / "export").exists()
    assert (export_run(folder, recipe, "adapter") / "adapter_model.safetensors").is_file()


def test_what_cannot_be_exported_is_told(bases, tmp_path):
    recipe = recipe_of(bases["llama"], {})
    with pytest.raises(RecipeError, match="no tuned model yet"):
        export_run(RunFolder.create_at(tmp_path / "empty"), recipe, "merged")
    folder, _ = made(tmp_path / "run", recipe)
    with pytest.raises(RecipeError, match=r"cannot export to 'onnx'\n  expected: adapter or merged"):
        export_run(folder, recipe, "onnx")
    export_run(folder, recipe, "adapter", tmp_path / "there")
    with pytest.raises(RecipeError, match="exists already"):
        export_run(folder, recipe, "merged", tmp_path / "there")


def test_a_method_that_peft_cannot_merge_is_told(bases, tmp_path, monkeypatch):
    from peft.tuners.vera.layer import Linear

    def no_merging(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("no merging")

    recipe = recipe_of(bases["llama"], MERGED["vera"])
    folder, _ = made(tmp_path / "run", recipe)
    monkeypatch.setattr(Linear, "merge", no_merging)
    with pytest.raises(EngineError, match="the peft library cannot merge VERA into the base's weights: no merging"):
        export_run(folder, recipe, "merged")


def test_a_full_disk_is_told_as_one_and_leaves_nothing(bases, tmp_path):
    recipe = recipe_of(bases["llama"], {})
    folder, _ = made(tmp_path / "run", recipe)
    weights = (bases["llama"] / "model.safetensors").stat().st_size
    with pytest.raises(ResourceError, match="cannot be written"), full_disk(weights // 2):
        export_run(folder, recipe, "merged")
    assert list((folder.path / "export").iterdir()) == []
    export_run(folder, recipe, "merged")


def test_a_merged_model_that_answers_otherwise_is_refused(bases, tmp_path, monkeypatch):
    recipe = recipe_of(bases["llama"], {})
    folder, _ = made(tmp_path / "run", recipe)
    real = run_export.merge

    def wrong(model: Any, *arguments: Any) -> None:
        real(model, *arguments)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.mul_(1.01)

    monkeypatch.setattr(run_export, "merge", wrong)
    with pytest.raises(VerificationError, match=r"logits of the merged model differ from the tuned one's by \d"):
        export_run(folder, recipe, "merged")
    assert list((folder.path / "export").iterdir()) == []


def test_answers_end_where_they_did_in_the_run_and_other_settings_of_generation_stay(bases, tmp_path):
    recipe = recipe_of(bases["llama"], {"type": "full"})
    folder, _ = made(tmp_path / "run", recipe)
    settings = {"temperature": 0.6, "do_sample": True, "eos_token_id": 3}
    (folder.model / "generation_config.json").write_text(json.dumps(settings))
    path = export_run(folder, recipe, "merged")
    told = json.loads((path / "generation_config.json").read_text())
    assert told == {**settings, "eos_token_id": byte_tokenizer().eos_token_id}
