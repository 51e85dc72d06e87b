"""Merged models: tensor by tensor the same as in memory, bit by bit, and as tuned in plain `transformers`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.export.made import made_source, recipe_of, work_for
from tests.models.peft_side import answers, difference, plain_adapter
from tests.tiny import build, byte_tokenizer, save_base
from tests.training.small import full_disk
from tunesmith.errors import EngineError, ResourceError, VerificationError
from tunesmith.export.merged import stream, write
from tunesmith.export.merged.in_memory import merge
from tunesmith.export.merged.tensors import stored_tensors
from tunesmith.export.merged.write import write_merged
from tunesmith.export.source import open_folders
from tunesmith.export.types import StepError
from tunesmith.recipe import parse_recipe
from tunesmith.runs import staged_folder

pytestmark = pytest.mark.filterwarnings("ignore")

BY_TENSOR: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init": "pissa"},
    "olora, rslora, patterns": {"init": "olora", "use_rslora": True, "rank_pattern": {"q_proj|c_attn": 2}},
    "alphas": {"alpha_pattern": {"down_proj|c_proj": 3.0}},
    "last layer": {"last_layers": 1},
    "nf4": {"quantize": "nf4"},
    "nf4, dora": {"quantize": "nf4", "double_quantize": False, "use_dora": True},
    "int8, some layers": {"quantize": "int8", "last_layers": 1},
    "head": {"target_modules": ["lm_head"]},
    "saved head": {"modules_to_save": ["lm_head"]},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    families = {family: save_base(folder / family, family) for family in ("llama", "qwen3", "gpt2", "gemma2")}
    sharded = folder / "sharded"
    build("qwen3").save_pretrained(sharded, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(sharded)
    build("llama", vocabulary=len(byte_tokenizer())).save_pretrained(folder / "tight")
    byte_tokenizer().save_pretrained(folder / "tight")
    return {**families, "sharded": sharded, "tight": folder / "tight"}


def opened(folder: Path, dtype: Any = "auto") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def in_memory(source: Any, folder: Path) -> dict[str, Tensor]:
    base, tuning = source.open()
    merge(base.model, tuning, base.model.dtype)
    base.model.save_pretrained(folder)
    return tensors_of(folder)


@pytest.mark.parametrize("name", BY_TENSOR)
@pytest.mark.parametrize("family", ["llama", "gpt2", "sharded"])
def test_tensor_by_tensor_is_bit_by_bit_the_same_as_in_memory(family, name, bases, tmp_path):
    method = BY_TENSOR[name]
    if name == "head":
        method = {"target_modules": ["c_attn" if family == "gpt2" else "q_proj", "lm_head"]}
    source, tuned = made_source(tmp_path / "run", recipe_of(bases[family], method))
    work = work_for(source, "merged", "own", tmp_path / "work")
    facts = write_merged(work)
    assert facts["way"] == "tensor by tensor" and facts["dtypes"] == ["float32"]
    ours, theirs = tensors_of(work.staged), in_memory(source, tmp_path / "memory")
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    model = opened(work.staged)
    assert difference(answers(model), tuned) < 1e-5
    assert difference(answers(opened(bases[family])), tuned) > 1e-3
    parted = "head" in name and family != "sharded"
    assert ("head" in facts) == parted
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (
        family != "sharded" and not parted
    )
    text = (work.staged / "README.md").read_text()
    assert "merged into the base" in text and ("those stood for" in text) == ("quantize" in method)
    if "quantize" in method:
        assert source.open()[1].note in text  # what was held in how many bits, as the run would say it


def test_the_index_says_where_each_tensor_lies(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["sharded"], {}))
    work = work_for(source, "merged", "own", tmp_path / "work")
    facts = write_merged(work)
    index = json.loads((work.staged / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in work.staged.glob("*.safetensors"))
    assert len(files) == facts["files"] == len(list(bases["sharded"].glob("*.safetensors"))) > 3
    for name, file in index["weight_map"].items():
        assert name in stored_tensors(work.staged / file)
    tensors = tensors_of(work.staged)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["metadata"]["total_parameters"] == facts["parameters"] == sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize("precision", ["own", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sums_are_wide_and_rounded_once(family, precision, bases, tmp_path):
    """A base whose files are in bf16, held in fp32 by the run."""
    half = tmp_path / "half"
    build(family).to(torch.bfloat16).save_pretrained(half)
    byte_tokenizer().save_pretrained(half)
    method = {"init": "pissa", "modules_to_save": ["norm"]} if family == "llama" else {}
    source, tuned = made_source(tmp_path / "run", recipe_of(half, method))
    work = work_for(source, "merged", precision, tmp_path / "work")
    write_merged(work)
    expected = in_memory(source, tmp_path / "memory")
    dtype = {"own": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    ours = tensors_of(work.staged)
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == dtype and torch.equal(tensor, expected[name].to(dtype)), name
    assert json.loads((work.staged / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert opened(work.staged).dtype == dtype
    assert difference(answers(opened(work.staged, torch.float32)), tuned) < (1e-5 if precision == "fp32" else 0.03)


def test_what_a_run_held_in_half_precision_is_merged_as_it_was_held(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["qwen3"], {}, dtype="bfloat16"))
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert write_merged(work)["dtypes"] == ["bfloat16"]
    expected = in_memory(source, tmp_path / "memory")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(work.staged).items())


@pytest.mark.parametrize("name", ["lora", "dora", "nf4"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_of_rows_make_the_same_weights(family, name, bases, tmp_path, monkeypatch):
    source, _ = made_source(tmp_path / "run", recipe_of(bases[family], BY_TENSOR[name]))
    whole = work_for(source, "merged", "own", tmp_path / "whole")
    write_merged(whole)
    monkeypatch.setattr(stream, "BLOCK", 1000)
    blocks = work_for(source, "merged", "own", tmp_path / "blocks")
    write_merged(blocks)
    expected = tensors_of(whole.staged)
    for key, tensor in tensors_of(blocks.staged).items():
        assert torch.allclose(tensor, expected[key], rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize(
    ("family", "method", "why"),
    [
        ("llama", {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}}, "VERA"),
        ("gpt2", {"type": "peft", "peft_type": "IA3"}, "IA3"),
        ("gemma2", {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 4}}, "LOHA"),
        (
            "llama",
            {"type": "peft", "peft_type": "LORA", "peft_options": {"r": 4, "target_modules": ["embed_tokens"]}},
            "LORA",
        ),
    ],
    ids=str,
)
def test_methods_of_peft_go_through_memory_and_the_facts_say_so(family, method, why, bases, tmp_path):
    source, tuned = made_source(tmp_path / "run", recipe_of(bases[family], method))
    work = work_for(source, "merged", "own", tmp_path / "work")
    facts = write_merged(work)
    assert facts["way"] == "in memory" and why in facts["why"] and facts["dtypes"] == ["float32"]
    assert difference(answers(opened(work.staged)), tuned) < 1e-5
    assert ("head" in facts) == ("embed_tokens" in str(method))


@pytest.mark.parametrize(
    "method",
    [
        {"target_modules": ["q_proj", "lm_head"], "init": "pissa"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"type": "peft", "peft_type": "LORA", "peft_options": {"r": 4, "target_modules": ["embed_tokens"]}},
        {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}, "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_a_tuned_head_that_was_the_embeddings_gets_its_own_weight(method, bases, tmp_path):
    source, tuned = made_source(tmp_path / "run", recipe_of(bases["llama"], method))
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert write_merged(work)["head"] == "no longer tied to the embeddings"
    model = opened(work.staged)
    assert model.config.tie_word_embeddings is False
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert difference(answers(model), tuned) < 1e-5
    before = load_file(bases["llama"] / "model.safetensors")["model.embed_tokens.weight"]
    embeddings_tuned = "embed_tokens" in str(method)
    assert torch.equal(model.model.embed_tokens.weight, before) != embeddings_tuned
    assert torch.equal(model.lm_head.weight, before) == embeddings_tuned


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_memory_sums_are_wide_too(dtype, bases, tmp_path):
    method = {"type": "peft", "peft_type": "LOHA", "peft_options": {"r": 4}}
    source, tuned = made_source(tmp_path / "run", recipe_of(bases["gemma2"], method, dtype=dtype))
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert write_merged(work)["dtypes"] == [dtype]
    assert difference(answers(opened(work.staged)), tuned) < 0.03


def test_a_method_that_peft_cannot_merge_is_told(bases, tmp_path, monkeypatch):
    from peft.tuners.vera.layer import Linear

    def no_merging(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("no merging")

    method = {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}}
    source, _ = made_source(tmp_path / "run", recipe_of(bases["llama"], method))
    monkeypatch.setattr(Linear, "merge", no_merging)
    with pytest.raises(EngineError, match="the peft library cannot merge VERA into the base's weights: no merging"):
        write_merged(work_for(source, "merged", "own", tmp_path / "work"))


def test_a_run_on_pairs_has_no_template_to_take_along(bases, tmp_path):
    data = {"train": "pairs.csv", "columns": {"prompt": "a", "second": "b", "answer": "c"}}
    recipe = parse_recipe(recipe_of(bases["llama"], {}).model_dump() | {"data": data})
    source, tuned = made_source(tmp_path / "run", recipe)
    work = work_for(source, "merged", "own", tmp_path / "work")
    write_merged(work)
    assert not (work.staged / "chat_template.jinja").exists() and difference(answers(opened(work.staged)), tuned) < 1e-5


def test_in_memory_files_are_in_the_base_s_own_type_too(tmp_path):
    half = tmp_path / "half"
    build("llama").to(torch.bfloat16).save_pretrained(half)
    byte_tokenizer().save_pretrained(half)
    method = {"type": "peft", "peft_type": "VERA", "peft_options": {"r": 4}}
    source, tuned = made_source(tmp_path / "run", recipe_of(half, method))
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert write_merged(work)["dtypes"] == ["bfloat16"]
    assert {t.dtype for t in tensors_of(work.staged).values()} == {torch.bfloat16}
    assert difference(answers(opened(work.staged, torch.float32)), tuned) < 0.03


def without_prefix(base: Path, folder: Path) -> Path:
    """A base as the older GPT-2 files are: names without the model's own prefix."""
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            folder.mkdir(exist_ok=True)
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_other_names_in_the_files_are_noticed(bases, tmp_path):
    base = without_prefix(bases["gpt2"], tmp_path / "bare")
    source, tuned = made_source(tmp_path / "run", recipe_of(base, {}))
    work = work_for(source, "merged", "own", tmp_path / "work")
    facts = write_merged(work)
    assert facts["way"] == "in memory" and "has another name in the base's files" in facts["why"]
    assert difference(answers(opened(work.staged)), tuned) < 1e-5


