"""Plain ONNX: the graph is the model, whatever its family, in any batch, and nothing of this machine is in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.export.onnx_plain.made import ModelSource, engine_of, long, needs_onnx, write
from tunesmith.data.types import Message
from tunesmith.errors import EngineError
from tunesmith.export.onnx_plain import graph, int8
from tunesmith.export.onnx_plain.write import GRAPH, WEIGHTS, share_transposed, write_graph, write_plain
from tunesmith.export.types import StepError
from tunesmith.models.artifact import Artifact

needs_onnx()

ASKED = [(Message("user", "lost card"),), (Message("system", "be brief"), Message("user", "where is it?"))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, Artifact]:
    source = ModelSource(tiny.build("llama"))
    return source, write(write_plain, "onnx-plain", "fp32", source, tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_graph_gives_the_models_logits(family: str, tmp_path: Path) -> None:
    source = ModelSource(tiny.build(family))
    artifact = write(write_plain, "onnx-plain", "fp32", source, tmp_path)
    ids = torch.randint(3, 250, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.inference_mode():
        expected = source.model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(engine_of(artifact).logits(ids) - expected).max() < 1e-4
    assert artifact.facts["exporter"] == "tracing"
    assert artifact.facts["largest_difference"] < 1e-4


def test_answers_and_scores_are_those_of_torch(llama: tuple[ModelSource, Artifact]) -> None:
    source, artifact = llama
    ours, theirs = engine_of(artifact), source.engine()
    written, expected = list(ours.generate(ASKED, 12)), list(theirs.generate(ASKED, 12))
    assert [one.text for one in written] == [one.text for one in expected]
    assert {one.text for one in written} != {""}
    said = [["yes", "no thanks", "now"]] * 2
    assert np.allclose(list(ours.score(ASKED, said)), list(theirs.score(ASKED, said)), atol=1e-4)


def test_a_batch_of_rows_padded_on_the_left_gives_each_rows_logits(llama: tuple[ModelSource, Artifact]) -> None:
    import onnxruntime

    source, artifact = llama
    session = onnxruntime.InferenceSession(str(artifact.folder / GRAPH))
    layers = graph.layers_of(source.model)
    rows = [[5, 6, 7, 8, 9], [40, 41]]
    inputs, outputs = graph.names(layers)
    ids, mask, places = (np.zeros((2, 5), np.int64) for _ in range(3))
    for i, row in enumerate(rows):
        ids[i, 5 - len(row) :], mask[i, 5 - len(row) :] = row, 1
        places[i, 5 - len(row) :] = range(len(row))
    past = [one.numpy() for one in graph.no_past(layers, 2)]
    logits = session.run(outputs, dict(zip(inputs, [ids, mask, places, *past], strict=True)))[0]
    for i, row in enumerate(rows):
        with torch.inference_mode():
            expected = source.model(input_ids=torch.tensor([row])).logits[0].numpy()
        assert np.abs(logits[i, 5 - len(row) :] - expected).max() < 1e-4


def test_the_file_is_standard_onnx_without_paths_and_can_be_moved(
    llama: tuple[ModelSource, Artifact], tmp_path: Path
) -> None:
    import onnx

    _, artifact = llama
    model = onnx.load(str(artifact.folder / GRAPH))
    assert {one.domain for one in model.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [one.version for one in model.opset_import] == [artifact.facts["opset"]]
    data = (artifact.folder / GRAPH).read_bytes()
    here = (Path(tiny.__file__).parents[1], Path(torch.__file__).parent, Path(tempfile.gettempdir()), artifact.folder)
    for trace in (*(str(path).encode() for path in here), b"site-packages", b".py"):
        assert trace not in data, trace
    assert not list(artifact.folder.glob("*.safetensors"))
    assert (artifact.folder / "chat_template.jinja").is_file()


def test_weights_apart_from_the_graph_move_with_it(llama: tuple[ModelSource, Artifact], tmp_path: Path) -> None:
    import onnx

    source, artifact = llama
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    layers = graph.layers_of(source.model)
    assert write_graph(artifact.folder / GRAPH, first, "fp32", one_file=10_000)["weights_apart"]
    whole, apart = ((folder / GRAPH).stat().st_size for folder in (artifact.folder, first))
    assert (first / WEIGHTS).stat().st_size > 50_000
    assert whole - apart > 50_000
    shutil.move(first, second)
    onnx.checker.check_model(str(second / GRAPH))
    assert graph.largest_difference(source.model, layers, second / GRAPH) < 1e-4
    assert str(tmp_path).encode() not in (second / GRAPH).read_bytes()


def test_a_head_tied_to_the_embeddings_is_written_once(llama: tuple[ModelSource, Artifact]) -> None:
    _, artifact = llama
    assert artifact.facts["shared_weights"] == 1


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen3", marks=long), "gpt2"])
def test_int8_is_smaller_standard_and_near(family: str, tmp_path: Path) -> None:
    import onnx

    source = ModelSource(tiny.build(family, vocabulary=2_000))
    artifact = write(write_plain, "onnx-plain", "int8", source, tmp_path)
    model = onnx.load(str(artifact.folder / GRAPH))
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    weights = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert artifact.facts["rounded_weights"] == len(weights) > 5
    fp32 = sum(p.numel() for p in source.model.parameters()) * 4
    data = sum(len(one.raw_data) for one in model.graph.initializer)
    assert data < 0.6 * fp32, "a tied head is written twice, in bytes"
    ids = list(range(3, 43))
    with torch.inference_mode():
        expected = source.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    got = torch.from_numpy(engine_of(artifact).logits(ids)).log_softmax(-1)
    assert 0 < float((expected.exp() * (expected - got)).sum(-1).mean()) < 0.02


def test_the_exporter_that_fails_is_followed_by_the_other_and_both_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(graph, "_export", refuse)
    with pytest.raises(StepError) as caught:
        graph.trace(tiny.build("llama"), tmp_path)
    assert "tracing: no such operator" in caught.value.reason
    assert "dynamo: " in caught.value.reason
    assert "merged" in str(caught.value)


def test_a_graph_that_gives_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, other = tiny.build("llama"), tiny.build("llama", seed=1)
    usual = graph._export
    monkeypatch.setattr(graph, "_export", lambda _, layers, path, exporter: usual(other, layers, path, exporter))
    with pytest.raises(StepError, match="other numbers than the model"):
        graph.trace(model, tmp_path)


def test_a_model_without_keys_and_values_is_refused_by_what_it_does(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(
        MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4, expand=2)
    ).eval()
    with pytest.raises(StepError, match="tracing to ONNX"):
        write(write_plain, "onnx-plain", "fp32", ModelSource(model), tmp_path)


def test_positions_that_turn_with_the_length_of_the_text_are_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = tiny.build("llama").config.to_dict() | {"rope_parameters": rope, "max_position_embeddings": 32}
    with pytest.raises(StepError, match="by the length of the text"):
        write(write_plain, "onnx-plain", "fp32", ModelSource(LlamaForCausalLM(LlamaConfig.from_dict(config))), tmp_path)


def test_an_exporter_that_fails_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Copying(torch.nn.Module):
        def forward(self, ids: Any, **_: Any) -> Any:
            return torch.linalg.svd(torch.ones(4, 4) * ids.sum())

    with pytest.raises(torch.onnx.errors.OnnxExporterError), graph.quietly():
        torch.onnx.export(Copying(), (torch.ones(2, 3),), tmp_path / "m.onnx", dynamo=False, opset_version=graph.OPSET)
    assert capfd.readouterr().out == ""


def test_weights_that_are_not_finite_are_not_rounded(llama: tuple[ModelSource, Artifact]) -> None:
    import onnx
    from onnx import numpy_helper

    _, artifact = llama
    model = onnx.load(str(artifact.folder / GRAPH))
    weight = next(one for one in model.graph.initializer if list(one.dims) == [32, 48])
    broken = numpy_helper.to_array(weight).copy()
    broken[3, 3] = np.nan
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    with pytest.raises(StepError, match="not finite"):
        int8.to_int8(model)


def test_weights_that_only_look_transposed_stay(llama: tuple[ModelSource, Artifact]) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    for other, shared in ((rows.T.copy(), 1), (rows.T + 1, 0)):
        made = helper.make_graph(
            [
                helper.make_node("Gather", ["table", "ids"], ["rows"]),
                helper.make_node("MatMul", ["rows", "w"], ["out"]),
            ],
            "small",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 3])],
            [numpy_helper.from_array(rows, "table"), numpy_helper.from_array(other, "w")],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
        assert share_transposed(model) == shared
        onnx.checker.check_model(model)


def test_a_damaged_graph_and_a_wrong_adapter_are_told(llama: tuple[ModelSource, Artifact], tmp_path: Path) -> None:
    from dataclasses import replace

    from tunesmith.inference.ort_engine import open_ort

    _, artifact = llama
    copied = tmp_path / "copied"
    shutil.copytree(artifact.folder, copied)
    (copied / GRAPH).write_bytes(b"nothing of the kind")
    with pytest.raises(EngineError, match="does not open the model"):
        open_ort(replace(artifact, folder=copied))
    with pytest.raises(EngineError, match="is one model"):
        open_ort(artifact, "other")
    elsewhere = replace(artifact, target=replace(artifact.target, device="cuda"))
    with pytest.raises(EngineError, match="cannot compute on cuda"):
        open_ort(elsewhere)


@pytest.mark.parametrize(("precision", "largest"), [pytest.param("fp32", 1e-4, marks=long), ("int8", 0.1)])
def test_a_model_tuned_on_pairs_places_texts(precision: str, largest: float, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    source = ModelSource(tiny.build("qwen3"), template=None)
    artifact = write(write_plain, "onnx-plain", precision, source, tmp_path)
    path = artifact.folder / str(artifact.facts["embedding"])
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path))
    texts = [[5, 6, 7, 8], [40, 41]]
    ids, mask = np.zeros((2, 4), np.int64), np.zeros((2, 4), np.int64)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, 1
    (found,) = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    for one, text in zip(found, texts, strict=True):
        with torch.inference_mode():
            states = source.model.model(input_ids=torch.tensor([text])).last_hidden_state[0]
        expected = states.mean(0).numpy()
        assert np.linalg.norm(one - expected) < largest * np.linalg.norm(expected)
    assert artifact.facts["embedding_difference"] < largest


def test_a_model_that_is_asked_has_no_embedding(llama: tuple[ModelSource, Artifact]) -> None:
    _, artifact = llama
    assert "embedding" not in artifact.facts and not (artifact.folder / "embedding.onnx").exists()
