import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.quantise import works
from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.torch_engine import TorchEngine

KINDS = [
    ("gptq", "int4"),
    ("gptq", "int8"),
    ("awq", "int4"),
    ("fp8", "fp8"),
    pytest.param("torchao", "int8", marks=pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")),
]
PROMPTS = [[Message("user", text)] for text in ("hello there", "a", "what is the time?")]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """An export of each kind, made when asked for."""
    folder = tmp_path_factory.mktemp("quantised")
    base = works.base(folder / "base", "llama")
    made = {}

    def export(kind, precision):
        name = f"{kind}-{precision}"
        if name not in made:
            made[name] = works.write(works.Whole(base), folder / name, kind, precision, works.rows()).artifact
        return made[name]

    return export


@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_an_export_answers_as_its_logits_say(exports, kind, precision):
    """Greedy answers are those of the likeliest next tokens, and scores those of the logits, one after the other."""
    engine = open_artifact(exports(kind, precision))
    assert isinstance(engine, TorchEngine)
    for prompt, answer in zip(PROMPTS, engine.generate(PROMPTS, 6), strict=True):
        ids = list(engine.renderer.prompt_ids(prompt))
        start = len(ids)
        for _ in range(6):
            ids.append(int(engine.logits(ids)[-1].argmax()))
            if ids[-1] in engine.renderer.stop_ids:
                break
        assert answer.text == engine.renderer.answer(ids[start:], prompt).expected_form
    scores = list(engine.score(PROMPTS, [["yes", "no"]] * len(PROMPTS)))
    for prompt, found in zip(PROMPTS, scores, strict=True):
        for text, score in zip(("yes", "no"), found, strict=True):
            before = list(engine.renderer.prompt_ids(prompt))
            said = [*text.encode(), min(engine.renderer.stop_ids)]
            said = engine.renderer.tokenizer(text, add_special_tokens=False)["input_ids"] + said[-1:]
            after = torch.tensor(engine.logits([*before, *said])).log_softmax(-1)
            expected = sum(float(after[len(before) - 1 + i, token]) for i, token in enumerate(said))
            assert score == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_an_export_says_what_computes_it(exports, kind, precision):
    engine = open_artifact(exports(kind, precision))
    assert ("torchao" if kind == "torchao" else "numbers") in engine.kernel
    found = engine.logits([5, 6, 7])
    assert found.shape == (3, 300)
    assert found.dtype == np.float32
    assert engine.context == 512


@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_an_export_is_one_model(exports, kind, precision):
    with pytest.raises(EngineError, match="holds no adapter 'other'"):
        open_artifact(exports(kind, precision), "other")


def test_what_enters_float8_layers_is_rounded_too(exports):
    """The same weights with inputs as they are give other logits: the engine computes what servers do."""
    engine = open_artifact(exports("fp8", "fp8"))
    rounded = engine.logits([5, 6, 7, 8])
    for module in engine.model.modules():
        module._forward_pre_hooks.clear()
    plain = engine.logits([5, 6, 7, 8])
    assert 1e-3 < float(np.abs(rounded - plain).max()) < 1.0


@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_a_damaged_file_is_told(exports, tmp_path, kind, precision):
    broken = copied(exports(kind, precision), tmp_path)
    (broken.folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(EngineError, match="cannot be opened"):
        open_artifact(broken)


@pytest.mark.parametrize("missing", ["scales", "qzeros", "qweight"])
def test_a_missing_tensor_is_told(exports, tmp_path, missing):
    broken = copied(exports("gptq", "int4"), tmp_path)
    file = broken.folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"model.layers.0.mlp.up_proj.{missing}"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(EngineError, match="cannot be opened"):
        open_artifact(broken)


def test_a_missing_norm_is_told(exports, tmp_path):
    broken = copied(exports("fp8", "fp8"), tmp_path)
    file = broken.folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(EngineError, match=r"model\.norm\.weight"):
        open_artifact(broken)


def test_weights_of_another_kind_are_told(exports, tmp_path):
    broken = copied(exports("gptq", "int4"), tmp_path)
    with pytest.raises(EngineError, match="'gptq'"):
        open_artifact(replace(broken, target=replace(broken.target, kind="awq")))
    config = json.loads((broken.folder / "config.json").read_text())
    del config["quantization_config"]
    (broken.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="export again"):
        open_artifact(broken)


def copied(artifact, folder):
    """The same export in another folder, to be broken there."""
    for file in artifact.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return replace(artifact, folder=folder)