def test_experts_that_are_joined_while_loading_are_noticed(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MixtralConfig(
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.2,
        eos_token_id=256,
    )
    MixtralForCausalLM(config).eval().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    method = {"target_modules": ["q_proj", "v_proj"]}
    source, tuned = made_source(tmp_path / "run", recipe_of(tmp_path / "base", method))
    work = work_for(source, "merged", "own", tmp_path / "work")
    facts = write_merged(work)
    assert facts["way"] == "in memory" and "experts" in facts["why"]
    assert difference(answers(opened(work.staged)), tuned) < 1e-5


def test_a_head_beside_the_embeddings_it_is_tied_to_is_noticed(bases, tmp_path):
    tensors = load_file(bases["llama"] / "model.safetensors")
    base = save_base(tmp_path / "both", "llama")
    both = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(both, base / "model.safetensors", metadata={"format": "pt"})
    source, tuned = made_source(tmp_path / "run", recipe_of(base, {}))
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert "the files hold both" in write_merged(work)["why"]
    assert difference(answers(opened(work.staged)), tuned) < 1e-5


def test_tensors_that_loading_ignores_are_left_out_and_named(bases, tmp_path):
    tensors = load_file(bases["qwen3"] / "model.safetensors")
    base = save_base(tmp_path / "more", "qwen3")
    more = {**tensors, "mtp.head.weight": torch.ones(3)}
    save_file(more, base / "model.safetensors", metadata={"format": "pt"})
    source, _ = made_source(tmp_path / "run", recipe_of(base, {}))
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert write_merged(work)["left_out"] == ["mtp.head.weight"]
    assert tensors_of(work.staged).keys() == tensors.keys()


@pytest.mark.parametrize("method", [{}, {"quantize": "nf4"}, {"type": "full"}], ids=str)
def test_added_tokens_template_and_ends_of_answers_go_along(method, bases, tmp_path):
    recipe = recipe_of(bases["tight"], method, chat_template="chatml", add_tokens=["<sql>"])
    source, tuned = made_source(tmp_path / "run", recipe)
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert write_merged(work)["way"] == "tensor by tensor"
    model, tokenizer = opened(work.staged), AutoTokenizer.from_pretrained(work.staged)
    assert difference(answers(model), tuned) < 1e-5
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(byte_tokenizer()) + 3
    assert model.config.vocab_size == len(tokenizer)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == sorted([tokenizer.eos_token_id, end])
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "<sql>?"}], add_generation_prompt=True)
    assert tokenizer.decode(asked["input_ids"]) == "<|im_start|>user\n<sql>?<|im_end|>\n<|im_start|>assistant\n"


