"""A small model as ONNX Runtime GenAI writes them, with adapters as inputs: made by hand, in moments.

One layer: embeddings, attention by `GroupQueryAttention` (two heads of keys, rotated), a head. Its queries, keys and
values have an adapter's place, whose default has rank 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import byte_tokenizer
from tunesmith.inference.genai_config import ADAPTERS
from tunesmith.inference.ort_engine import open_graph
from tunesmith.inference.past_row import PastModel
from tunesmith.inference.serving.onnx_serving import read_adapter
from tunesmith.inference.stepping import SteppingEngine
from tunesmith.inference.torch_artifacts import folder_renderer
from tunesmith.models.artifact import Artifact, Target, hash_files, read_artifact, write_artifact

VOCABULARY, HIDDEN, HEADS, KEYS, WIDTH, CONTEXT = 300, 32, 4, 2, 16, 256
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
_LAYER = "model.layers.0.attn.qkv_proj"


def save_onnx(
    folder: Path, adapters: Mapping[str, int] | None = None, seed: int = 0, template: str = "auto"
) -> Artifact:
    """An artifact in a folder; `adapters` have random factors from their seeds, and ranks of their own."""
    import onnx
    import onnxruntime

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_model(seed), str(folder / "model.onnx"))
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"head_size": WIDTH}}}))
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    files: dict[str, str] = {}
    for name, own in (adapters or {}).items():
        (folder / "adapters").mkdir(exist_ok=True)
        written = onnxruntime.AdapterFormat()
        written.set_adapter_version(1)
        written.set_model_version(1)
        factors = _factors(own)  # what is handed over is their memory, not a copy
        written.set_parameters({key: onnxruntime.OrtValue.ortvalue_from_numpy(value) for key, value in factors.items()})
        files[name] = f"adapters/{name}.onnx_adapter"
        written.export_adapter(str(folder / files[name]))
    if files:
        (folder / ADAPTERS).write_text(json.dumps(files))
    found, size = hash_files(folder)
    kind: Any = "onnx-multi" if adapters else "onnx"
    artifact = Artifact(
        folder, Target(kind, "fp32"), found, size, "small", "0" * 64, template, None, (256,), CONTEXT,
        tuple(adapters or ()),
    )  # fmt: skip
    write_artifact(artifact)
    return read_artifact(folder)


def engine_alone(artifact: Artifact, adapter: str | None = None) -> SteppingEngine:
    """The engine of evaluations on the same file, one row at a time."""
    _, graph = open_graph(artifact)
    if adapter is not None:
        values, step = read_adapter(artifact, adapter).values, graph.step
        graph.step = lambda ids, past, length, more=None: step(ids, past, length, values)  # type: ignore[method-assign]
    return SteppingEngine(PastModel(graph), folder_renderer(artifact), artifact.context)


def _factors(seed: int) -> dict[str, Any]:
    rng, rank = np.random.default_rng(seed), 1 + seed % 4
    out = (HEADS + 2 * KEYS) * WIDTH
    return {
        f"{_LAYER}.lora_A.weight": rng.standard_normal((HIDDEN, rank), dtype=np.float32),
        f"{_LAYER}.lora_B.weight": rng.standard_normal((rank, out), dtype=np.float32),
    }


def _model(seed: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    rng, numbers, whole = np.random.default_rng(seed), TensorProto.FLOAT, TensorProto.INT64
    out = (HEADS + 2 * KEYS) * WIDTH
    angles = np.arange(CONTEXT)[:, None] / 100.0 ** (np.arange(WIDTH // 2) / (WIDTH // 2))
    weights = {
        "table": rng.standard_normal((VOCABULARY, HIDDEN)),
        "qkv": rng.standard_normal((HIDDEN, out)) * 0.3,
        "o": rng.standard_normal((HEADS * WIDTH, HIDDEN)) * 0.3,
        "head": rng.standard_normal((HIDDEN, VOCABULARY)) * 0.3,
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        f"{_LAYER}.lora_A.weight": np.zeros((HIDDEN, 0)),
        f"{_LAYER}.lora_B.weight": np.zeros((0, out)),
    }
    weights["head"][:, 94:] = 0  # answers are of printable characters, and end
    weights["head"][:, 256] = rng.standard_normal(HIDDEN) * 0.35
    ints = {"one": np.array([1]), "axis": np.array([1])}
    node = helper.make_node
    past, present = "past_key_values.0", "present.0"
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"]),
        node("MatMul", ["x", "qkv"], ["base"]),
        node("MatMul", ["x", f"{_LAYER}.lora_A.weight"], ["low"]),
        node("MatMul", ["low", f"{_LAYER}.lora_B.weight"], ["update"]),
        node("Add", ["base", "update"], ["mixed"]),
        node("ReduceSum", ["attention_mask", "axis"], ["counts"]),
        node("Sub", ["counts", "one"], ["ends"]),
        node("Cast", ["ends"], ["seqlens"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["shape"]),
        node("Gather", ["shape", "one"], ["total1"], axis=0),
        node("Squeeze", ["total1"], ["total0"]),
        node("Cast", ["total0"], ["total"], to=TensorProto.INT32),
        node(
            "GroupQueryAttention",
            ["mixed", "", "", f"{past}.key", f"{past}.value", "seqlens", "total", "cos", "sin"],
            ["seen", f"{present}.key", f"{present}.value"],
            domain="com.microsoft", num_heads=HEADS, kv_num_heads=KEYS, do_rotary=1,
        ),
        node("MatMul", ["seen", "o"], ["after"]),
        node("Add", ["x", "after"], ["sum"]),
        node("MatMul", ["sum", "head"], ["logits"]),
    ]  # fmt: skip
    cache = [f"{past}.key", f"{past}.value"], [f"{present}.key", f"{present}.value"]
    value = helper.make_tensor_value_info
    lora = [
        value(f"{_LAYER}.lora_A.weight", numbers, [HIDDEN, "r"]),
        value(f"{_LAYER}.lora_B.weight", numbers, ["r", out]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            value("input_ids", whole, ["batch", "sequence"]),
            value("attention_mask", whole, ["batch", "total"]),
            *(value(name, numbers, ["batch", KEYS, "past", "width"]) for name in cache[0]),
            *lora,
        ],
        [
            value("logits", numbers, ["batch", "sequence", VOCABULARY]),
            *(value(name, numbers, ["batch", KEYS, "total", "width"]) for name in cache[1]),
        ],
        [numpy_helper.from_array(one.astype(np.float32), name) for name, one in weights.items()]
        + [numpy_helper.from_array(one.astype(np.int64), name) for name, one in ints.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
