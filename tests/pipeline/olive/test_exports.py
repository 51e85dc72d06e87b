"""Flags of the optimising commands as targets, models found again by their folders, and files beside an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny import byte_tokenizer, save_base
from tunesmith.errors import EngineError, RecipeError, VerificationError
from tunesmith.export.types import StepError
from tunesmith.models.artifact import Artifact, Target, hash_files, read_artifact, write_artifact
from tunesmith.pipeline.olive.adapter_files import carry_out_files, plan_convert, plan_extract
from tunesmith.pipeline.olive.config import plan_run
from tunesmith.pipeline.olive.exports import NO_EFFECT, REFUSED, plan_export
from tunesmith.pipeline.olive.foundry import add_foundry, foundry_model
from tunesmith.pipeline.olive.packs import plan_pack
from tunesmith.pipeline.olive.project import Project
from tunesmith.pipeline.olive.trial import write_small
from tunesmith.pipeline.workflow.steps import target_of
from tunesmith.recipe import InvalidRecipeError, parse_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """A PEFT adapter with random weights, of rank 4 and alpha 12."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapters") / "one"
    get_peft_model(model, config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def planned(command: Any, base: Path, **flags: Any) -> Target:
    return plan_export(command, {"model_name_or_path": str(base), **flags}, Project()).target


def wrong(command: Any, base: Path, **flags: Any) -> dict[str, str]:
    with pytest.raises(InvalidRecipeError) as caught:
        planned(command, base, **flags)
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        ("optimize", {}, "onnx-fp32"),
        ("optimize", {"precision": "int4", "provider": "CUDAExecutionProvider"}, "onnx-int4"),
        ("optimize", {"exporter": "torchscript_exporter", "precision": "int8"}, "onnx-plain-int8"),
        ("optimize", {"provider": "OpenVINOExecutionProvider", "precision": "int8"}, "openvino-int8"),
        ("auto-opt", {}, "onnx-plain-fp32"),
        ("auto-opt", {"use_ort_genai": "true", "device": "gpu"}, "onnx-fp16"),
        ("auto-opt", {"use_model_builder": "true", "precision": "uint4"}, "onnx-int4"),
        ("capture-onnx-graph", {"use_model_builder": "true", "precision": "fp16"}, "onnx-fp16"),
        ("quantize", {"algorithm": "kquant"}, "onnx-int4"),
        ("quantize", {"algorithm": "gptq"}, "gptq-int4"),
        ("auto-opt", {"use_ort_genai": "False"}, "onnx-plain-fp32"),
        ("auto-opt", {"device": "gpu", "provider": "CUDAExecutionProvider"}, "onnx-fp16"),
        ("quantize", {"algorithm": "awq", "precision": "int4"}, "awq-int4"),
    ],
)
def test_flags_as_targets(base, command, flags, expected) -> None:
    assert str(planned(command, base, **flags)) == expected


def test_devices(base) -> None:
    assert planned("optimize", base, provider="DmlExecutionProvider").device == "directml"
    assert planned("optimize", base, device="gpu", provider="DmlExecutionProvider").device == "directml"
    assert planned("optimize", base, device="npu", provider="QNNExecutionProvider").device == "npu"
    assert planned("optimize", base, device="gpu", provider="OpenVINOExecutionProvider").device == "cpu"
    assert "awq is not made for npu" in wrong("quantize", base, algorithm="awq", device="npu")["--device"]


@pytest.mark.parametrize(
    ("installed", "flags", "expected"),
    [
        (True, {}, "torchao-int8"),
        (False, {}, "gptq-int8"),
        (False, {"algorithm": "rtn", "precision": "int4"}, "gptq-int4"),
        (True, {"precision": "int4"}, "gptq-int4"),  # torchao has none for CPUs
        (True, {"precision": "int4", "device": "gpu"}, "torchao-int4"),
    ],
)
def test_rounded_weights_are_kept_where_they_can_be_written(base, monkeypatch, installed, flags, expected) -> None:
    """Without torchao, and where it has no kernel, in GPTQ's format, which is said; of a pass as of the command."""
    monkeypatch.setattr("tunesmith.pipeline.olive.rounding.find_spec", lambda name: installed or None)
    plan = plan_export("quantize", {"model_name_or_path": str(base), **flags}, Project())
    assert str(plan.target) == expected
    assert bool(plan.notes) == expected.startswith("gptq")
    assert all("torchao" in note and "GPTQ's format" in note for note in plan.notes)


