"""LoRA adapters as GGUF files: what they add beside their base is what `peft` adds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.export.gguf.models import IDS, Source, build, exported, logits_of
from tunesmith.errors import EngineError, VerificationError
from tunesmith.export.gguf import families, lora
from tunesmith.export.gguf.adapter import write_adapter_gguf
from tunesmith.export.types import StepError
from tunesmith.inference.gguf_engine import Reader, open_gguf
from tunesmith.models.artifact import Artifact

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model: Any, folder: Path, **more: Any) -> Any:
    """A model with a random adapter, saved into `folder`."""
    torch.manual_seed(7)
    usual = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "init_lora_weights": False}
    wrapped = get_peft_model(model, LoraConfig(**{**usual, **more})).eval()
    with torch.no_grad():  # a start without B's zeros is scaled so that an adapter is a change and no noise
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.4)
    wrapped.save_pretrained(folder)
    return wrapped


def with_adapter(artifact: Artifact, adapter: Path, base: Path) -> tuple[Artifact, dict[str, Any]]:
    (artifact.folder / "adapters").mkdir(exist_ok=True)
    facts = write_adapter_gguf(adapter, base, artifact.folder / "adapters" / "mine.gguf")
    return replace(artifact, adapters=("mine",)), dict(facts)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True}),
        ("llama", {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.mlp.down_proj": 20}}),
        ("llama-wide-heads", {"target_modules": ["q_proj", "k_proj"]}),
        ("qwen2", {}),
        ("gemma2", {}),
        ("phi3", {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
        ("qwen3", {"target_modules": ["q_proj", "lm_head"]}),
    ],
)
def test_a_file_adds_what_the_adapter_adds(name: str, more: dict[str, Any], using: Reader, tmp_path: Path) -> None:
    model = build(name)
    source = Source(model, tmp_path / "model")
    artifact, _ = exported(source, tmp_path)
    base = logits_of(model)
    want = logits_of(adapted(model, tmp_path / "adapter", **more))
    both, facts = with_adapter(artifact, tmp_path / "adapter", source.folder)
    error = np.abs(open_gguf(both, "mine", using=using).logits(IDS) - want).max()
    assert error < (5e-3 if name in ("gemma2", "gpt2") else 1e-3)
    assert np.abs(want - base).max() > 0.1
    assert np.abs(open_gguf(both, using=using).logits(IDS) - base).max() < 5e-3
    assert facts["layers"] > 0


def test_what_a_file_says(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    adapted(source.model, tmp_path / "adapter", rank_pattern={"q_proj": 8})
    facts = write_adapter_gguf(tmp_path / "adapter", source.folder, tmp_path / "a.gguf", name="manners")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["general.name"] == "manners"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == facts["alpha"] == 6
    assert facts["ranks"] == [4, 8]
    assert facts["layers"] == 14
    assert len(reader.tensors) == 28


@pytest.mark.parametrize("how", ["rows not interleaved", "scale of rank forgotten"])
def test_a_file_that_adds_something_else_is_an_error_and_is_removed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(build("llama"), tmp_path / "model")
    adapted(source.model, tmp_path / "adapter", use_rslora=True)
    if how == "rows not interleaved":
        monkeypatch.setattr(families, "interleave", lambda rows, heads: rows)
    else:
        monkeypatch.setattr(lora, "_moved", lambda family, config, layer, alpha: layer.b)
    with pytest.raises(VerificationError, match="adds something else than the adapter"):
        write_adapter_gguf(tmp_path / "adapter", source.folder, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_what_no_file_can_hold_is_refused_with_every_reason(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    adapted(
        source.model,
        tmp_path / "adapter",
        use_dora=True,
        target_modules=["q_proj", "lm_head"],
        modules_to_save=["norm"],
    )
    with pytest.raises(StepError) as caught:
        write_adapter_gguf(tmp_path / "adapter", source.folder, tmp_path / "a.gguf")
    for words in (
        "DoRA",
        "weights in full (model.layers.0.input_layernorm.weight",
        "a changed head, which here is the embeddings",
    ):
        assert words in caught.value.reason
    assert "merge the adapter" in caught.value.instead
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_of_a_changed_base_is_refused(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    adapted(source.model, tmp_path / "adapter", init_lora_weights="pissa")
    with pytest.raises(StepError, match="pissa, which belongs to a base that it changed"):
        write_adapter_gguf(tmp_path / "adapter", source.folder, tmp_path / "a.gguf")


def test_a_folder_without_an_adapter_is_told(tmp_path: Path) -> None:
    source = Source(build("llama"), tmp_path / "model")
    with pytest.raises(EngineError, match="the adapter cannot be read"):
        write_adapter_gguf(tmp_path, source.folder, tmp_path / "a.gguf")
