"""Whether a base can be tuned, told from its files alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.tiny import save_base
from tunesmith.models.base_files import cached_folder, look_at_files
from tunesmith.models.load import EMBEDDED


@pytest.fixture
def base(tmp_path) -> Path:
    return save_base(tmp_path / "base")


def look(folder: Path, causal=("llama",)):
    return look_at_files(folder, name=str(folder), causal=causal)


def obstacle(folder: Path, causal=("llama",)) -> str:
    found = look(folder, causal)
    assert found.known and len(found.obstacles) == 1, found.obstacles
    return found.obstacles[0]


def test_a_whole_base(base):
    found = look(base)
    assert found.obstacles == () and found.tokenizer and found.weights == "safetensors"
    assert (found.architecture, found.context, found.shards) == ("llama", 512, 1)
    assert found.bytes == (base / "model.safetensors").stat().st_size


def test_parameters_are_counted_from_the_header():
    from safetensors import safe_open

    with safe_open(EMBEDDED / "tiny" / "model.safetensors", "pt") as weights:
        numbers = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert look(EMBEDDED / "tiny").parameters == numbers > 1_000_000


def test_a_hub_base_that_is_not_here():
    found = look_at_files(None, name="org/model")
    assert not found.known and found.obstacles == () and found.notes


def test_gguf_only(base):
    (base / "model.safetensors").rename(base / "model-q4.gguf")
    assert "GGUF" in obstacle(base)


def test_pickles(base):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "pickled" in obstacle(base)


def test_no_weights(base):
    (base / "model.safetensors").unlink()
    assert "no weights" in obstacle(base)


def test_no_tokenizer(base):
    (base / "tokenizer.json").unlink()
    assert "no tokenizer" in obstacle(base)
    assert look(base).tokenizer is False


def test_a_file_that_was_cut_short(base):
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "should have" in obstacle(base)


@pytest.mark.parametrize("data", [b"", b"abc", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_a_file_that_is_none(base, data):
    (base / "model.safetensors").write_bytes(data)
    assert "damaged" in obstacle(base)
    assert look(base).parameters is None


def test_a_missing_shard(base):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in obstacle(base)


def change(base: Path, **more: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **more}))


def test_no_language_model(base):
    change(base, model_type="vit")
    assert "vit" in obstacle(base)
    change(base, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert "--trust-remote-code" in obstacle(base)


def test_quantised_weights(base):
    change(base, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "gptq" in obstacle(base)


def test_an_adapter_is_no_base(base):
    (base / "adapter_config.json").write_text("{}")
    assert "adapter" in obstacle(base)


@pytest.mark.parametrize(("text", "said"), [("{", "cannot be read"), ("[]", "cannot be read"), (None, "no config")])
def test_a_damaged_configuration(base, text, said):
    if text is None:
        (base / "config.json").unlink()
    else:
        (base / "config.json").write_text(text)
    assert said in obstacle(base)


def test_the_hubs_cache_is_looked_at_and_nobody_asked(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert cached_folder("org/model", None) is None
    assert cached_folder("not a name at all///", None) is None