def test_an_adapter_of_plain_peft_and_a_base_without_one(bases, tmp_path):
    tuned = plain_adapter(
        build("llama"), tmp_path / "adapter", r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=["norm"]
    )
    source = open_folders(str(bases["llama"]), tmp_path / "adapter")
    work = work_for(source, "merged", "own", tmp_path / "work")
    assert write_merged(work)["way"] == "tensor by tensor"
    assert difference(answers(opened(work.staged)), answers(tuned)) < 1e-5
    plain = work_for(open_folders(str(bases["llama"]), None), "merged", "own", tmp_path / "plain")
    write_merged(plain)
    assert difference(answers(opened(plain.staged)), answers(build("llama"))) == 0
    assert "this is the base as it was" in (plain.staged / "README.md").read_text()


def test_a_model_tuned_in_full_is_copied(bases, tmp_path):
    source, tuned = made_source(tmp_path / "run", recipe_of(bases["gemma2"], {"type": "full"}))
    work = work_for(source, "merged", "own", tmp_path / "work")
    write_merged(work)
    ours, theirs = tensors_of(work.staged), load_file(source.tuned / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert difference(answers(opened(work.staged)), tuned) < 1e-6
    half = work_for(source, "merged", "fp16", tmp_path / "half")
    assert write_merged(half)["dtypes"] == ["float16"]
    assert "full tuning" in (half.staged / "README.md").read_text()


def test_values_that_fp16_cannot_hold_are_told(bases, tmp_path):
    base = build("llama")
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    base.save_pretrained(tmp_path / "large")
    byte_tokenizer().save_pretrained(tmp_path / "large")
    source, _ = made_source(tmp_path / "run", recipe_of(tmp_path / "large", {}))
    with pytest.raises(StepError, match=r"up_proj.weight are beyond what float16 can hold") as error:
        write_merged(work_for(source, "merged", "fp16", tmp_path / "work"))
    assert "bf16" in error.value.instead
    write_merged(work_for(source, "merged", "bf16", tmp_path / "bf16"))


def test_bottlenecks_and_damaged_files_are_refused(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["qwen3"], {"type": "bottleneck", "bottleneck_size": 8}))
    with pytest.raises(EngineError, match="cannot be merged"):
        write_merged(work_for(source, "merged", "own", tmp_path / "work"))
    base = save_base(tmp_path / "cut", "llama")
    source, _ = made_source(tmp_path / "other", recipe_of(base, {}))
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(EngineError, match="does not lie within it"):
        write_merged(work_for(source, "merged", "own", tmp_path / "work2"))


