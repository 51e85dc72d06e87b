"""Plain ONNX: `model.onnx` for any runtime, tokenizer and chat template beside it.

Weights lie in that file. Beyond what a single file of the format can hold (2 GB) they lie in `model.onnx.data` next to
it, named without a folder, so that the pair can be moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.errors import EngineError
from tunesmith.export.onnx_plain.embedding import EMBEDDING, embedding_difference, trace_embedding
from tunesmith.export.onnx_plain.graph import INSTEAD, OPSET, Layer, Traced, largest_difference, names, trace
from tunesmith.export.onnx_plain.int8 import to_int8
from tunesmith.export.types import StepError, Work

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
ONE_FILE = 1_900_000_000
"""Bytes up to which weights lie in the graph's own file; the format ends at 2 GiB."""
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".safetensors.index.json", ".bin.index.json")


def write_plain(work: Work) -> Mapping[str, Any]:
    """Write the tuned model as ONNX of standard operators; see `export.types.Writer`."""
    with TemporaryDirectory(dir=work.scratch) as between:
        folder, model, traced = traced_model(work, Path(between))
        facts = write_graph(traced.path, work.staged, work.target.precision)
        if work.source.template is None:  # tuned on pairs: nothing is asked, and texts are placed
            facts |= _embedding(model, work, Path(between))
    difference = traced.difference
    if work.target.precision == "int8":
        difference = largest_difference(model, traced.layers, work.staged / GRAPH)
        _refuse_no_numbers(difference)
    copy_text(folder, work.staged)
    inputs, outputs = names(traced.layers)
    return {
        **facts,
        "exporter": traced.exporter,
        "opset": OPSET,
        "layers": len(traced.layers),
        "inputs": inputs[:3],
        "outputs": outputs[:1],
        "largest_difference": difference,
    }


def traced_model(work: Work, between: Path) -> tuple[Path, Any, Traced]:
    """The merged model's folder, the model in fp32, and its graph in the folder `between`."""
    _need("onnx", "onnxruntime")
    folder = work.source.merged(work.scratch)
    model = _loaded(folder)
    work.tell("tracing the model")
    return folder, model, trace(model, between)


def write_graph(
    traced: Path, folder: Path, precision: str, one_file: int = ONE_FILE, name: str = GRAPH
) -> dict[str, Any]:
    """Write a traced graph with its weights as fp32 or int8; `one_file`: bytes beyond which weights lie beside it.

    Raises `StepError` where what was written is not valid ONNX.
    """
    import onnx

    model = onnx.load(str(traced))
    _forget_where_from(model)
    facts: dict[str, Any]
    if precision == "int8":  # a head tied to the embeddings is rounded as a product of its own
        facts = {"rounded_weights": to_int8(model), "rounding": "symmetric, a scale for each output"}
    else:
        facts = {"shared_weights": share_transposed(model)}
    apart = model.ByteSize() > one_file
    path = folder / name
    onnx.save(
        model,
        str(path),
        save_as_external_data=apart,
        all_tensors_to_one_file=True,
        location=f"{name}.data",
        size_threshold=1024,
    )
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise StepError("checking the ONNX file", str(error).splitlines()[0], INSTEAD) from error
    return {**facts, "weights_apart": apart}


def _embedding(model: Any, work: Work, between: Path) -> dict[str, Any]:
    """Write the graph that places texts, and what is to be said of it."""
    difference = trace_embedding(model, between / EMBEDDING)
    write_graph(between / EMBEDDING, work.staged, work.target.precision, name=EMBEDDING)
    if work.target.precision == "int8":
        difference = embedding_difference(model, work.staged / EMBEDDING)
    return {"embedding": EMBEDDING, "embedding_difference": difference}


def share_transposed(model: Any) -> int:
    """Have a weight that is another one transposed (a head tied to the embeddings) be computed from it; how many are.

    A runtime does so once, when it opens the file.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    large = [one for one in model.graph.initializer if len(one.dims) == 2]
    tables = [one for one in large if one.name in looked_up]
    shared = []
    for table in tables:
        for one in large:
            if one.name not in looked_up and list(one.dims) == list(table.dims)[::-1]:
                same = np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(table).T)
                if same:
                    shared.append((one, helper.make_node("Transpose", [table.name], [one.name], perm=[1, 0])))
    for one, node in shared:
        model.graph.initializer.remove(one)
        model.graph.node.insert(0, node)
    return len(shared)


def copy_text(merged: Path, staged: Path) -> None:
    """Copy all but the weights of a model's folder: tokenizer, template, configuration."""
    for path in sorted(merged.iterdir()):
        if path.is_file() and not path.name.endswith(_NOT_COPIED):
            shutil.copy2(path, staged / path.name)


def _forget_where_from(model: Any) -> None:
    """Drop what exporters note about the source code, which names folders of this machine."""
    model.doc_string = ""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for values in (model.graph.initializer, model.graph.value_info, model.graph.input, model.graph.output):
        for value in values:
            value.doc_string = ""
            del value.metadata_props[:]


def _loaded(folder: Path) -> Any:
    """The model of a plain folder in fp32. Raises `EngineError` where `transformers` does not open it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise EngineError(f"the merged model could not be opened: {error}", where=folder.name) from error
    return model.eval().requires_grad_(False)


def _refuse_no_numbers(difference: float) -> None:
    """Raise `StepError` where a rounded graph gives no numbers; how near they are is judged by the verification."""
    if not isfinite(difference):
        raise StepError("rounding weights to 8 bits", "the logits are no numbers", "export with 32 bits, or to onnx")


def _need(*packages: str) -> None:
    """Raise `EngineError` for a package that is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise EngineError(f"{' and '.join(missing)} is not installed", fix="pip install 'tunesmith[onnx]'")


__all__ = ["GRAPH", "WEIGHTS", "Layer", "copy_text", "share_transposed", "traced_model", "write_graph", "write_plain"]
