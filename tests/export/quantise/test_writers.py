"""What the writers leave is read again by readers written here from the formats' descriptions, in plain loops."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.export.quantise import works
from tunesmith.errors import EngineError
from tunesmith.export.types import StepError
from tunesmith.inference.artifacts import open_artifact

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
IDS = works.rows(1, 9)[0]
TORCHAO = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder for each family, made when asked for."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = works.base(tmp_path_factory.mktemp("bases") / family, family)
        return made[family]

    return folder


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_gptq_is_read_by_others_as_by_us(bases, tmp_path, family, precision):
    """Plain linear layers, and `Conv1D` with its weight the other way round."""
    base = bases(family)
    done = works.write(works.Whole(base), tmp_path / "out", "gptq", precision, works.rows())
    bits = {"int4": 4, "int8": 8}[precision]
    check_folder(tmp_path / "out", base, {"quant_method": "gptq", "bits": bits, "sym": True, "desc_act": False})
    theirs = read_by_hand(tmp_path / "out", lambda layer: gptq_by_hand(layer, bits))
    expected = logits(base)
    found, ours = theirs(IDS), torch.tensor(open_artifact(done.artifact).logits(IDS))
    assert torch.allclose(found, ours, atol=1e-4)
    assert 0 < divergence(expected, ours) < (0.15 if bits == 4 else 0.002)
    assert done.facts["calibration_kl"] == pytest.approx(divergence(expected, ours), abs=0.1 if bits == 4 else 1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_awq_is_read_by_others_as_by_us(bases, tmp_path, family):
    base = bases(family)
    done = works.write(works.Whole(base), tmp_path / "out", "awq", "int4", works.rows())
    check_folder(tmp_path / "out", base, {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"})
    group = done.facts["group"]
    theirs = read_by_hand(tmp_path / "out", lambda layer: awq_by_hand(layer, group))
    ours = torch.tensor(open_artifact(done.artifact).logits(IDS))
    assert torch.allclose(theirs(IDS), ours, atol=1e-4)
    assert 0 < divergence(logits(base), ours) < 0.15
    assert done.facts["scaled"] > 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_fp8_holds_what_a_scale_for_each_output_says(bases, tmp_path, family):
    base = bases(family)
    done = works.write(works.Whole(base), tmp_path / "out", "fp8", "fp8")
    config = check_folder(tmp_path / "out", base, {"quant_method": "compressed-tensors", "format": "float-quantized"})
    scheme = config["config_groups"]["group_0"]
    assert (scheme["weights"]["strategy"], scheme["input_activations"]["strategy"]) == ("channel", "token")
    assert "lm_head" in config["ignore"]
    theirs = read_by_hand(tmp_path / "out", lambda t: t["weight"].float().numpy() * t["weight_scale"].float().numpy())
    weights_only = divergence(logits(base), theirs(IDS))
    whole = divergence(logits(base), torch.tensor(open_artifact(done.artifact).logits(IDS)))
    assert 0 < weights_only < 0.02
    assert weights_only < whole < 0.05  # with the layers' inputs in float8, too


@TORCHAO
def test_torchao_is_opened_by_plain_transformers(bases, tmp_path):
    base = bases("llama")
    done = works.write(works.Whole(base), tmp_path / "out", "torchao", "int8")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    engine = open_artifact(done.artifact)
    ours = torch.tensor(engine.logits(IDS))
    assert engine.kernel == "torchao int8"
    assert torch.allclose(model(torch.tensor([IDS])).logits[0].detach(), ours, atol=1e-3)
    assert 0 < divergence(logits(base), ours) < 0.002
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == works.TEMPLATE


@TORCHAO
@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_torchao_has_no_four_bits_for_a_cpu(bases, tmp_path):
    with pytest.raises(StepError, match="GPUs only") as told:
        works.write(works.Whole(bases("llama")), tmp_path / "out", "torchao", "int4")
    assert "gptq" in told.value.instead


@pytest.mark.parametrize(
    ("kind", "precision"), [("awq", "int4"), ("fp8", "fp8"), pytest.param("torchao", "int8", marks=TORCHAO)]
)
def test_formats_that_know_linear_layers_only_say_so(bases, tmp_path, kind, precision):
    with pytest.raises(StepError, match="Conv1D") as told:
        works.write(works.Whole(bases("gpt2")), tmp_path / "out", kind, precision, works.rows())
    assert "gptq" in told.value.instead


def test_without_torchao_that_is_said_first(bases, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(EngineError, match="torchao is not installed") as told:
        works.write(works.Whole(bases("llama")), tmp_path / "out", "torchao", "int8")
    assert "tunesmith[quantise]" in str(told.value.fix)


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_without_rows_weights_are_rounded_and_that_is_said(bases, tmp_path, kind):
    done = works.write(works.Whole(bases("llama")), tmp_path / "out", kind, "int4")
    assert done.facts["method"] == "rtn"
    assert done.facts["calibration_kl"] is None
    assert any("no calibration rows" in line for line in done.told)


def test_fitting_is_nearer_than_rounding(bases, tmp_path):
    """On rows that were not fitted to, measured through the files."""
    base = bases("qwen3")
    expected = logits(base)
    found = {}
    for name, rows in (("rtn", []), ("gptq", works.rows(60, seed=4))):
        done = works.write(works.Whole(base), tmp_path / name, "gptq", "int4", rows)
        found[name] = divergence(expected, torch.tensor(open_artifact(done.artifact).logits(IDS)))
    assert found["gptq"] < found["rtn"]


def test_a_plan_is_kept_layer_by_layer(bases, tmp_path):
    base = bases("llama")
    up, down = (f"model.layers.0.mlp.{name}_proj" for name in ("up", "down"))
    done = works.write(works.Whole(base), tmp_path / "out", "gptq", "int4", works.rows(), {up: 8, down: 16})
    assert done.facts["layers"] == {"4": 12, "8": 1, "16": 1}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors[f"{up}.qweight"].shape == (32 * 8 // 32, 48)
    assert tensors[f"{down}.weight"].shape == (32, 48)
    rules = check_folder(tmp_path / "out", base, {"bits": 4})["dynamic"]
    assert [rule[:2] for rule in rules if re.match(rule[2:], up)] == ["+:"]
    assert [rule[:2] for rule in rules if re.match(rule[2:], down)] == ["-:"]
    assert not [rule for rule in rules if re.match(rule[2:], up.replace(".0.", ".1."))]
    # vLLM asks for the product of gate and up together
    assert [rule[:2] for rule in rules if re.match(rule[2:], "model.layers.0.mlp.gate_up_proj")] == ["+:"]
    engine = open_artifact(done.artifact)
    original = AutoModelForCausalLM.from_pretrained(base).get_submodule(down).weight
    assert torch.equal(engine.model.get_submodule(down).weight, original.to(torch.float16).float())
    assert divergence(logits(base), torch.tensor(engine.logits(IDS))) < 0.15


def test_awq_leaves_whole_what_a_plan_gives_more(bases, tmp_path):
    base, up = bases("llama"), "model.layers.1.mlp.up_proj"
    done = works.write(works.Whole(base), tmp_path / "out", "awq", "int4", works.rows(), {up: 8})
    assert done.facts["layers"] == {"4": 13, "16": 1}
    assert up in check_folder(tmp_path / "out", base, {"bits": 4})["modules_to_not_convert"]
    assert divergence(logits(base), torch.tensor(open_artifact(done.artifact).logits(IDS))) < 0.15


@pytest.mark.parametrize(
    ("bits", "said"),
    [({"model.layers.9.mlp.up_proj": 8}, "model.layers.9"), ({"model.layers.0.mlp.up_proj": 32}, "32")],
)
def test_a_plan_that_does_not_fit_is_refused(bases, tmp_path, bits, said):
    with pytest.raises(StepError, match=said):
        works.write(works.Whole(bases("llama")), tmp_path / "out", "gptq", "int4", works.rows(), bits)


def test_other_tensors_keep_the_type_they_have(tmp_path):
    base = works.base(tmp_path / "base", "llama", torch.bfloat16)
    works.write(works.Whole(base), tmp_path / "out", "gptq", "int4", works.rows())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors["model.norm.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.scales"].dtype == torch.float16


def check_folder(folder: Path, base: Path, expected: dict) -> dict:
    """What every such folder holds; returns its `quantization_config`."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config | expected == config
    assert AutoTokenizer.from_pretrained(folder).chat_template == works.TEMPLATE
    assert (folder / "generation_config.json").read_text() == (base / "generation_config.json").read_text()
    names = load_file(folder / "model.safetensors").keys()
    tied = AutoConfig.from_pretrained(base).tie_word_embeddings
    assert ("lm_head.weight" in names) == (not tied)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size < sum(file.stat().st_size for file in base.glob("*.safetensors"))
    return config