def test_calibration_rows_that_change_nothing_are_named(base, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "one"}\n')
    (tmp_path / "b.jsonl").write_text('{"a": "two"}\n')
    files = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    flags = {"model_name_or_path": str(base), "text_template": "{a}", "max_samples": "3"}
    plan = plan_export("quantize", {**flags, "algorithm": "gptq", "data_files": files}, Project())
    assert plan.data == tuple(files.split(",")) and plan.notes == ()
    for more in ({"algorithm": "gptq"}, {"algorithm": "kquant", "data_files": files}):
        notes = " ".join(plan_export("quantize", {**flags, **more}, Project()).notes)
        assert "--text_template: changes nothing" in notes and "--max_samples: changes nothing" in notes


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        *[("optimize", {"precision": p}) for p in ("fp32", "fp16", "int8", "int4")],
        *[("auto-opt", {"precision": p}) for p in ("fp32", "int8")],
        *[("optimize", {"provider": "OpenVINOExecutionProvider", "precision": p}) for p in ("fp32", "fp16", "int8")],
        *[("optimize", {"provider": p}) for p in ("CUDAExecutionProvider", "DmlExecutionProvider")],
        ("optimize", {"device": "npu"}), ("auto-opt", {"device": "npu", "provider": "OpenVINOExecutionProvider"}),
        *[("quantize", {"algorithm": a}) for a in ("rtn", "gptq", "awq", "kquant")],
        ("quantize", {"algorithm": "gptq", "precision": "int8", "device": "gpu"}),
    ],
)  # fmt: skip
def test_the_saved_configuration_means_the_same_export(base, tmp_path, command, flags) -> None:
    plan = plan_export(command, {"model_name_or_path": str(base), **flags}, Project())
    (tmp_path / "config.json").write_text(json.dumps(plan.config()))
    again = plan_run([tmp_path / "config.json"], Project())
    assert again.workflow is not None
    step = next(step for step in again.workflow.steps if step.kind != "measure")
    assert target_of(step.kind, step.settings) == plan.target


def test_everything_that_is_wrong_with_an_export_at_once(base) -> None:
    found = wrong(
        "optimize",
        base,
        provider="CUDAExecutionProvider",
        device="cpu",
        precision="int16",
        surgeries="a",
        num_split="2",
    )
    assert "CPUExecutionProvider" in found["--provider"]
    assert {"--precision", "--surgeries", "--num_split"} <= found.keys()
    assert "nothing here could prove it" in wrong("optimize", base, provider="VitisAIExecutionProvider")["--provider"]
    assert "awq" in wrong("quantize", base, algorithm="spinquant")["--algorithm"]
    assert "awq has no int8" in wrong("quantize", base, algorithm="awq", precision="int8")["--precision"]


def test_every_flag_without_effect_says_so(base) -> None:
    flags = {"model_name_or_path": str(base), **dict.fromkeys(NO_EFFECT, "1")}
    notes = plan_export("optimize", flags, Project()).notes
    assert {note.split(":")[0] for note in notes} == {f"--{name}" for name in NO_EFFECT}
    assert wrong("optimize", base, **dict.fromkeys(REFUSED, "1")).keys() == {f"--{name}" for name in REFUSED}


def test_what_is_no_model(tmp_path, base, adapter) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph/model.onnx").touch()
    assert any("ONNX graph" in text for text in wrong("optimize", tmp_path / "graph").values())
    assert "none is fetched" in wrong("optimize", Path("org/none"))["--model_name_or_path"]
    assert "there is no adapter" in wrong("auto-opt", base, adapter_path=str(tmp_path))["--adapter_path"]
    plan = plan_export("auto-opt", {"model_name_or_path": str(base), "adapter_path": str(adapter),
                                    "use_ort_genai": "true"}, Project())  # fmt: skip
    assert str(plan.target) == "onnx-multi-fp32" and plan.subject.adapter == adapter.resolve()
    assert plan.config()["passes"] == {
        "graph": {"type": "ModelBuilder", "precision": "fp32"}, "adapters": {"type": "ExtractAdapters"}
    }  # fmt: skip


