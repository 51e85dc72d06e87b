"""One ONNX base with several adapters: each as PEFT has it, whatever its rank, targets, layers, scale and name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest

from tests.export.onnx.twins import ALL, IDS, export, multi_export, opened, peft_logits, save_adapter
from tunesmith.errors import EngineError, RecipeError
from tunesmith.export.onnx.adapters import Factors, placed, read_factors
from tunesmith.export.onnx.multi import write_multi
from tunesmith.export.onnx.naming import Piece, Sizes, node_of, pieces_of
from tunesmith.export.types import StepError, Work
from tunesmith.inference.artifacts import open_artifact
from tunesmith.inference.genai_engine import GenaiModel
from tunesmith.models.artifact import Target

FP32 = Target("onnx-multi", "fp32")


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def test_every_adapter_is_as_peft_has_it_and_the_base_is_unchanged(root):
    made = multi_export(root)
    plain = peft_logits(made.base, None)
    np.testing.assert_allclose(open_artifact(made.artifact).logits(IDS), plain, rtol=0, atol=1e-4)
    for name, folder in made.adapters.items():
        tuned = peft_logits(made.base, folder)
        np.testing.assert_allclose(open_artifact(made.artifact, name).logits(IDS), tuned, rtol=0, atol=1e-4)
        assert float(np.abs(tuned - plain).max()) > 0.05
    assert made.artifact.adapters == tuple(made.adapters) == tuple(made.artifact.facts["adapters"])
    assert made.artifact.facts["ranks"]["quant-\u00e4-x"] == [2, 5]


def test_names_of_any_kind_have_files_of_their_own(root):
    made = multi_export(root)
    files = json.loads((made.artifact.folder / "adapters.json").read_text())
    assert list(files) == list(made.adapters) and len(set(files.values())) == 3
    assert all(
        name.isascii() and "/" not in name and (made.artifact.folder / name).is_file() for name in files.values()
    )


def test_rows_with_other_adapters_take_turns(root):
    made = multi_export(root)
    whole = GenaiModel(made.artifact.folder, 256)
    names = [None, *made.adapters]
    rows = {name: whole.with_adapter(name).row_of(64) for name in names}
    found = {name: [rows[name].append(IDS[:10])] for name in names}
    for start in range(10, len(IDS), 6):
        for name in names:
            found[name].append(rows[name].append(IDS[start : start + 6]))
    for name in names:
        expected = peft_logits(made.base, made.adapters.get(name))
        np.testing.assert_allclose(np.concatenate(found[name]), expected, rtol=0, atol=1e-4)
    whole.close()


def test_plain_genai_switches_adapters(root):
    made = multi_export(root)
    model = og.Model(str(made.artifact.folder))
    files = json.loads((made.artifact.folder / "adapters.json").read_text())
    adapters = og.Adapters(model)
    adapters.load(str(made.artifact.folder / files["plain"]), "a")
    generator = og.Generator(model, og.GeneratorParams(model))
    generator.set_active_adapter(adapters, "a")
    generator.append_tokens(np.asarray([IDS], dtype=np.int32))
    tuned = peft_logits(made.base, made.adapters["plain"])
    np.testing.assert_allclose(generator.get_logits()[0, -1], tuned[-1], rtol=0, atol=1e-4)


def test_an_adapter_that_is_not_there_is_refused(root):
    made = multi_export(root)
    with pytest.raises(EngineError, match="no adapter 'other'") as caught:
        open_artifact(made.artifact, "other")
    assert "plain" in str(caught.value)


def test_a_single_run_packs_its_one_adapter(tmp_path, root):
    made = multi_export(root)
    source = opened(made.base, made.adapters["plain"])
    artifact = export(tmp_path / "out", source, Target("onnx-multi", "int4"))
    assert artifact.adapters == (source.name,)
    of_base, of_adapter = open_artifact(artifact).logits(IDS), open_artifact(artifact, source.name).logits(IDS)
    tuned, plain = peft_logits(made.base, made.adapters["plain"]), peft_logits(made.base, None)
    assert float(np.abs(of_adapter - tuned).mean()) < 0.5 * float(np.abs(plain - tuned).mean())
    assert float(np.abs(of_base - plain).mean()) < 0.5 * float(np.abs(plain - tuned).mean())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"targets": ("q_proj", "lm_head")}, "the head"),
        ({"targets": ("q_proj", "embed_tokens")}, "embeddings"),
        ({"bias": "lora_only"}, "bias: lora_only"),
    ],
)
def test_what_cannot_be_switched_is_refused_before_anything_is_built(tmp_path, root, more, said):
    made = multi_export(root)
    adapter = save_adapter(tmp_path / "adapter", made.base, **more)
    with pytest.raises(StepError) as caught:
        export(tmp_path / "out", opened(made.base, adapter), Target("onnx-multi", "fp32"))
    assert caught.value.step == "packing the adapter" and said in caught.value.reason
    assert "--to onnx" in caught.value.instead and list((tmp_path / "out").iterdir()) == []


def test_all_reasons_are_told_at_once(tmp_path, root):
    made = multi_export(root)
    adapter = save_adapter(tmp_path / "a", made.base, use_dora=True, modules_to_save=["embed_tokens"], bias="lora_only")
    with pytest.raises(StepError) as caught:
        read_factors(opened(made.base, adapter))
    assert all(word in caught.value.reason for word in ("DoRA", "embed_tokens", "bias"))


def test_a_model_tuned_in_full_has_no_adapter(tmp_path, root):
    made = multi_export(root)
    with pytest.raises(StepError, match="in full"):
        export(tmp_path / "out", opened(made.base), Target("onnx-multi", "fp32"))


def test_names_that_are_none_are_refused(tmp_path, root):
    made = multi_export(root)
    source = opened(made.base, made.adapters["plain"])
    for sources, said in (
        ({" ": source}, "cannot be named"),
        ({"a\nb": source}, "one line"),
    ):
        with pytest.raises(RecipeError, match=said):
            write_multi(Work(source, FP32, tmp_path, tmp_path, print, sources=sources))


def test_sources_that_are_asked_in_other_ways_are_refused(tmp_path, root):
    from tunesmith.export.source import open_folders

    made = multi_export(root)
    one = opened(made.base, made.adapters["plain"])
    other = open_folders(str(made.base), made.adapters["plain"], chat_template="raw")
    with pytest.raises(StepError, match=r"b: asked by another chat template"):
        write_multi(Work(one, FP32, tmp_path, tmp_path, print, sources={"a": one, "b": other}))


SIZES = Sizes(query=4, value=2)
LAYER = "/model/layers.3"


def test_modules_are_found_in_the_graph_by_their_names():
    joined = {f"{LAYER}/attn/qkv_proj/MatMul", f"{LAYER}/mlp/gate_proj/MatMul", f"{LAYER}/mlp/up_proj/MatMul"}
    apart = {f"{LAYER}/attn/{name}_proj/MatMul" for name in "qkvo"}
    path = "model.layers.3"
    qkv = f"{LAYER}/attn/qkv_proj/MatMul"
    assert node_of("lm_head") == "/lm_head/MatMul"
    assert node_of(f"{path}.self_attn.k_proj") == qkv and node_of("model.norm") is None
    assert pieces_of(f"{path}.self_attn.k_proj", joined, SIZES) == (Piece(qkv, None, slice(4, 6)),)
    assert pieces_of(f"{path}.self_attn.v_proj", joined, SIZES) == (Piece(qkv, None, slice(6, 8)),)
    assert pieces_of(f"{path}.self_attn.v_proj", apart, SIZES) == (Piece(f"{LAYER}/attn/v_proj/MatMul"),)
    assert pieces_of(f"{path}.self_attn.dense", apart, SIZES) == (Piece(f"{LAYER}/attn/o_proj/MatMul"),)
    assert pieces_of(f"{path}.self_attn.qkv_proj", joined, SIZES) == (Piece(qkv),)
    assert [p.taken for p in pieces_of(f"{path}.self_attn.qkv_proj", apart, SIZES)] == [
        slice(0, 4), slice(4, 6), slice(6, 8),
    ]  # fmt: skip
    assert [p.halves for p in pieces_of(f"{path}.mlp.gate_up_proj", joined, SIZES)] == [0, 1]
    assert pieces_of(f"{path}.self_attn.o_proj", joined, SIZES) == ()
    assert pieces_of("model.layers.30.self_attn.q_proj", joined, SIZES) == ()


def test_factors_of_joined_modules_become_one_pair():
    rng = np.random.default_rng(0)
    qkv = f"{LAYER}/attn/qkv_proj/MatMul"
    factors = {
        f"model.layers.3.self_attn.{name}": Factors(rng.normal(size=(rank, 5)), rng.normal(size=(out, rank)))
        for name, rank, out in (("q_proj", 2, 4), ("v_proj", 3, 2))
    }
    [(node, (a, b))] = placed(factors, {qkv: (5, 8)}, SIZES).items()
    assert node == qkv and a.shape == (5, 5) and b.shape == (5, 8)
    x = rng.normal(size=(7, 5))
    q, v = factors["model.layers.3.self_attn.q_proj"], factors["model.layers.3.self_attn.v_proj"]
    expected = np.concatenate([x @ q.a.T @ q.b.T, np.zeros((7, 2)), x @ v.a.T @ v.b.T], axis=1)
    np.testing.assert_allclose(x @ a @ b, expected, atol=1e-6)


def test_modules_without_a_matrix_or_of_other_sizes_are_all_named():
    strange = {
        "model.layers.9.mlp.up_proj": Factors(np.ones((1, 5)), np.ones((8, 1))),
        "model.layers.3.mlp.up_proj": Factors(np.ones((1, 6)), np.ones((8, 1))),
    }
    with pytest.raises(StepError) as caught:
        placed(strange, {f"{LAYER}/mlp/up_proj/MatMul": (5, 8)}, SIZES)
    assert "layers.9" in caught.value.reason and "other sizes" in caught.value.reason


def test_a_damaged_adapter_is_refused(tmp_path, root):
    from safetensors.torch import load_file, save_file

    made = multi_export(root)
    adapter = save_adapter(tmp_path / "adapter", made.base, targets=ALL)
    tensors = load_file(adapter / "adapter_model.safetensors")
    gone = next(name for name in tensors if "lora_B" in name)
    save_file({n: t for n, t in tensors.items() if n != gone}, adapter / "adapter_model.safetensors")
    with pytest.raises(StepError, match="one factor only"):
        read_factors(opened(made.base, adapter))