def test_a_full_disk_is_told_as_one_and_leaves_nothing(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["llama"], {}))
    weights = (bases["llama"] / "model.safetensors").stat().st_size
    with (
        pytest.raises(ResourceError, match="cannot be written"),
        full_disk(weights // 2),
        staged_folder(tmp_path / "out") as staged,
    ):
        write_merged(replace(work_for(source, "merged", "own", tmp_path / "work"), staged=staged))
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_adapters_that_learnt_nonsense_are_not_merged(bases, tmp_path):
    source, _ = made_source(tmp_path / "run", recipe_of(bases["llama"], {}))
    path = source.tuned / "adapter_model.safetensors"
    tensors = load_file(path)
    next(value for name, value in tensors.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EngineError, match="what was trained holds NaN or infinity"):
        write_merged(work_for(source, "merged", "own", tmp_path / "work"))


def test_an_adapter_of_another_base_is_told(bases, tmp_path):
    plain_adapter(build("llama"), tmp_path / "adapter", r=4, lora_alpha=8, target_modules=["q_proj"])
    source = open_folders(str(bases["gpt2"]), tmp_path / "adapter")
    with pytest.raises(VerificationError, match="does not fit this base"):
        write_merged(work_for(source, "merged", "own", tmp_path / "work"))


def test_settings_of_generation_stay_but_for_the_end(bases, tmp_path):
    base = save_base(tmp_path / "base", "llama")
    settings = {"temperature": 0.6, "do_sample": True, "eos_token_id": 3}
    (base / "generation_config.json").write_text(json.dumps(settings))
    source, _ = made_source(tmp_path / "run", recipe_of(base, {}))
    work = work_for(source, "merged", "own", tmp_path / "work")
    write_merged(work)
    told = json.loads((work.staged / "generation_config.json").read_text())
    assert told == {**settings, "eos_token_id": byte_tokenizer().eos_token_id}
    assert write.DTYPES.keys() == {"fp32", "bf16", "fp16"}
