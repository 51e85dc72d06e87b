"""Plans of mixed precision in the builder's terms."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.export.onnx.twins import export, opened, save_model
from tunesmith.export.onnx import builder
from tunesmith.export.onnx.graph import load_graph, nodes_by_name
from tunesmith.export.onnx.mixed import plan
from tunesmith.export.types import StepError
from tunesmith.models.artifact import Target

LAYER = "model.layers.1"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    return tmp_path


def test_joined_modules_get_the_most_of_their_bits(model):
    bits = {f"{LAYER}.self_attn.q_proj": 4, f"{LAYER}.self_attn.v_proj": 8, f"{LAYER}.mlp.up_proj": 4}
    weights = plan(bits, "int4", model)["weights"]
    assert weights["overrides"] == [{"match": {"name": "/model/layers.1/attn/qkv_proj/MatMul"}, "type": "int8"}]
    assert weights["type"] == "int4" and weights["op_types"] == ["MatMul", "Gather"]


def test_whole_modules_are_left_as_they_are_and_tied_ends_are_one(model):
    bits = {f"{LAYER}.mlp.down_proj": 16, "model.embed_tokens": 8, "lm_head": 4}
    assert plan(bits, "int4", model)["weights"]["overrides"] == [
        {"match": {"name": "/lm_head/MatMul"}, "type": "int8"},
        {"match": {"name": "/model/layers.1/mlp/down_proj/MatMul"}, "exclude": True},
    ]


def test_plans_that_cannot_be_followed_are_refused(model, monkeypatch):
    with pytest.raises(StepError, match=r"no matrix for model\.norm, vision\.patch"):
        plan({"vision.patch": 8, "model.norm": 8, "lm_head": 8}, "int4", model)
    with pytest.raises(StepError, match="fp32 are not quantised"):
        plan({"lm_head": 8}, "fp32", model)
    monkeypatch.setattr(builder, "version", lambda name: "0.16.0")
    with pytest.raises(StepError, match="bits of their own"):
        plan({"lm_head": 8}, "int4", model)


@pytest.mark.skipif(os.environ.get("TUNESMITH_LONG") != "1", reason="TUNESMITH_LONG=1 builds every plan")
def test_the_builder_follows_a_plan(tmp_path):
    source = opened(save_model(tmp_path / "base", "llama tied"))
    bits = {f"{LAYER}.self_attn.k_proj": 8, f"{LAYER}.mlp.down_proj": 16, "lm_head": 8}
    artifact = export(tmp_path / "out", source, Target("onnx", "int4"), bits=bits)
    nodes = nodes_by_name(load_graph(artifact.folder))
    found = {name: next((a.i for a in node.attribute if a.name == "bits"), 32) for name, node in nodes.items()}
    high = {n: b for n, b in found.items() if b != 4}
    assert high == {
        "/lm_head/MatMul": 8, "/model/layers.1/attn/qkv_proj/MatMul": 8, "/model/layers.1/mlp/down_proj/MatMul": 32,
    }  # fmt: skip
    assert artifact.facts["quantising"] == "k_quant, bits by layer"