def test_an_adapter_of_other_weights_is_refused(tmp_path, base) -> None:
    """Of a run: the base that is named must be the one it was tuned on."""
    from tunesmith.pipeline.olive.subject import find_subject

    run = tmp_path / "out/run"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter/adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, run / "adapter/adapter_model.safetensors")
    (run / "manifest.json").write_text(json.dumps({"base": {"weights_sha256": "0" * 64}}))
    assert find_subject(None, str(tmp_path / "out/run/adapter"), Project()).run is not None
    with pytest.raises(VerificationError, match="other weights"):
        find_subject(str(base), str(tmp_path / "out/run/adapter"), Project())
    with pytest.raises(VerificationError, match="other weights"):
        find_subject("embedded:base", str(tmp_path / "out/run/adapter"), Project())
    with pytest.raises(VerificationError, match="other weights"):
        plan_pack({"base_model_path": str(base), "adapter_paths": str(tmp_path / "out/run/adapter")}, Project())


def test_a_pack_names_what_is_wrong_with_it(base, adapter, tmp_path) -> None:
    plan = plan_pack({"base_model_path": str(base), "adapter_paths": f"a={adapter},b={adapter}"}, Project())
    assert list(plan.adapters) == ["a", "b"] and str(plan.target) == "onnx-multi-fp32"
    with pytest.raises(InvalidRecipeError, match="two adapters are called 'one'"):
        plan_pack({"base_model_path": str(base), "adapter_paths": f"{adapter},{adapter}"}, Project())
    with pytest.raises(InvalidRecipeError) as caught:
        plan_pack({"adapter_paths": f"{tmp_path}", "adapter_type": "loha", "precision": "int3"}, Project())
    keys = {problem.key.split(" ")[0] for problem in caught.value.problems}
    assert keys == {"--model_name_or_path", "--adapter_paths", "--adapter_type", "--precision"}


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_adapter_file_holds_what_is_added(base, adapter, tmp_path, kind, dtype) -> None:
    flags = {"adapter_path": str(adapter), "output_path": str(tmp_path / "x"), "adapter_format": kind, "dtype": dtype}
    (path,) = carry_out_files(plan_convert(flags, Project()), lambda line: None)
    assert path == tmp_path / f"x.{kind}"
    kept: dict[str, Any] = dict(load_file(path)) if kind == "safetensors" else dict(np.load(path))
    own = load_file(adapter / "adapter_model.safetensors")
    assert len(kept) == len(own) == 8
    name = "model.layers.1.mlp.down_proj"
    a, b = (np.asarray(kept[f"{name}.lora_{side}.weight"], dtype=np.float32) for side in "AB")
    theirs = [own[f"base_model.model.{name}.lora_{side}.weight"].numpy() for side in "AB"]
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(a @ b, 12 / 4 * (theirs[1] @ theirs[0]).T, atol=tolerance)
    assert a.shape == (48, 4) and b.shape == (4, 32)


def test_int4_adapters_and_pickles_are_refused(adapter) -> None:
    flags = {"adapter_path": str(adapter), "output_path": "x", "quantize_int4": "true", "adapter_format": "pt"}
    with pytest.raises(InvalidRecipeError) as caught:
        plan_convert(flags, Project())
    said = str(caught.value)
    assert "--quantize_int4" in said and "can run code" in said


def test_adapters_inside_a_model_are_extracted(base, tmp_path) -> None:
    model = tmp_path / "inside"
    model.mkdir()
    tensors = load_file(base / "model.safetensors")
    torch.manual_seed(2)
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    tensors["model.layers.0.self_attn.q_proj.lora_A.speech.weight"] = a
    tensors["model.layers.0.self_attn.q_proj.lora_B.speech.weight"] = b
    save_file(tensors, model / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config))
    flags = {"model_name_or_path": str(model), "format": "safetensors", "output_path": str(tmp_path / "out")}
    with pytest.raises(RecipeError, match="the scaling of the adapter 'speech' is not known"):
        carry_out_files(_inside(plan_extract(flags, Project()), model), lambda line: None)
    (model / "config.json").write_text(json.dumps({**config, "speech_lora": {"r": 4, "lora_alpha": 8}}))
    (path,) = carry_out_files(_inside(plan_extract(flags, Project()), model), lambda line: None)
    kept = load_file(path)
    name = "model.layers.0.self_attn.q_proj"
    torch.testing.assert_close(kept[f"{name}.lora_A.weight"] @ kept[f"{name}.lora_B.weight"], 2 * (b @ a).t())


