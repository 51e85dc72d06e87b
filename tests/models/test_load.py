"""Loading a base from a folder, and what is said where it is not one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.tiny import FAMILIES, build, byte_tokenizer, save_base
from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.models import load
from tunesmith.models.load import base_folder, load_base, pick_dtype
from tunesmith.recipe.schema import Base


@pytest.mark.parametrize("family", FAMILIES)
def test_any_causal_model_loads_by_the_same_path(family, tmp_path):
    save_base(tmp_path, family)
    base = load_base(Base(model=str(tmp_path)))
    expected = build(family)
    ids = torch.arange(3, 20)[None].to(base.model.device)
    torch.testing.assert_close(base.model(ids).logits.cpu(), expected(ids.cpu()).logits)
    assert not base.model.training
    assert base.context == 512 and base.parameters == sum(p.numel() for p in expected.parameters())
    assert base.folder == tmp_path and base.name == str(tmp_path) and base.revision is None
    assert base.tokenizer.eos_token_id == 256


def test_the_hash_is_that_of_the_weights(tmp_path):
    folders = [save_base(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    digests = [load_base(Base(model=str(folder))).weights_sha256 for folder in folders]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == hashlib.sha256((tmp_path / "0" / "model.safetensors").read_bytes()).hexdigest()


def test_a_tokenizer_that_says_less_context_limits_it(tmp_path):
    save_base(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 100}))
    assert load_base(Base(model=str(tmp_path))).context == 100


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_recipes_dtype(tmp_path, dtype, expected):
    base = load_base(Base(model=str(save_base(tmp_path)), dtype=dtype))
    assert next(base.model.parameters()).dtype == expected


def test_auto_dtype_is_fp32_on_a_cpu():
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("missing", ["tokenizer", "weights"])
def test_a_folder_without_a_part_is_told(tmp_path, missing):
    save_base(tmp_path)
    for path in tmp_path.glob("token*" if missing == "tokenizer" else "*.safetensors"):
        path.unlink()
    with pytest.raises(EngineError) as caught:
        load_base(Base(model=str(tmp_path)))
    assert str(tmp_path) in str(caught.value)
    assert ("has no tokenizer" if missing == "tokenizer" else "could not be loaded") in caught.value.what
    assert missing.rstrip("s") in str(caught.value.expected)


def test_a_damaged_file_is_told(tmp_path):
    weights = save_base(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EngineError, match="could not be loaded"):
        load_base(Base(model=str(tmp_path)))


def test_weights_in_pickle_are_not_loaded(tmp_path):
    model = build("llama")
    save_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineError, match="could not be loaded"):
        load_base(Base(model=str(tmp_path)))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save_base(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(60)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="the tokenizer has 318 tokens, the model only 300"):
        load_base(Base(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "there is no folder 'nowhere'[\\s\\S]*hub id such as org/model"),
        ("./org/model", r"there is no folder"),
        ("/no/such", "there is no folder '/no/such'"),
        ("embedded:none", "no embedded base 'embedded:none'"),
        ("embedded:../llama", "no embedded base"),
    ],
)
def test_names_that_mean_nothing(name, words):
    with pytest.raises(RecipeError, match=words) as caught:
        base_folder(name)
    assert caught.value.where == "base.model"


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(RecipeError, match="is not a model folder"):
        base_folder(str(tmp_path))
    assert base_folder("org/model") is None


@pytest.fixture
def embedded(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(load, "EMBEDDED", tmp_path)
    folder = save_base(tmp_path / "small")
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    (folder / "sha256.json").write_text(json.dumps(digests))
    return folder


def test_an_embedded_base_is_verified(embedded):
    assert load.embedded_names() == ["small"]
    assert load_base(Base(model="embedded:small")).folder == embedded
    tokenizer = embedded / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    with pytest.raises(VerificationError, match=r"tokenizer\.json of the embedded base is damaged"):
        load_base(Base(model="embedded:small"))


def test_an_embedded_base_with_a_missing_file_is_damaged(embedded):
    (embedded / "model.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"model\.safetensors of the embedded base is (damaged|missing)"):
        load_base(Base(model="embedded:small"))


def test_another_embedded_name_lists_those_that_there_are(embedded):
    with pytest.raises(RecipeError, match="embedded:small"):
        base_folder("embedded:smal")


def test_a_configuration_that_makes_no_sense_is_an_error_for_people(tmp_path):
    folder = save_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": "four"}))
    with pytest.raises(EngineError, match="could not be loaded"):
        load_base(Base(model=str(folder)))
