"""Adapters on disk: the file contract, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import build
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
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["modules_to_save"] == ["norm"]
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