def read_by_hand(folder: Path, weight):
    """The folder's model with the numbers that `weight` reads out of each quantised layer's tensors."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    for name, module in model.named_modules():
        mine = {key.rpartition(".")[2]: t for key, t in tensors.items() if key.rpartition(".")[0] == name}
        for inner, parameter in module.named_parameters(recurse=False):
            if inner in mine and not {"qweight", "weight_scale"} & mine.keys():
                parameter.data.copy_(mine[inner])
            elif inner == "weight" and len(mine) > 1:
                read = torch.from_numpy(np.asarray(weight(mine), dtype=np.float32))
                parameter.data.copy_(read if type(module) is torch.nn.Linear else read.t())
            elif inner == "bias" and inner in mine:
                parameter.data.copy_(mine[inner])
    return lambda ids: model(torch.tensor([ids])).logits[0].detach()


def gptq_by_hand(layer: dict, bits: int) -> np.ndarray:
    words, zeros = (layer[n].numpy().astype(np.int64) & 0xFFFFFFFF for n in ("qweight", "qzeros"))
    scales, groups = layer["scales"].float().numpy(), layer["g_idx"].numpy()
    each, top = 32 // bits, 2**bits - 1
    found = np.zeros((scales.shape[1], len(groups)), dtype=np.float32)
    for o in range(found.shape[0]):
        for i, group in enumerate(groups):
            code = (words[i // each, o] >> (bits * (i % each))) & top
            zero = ((zeros[group, o // each] >> (bits * (o % each))) & top) + 1
            found[o, i] = scales[group, o] * (code - zero)
    return found


def awq_by_hand(layer: dict, group: int) -> np.ndarray:
    words, zeros = (layer[n].numpy().astype(np.int64) & 0xFFFFFFFF for n in ("qweight", "qzeros"))
    scales = layer["scales"].float().numpy()
    found = np.zeros((scales.shape[1], len(words)), dtype=np.float32)
    for o in range(found.shape[0]):
        shift = 4 * ORDER.index(o % 8)
        for i in range(found.shape[1]):
            code, zero = (words[i, o // 8] >> shift) & 15, (zeros[i // group, o // 8] >> shift) & 15
            found[o, i] = scales[i // group, o] * (code - zero)
    return found


def logits(base: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(base).eval()(torch.tensor([IDS])).logits[0].detach()


def divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    one, other = expected.log_softmax(-1), found.log_softmax(-1)
    return float((one.exp() * (one - other)).sum(-1).mean())
