"""What a tuned model is taken from: opened, or refused with what is wrong before anything is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.export.made import made_run, recipe_of
from tests.models.peft_side import answers, difference, plain_adapter
from tests.tiny import build, byte_tokenizer, save_base
from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.export.source import open_folders, open_source
from tunesmith.models.artifact import Target
from tunesmith.pipeline.exporting.space import needed_bytes
from tunesmith.runs import RunFolder, write_json
from tunesmith.text.templates import PLAIN


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "llama")


def sha_of(base: Path) -> str:
    return hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("method", [{}, {"type": "full"}, {"quantize": "nf4"}], ids=str)
def test_a_run_s_model_is_opened_as_it_was_tuned(method, base, tmp_path):
    recipe = recipe_of(base, method)
    folder, tuned = made_run(tmp_path / "run", recipe)
    source = open_source(folder, recipe)
    assert difference(answers(source.open()[0].model), tuned) < 1e-6
    assert difference(answers(source.open_base().model), tuned) > 1e-3
    assert source.is_adapter == (method.get("type") != "full") and source.base_sha256 == sha_of(base)
    assert source.template == PLAIN and source.stop_ids == (256,) and source.context == 512
    assert source.config.vocab_size == 300 and source.name == "run"
    merged = source.merged(tmp_path / "scratch")
    assert source.merged(tmp_path / "scratch") == merged
    if not method:
        model = type(build("llama")).from_pretrained(merged, dtype=torch.float32)
        assert difference(answers(model), tuned) < 1e-5


def test_a_vocabulary_that_grew_is_in_the_configuration(tmp_path):
    build("llama", vocabulary=len(byte_tokenizer())).save_pretrained(tmp_path / "tight")
    byte_tokenizer().save_pretrained(tmp_path / "tight")
    recipe = recipe_of(tmp_path / "tight", {}, chat_template="chatml", add_tokens=["<sql>"])
    folder, _ = made_run(tmp_path / "run", recipe)
    source = open_source(folder, recipe)
    assert source.config.vocab_size == len(byte_tokenizer()) + 3 == len(source.tokenizer)
    assert source.stop_ids == tuple(source.tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))


def test_no_tuned_model_no_base_and_no_template_are_told(base, tmp_path):
    recipe = recipe_of(base, {})
    with pytest.raises(RecipeError, match="no tuned model yet"):
        open_source(RunFolder.create_at(tmp_path / "empty"), recipe)
    folder, _ = made_run(tmp_path / "run", recipe)
    gone = recipe_of(tmp_path / "gone", {})
    with pytest.raises(RecipeError, match="there is no folder"):
        open_source(folder, gone)
    hub = recipe_of("nobody/nothing", {}, revision="abc")
    with pytest.raises(RecipeError, match="not on this machine") as caught:
        open_source(folder, hub)
    assert "hf download nobody/nothing --revision abc" in str(caught.value)
    lost = open_source(folder, recipe_of(base, {}, chat_template=str(tmp_path / "lost.jinja")))
    with pytest.raises(RecipeError, match="no chat template"):
        _ = lost.template


def test_another_base_and_a_changed_adapter_are_told(base, tmp_path):
    recipe = recipe_of(base, {})
    folder, _ = made_run(tmp_path / "run", recipe)
    folder.update_manifest(base={"weights_sha256": sha_of(base)})
    assert open_source(folder, recipe).base_sha256 == sha_of(base)
    folder.update_manifest(base={"weights_sha256": "0" * 64})
    with pytest.raises(VerificationError, match="not those that this model was tuned on") as caught:
        open_source(folder, recipe)
    assert caught.value.exit_code == 5 and sha_of(base)[:16] in str(caught.value)
    folder.update_manifest(base={"weights_sha256": sha_of(base)})
    weights = folder.adapter / "adapter_model.safetensors"
    write_json(folder.path / "training.json", {"adapter_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()})
    open_source(folder, recipe)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(VerificationError, match="changed or is damaged"):
        open_source(folder, recipe)


def test_a_hub_base_is_taken_in_the_revision_of_the_training(base, tmp_path):
    folder, _ = made_run(tmp_path / "run", recipe_of(base, {}))
    folder.update_manifest(base={"revision": "f" * 40})
    with pytest.raises(RecipeError, match="f" * 40):
        open_source(folder, recipe_of("nobody/nothing", {}))


@pytest.mark.parametrize("damage", ["cut", "no safetensors", "shard missing", "gone"])
def test_a_damaged_base_is_told_before_anything_is_loaded(damage, tmp_path):
    base = save_base(tmp_path / "base")
    recipe = recipe_of(base, {})
    folder, _ = made_run(tmp_path / "run", recipe)
    weights = base / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no safetensors":
        weights.write_bytes(b"\0" * 64)
    elif damage == "shard missing":
        write_json(base / "model.safetensors.index.json", {"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    else:
        weights.unlink()
    with pytest.raises(EngineError) as caught:
        open_source(folder, recipe)
    assert caught.value.exit_code == 6 and "model" in str(caught.value)


def test_a_damaged_adapter_is_told(base, tmp_path):
    recipe = recipe_of(base, {})
    folder, _ = made_run(tmp_path / "run", recipe)
    weights = folder.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(EngineError, match="cannot be read"):
        open_source(folder, recipe)


def test_folders_without_a_run(base, tmp_path):
    """An adapter of plain `peft` and a base as it is; our own adapter knows on which weights it was trained."""
    tuned = answers(plain_adapter(build("llama"), tmp_path / "theirs", target_modules=["q_proj", "v_proj"], r=2))
    source = open_folders(str(base), tmp_path / "theirs", "plain")
    assert difference(answers(source.open()[0].model), tuned) < 1e-6
    method = source.recipe.method
    assert method.rank == 2 and sorted(method.target_modules) == ["q_proj", "v_proj"]
    assert source.name == "theirs" and source.is_adapter and source.base_sha256 == sha_of(base)

    alone = open_folders(str(base), None)
    assert alone.tuned == alone.base_folder and not alone.is_adapter and alone.template == PLAIN
    assert difference(answers(alone.open()[0].model), answers(build("llama"))) < 1e-6

    folder, _ = made_run(tmp_path / "run", recipe_of(base, {}))
    assert open_folders(str(base), folder.adapter).expected_sha256 == sha_of(base)
    other = save_base(tmp_path / "other", seed=3)
    with pytest.raises(VerificationError, match="not those that this model was tuned on"):
        open_folders(str(other), folder.adapter)


def test_folders_that_do_not_go_together(base, tmp_path):
    with pytest.raises(RecipeError, match="no adapter is here"):
        open_folders(str(base), tmp_path)
    plain_adapter(build("llama"), tmp_path / "a", target_modules=["q_proj"])
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "revision": "old"}))
    with pytest.raises(VerificationError, match="revision old"):
        open_folders(str(base), tmp_path / "a", revision="new")
    config.write_text("[]")
    with pytest.raises(EngineError, match="no adapter"):
        open_folders(str(base), tmp_path / "a")


def test_room_is_reckoned_with_what_is_written_on_the_way(base, tmp_path):
    folder, _ = made_run(tmp_path / "run", recipe_of(base, {}))
    source = open_source(folder, recipe_of(base, {}))
    asked = (Target("merged", "own"), Target("gguf", "f32"), Target("gguf", "q8_0"))
    merged, wide, narrow = (needed_bytes(source, [one]) for one in asked)
    weights = (base / "model.safetensors").stat().st_size
    assert merged < narrow < wide and wide - merged > weights