def _inside(plan: Any, model: Path) -> Any:
    assert plan.inside is not None and plan.inside[0] == model
    return plan


def test_a_peft_folder_is_extracted_on_the_base_that_it_names(base, adapter, tmp_path) -> None:
    given = json.loads((adapter / "adapter_config.json").read_text())
    assert given["base_model_name_or_path"] == str(base)
    flags = {"model_name_or_path": str(adapter), "format": "npz", "output_path": str(tmp_path / "out")}
    (path,) = carry_out_files(plan_extract(flags, Project()), lambda line: None)
    assert path == tmp_path / "out/one.npz" and len(np.load(path).files) == 8


@pytest.mark.parametrize("text", ["{", "[]", '{"base_model_name_or_path": 3}', "\udcff"])
def test_a_broken_adapter_is_an_error_for_people(tmp_path, text) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidRecipeError, match="this is no adapter"):
        plan_convert({"adapter_path": str(tmp_path), "output_path": "x"}, Project())
    with pytest.raises(InvalidRecipeError, match="this is no adapter"):
        plan_extract({"model_name_or_path": str(tmp_path), "format": "npz"}, Project())


def test_a_damaged_model_has_no_adapters_to_extract(base, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    flags = {"model_name_or_path": str(tmp_path), "format": "npz", "output_path": str(tmp_path / "out")}
    with pytest.raises(InvalidRecipeError, match="cannot be read"):
        plan_extract(flags, Project())
    save_file({"q.lora_A.x.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"x_lora": {"alpha": 1}}')
    with pytest.raises(EngineError, match="every pair"):
        carry_out_files(plan_extract(flags, Project()), lambda line: None)
    (tmp_path / "config.json").unlink()
    with pytest.raises(EngineError, match="no model's configuration"):
        carry_out_files(plan_extract(flags, Project()), lambda line: None)


def test_a_model_without_adapters_has_none_to_extract(base, tmp_path) -> None:
    with pytest.raises(InvalidRecipeError, match="there is no adapter"):
        plan_extract({"model_name_or_path": str(base), "format": "safetensors"}, Project())


def test_dora_is_no_file_of_plain_lora(base, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, use_dora=True, target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "dora")
    byte_tokenizer().save_pretrained(tmp_path / "dora")
    flags = {"adapter_path": str(tmp_path / "dora"), "output_path": str(tmp_path / "x"), "adapter_format": "npz"}
    with pytest.raises(StepError):
        carry_out_files(plan_convert(flags, Project()), lambda line: None)
    assert not (tmp_path / "x.npz").exists()


CHAT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_foundry_local_knows_how_a_model_is_asked(tmp_path) -> None:
    byte_tokenizer(CHAT).save_pretrained(tmp_path)
    told = foundry_model(tmp_path, "tones")
    assert told == {
        "Name": "tones",
        "PromptTemplate": {
            "user": "[user]{Content}",
            "assistant": "[assistant]{Content}",
            "prompt": "[user]{Content}[assistant]",
        },
    }


def test_the_manifest_knows_the_file_that_was_added(tmp_path) -> None:
    byte_tokenizer(CHAT).save_pretrained(tmp_path)
    files, size = hash_files(tmp_path)
    write_artifact(Artifact(tmp_path, Target("onnx", "int4"), files, size, "b", "0", "auto", None, (1,), 8))
    recipe = parse_recipe({"data": {"train": "x.csv", "template": "Sort: {text}\nTone: {tone}"}})
    done = add_foundry(read_artifact(tmp_path), "tones", recipe)
    assert read_artifact(tmp_path).files == done.files and "inference_model.json" in done.files
    told = json.loads((tmp_path / "inference_model.json").read_text())
    assert told["PromptTemplate"]["prompt"] == "[user]Sort: {Content}\nTone: [assistant]"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationError):
        add_foundry(done, "tones")


def test_a_small_model_of_the_same_kind(tmp_path) -> None:
    base = save_base(tmp_path / "base", "gemma3", seed=5)
    write_small(base, tmp_path / "small", False)
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert config["model_type"] == "gemma3_text" and config["num_hidden_layers"] == 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    other = save_base(tmp_path / "other", "llama")
    write_small(other, tmp_path / "small", False)  # another model's does not stay
    assert json.loads((tmp_path / "small/config.json").read_text())["model_type"] == "llama"
    assert not torch.equal(
        model.get_input_embeddings().weight, load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    )
