"""An adapter as `.onnx_adapter`: what it adds, under the names of the inputs of an ONNX graph.

With a graph (`--onnx_model_path`, what `generate-adapter` and `auto-opt` write) the names and sizes are read from it
and every one is found there, or the conversion is refused. Without one they are those that the builder gives to a base
of this configuration: query, key and value joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RecipeError, VerificationError
from tunesmith.export.types import StepError
from tunesmith.pipeline.olive.layout import MODEL
from tunesmith.runs import staged_file

if TYPE_CHECKING:
    from tunesmith.pipeline.olive.subject import Subject

_SIDES = ("lora_A", "lora_B")


def graph_folder(name: str) -> Path:
    """The folder of a packed graph: itself, or the `model/` in an output folder. Raises `RecipeError`."""
    place = Path(name).expanduser()
    for folder in (place, place / MODEL):
        if (folder / "model.onnx").is_file():
            return folder
    raise RecipeError(
        f"there is no ONNX model in {name!r}", where="--onnx_model_path",
        expected="a folder that generate-adapter, or auto-opt with an adapter, wrote",
    )  # fmt: skip


def write_onnx_adapter(path: Path, subject: Subject, dtype: str, graph: Path | None) -> Path:
    """Write the file, read it again and compare. Raises `StepError` for an adapter that is no plain LoRA, or has
    modules that the graph has no inputs for."""
    import numpy as np

    from tunesmith.export.onnx.adapters import placed, read_factors, write_adapter_file
    from tunesmith.export.onnx.naming import Sizes

    source = subject.source()
    factors = read_factors(source)
    sizes = Sizes.of(source.config.get_text_config())
    widths, inputs = _of_graph(graph) if graph is not None else (_predicted(factors, sizes), None)
    tensors = {}
    for node, pair in placed(factors, widths, sizes).items():
        stem = node.strip("/").removesuffix("/MatMul").replace("/", ".")
        for side, values in zip(_SIDES, pair, strict=True):
            tensors[f"{stem}.{side}.weight"] = values
    if inputs is not None and (missing := sorted(tensors.keys() - inputs)):
        raise StepError(
            "naming the adapter's weights", f"the graph has no input for {', '.join(missing[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else ""),
            "pack the graph with an adapter on the same modules: tunesmith olive generate-adapter", where=str(graph),
        )  # fmt: skip
    with staged_file(path) as temporary:
        write_adapter_file(temporary, tensors, np.dtype(dtype))
        _refuse_other(path, temporary, tensors, np.dtype(dtype))
    return path


def _of_graph(folder: Path) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Widths of a graph's matrices, and the names of its inputs."""
    from tunesmith.export.onnx.graph import load_graph, nodes_by_name, width_of

    graph = load_graph(folder)
    widths = {name: width_of(graph, node) for name, node in nodes_by_name(graph).items()}
    return widths, {one.name for one in graph.graph.input}


def _predicted(factors: Mapping[str, Any], sizes: Any) -> dict[str, tuple[int, int]]:
    """Widths of the matrices that the builder makes of these modules."""
    from tunesmith.export.onnx.naming import node_of

    widths: dict[str, tuple[int, int]] = {}
    for path, pair in factors.items():
        node = node_of(path)
        if node is not None:
            joined = node.endswith("/qkv_proj/MatMul")
            out = sizes.query + 2 * sizes.value if joined else int(pair.b.shape[0])
            widths[node] = (int(pair.a.shape[1]), out)
    return widths


def _refuse_other(path: Path, file: Path, tensors: Mapping[str, Any], dtype: Any) -> None:
    import numpy as np
    import onnxruntime

    kept = onnxruntime.AdapterFormat.read_adapter(str(file)).get_parameters()
    same = kept.keys() == tensors.keys() and all(
        np.array_equal(value.numpy(), tensors[name].astype(dtype)) for name, value in kept.items()
    )
    if not same:
        raise VerificationError("the file does not hold what was written", where=str(path), fix="check the disk")
